"""Who makes way where a window is full: the off-peak, and what nobody waits for any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streams.core.events import (
    Acknowledged,
    Commit,
    DeadLetter,
    Delivered,
    End,
    HostSick,
    NotAcknowledged,
    Pause,
    Resume,
    Retry,
    StagePaused,
    Start,
)
from streams.core.fair_queue import Charge
from streams.core.flight import Phase
from streams.core.flights import EXPIRED
from streams.core.gate import Why
from streams.core.limits import StageLimits
from streams.core.make_way import MAKES_WAY
from streams.core.offset_map import Crashes
from streams.core.retry import RetryPolicy
from streams.core.tiers import OFF_PEAK
from tests.builders import P0, a_delivery, a_ticket
from tests.unit.staging import LIMITS, TURN, Stage, started

#: Eight in all; four that count close it, and it opens where one is left.
FEW = replace(LIMITS, window_per_tenant=4, look_ahead=8, batch_max=1, max_batches=1, make_way_s=5.0)


def off_peak(offset: int, tenant_id: str = "night", **work: Any) -> Delivered:
    """A deferrable job."""
    return a_delivery(offset, charge=Charge(OFF_PEAK, tenant_id, 1.0), **work)


def a_busy_stage(*behind: Delivered) -> Stage:
    """Offset 0 runs, and is somebody's; the others wait."""
    stage = Stage(a_delivery(0), TURN, limits=FEW)
    assert stage.state.flights[a_ticket(0)].phase is Phase.RUNNING
    stage(*behind)
    return stage


def asides(stage: Stage) -> list[Retry]:
    """Who makes way at that look."""
    return [each for each in stage(TURN) if isinstance(each, Retry)]


def test_deferrable_jobs_of_whatever_tenants_hide_nobody() -> None:
    stage = Stage(a_delivery(0), TURN, limits=FEW)
    commands = stage(*(off_peak(offset, f"tenant-{offset}") for offset in range(1, 7)))
    assert not any(isinstance(each, Pause) for each in commands), "whoever comes behind is seen"
    assert Pause((P0,)) in stage(off_peak(7, "tenant-7")), "that many, and no more"


def test_where_they_fill_a_window_the_younger_half_steps_aside() -> None:
    stage = a_busy_stage(*(off_peak(offset) for offset in range(1, 8)))
    first = asides(stage.at(5.0))
    assert [each.ticket.offset for each in first] == [4, 5, 6, 7]
    assert {(each.delay_s, each.fault, each.work.try_number) for each in first} == {
        (10, MAKES_WAY, 1)
    }
    assert {each.work.num_diverted for each in first} == {1}
    assert asides(stage.at(9.9)) == [], "not at every tick"
    commands = stage(*(Acknowledged(each.ticket) for each in first))
    assert Resume((P0,)) in commands
    stage(a_delivery(8), TURN)
    stage.finish(a_ticket(0))
    assert started(8) in stage(TURN), "before those that were there first"


def test_who_stays_keeps_its_turn() -> None:
    stage = a_busy_stage(*(off_peak(offset) for offset in range(1, 8)))
    stage.at(5.0)(*(Acknowledged(each.ticket) for each in asides(stage)))
    stage.finish(a_ticket(0))
    (start,) = [each for each in stage.at(6.0)(TURN) if isinstance(each, Start)]
    assert start.batch[0][0] == a_ticket(1)


def test_what_closes_a_window_by_counting_moves_nobody_aside() -> None:
    others = [a_delivery(offset, charge=Charge("pro", "acme", 1.0)) for offset in range(3, 6)]
    stage = a_busy_stage(off_peak(1), off_peak(2), *others)
    assert stage.state.ours.gate.is_closed(P0, Why.WINDOW)
    assert asides(stage.at(5.0)) == [], "their going would let nobody in"


def test_a_window_with_room_moves_nobody_aside() -> None:
    stage = a_busy_stage(*(off_peak(offset) for offset in range(1, 7)))
    assert asides(stage.at(5.0)) == []


@pytest.mark.parametrize("closes", [StagePaused(True), HostSick("disk", "full", is_local=True)])
def test_nobody_makes_way_where_nothing_is_begun(closes: StagePaused | HostSick) -> None:
    stage = a_busy_stage(*(off_peak(offset) for offset in range(1, 8)))
    stage(closes)
    assert asides(stage.at(5.0)) == []


def test_the_more_often_it_stepped_aside_the_longer_it_stays_away() -> None:
    assert [RetryPolicy((10, 60, 600)).aside_s(num) for num in range(5)] == [10, 60, 600, 600, 600]
    stage = a_busy_stage(*(off_peak(offset, num_diverted=1) for offset in range(1, 8)))
    assert {each.delay_s for each in asides(stage.at(5.0))} == {60}


def test_its_counts_go_with_it_and_suspects_step_aside_too() -> None:
    crashed = Crashes(2, 0)
    stage = a_busy_stage(
        *(off_peak(offset, try_number=2, crashes=crashed) for offset in range(1, 8))
    )
    found = asides(stage.at(5.0))
    assert [each.ticket.offset for each in found] == [4, 5, 6, 7]
    assert {(each.work.try_number, each.work.crashes) for each in found} == {(2, crashed)}


def test_what_cannot_be_put_aside_is_a_dead_letter() -> None:
    stage = a_busy_stage(*(off_peak(offset) for offset in range(1, 8)))
    ticket = asides(stage.at(5.0))[0].ticket
    (letter,) = stage(NotAcknowledged(ticket, "too large", is_permanent=True))
    assert isinstance(letter, DeadLetter)


def test_what_waits_past_its_deadline_in_a_full_window_ends() -> None:
    stage = a_busy_stage(
        off_peak(1, deadline_s=4.0), *(off_peak(offset, deadline_s=9.0) for offset in range(2, 8))
    )
    commands = [each for each in stage.at(5.0)(TURN) if not isinstance(each, Commit)]
    assert commands[0] == End(a_ticket(1), off_peak(1, deadline_s=4.0).work, EXPIRED)
    assert [each.ticket.offset for each in commands[1:] if isinstance(each, Retry)] == [5, 6, 7]


def test_who_is_behind_a_thousand_deferrable_jobs_is_seen_within_a_minute() -> None:
    stage = Stage(a_delivery(0), TURN, limits=StageLimits(max_batches=1, batch_max=1))
    offset, is_paused = 1, False
    while offset <= 1000:
        stage.at(stage.now_s + 0.1)
        commands = stage(TURN)
        while commands:
            is_paused |= Pause((P0,)) in commands
            is_paused &= Resume((P0,)) not in commands
            asides = [each for each in commands if isinstance(each, Retry)]
            commands = stage(*(Acknowledged(each.ticket) for each in asides))
        while not is_paused and offset <= 1000:
            is_paused = Pause((P0,)) in stage(off_peak(offset, f"tenant-{offset % 7}"))
            offset += 1
    assert stage.now_s < 60.0
