"""A delivered record on its way to a finished offset."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from streams.core.events import Ending, Fault, Output, Ticket, Work

RunOfJob = tuple[str, int]


class Phase(Enum):
    """Where in its life a delivered record is."""

    WAITING = auto()
    RUNNING = auto()
    DEAD_LETTERING = auto()
    ENDING = auto()
    PRODUCING = auto()


@dataclass(slots=True)
class Flight:
    """A delivered record that has not finished."""

    ticket: Ticket
    work: Work
    verdict: Fault | Ending | None = None  # what its delivery said of it
    phase: Phase = Phase.WAITING
    batch: int = 0
    outputs: tuple[Output, ...] = ()
    fault: Fault | None = None

    @property
    def run_of_job(self) -> RunOfJob | None:
        """What it works on; None for a record that could not be decoded."""
        return None if self.work.job_id is None else (self.work.job_id, self.work.run)
