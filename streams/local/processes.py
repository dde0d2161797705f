"""Child processes that never outlive us, and the loopback ports that they listen on.

Why a child goes when we go, even by SIGKILL: nothing of ours runs after SIGKILL, so the kernel has
to do it. Every child starts as a tiny Python that asks Linux for SIGKILL at its parent's death
(`PR_SET_PDEATHSIG`) and then becomes the real program; the wish survives `exec`. It is not done in
`preexec_fn`, which may deadlock in a process with threads. "Parent" means the *thread* that forked,
so one thread that lives as long as the process forks all children. Elsewhere than on Linux there
is no such wish: a killed parent leaves its children there.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.errors import SettingsError

LOOPBACK = "127.0.0.1"

#: argv: the parent's pid, then the real program. Restores what Python's start changes (SIGPIPE).
_LAST_WISH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""

_FORKER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forker")
_POLL_S = 0.03
_FRAME = re.compile(r"\s+(at |\.\.\. \d+ more)")
_handed_out: set[int] = set()


class StartFailed(SettingsError):
    """A child ended, or was not ready in time; the message has the end of its log."""


class ManagedProcess:
    """One child program with a log file, in a process group of its own; a context manager.

    The group keeps a terminal's Ctrl-C from reaching the child: whoever started it decides when it
    stops. The log is appended to, so that a restart keeps what the run before it said. `start`
    after the child has ended runs it again.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log_path: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        grace_s: float = 10.0,
    ) -> None:
        """`env` is the whole environment (None: ours); `grace_s` is what `stop` waits for."""
        self.name = name
        self.log_path = log_path
        self._argv = [str(word) for word in argv]
        self._cwd = cwd
        self._env = env
        self._grace_s = grace_s
        self._log_start = 0
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, also after its end; None before the first start."""
        return self._child.pid if self._child else None

    @property
    def returncode(self) -> int | None:
        """None while it runs or before the first start; minus the signal if one ended it."""
        return self._child.poll() if self._child else None

    @property
    def is_running(self) -> bool:
        """Whether the child has been started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start the child; returns at once.

        Raises:
            SettingsError: there is no such program.
        """
        assert not self.is_running, f"{self.name} runs already"
        program = find_program(self._argv[0])
        wrapper = [sys.executable, "-ISc", _LAST_WISH, str(os.getpid()), str(program)]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._child = _FORKER.submit(
                subprocess.Popen,
                wrapper + self._argv[1:],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env=self._env,
                process_group=0,
            ).result()

    def wait_until(
        self, predicate: Callable[[], bool], deadline_s: float, what: str = "ready"
    ) -> None:
        """Return once `predicate` holds; asked about thirty times a second.

        Raises:
            StartFailed: the child ended before, or `deadline_s` seconds from now have passed.
        """
        end_s = time.monotonic() + deadline_s
        while not predicate():
            if not self.is_running:
                raise self._failed(f"ended (exit {self.returncode}) before it was {what}")
            if time.monotonic() > end_s:
                raise self._failed(f"was not {what} within {deadline_s:g} s")
            time.sleep(_POLL_S)

    def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, and SIGKILL for what is left of the group after `grace_s`; then it is gone."""
        if self._child is None or self._child.poll() is not None:
            return
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(self._grace_s if grace_s is None else grace_s)
        self._end_group()

    def kill(self) -> None:
        """SIGKILL to the whole group; then it is gone."""
        if self.is_running:
            self._end_group()

    def pause(self) -> None:
        """SIGSTOP to the whole group: it keeps its connections and says nothing."""
        if self.is_running:
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: a paused child goes on where it was."""
        if self.is_running:
            self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 12) -> str:
        """The last `lines` lines that this run of the child has logged."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(self._log_start, self.log_path.stat().st_size - 64 * 1024))
            tail = deque(log, maxlen=lines)
        return b"".join(tail).decode("utf-8", "replace").rstrip()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def _end_group(self) -> None:
        assert self._child is not None
        self._signal(signal.SIGKILL)
        self._child.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _failed(self, what: str) -> StartFailed:
        # Java's stack frames would push out the line that says what happened.
        lines = [line for line in self.log_tail(200).splitlines() if not _FRAME.match(line)]
        shown = "\n  ".join(["; it said:", *lines[-10:]]) if lines else " and said nothing"
        return StartFailed(f"{self.name} {what}{shown}\n  (log: {self.log_path})")


def find_program(name: str) -> Path:
    """The program's path: beside this Python (a venv need not be activated), else on PATH.

    Raises:
        SettingsError: it is in neither.
    """
    beside = shutil.which(name, path=sysconfig.get_path("scripts"))
    if found := beside or shutil.which(name):
        return Path(found)
    raise SettingsError(f"{name} is not installed, or not on PATH")


def free_ports(count: int) -> tuple[int, ...]:
    """`count` different free ports of 127.0.0.1, none handed out by this process before.

    They lie below the range from which the kernel takes the ports of outgoing connections: a
    server's port must stay free while it restarts, and a client that reconnects meanwhile could
    be given that very port (it would even connect to itself).
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(15_000, _ephemeral_start()), k=1_000):
            if len(ports) == count:
                break
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                if port not in _handed_out:
                    probe.bind((LOOPBACK, port))
                    ports.append(port)
    if len(ports) < count:
        raise SettingsError(f"no {count} free ports on {LOOPBACK}")
    _handed_out.update(ports)
    return tuple(ports)


def free_port() -> int:
    """One free port of 127.0.0.1; see `free_ports`."""
    return free_ports(1)[0]


def require_free(port: int, what: str) -> None:
    """Return if a server could listen on this port of 127.0.0.1 now.

    Raises:
        SettingsError: it is busy; the message names `what` wants it, and the port.
    """
    with socket.socket() as probe:
        # As servers do: a connection that lingers after its end does not make a port busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError as error:
            raise SettingsError(
                f"port {port}, wanted for {what}, is busy on {LOOPBACK} ({error.strerror}):"
                " stop what listens there or choose another port"
            ) from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Return if the disk that holds `folder` (it need not exist yet) has `needed_bytes` free.

    Raises:
        SettingsError: it has less.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(there).free
    if free_bytes < needed_bytes:
        raise SettingsError(
            f"no space in {folder}: {free_bytes / 1e9:.1f} GB free, {needed_bytes / 1e9:.1f} needed"
        )


def is_listening(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there, within half a second."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def _ephemeral_start() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return 32_768
    return max(int(text.split()[0]), 17_000)
