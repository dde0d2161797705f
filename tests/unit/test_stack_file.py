from pathlib import Path

import pytest

from streams.errors import SettingsError
from streams.local.stack_file import HomeLock, StackFile, own_pid, running_stack


def a_stack_file() -> StackFile:
    return StackFile(
        pid=own_pid(),
        bootstrap="127.0.0.1:9092",
        blobs="file:///srv/blobs",
        group_protocol="classic",
        num_partitions=24,
        replication_factor=1,
        model="/srv/tiny",
        logs="/srv/logs",
        workers={"prompt": 7},
    )


def test_a_running_stack_is_found(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    a_stack_file().write(tmp_path)
    assert running_stack(tmp_path) == a_stack_file()
    lock.release()


def test_a_stopped_stack_is_not_found_and_leaves_no_file(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    a_stack_file().write(tmp_path)
    lock.release()
    assert running_stack(tmp_path) is None
    assert not (tmp_path / "stack.json").exists()


def test_the_file_of_a_killed_stack_is_not_believed(tmp_path: Path) -> None:
    a_stack_file().write(tmp_path)  # and nobody holds the lock
    assert running_stack(tmp_path) is None


def test_a_second_stack_in_the_same_folder_is_refused_by_name(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    a_stack_file().write(tmp_path)
    with pytest.raises(SettingsError, match=r"runs already in .*bootstrap 127\.0\.0\.1:9092"):
        HomeLock(tmp_path)
    assert running_stack(tmp_path) == a_stack_file()  # the attempt did the first no harm
    lock.release()


def test_a_folder_that_cannot_be_made_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="Not a directory"):
        HomeLock(tmp_path / "file" / "home")


def test_no_stack_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert running_stack(tmp_path / "none") is None
