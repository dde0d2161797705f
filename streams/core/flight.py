"""A delivered record on its way to a finished offset."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto

from streams.core.events import (
    Command,
    DeadLetter,
    End,
    Ending,
    Fault,
    Headers,
    Offload,
    Output,
    Park,
    Produce,
    Retry,
    Ticket,
    Work,
)
from streams.core.offset_map import NO_CRASHES, Crashes
from streams.core.runs import RunOfJob
from streams.core.shares import Over

Rank = tuple[int, int, int, int]
"""Copies of one job order by run, try, crashes and how often they stepped aside: a copy always
outranks what it is a copy of."""


class Phase(Enum):
    """Where in its life a delivered record is."""

    # Members are alone of their kind; Enum's own hash is that of the name, made anew each time.
    __hash__ = object.__hash__

    BEHIND = auto()  # another copy of its job is at work
    DELAYED = auto()  # not due yet
    PARKED = auto()  # its tenant has its quota in the pipeline
    WAITING = auto()  # for a batch
    ENTERING = auto()  # its start marker is being committed
    RUNNING = auto()
    JUDGED = auto()  # failed; a probe will tell whether it was the host
    PARKING = auto()  # a copy goes to `requests.deferred`
    RETRYING = auto()  # a copy goes to a retry topic
    DEAD_LETTERING = auto()
    OFFLOADING = auto()  # the original goes to the object store first
    ENDING = auto()
    PRODUCING = auto()


#: Phases of which nothing outside knows: such a record may be finished unworked, or handed back.
NOT_BEGUN = frozenset({Phase.BEHIND, Phase.DELAYED, Phase.PARKED, Phase.WAITING})
#: Phases in which a process that dies would take the record's crash count up.
IN_ENGINE = frozenset({Phase.ENTERING, Phase.RUNNING})


@dataclass(slots=True)
class Flight:
    """A delivered record that has not finished."""

    ticket: Ticket
    work: Work
    verdict: Fault | Ending | None = None  # what its delivery said of it
    phase: Phase = Phase.BEHIND
    crashes: Crashes = NO_CRASHES
    batch: int = 0
    outputs: tuple[Output, ...] = ()
    fault: Fault | None = None
    blob: Headers = ()
    retry: Retry | None = None
    over: Over | None = None
    asked_until_s: float | None = None  # for how long it first asked for a share
    ending: Ending | None = None
    num_end_tries: int = 0
    rank: Rank = field(init=False)
    run_of_job: RunOfJob | None = field(init=False)  # None: it could not be decoded

    def outranks(self, other: Flight) -> bool:
        """Whether it is a copy of the other, of a higher rank."""
        return self.rank > other.rank and self.work.identity == other.work.identity

    @property
    def is_untried(self) -> bool:
        """Whether nothing has come of it yet, in whatever run: no try, no crash, no way aside."""
        return self.rank[1:] == (1, 0, 0) and self.crashes == NO_CRASHES

    def asks_until_s(self, deadline_s: float | None, latest_s: float) -> float:
        """For how long it asks for a share: until its deadline, or at the latest.

        Without a deadline the same whenever it asks, or its place in line would move.
        """
        if self.asked_until_s is None:
            self.asked_until_s = latest_s
        return self.asked_until_s if deadline_s is None else deadline_s

    def __post_init__(self) -> None:
        """Its rank is that of the record as it was delivered."""
        work = self.work
        self.rank = (work.run, work.try_number, work.crashes.num, work.num_diverted)
        self.run_of_job = None
        if work.job_id is not None:
            self.run_of_job = RunOfJob(work.charge.tenant_id, work.job_id, work.run)

    def question(self) -> Command:
        """What is asked for it in its phase; asking again does no harm."""
        match self.phase:
            case Phase.PRODUCING:
                return Produce(self.ticket, self.outputs)
            case Phase.PARKING:
                assert self.over is not None
                return Park(self.ticket, self.work, self.over)
            case Phase.RETRYING:
                assert self.retry is not None
                return self.retry
            case Phase.ENDING:
                assert self.ending is not None
                return End(self.ticket, self.work, self.ending)
        assert self.fault is not None, f"{self.phase} asks for nothing"
        if self.phase is Phase.OFFLOADING:
            return Offload(self.ticket, self.work)
        return DeadLetter(self.ticket, self.work, self.fault, self.blob)


def timed(work: Work, now_s: float) -> Work:
    """A delivered record, due no later than our own clock makes it."""
    if work.due_s is None or work.delay_s is None:
        return work
    return replace(work, due_s=min(work.due_s, now_s + work.delay_s))
