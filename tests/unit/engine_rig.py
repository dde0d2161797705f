"""A MicroBatchEngine to ask: real threads, a real local store, work that does what a test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from schemas.codec import Codec
from schemas.records import GenerationRequest, LatentsReady, Record, StageTiming, VideoDone
from streams import topology
from streams.blobs.fences import Fences, blob_prefix
from streams.blobs.local import LocalStore
from streams.core.events import (
    Announced,
    Drop,
    Emitted,
    End,
    Ended,
    Ending,
    Event,
    Failed,
    HostSick,
    HostWell,
    NotEnded,
    Offload,
    Offloaded,
    Output,
    Places,
    Probed,
    Start,
    Ticket,
    Work,
)
from streams.engine import Task
from tests.builders import CREATED_AT, a_cleaned_prompt, a_job, a_task, a_ticket
from workers.batch_engine import MicroBatchEngine
from workers.engine import RowEngine
from workers.fenced import FencedWork
from workers.stage_work import Report

WAIT_S = 20.0
CODEC = Codec()

Answer = Emitted | Failed | Ended | NotEnded | Offloaded
Word = HostSick | HostWell | Probed


class ScriptedWork:
    """Work whose every step is a hook by job id; without one it succeeds."""

    def __init__(self, stage: str, store: LocalStore) -> None:
        self.stage, self._store = stage, store
        self.batches: list[list[str]] = []  # job ids of every batch computed
        self.on_load: Callable[[], None] = lambda: None
        self.on_begin: Callable[[str], None] = lambda job_id: None
        self.on_key: Callable[[str], None] = lambda job_id: None
        self.on_fetch: Callable[[str], None] = lambda job_id: None
        self.on_compute: Callable[[Sequence[str], Report], None] = lambda job_ids, report: None
        self.on_row: Callable[[str], Exception | None] = lambda job_id: None
        self.on_store: Callable[[str], None] = lambda job_id: None
        self.on_probe: Callable[[], None] = lambda: None

    def load(self) -> None:
        self.on_load()

    def batch_key(self, task: Task) -> Hashable:
        self.on_key(job_id_of(task))
        return None

    def begin(self, task: Task) -> Task:
        self.on_begin(job_id_of(task))
        return task

    def fetch(self, task: Task) -> str:
        self.on_fetch(job_id_of(task))
        return job_id_of(task)

    def compute(self, batch: Sequence[str], report: Report) -> Sequence[Any]:
        self.batches.append(sorted(batch))  # rows come as their inputs do
        self.on_compute(batch, report)
        return [self.on_row(job_id) or f"latents of {job_id}" for job_id in batch]

    def probe(self) -> None:
        self.on_probe()

    def store(self, task: Task, result: str, timing: StageTiming) -> Record:
        record = task.record
        self.on_store(job_id_of(task))
        prefix = blob_prefix(record.job.tenant_id, record.job.job_id, record.job.run, self.stage)
        blob = self._store.put(prefix, [result.encode()], "text/plain")
        return LatentsReady(record.job, blob, "CTHW", True, 2, {}, (*record.timings, timing))


class Rig:
    """An engine of one stage, and the loop's side of it. Leave it and its threads have ended."""

    def __init__(
        self,
        folder: Path,
        stage: str = "sampler",
        place: Callable[[GenerationRequest], int] | None = None,
        on_load: Callable[[], None] = lambda: None,
        codec: Codec = CODEC,
    ) -> None:
        self.store = LocalStore(folder)
        self.fences = Fences(self.store)
        self.work = self.make_work(stage)
        self.work.on_load = on_load
        self.held: list[str] = []
        self.announced: list[Output] = []
        self.answers: list[Answer] = []
        self.words: list[Word] = []  # of the host
        self.places: list[int] = []  # that were offered
        self.measured: list[float] = []  # what all of a record's work takes, in seconds

        def measured(_task: Task, seconds: float) -> None:
            self.measured.append(seconds)

        fenced = FencedWork(
            self.work, topology.stage(stage), self.store, codec, lambda: CREATED_AT, place, measured
        )
        before = set(threading.enumerate())
        self.engine = self.make_engine(fenced)
        self._before = before

    def make_work(self, stage: str) -> ScriptedWork:
        """What the engine is to do."""
        return ScriptedWork(stage, self.store)

    def make_engine(self, fenced: FencedWork) -> RowEngine:
        """The engine under test; its threads begin here."""
        return MicroBatchEngine(fenced, "worker-1", 4, self.held.append, lambda _: None)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()
        assert self.threads() == set(), "threads outlive the engine"

    def threads(self) -> set[threading.Thread]:
        """What runs because of the engine."""
        return {each for each in threading.enumerate() if each not in self._before}

    def start(self, *tasks: Task) -> list[Ticket]:
        """Start a batch; offsets number the records."""
        works = [(a_ticket(task.offset), _work(task)) for task in tasks]
        self.engine.start(Start(tuple(works)))
        return [ticket for ticket, _ in works]

    def end(self, task: Task, ending: Ending) -> Ticket:
        """End a run."""
        ticket = a_ticket(task.offset)
        self.engine.end(End(ticket, _work(task), ending))
        return ticket

    def offload(self, task: Task) -> Ticket:
        """Move an original into the store."""
        ticket = a_ticket(task.offset)
        self.engine.offload(Offload(ticket, _work(task)))
        return ticket

    def drop(self, *tickets: Ticket) -> None:
        """Drop records."""
        self.engine.drop(Drop(tickets))

    def wait_for(self, num_answers: int) -> list[Answer]:
        """All answers so far, ordered by offset, once there are that many."""
        wait_until(lambda: self.take() >= num_answers)
        return sorted(self.answers, key=lambda each: each.ticket.offset)

    def wait_for_word(self, num_words: int) -> None:
        """Return once the host has been spoken of so often."""
        wait_until(lambda: self.take() >= 0 and len(self.words) >= num_words)

    def take(self) -> int:
        """Take what has happened; the number of answers so far."""
        self._sort(self.engine.completions())
        return len(self.answers)

    def _sort(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Announced):
                self.announced.append(event.output)
            elif isinstance(event, Word):
                self.words.append(event)
            elif isinstance(event, Places):
                self.places.append(event.num)
            else:
                assert isinstance(event, Answer)
                self.answers.append(event)


