"""A StageState to ask: what the unit tests of the stage share."""

from __future__ import annotations

from typing import Any

from streams.core.events import (
    Acknowledged,
    Assigned,
    Command,
    Emitted,
    Event,
    Start,
    Ticket,
)
from streams.core.stage import StageLimits, StageState
from tests.builders import (
    P0,
    a_delivery,
    a_start_offset,
    a_ticket,
    an_output,
)

LIMITS = StageLimits(
    window_high=4, window_low=1, batch_max=2, batch_age_s=1.0, max_batches=2,
    commit_interval_s=1.0, drain_s=5.0,
)  # fmt: skip
OUTPUTS = (an_output(),)
T0, T1, T2 = a_ticket(0), a_ticket(1), a_ticket(2)


class Stage:
    """A state with P0 assigned from offset 0; `at` says the time of what follows."""

    def __init__(self, *events: Event, limits: StageLimits = LIMITS) -> None:
        self.state, self.now_s = StageState(limits), 0.0
        self(Assigned({P0: a_start_offset()}), *events)

    def __call__(self, *events: Event) -> list[Command]:
        """The commands of these events."""
        return [command for event in events for command in self.state.handle(event, self.now_s)]

    def at(self, now_s: float) -> Stage:
        """It is later now."""
        self.now_s = now_s
        return self

    def finish(self, *tickets: Ticket) -> None:
        """See through the records that run."""
        for ticket in tickets:
            self(Emitted(ticket, OUTPUTS), Acknowledged(ticket))


def started(*offsets: int, **changes: Any) -> Start:
    """A batch of records as `a_delivery` makes them."""
    return Start(
        tuple((a_ticket(offset), a_delivery(offset, **changes).work) for offset in offsets)
    )
