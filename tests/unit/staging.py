"""A StageState to ask: what the unit tests of the stage share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from streams.core.events import (
    Acknowledged,
    Assigned,
    Command,
    Commit,
    CommitPoint,
    Committed,
    Emitted,
    Event,
    Fate,
    Fault,
    Retry,
    Start,
    Tick,
    Ticket,
    Work,
)
from streams.core.limits import StageLimits
from streams.core.offset_map import Crashes, OffsetMap, encode_offset_map
from streams.core.retry import RetryPolicy
from streams.core.stage import StageState
from tests.builders import (
    P0,
    a_delivery,
    a_fault,
    a_start_offset,
    a_ticket,
    an_output,
)

LIMITS = StageLimits(
    window_high=4, window_low=1, batch_max=2, batch_age_s=1.0, max_batches=2,
    commit_interval_s=1.0, drain_s=5.0,
)  # fmt: skip
OUTPUTS = (an_output(),)
LATER = a_fault(fate=Fate.LATER, reason_code="hiccup")
T0, T1, T2 = a_ticket(0), a_ticket(1), a_ticket(2)
ENTERED = Crashes(1, 0)
"""The count of a record inside the engine, should the process die now."""


class Turn:
    """A tick whose asynchronous commit, if it asks for one, succeeds at once and is not shown."""


TURN = Turn()


class Stage:
    """A state with P0 assigned from offset 0; `at` says the time of what follows."""

    def __init__(self, *events: Event | Turn, limits: StageLimits = LIMITS) -> None:
        self.state, self.now_s = StageState(limits), 0.0
        self(Assigned({P0: a_start_offset()}), *events)

    def __call__(self, *events: Event | Turn) -> list[Command]:
        """The commands of these events."""
        commands: list[Command] = []
        for event in events:
            if isinstance(event, Turn):
                commands += self._turn()
            else:
                commands += self.state.handle(event, self.now_s)
        return commands

    def at(self, now_s: float) -> Stage:
        """It is later now."""
        self.now_s = now_s
        return self

    def finish(self, *tickets: Ticket) -> None:
        """See through the records that run."""
        for ticket in tickets:
            self(Emitted(ticket, OUTPUTS), Acknowledged(ticket))

    def _turn(self) -> list[Command]:
        commands = self(Tick())
        shown = [each for each in commands if not isinstance(each, Commit) or each.must_finish]
        return shown if shown == commands else shown + self(Committed(True))


def a_retry(delivery_work: Work, ticket: Ticket = T0, fault: Fault = LATER) -> Retry:
    """The next try of a work after the first delay that is the jitter's for it."""
    work = replace(delivery_work, try_number=delivery_work.try_number + 1, due_s=None)
    assert work.job_id
    delay_s = RetryPolicy().delay_s(work.job_id, work.run, delivery_work.try_number)
    assert delay_s
    return Retry(ticket, work, delay_s, fault)


def started(*offsets: int, **changes: Any) -> Start:
    """A batch of records as `a_delivery` makes them."""
    return Start(
        tuple((a_ticket(offset), a_delivery(offset, **changes).work) for offset in offsets)
    )


def a_point(
    offset: int, *finished: int, crashes: Mapping[int, Crashes] | None = None
) -> CommitPoint:
    """A commit that also says what is finished beyond the offset, and what has crashed."""
    bits = sum(1 << (each - offset) for each in finished)
    return CommitPoint(offset, encode_offset_map(OffsetMap(offset, bits, crashes or {})))


def entered(offset: int, *offsets: int) -> CommitPoint:
    """A commit of `offset` whose metadata marks these as inside the engine."""
    return a_point(offset, crashes=dict.fromkeys(offsets, ENTERED))