def raising(error: Exception, *job_ids: str, times: int = 1_000) -> Callable[[str], None]:
    """A hook that raises for these jobs (all, if none is named), that many times."""
    left = times

    def hook(job_id: str) -> None:
        nonlocal left
        if left and (job_id in job_ids or not job_ids):
            left -= 1
            raise error

    return hook


class Gate:
    """A computation that goes on, a step at a time, until it is abandoned or let through."""

    def __init__(self) -> None:
        self.entered, self.left, self.opened = (threading.Event() for _ in range(3))

    def __call__(self, job_ids: Sequence[str], report: Report) -> None:
        self.entered.set()
        try:
            while not self.opened.wait(0.005):
                report(1, 1000)
        finally:
            self.left.set()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; it must, within WAIT_S."""
    deadline_s, never = time.monotonic() + WAIT_S, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline_s, "waited in vain"
        never.wait(0.002)


def tasks_of(*job_ids: str) -> list[Task]:
    """A CleanedPrompt of each job, at offsets 0, 1, 2..."""
    return [
        a_task(a_cleaned_prompt(job=a_job(job_id=job_id)), offset=offset)
        for offset, job_id in enumerate(job_ids)
    ]


def job_id_of(task: Task) -> str:
    """The job of a task's record."""
    record = task.record
    return record.job_id if isinstance(record, GenerationRequest) else record.job.job_id


def done_of(answer: Answer) -> VideoDone:
    """The VideoDone that an answer tells of, and nothing else."""
    assert isinstance(answer, Emitted | Ended)
    (output,) = answer.outputs
    assert output.topic == topology.VIDEOS_DONE
    return CODEC.decode(output.value, VideoDone)


def latents_of(answer: Answer) -> LatentsReady:
    """The LatentsReady that an answer tells of, and nothing else."""
    assert isinstance(answer, Emitted)
    (output,) = answer.outputs
    assert output.topic == "latents.ready"
    return CODEC.decode(output.value, LatentsReady)


def _work(task: Task) -> Work:
    return Work(job_id_of(task), 1, None, None, task)
