"""A head that holds up its partition steps aside; what does not, and what comes of its copy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streams.core.events import (
    Acknowledged,
    Command,
    Commit,
    DeadLetter,
    Drop,
    Emitted,
    Failed,
    HostSick,
    HostWell,
    NotAcknowledged,
    Pause,
    Resume,
    Retry,
    Revoked,
    StagePaused,
    Start,
    Tick,
)
from streams.core.fair_queue import Charge
from streams.core.flight import Phase
from streams.core.head_of_line import HEAD_OF_LINE, steps_aside
from streams.core.offset_map import BACK_PRESSURE_SPAN, MAX_SPAN, Crashes
from streams.core.tiers import OFF_PEAK
from tests.builders import P0, a_delivery, a_fault, a_ticket
from tests.unit.staging import LIMITS, OUTPUTS, T0, TURN, Stage, a_point, started

FULL = 10
FEW = replace(
    LIMITS, map_span=FULL, window_high=20, window_per_tenant=20, look_ahead=20, batch_age_s=0.0
)
DEFERRABLE = Charge(OFF_PEAK, "acme", 1.0)


def aside(**work: Any) -> Retry:
    """The copy of a head as `a_delivery` makes it."""
    return Retry(T0, replace(a_delivery(0, **work).work, num_diverted=1), 10, HEAD_OF_LINE)


def turned(stage: Stage) -> list[Command]:
    """What a tick asks for besides work and commits."""
    return [each for each in stage(Tick()) if not isinstance(each, Commit | Start)]


@pytest.mark.parametrize("phase", list(Phase))
def test_what_waits_steps_aside_and_what_runs_only_when_nothing_else_helps(phase: Phase) -> None:
    assert steps_aside(phase, FULL - 1, FULL) is (phase is Phase.WAITING)
    assert steps_aside(phase, FULL, FULL) is (phase in (Phase.WAITING, Phase.RUNNING))


def a_running_head(num_behind: int) -> Stage:
    """Offset 0 runs; so many behind it are finished."""
    stage = Stage(a_delivery(0), TURN, limits=FEW)
    for offset in range(1, num_behind + 1):
        stage(a_delivery(offset), TURN)
        stage.finish(a_ticket(offset))
    return stage


def a_waiting_head(num_behind: int, **work: Any) -> Stage:
    """Offset 0 waits for a time without work, which never comes; so many behind it are finished."""
    limits = replace(FEW, max_batches=1, batch_max=1, map_span=100)
    stage = Stage(a_delivery(0, charge=DEFERRABLE, **work), a_delivery(1), TURN, limits=limits)
    for offset in range(1, num_behind + 1):
        stage(a_delivery(offset + 1))
        stage.finish(a_ticket(offset))
        if offset < num_behind:
            stage(TURN)
    assert stage.state.flights[T0].phase is Phase.WAITING
    return stage


def test_a_head_that_runs_is_dropped_when_the_map_is_full_and_its_partition_goes_on() -> None:
    assert turned(a_running_head(FULL - 2)) == [], "there is room"
    stage = a_running_head(FULL - 1)
    assert turned(stage) == [Drop((T0,)), aside()]
    assert stage(Emitted(T0, OUTPUTS)) == [], "nobody waits for it any more"
    assert stage(Acknowledged(T0)) == [Resume((P0,))]
    assert stage.at(99.0)(Tick()) == [Commit({P0: a_point(FULL)}, must_finish=False)]


def test_nobody_is_blamed_for_what_stepped_aside() -> None:
    stage = a_running_head(FULL - 1)
    stage(TURN)
    assert stage.at(99.0)(Revoked((P0,)))[0] == Commit(
        {P0: a_point(0, *range(1, FULL))}, must_finish=True
    )


def test_a_head_that_waits_steps_aside_as_soon_as_the_map_is_nearly_full() -> None:
    assert turned(a_waiting_head(89)) == []
    stage = a_waiting_head(90)
    assert turned(stage) == [aside(charge=DEFERRABLE)]
    assert stage.state.num_waiting == 0
    assert turned(stage) == [], "once"
    stage(Acknowledged(T0))
    assert T0 not in stage.state.flights


@pytest.mark.parametrize("first", [BACK_PRESSURE_SPAN, MAX_SPAN, 3 * MAX_SPAN])
def test_a_head_before_a_gap_wider_than_the_map_steps_aside_too(first: int) -> None:
    """What lies beyond is in no map, and would be worked again, for as long as the head stays."""
    limits = replace(FEW, map_span=BACK_PRESSURE_SPAN)
    stage = Stage(a_delivery(0), a_delivery(first), a_delivery(first + 1), TURN, limits=limits)
    behind = a_ticket(first)
    assert stage(Emitted(behind, OUTPUTS), Acknowledged(behind))[1:] == [Pause((P0,))]
    assert turned(stage) == [Drop((T0,)), aside()]
    assert stage(Acknowledged(T0)) == [Resume((P0,))]


def test_a_gap_alone_moves_no_head_aside() -> None:
    limits = replace(FEW, map_span=BACK_PRESSURE_SPAN)
    stage = Stage(a_delivery(0), a_delivery(MAX_SPAN), TURN, limits=limits)
    assert turned(stage) == [], "nothing behind it is finished yet"
    stage.finish(T0)
    stage.finish(a_ticket(MAX_SPAN))
    assert turned(stage) == []
    assert stage.at(99.0)(Tick()) == [Commit({P0: a_point(MAX_SPAN + 1)}, must_finish=False)]


def test_its_counts_go_with_it() -> None:
    counts: dict[str, Any] = {"try_number": 2, "crashes": Crashes(1, 0), "num_diverted": 3}
    (copy,) = turned(a_waiting_head(90, **counts))
    assert isinstance(copy, Retry)
    assert copy.work == replace(a_delivery(0, charge=DEFERRABLE, **counts).work, num_diverted=4)


def test_where_others_behind_it_are_unfinished_too_the_head_stays() -> None:
    stage = a_waiting_head(89)
    stage(a_delivery(91), a_delivery(92), a_delivery(93), TURN)
    stage.finish(a_ticket(90))
    assert turned(stage) == []


def test_where_the_copy_cannot_be_written_now_it_is_asked_for_again() -> None:
    stage = a_running_head(FULL - 1)
    stage(Tick())
    assert stage(NotAcknowledged(T0, "no broker", is_permanent=False)) == []
    assert [each for each in stage.at(2.0)(Tick()) if isinstance(each, Retry)] == [aside()]


def test_nothing_steps_aside_while_the_stage_or_the_host_stands_still() -> None:
    for halt in (StagePaused(True), HostSick("no_memory", "", is_local=True)):
        stage = a_running_head(FULL - 1)
        stage(halt)
        assert turned(stage) == []
    stage(HostWell())
    assert turned(stage) == [Drop((T0,)), aside()]


def test_a_head_that_fails_meanwhile_takes_its_fate() -> None:
    stage = a_running_head(FULL - 1)
    assert isinstance(stage(Failed(T0, a_fault()))[0], DeadLetter)
    assert turned(stage) == []


def test_its_copy_outranks_it() -> None:
    """Who died before the offset was committed reads both: the original is finished unworked."""
    stage = Stage(a_delivery(0, "j"), limits=FEW)
    stage(a_delivery(1, "j", num_diverted=1))
    assert stage(TURN) == [started(1, job_id="j", num_diverted=1)]
    assert list(stage.state.flights) == [a_ticket(1)]
