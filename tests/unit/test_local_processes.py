"""Children end with us, ports don't collide, and what goes wrong is told in one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.errors import SettingsError
from streams.local.processes import (
    LOOPBACK,
    ManagedProcess,
    StartFailed,
    find_program,
    free_ports,
    is_listening,
    require_free,
    require_space,
)

_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"


def wait_for(predicate: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not predicate():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """No such process, or one that has ended and nobody has asked after yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def python(tmp_path: Path, code: str, name: str = "child") -> ManagedProcess:
    return ManagedProcess(name, [sys.executable, "-c", code], log_path=tmp_path / "child.log")


def test_a_child_runs_with_its_log_and_ends_at_stop(tmp_path: Path) -> None:
    child = python(tmp_path, "import time; print('hello', flush=True); time.sleep(600)")
    with child:
        child.wait_until(lambda: "hello" in child.log_tail(), 10)
        assert child.is_running
        assert child.pid is not None
        assert os.getpgid(child.pid) == child.pid, "a terminal's Ctrl-C must not reach it"
    assert child.returncode == -signal.SIGTERM
    assert is_gone(child.pid)


def test_a_child_starts_again_and_its_log_tail_is_of_this_run_only(tmp_path: Path) -> None:
    child = python(tmp_path, "import os; print('run', os.getpid())")
    for _ in range(2):
        child.start()
        wait_for(lambda: not child.is_running)
        assert child.log_tail() == f"run {child.pid}"
    assert len(child.log_path.read_text().splitlines()) == 2


def test_a_child_has_the_environment_and_the_folder_that_it_was_given(tmp_path: Path) -> None:
    child = ManagedProcess(
        "child",
        [sys.executable, "-c", "import os; print(os.environ['REEL_X'], os.getcwd())"],
        log_path=tmp_path / "log",
        cwd=tmp_path,
        env={"REEL_X": "42"},
    )
    child.start()
    wait_for(lambda: not child.is_running)
    assert child.log_tail() == f"42 {tmp_path}"


def test_what_ignores_sigterm_is_killed_after_the_grace_with_its_own_children(
    tmp_path: Path,
) -> None:
    grandchild = "import subprocess, sys, time\n" + (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)"
    )
    child = python(tmp_path, f"{_STUBBORN}\n{grandchild}")
    with child:
        child.wait_until(lambda: len(child.log_tail().split()) == 2, 10)
        child.stop(grace_s=0.1)
    assert child.returncode == -signal.SIGKILL
    wait_for(lambda: is_gone(int(child.log_tail().split()[1])))


def test_a_child_that_ends_too_early_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = python(tmp_path, "import sys; print('no such planet'); sys.exit(3)", "the tester")
    child.start()
    with pytest.raises(
        StartFailed, match=r"^the tester ended \(exit 3\) before it was ready; it said:\n  no such"
    ):
        child.wait_until(lambda: False, 10)


def test_a_child_that_is_not_ready_in_time_is_told_and_still_runs(tmp_path: Path) -> None:
    with python(tmp_path, "import time; time.sleep(600)", "the sleeper") as child:
        with pytest.raises(StartFailed, match=r"the sleeper was not awake within 0.05 s"):
            child.wait_until(lambda: False, 0.05, "awake")
        assert child.is_running


def test_a_program_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    missing = ManagedProcess("x", ["reel-no-such-program"], log_path=tmp_path / "log")
    with pytest.raises(SettingsError, match=r"^reel-no-such-program is not installed"):
        missing.start()


def test_programs_of_this_environment_are_found_without_activating_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_program("pytest").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of the killed")
def test_children_die_when_their_parent_is_killed(tmp_path: Path) -> None:
    sleeper = "import time; print('up', flush=True); time.sleep(600)"
    code = f"""
import sys, time
from pathlib import Path
from streams.local.processes import ManagedProcess
for name in ("a", "b"):
    argv = [sys.executable, "-c", {sleeper!r}]
    child = ManagedProcess(name, argv, log_path=Path(name))
    child.start()
    child.wait_until(lambda: child.log_tail() == "up", 20)
    print(child.pid, flush=True)
time.sleep(600)
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, env=env
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert not any(is_gone(pid) for pid in pids)
        parent.kill()
    wait_for(lambda: all(is_gone(pid) for pid in pids))


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """Linux's parent is a thread: without a lasting one, a supervisor's thread would kill it."""
    child = python(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    starter = threading.Thread(target=child.start)
    starter.start()
    starter.join()
    try:
        child.wait_until(lambda: child.log_tail() == "up", 20)
        with pytest.raises(StartFailed, match="was not dead within"):
            child.wait_until(lambda: False, 0.2, "dead")
    finally:
        child.kill()
    assert child.returncode == -signal.SIGKILL


def test_free_ports_are_all_different_and_below_those_of_outgoing_connections() -> None:
    ports = [port for _ in range(20) for port in free_ports(8)]
    assert len(set(ports)) == 160
    with socket.create_server((LOOPBACK, 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        assert max(ports) < client.getsockname()[1]


def test_a_busy_port_is_told_in_one_line() -> None:
    (port,) = free_ports(1)
    require_free(port, "the broker")
    assert not is_listening(LOOPBACK, port)
    with socket.create_server((LOOPBACK, port)):
        assert is_listening(LOOPBACK, port)
        with pytest.raises(SettingsError, match=f"^port {port}, wanted for the broker, is busy"):
            require_free(port, "the broker")
    require_free(port, "the broker")


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(
        SettingsError, match=r"^no space in .*: [0-9.]+ GB free, 1000000000.0 needed"
    ):
        require_space(tmp_path / "not" / "yet", 10**18)
    assert not (tmp_path / "not").exists()


def test_a_paused_child_stands_still_until_it_is_resumed(tmp_path: Path) -> None:
    def state() -> str:
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    child = python(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    with child:
        child.wait_until(lambda: "up" in child.log_tail(), 10)
        child.pause()
        wait_for(lambda: state() == "T")
        child.resume()
        wait_for(lambda: state() != "T")
        child.pause()
        child.kill()
    assert child.returncode == -signal.SIGKILL
