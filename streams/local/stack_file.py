"""`<home>/stack.json`: what runs under a home folder, for the commands that talk to it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from streams.errors import SettingsError


@dataclass(frozen=True, slots=True)
class StackFile:
    """A running local stack. `workers` maps a worker's name to its process id."""

    pid: int
    bootstrap: str
    blobs: str
    group_protocol: str
    num_partitions: int
    replication_factor: int
    model: str
    logs: str
    workers: Mapping[str, int]

    def write(self, home: Path) -> None:
        """Put it in its place, whole."""
        path = home / "stack.json"
        new = path.with_suffix(".json.new")
        new.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        new.replace(path)


class HomeLock:
    """Whoever holds it runs the one stack of a home folder; given back at the process's death."""

    def __init__(self, home: Path) -> None:
        """Take it.

        Raises:
            SettingsError: another process holds it, or the folder cannot be made.
        """
        self._home = home
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = (home / "stack.lock").open("a")
        except OSError as fault:
            raise SettingsError(f"the folder {home}: {fault.strerror}") from fault
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            other = running_stack(home)
            who = f" (pid {other.pid}, bootstrap {other.bootstrap})" if other else ""
            raise SettingsError(
                f"a stack runs already in {home}{who}: stop it, or choose another --dir"
            ) from None
        (home / "stack.json").unlink(missing_ok=True)  # of a stack that was killed

    def release(self) -> None:
        """Give it back and forget the stack."""
        if not self._file.closed:
            (self._home / "stack.json").unlink(missing_ok=True)
            self._file.close()


def running_stack(home: Path) -> StackFile | None:
    """The stack that runs in `home` now; None where there is none, or only a dead one's file."""
    with suppress(OSError, ValueError, TypeError):
        with (home / "stack.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None  # nobody holds it
            except OSError:
                pass
        return StackFile(**json.loads((home / "stack.json").read_text(encoding="utf-8")))
    return None


def own_pid() -> int:
    """This process, as `StackFile.pid` has it."""
    return os.getpid()
