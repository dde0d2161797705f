"""Showing a job on its way: a bar per stage on a terminal, plain lines elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from schemas.records import JobEvent, VideoDone
from streams.cli.terminal import duration, say
from streams.topology import worker_stages

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_S = 2.0
_STAGES = tuple(stage.name for stage in worker_stages())


class Progressing(Protocol):
    """What is told of a job's events."""

    def show(self, event: JobEvent) -> None:
        """Something happened."""

    def end(self, done: VideoDone) -> None:
        """It is over."""


class PlainLines:
    """A line for what happened; of the many steps only one every few seconds."""

    def __init__(self) -> None:
        self._shown_s = 0.0

    def show(self, event: JobEvent) -> None:
        """Say it, if it is worth a line."""
        if event.kind == "progress" and event.step != event.num_steps:
            if time.monotonic() < self._shown_s + _LINE_EVERY_S:
                return
            self._shown_s = time.monotonic()
        say(event_line(event))

    def end(self, done: VideoDone) -> None:
        """Say nothing: the caller tells the end."""


class Bars:
    """A bar per stage: full when a later stage has begun."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {
            name: progress.add_task(name, total=1, start=False, detail="") for name in _STAGES
        }
        self._reached = -1

    def show(self, event: JobEvent) -> None:
        """Move the stage's bar."""
        if event.stage not in self._tasks:
            return
        position = _STAGES.index(event.stage)
        self._fill(position)
        task = self._tasks[event.stage]
        if position > self._reached:
            self._reached = position
            self._progress.start_task(task)
        if event.step is not None and event.num_steps:
            detail = f"{event.step}/{event.num_steps}"
            self._progress.update(task, completed=event.step, total=event.num_steps, detail=detail)
        elif event.kind not in ("started", "progress", "preview"):
            self._progress.update(task, detail=event.kind)

    def end(self, done: VideoDone) -> None:
        """Fill them all, if it completed."""
        if done.status == "completed":
            self._fill(len(_STAGES))

    def _fill(self, position: int) -> None:
        for name in _STAGES[:position]:
            task = self._progress.tasks[self._tasks[name]]
            if not task.finished:
                self._progress.start_task(task.id)
                self._progress.update(task.id, completed=task.total)


@contextmanager
def progressing() -> Iterator[Progressing]:
    """What suits stderr."""
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        TextColumn("{task.fields[detail]:<8}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bars(progress)


async def follow(events: AsyncIterator[JobEvent | VideoDone]) -> VideoDone:
    """Show everything up to the end of the job, which is returned."""
    with progressing() as shown:
        async for event in events:
            if isinstance(event, VideoDone):
                shown.end(event)
                return event
            shown.show(event)
    raise AssertionError("the events of a job end with its VideoDone")


def event_line(event: JobEvent) -> str:
    """An event as a line: time, stage, what, steps, detail."""
    words = [event.at.astimezone().strftime("%H:%M:%S"), event.stage, event.kind]
    if event.step is not None:
        words.append(f"{event.step}/{event.num_steps}")
    if event.kind == "batched_with":
        words.append(str(event.batched_with))
    if event.detail:
        words.append(event.detail)
    return " ".join(words)


def done_line(done: VideoDone) -> str:
    """An ending as a line: how, after how long, and what came of it or why not."""
    took = duration((done.finished_at - done.created_at).total_seconds())
    if done.video is not None:
        return f"{done.status} in {took}: {done.video.uri}"
    why = ": ".join(word for word in (done.reason_code, done.reason) if word)
    return f"{done.status} after {took}: {why}" if why else f"{done.status} after {took}"
