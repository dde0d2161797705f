"""What a stage does, as the engine sees it: the protocol that each stage's work implements."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from schemas.records import Record, StageTiming
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
        """The inputs that `compute` gets; on an I/O thread."""

    def compute(self, batch: Sequence[Any], report: Report) -> Sequence[Any]:
        """The results, in order; an exception in a row's place is that row's failure.

        On the engine thread, alone. Call `report(step, num_steps)` after each step: it may raise
        to abandon the batch.
        """

    def probe(self) -> None:
        """Work a small job that is known to be good; whatever it raises is this host's fault.

        On the engine thread, alone.
        """

    def store(self, task: Task, result: Any, timing: StageTiming) -> Record:
        """Put a result's blobs into the store; the record that tells of it. On an I/O thread."""
