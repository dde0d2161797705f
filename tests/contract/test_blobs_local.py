"""What a folder as blob store has to stand beyond the common contract."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.blobs.base import open_store
from streams.errors import BlobMissing, InvalidRecord, SettingsError, SickHost
from tests.contract.places import LocalPlace

PREFIX = "acme/order-7/1/decoder"
MIB = 1 << 20


def put_and_hang(settings: dict[str, Any], half_way: Any) -> None:
    """In a process of its own: stop in the middle of a put."""

    def endless() -> Iterator[bytes]:
        yield bytes(4 * MIB)
        half_way.set()
        time.sleep(600)

    open_store(**settings).put(PREFIX, endless(), "a/b")


def test_a_process_killed_in_a_put_leaves_nothing_visible(local_place: LocalPlace) -> None:
    store = local_place.open()
    spawn = multiprocessing.get_context("spawn")
    half_way = spawn.Event()
    writer = spawn.Process(target=put_and_hang, args=(local_place.settings, half_way))
    writer.start()
    assert half_way.wait(60)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(30)
    assert local_place.keys() == set()
    (leftover,) = local_place.temporary_files()

    ref = store.put(PREFIX, [b"latents"], "a/b")
    local_place.open()
    assert leftover.exists(), "it may belong to a writer that is still at work"
    two_days_ago_s = time.time() - 2 * 24 * 3600
    os.utime(leftover, (two_days_ago_s, two_days_ago_s))
    local_place.open()
    assert local_place.temporary_files() == set()
    assert store.verify(ref)


def write_beyond_the_limit(settings: dict[str, Any], answers: Any) -> None:
    """In a process of its own: no file may grow over one MiB, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    store = open_store(**settings)
    try:
        store.put(PREFIX, [bytes(MIB)] * 4, "a/b")
    except SickHost as error:
        answers.put(str(error))
    else:
        answers.put("nothing was wrong")
    store.put(PREFIX, [b"small"], "a/b")


def test_a_disk_that_takes_no_more_is_a_sick_host_and_leaves_nothing(
    local_place: LocalPlace,
) -> None:
    local_place.open()
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    writer = spawn.Process(target=write_beyond_the_limit, args=(local_place.settings, answers))
    writer.start()
    assert answers.get(timeout=60) == f"writing a blob of {PREFIX}: File too large"
    writer.join(30)
    assert writer.exitcode == 0
    assert len(local_place.keys()) == 1
    assert local_place.temporary_files() == set()


def test_no_temporary_file_stays_behind(local_place: LocalPlace) -> None:
    store = local_place.open()
    for _ in range(2):
        store.put(PREFIX, [b"latents"], "a/b")
        store.create("acme/order-7/request", b"mine")
    assert local_place.temporary_files() == set()
    assert len(local_place.keys()) == 2


def test_a_store_that_is_unmounted_is_a_sick_host_not_an_empty_one(
    local_place: LocalPlace,
) -> None:
    store = local_place.open()
    ref = store.put(PREFIX, [b"latents"], "a/b")
    local_place.root.rename(local_place.root.with_name("elsewhere"))
    with pytest.raises(SickHost):
        store.read(ref, 100)
    with pytest.raises(SickHost):
        store.load("acme/order-7/request")
    with pytest.raises(SickHost):
        store.put(PREFIX, [b"latents"], "a/b")
    with pytest.raises(SickHost):
        store.create("acme/order-7/request", b"mine")
    assert not local_place.root.exists()


def test_a_symbolic_link_leads_nowhere(local_place: LocalPlace, tmp_path: Path) -> None:
    store = local_place.open()
    ref = store.put(PREFIX, [b"latents"], "a/b")
    key = ref.uri.removeprefix(store.root_uri + "/")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"latents")

    (local_place.root / "evil").symlink_to(outside)
    assert_refused(lambda: store.put("evil/order", [b"x"], "a/b"))
    assert_refused(lambda: store.create("evil/request", b"x"))
    assert_refused(lambda: store.load("evil/secret"))
    (local_place.root / key).unlink()
    (local_place.root / key).symlink_to(outside / "secret")
    assert_refused(lambda: store.read(ref, 100))
    assert [path.name for path in outside.iterdir()] == ["secret"]


def assert_refused(use: Any) -> None:
    with pytest.raises(InvalidRecord, match="symbolic link"):
        use()


def test_a_root_behind_a_symbolic_link_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "blobs").symlink_to(tmp_path / "disk")
    store = LocalPlace(tmp_path / "blobs").open()
    assert store.root_uri == (tmp_path / "blobs").as_uri()
    assert store.read(store.put(PREFIX, [b"latents"], "a/b"), 100) == b"latents"


def test_a_root_with_blanks_in_its_name_works(tmp_path: Path) -> None:
    store = LocalPlace(tmp_path / "my blobs ä").open()
    assert store.read(store.put(PREFIX, [b"latents"], "a/b"), 100) == b"latents"
    assert (tmp_path / "my blobs ä" / PREFIX).is_dir()


def test_a_fifo_in_place_of_a_blob_hangs_nobody(local_place: LocalPlace) -> None:
    store = local_place.open()
    ref = store.put(PREFIX, [b"latents"], "a/b")
    path = local_place.root / ref.uri.removeprefix(store.root_uri + "/")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BlobMissing):
        store.read(ref, 100)


def test_a_root_that_is_a_file_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="blob folder"):
        LocalPlace(tmp_path / "file").open()
