"""What test workers write down, in files that outlive their SIGKILL, and where they must die.

<folder>/work.log               a line per thing done: time, process, stage, what, jobs
<folder>/<stage>.<failpoint>    the next of that stage's workers to pass there kills itself
<folder>/poisoned               while it is there, frail jobs (`frail.<stage>.*`) can't be worked
<folder>/<stage>.sick           while it is there, that stage's devices can compute nothing
<folder>/tight                  while it is there, devices have memory for small batches only
<folder>/held                   while it is there, the work of `held.<stage>.*` does not end
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Failpoint = Literal["after-fetch", "after-work", "after-upload", "after-produce", "before-commit"]
FAILPOINTS: tuple[Failpoint, ...] = (
    "after-fetch", "after-work", "after-upload", "after-produce", "before-commit",
)  # fmt: skip
POISONED = "poisoned"
"""Reason code of the frail jobs' dead letters."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`what` is `fetched`, `worked`, `stored`, or the failpoint where the process died.

    Of a real sampler also `loading`, when it begins to fetch, and `opened`, `stepped` and `saved`,
    each with the number of steps done after a colon (tests/chaos/real_sampler.py).
    """

    at_s: float
    pid: int
    stage: str
    what: str
    job_ids: tuple[str, ...]


class Ledger:
    """The book of one stage's workers; lines of several processes never mix."""

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder, self._stage = folder, stage
        self._file = os.open(folder / "work.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, what: str, job_ids: Sequence[str] = ()) -> None:
        """Write a line; it is there whatever happens to this process next."""
        words = (f"{time.time():.3f}", str(os.getpid()), self._stage, what, *job_ids)
        os.write(self._file, f"{' '.join(words)}\n".encode())

    def passes(self, point: Failpoint, job_ids: Sequence[str] = ()) -> None:
        """Die here, by SIGKILL, if somebody has armed this failpoint: once for each time."""
        dying = _dying(self._folder, self._stage, point)
        try:
            _armed(self._folder, self._stage, point).rename(dying)
        except FileNotFoundError:
            return
        self.write(point, job_ids)
        dying.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class Reading:
    """What all workers have written in a folder, read on from where it was at each look."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "work.log"
        self._num_bytes = 0
        self._entries: list[Entry] = []

    def entries(self) -> Sequence[Entry]:
        """All so far, in order."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._num_bytes)
                found = file.read()
            whole = found[: found.rfind(b"\n") + 1]
            self._num_bytes += len(whole)
            self._entries.extend(map(_entry, whole.decode().splitlines()))
        return self._entries


def arm(folder: Path, stage: str, point: Failpoint) -> None:
    """The next worker of that stage to pass there dies."""
    _armed(folder, stage, point).touch()


def is_armed(folder: Path, stage: str, point: Failpoint) -> bool:
    """Whether nobody has passed there since, and written so."""
    return _armed(folder, stage, point).exists() or _dying(folder, stage, point).exists()


def disarm(folder: Path) -> None:
    """Nobody dies any more."""
    for point in FAILPOINTS:
        for path in folder.glob(f"*.{point}*"):
            path.unlink(missing_ok=True)


def poison(folder: Path) -> None:
    """Frail jobs can't be worked in the stage that their id names."""
    (folder / "poisoned").touch()


def cure(folder: Path) -> None:
    """They can."""
    (folder / "poisoned").unlink(missing_ok=True)


def is_ill(folder: Path, stage: str, job_id: str) -> bool:
    """Whether that stage can't work that job, just now."""
    return job_id.startswith(f"frail.{stage}.") and (folder / "poisoned").exists()


def fall_sick(folder: Path, stage: str) -> None:
    """That stage's devices are lost."""
    (folder / f"{stage}.sick").touch()


def recover(folder: Path, stage: str) -> None:
    """They are there again."""
    (folder / f"{stage}.sick").unlink()


def is_sick(folder: Path, stage: str) -> bool:
    """Whether that stage's devices are lost, just now."""
    return (folder / f"{stage}.sick").exists()


def set_tight(folder: Path, is_so: bool) -> None:
    """Devices have memory for small batches only, or for all."""
    if is_so:
        (folder / "tight").touch()
    else:
        (folder / "tight").unlink()


def is_tight(folder: Path) -> bool:
    """Whether devices have memory for small batches only."""
    return (folder / "tight").exists()


def set_held(folder: Path, is_so: bool) -> None:
    """The work of held jobs does not end, or does."""
    if is_so:
        (folder / "held").touch()
    else:
        (folder / "held").unlink()


def is_held(folder: Path, stage: str, job_id: str) -> bool:
    """Whether that stage's work on that job does not end, just now."""
    return job_id.startswith(f"held.{stage}.") and (folder / "held").exists()


def in_hand(entries: Iterable[Entry], pid: int) -> set[str]:
    """Jobs whose computation that process has begun, and not stored."""
    found: set[str] = set()
    for entry in entries:
        if entry.pid == pid and entry.what == "worked":
            found.update(entry.job_ids)
        elif entry.pid == pid and entry.what == "stored":
            found.difference_update(entry.job_ids)
    return found


def _entry(line: str) -> Entry:
    at_s, pid, stage, what, *job_ids = line.split(" ")
    return Entry(float(at_s), int(pid), stage, what, tuple(job_ids))


def _armed(folder: Path, stage: str, point: Failpoint) -> Path:
    return folder / f"{stage}.{point}"


def _dying(folder: Path, stage: str, point: Failpoint) -> Path:
    """There from when somebody has passed until it has written so."""
    return folder / f"{stage}.{point}.dying"
