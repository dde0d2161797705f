"""What a stage does, as the engine sees it: the protocol that each stage's work implements."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from schemas.records import BlobRef, Job, Record, StageTiming
from streams.engine import Task

Report = Callable[[int, int], None]


class StageWork(Protocol):
    """Work of one stage; blocking, without Kafka and without knowledge of redeliveries.

    Errors say by their type what becomes of the record (streams/errors.py).
    """

    stage: str

    def load(self) -> None:
        """Load the model; on the engine thread, once, before anything else.

        Raises:
            SettingsError: there is no such model here, or it is not one.
        """

    def batch_key(self, task: Task) -> Hashable:
        """Records of one batch have equal keys. On the loop's thread: cheap, no I/O.

        Raises:
            InvalidRecord, Rejected
        """

    def begin(self, task: Task) -> Task:
        """The task as it is to be worked: in the partition that the job keeps.

        Before anything else is done for a record; on an I/O thread, perhaps more than once.
        """

    def fetch(self, task: Task) -> Any:
        """The inputs of the computation; on an I/O thread."""

    def probe(self) -> None:
        """Work a small job that is known to be good; whatever it raises is this host's fault.

        On the engine thread, alone.
        """

    def store(self, task: Task, result: Any, timing: StageTiming) -> Record:
        """Put a result's blobs into the store; the record that tells of it. On an I/O thread."""


class BatchWork(StageWork, Protocol):
    """Work that is done on a batch, from beginning to end (workers/batch_engine.py)."""

    def compute(self, batch: Sequence[Any], report: Report) -> Sequence[Any]:
        """The results, in order; an exception in a row's place is that row's failure.

        On the engine thread, alone. Call `report(step, num_steps)` after each step: it may raise
        to abandon the batch.
        """


@runtime_checkable
class AdmittingWork(StageWork, Protocol):
    """Work that makes jobs of requests: quotas are asked before it (workers/prompt/shares.py)."""

    def job(self, task: Task) -> Job:
        """The job that a request would be. On the loop's thread: cheap, no I/O.

        Raises:
            Rejected: it would be none.
        """


@runtime_checkable
class SteppedWork(StageWork, Protocol):
    """Work that is done in steps, each on the jobs that are there by then (step_engine.py).

    All on the engine thread, alone. A job's state is a value: a step makes a new one and leaves the
    old as it was, so a step that fails can be done again, with fewer rows.
    """

    def identity(self) -> str:
        """What the time of a step depends on besides its shape: model, device, precision."""

    def open(self, inputs: Any) -> Any:
        """The state of a job before its first step, from what `fetch` gave."""

    def width(self, state: Any) -> int:
        """How many rows of a forward it takes."""

    def step_key(self, state: Any) -> Hashable:
        """Jobs whose next steps may share a forward have equal keys."""

    def is_alone(self, state: Any) -> bool:
        """Whether it shares no forward, with whatever others of its key."""

    def steps(self, state: Any) -> tuple[int, int]:
        """How many steps are done, and of how many."""

    def step(self, states: Sequence[Any], is_split: bool) -> Sequence[Any]:
        """The states after one more step; an exception in a job's place is that job's failure.

        `is_split`: a guided job's rows go through two forwards, for want of memory.

        Raises:
            OutOfMemory: no state has changed.
        """

    def snapshot(self, state: Any) -> Callable[[], None]:
        """What stores a checkpoint of this state, from which `open` may begin, on an I/O thread."""

    def preview(self, state: Any) -> Callable[[], BlobRef] | None:
        """What stores a picture of what it will be, on an I/O thread; None: there is none."""

    def forget(self, inputs: Any) -> None:
        """Remove a job's checkpoints: its result is published. On an I/O thread."""

    def result(self, state: Any) -> Any:
        """What `store` gets once all steps are done, or an exception: the job's failure."""

    def free_memory(self) -> None:
        """Give back what is cached."""

    def memory_bytes(self) -> int | None:
        """The device's memory; None where its peaks cannot be measured."""

    def peak_bytes(self) -> int | None:
        """The most memory in use at a time since this was last asked; None as above."""

    def num_compiled_graphs(self) -> int:
        """How often a step of another shape had to be compiled, so far. On any thread."""
