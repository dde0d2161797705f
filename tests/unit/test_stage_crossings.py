"""StageState, case by case: where two things cross, a copy and its acknowledgement for one."""

from __future__ import annotations

from dataclasses import replace

from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    CommitPoint,
    Committed,
    Drain,
    Drop,
    Emitted,
    End,
    Ended,
    Event,
    Failed,
    Fate,
    HostSick,
    HostWell,
    JobCancelled,
    Lost,
    Pause,
    Probe,
    Probed,
    Produce,
    Resume,
    Retry,
    StagePaused,
    StartOffset,
    Tick,
)
from streams.core.flights import CANCELLED
from streams.core.offset_map import Crashes, OffsetMap
from streams.core.stage import StageState
from tests.builders import P0, a_delivery, a_fault, a_work
from tests.unit.staging import LIMITS, OUTPUTS, T0, T1, T2, TURN, Stage, Turn, started

LATER = a_fault(fate=Fate.LATER, reason_code="busy", message="not now")
SICK = HostSick("device_lost", "the device fell off the bus", is_local=True)
BREAKING = replace(LIMITS, breaker_limit=2)


class After(Stage):
    """A stage that takes over P0 from a process that died with offset 0 in its engine."""

    def __init__(self, crashes: Crashes, *events: Event | Turn) -> None:
        self.state, self.now_s = StageState(LIMITS), 0.0
        self(Assigned({P0: StartOffset(OffsetMap(0, 0, {0: crashes}), True)}), *events)


# ---- a copy and its original


def test_a_copy_that_comes_before_its_acknowledgement_is_not_finished_with_its_original() -> None:
    stage = Stage(a_delivery(0, "j"), TURN, Failed(T0, LATER))
    stage(a_delivery(1, "j", try_number=2), Acknowledged(T0))
    assert stage.state.ours.trackers[P0].commit_offset == 1
    assert stage(TURN) == [started(1, job_id="j", try_number=2)]


def test_another_tenants_job_of_the_same_id_is_not_finished_with_what_is_retried() -> None:
    stage = Stage(a_delivery(0, "j", identity="acme"), a_delivery(1, "j", identity="bolt"), TURN)
    stage(Failed(T0, LATER), Acknowledged(T0))
    assert list(stage.state.flights) == [T1]


def test_a_copy_outranks_its_original_by_the_crash_that_it_tells_of() -> None:
    """The try is the same, so that it was once taken for a twin and finished."""
    stage = After(Crashes(3, 1), a_delivery(0, "j"))
    stage(a_delivery(1, "j", crashes=Crashes(3, 1)), Acknowledged(T0))
    assert stage(TURN) == [started(1, job_id="j", crashes=Crashes(3, 1))]


def test_a_try_that_works_although_its_next_one_is_here_counts() -> None:
    stage = Stage(a_delivery(0, "j"), TURN, a_delivery(1, "j", try_number=2))
    assert stage(Emitted(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]
    assert stage(Acknowledged(T0), TURN) == [started(1, job_id="j", try_number=2)]


def test_a_later_run_waits_for_what_is_being_produced() -> None:
    stage = Stage(a_delivery(0, "j"), TURN, Emitted(T0, OUTPUTS))
    assert stage(a_delivery(1, "j", run=2), TURN) == []
    assert stage(Acknowledged(T0), TURN) == [started(1, job_id="j", run=2)]


def test_a_judged_try_gives_way_to_its_next_one() -> None:
    stage = Stage(a_delivery(0), a_delivery(1, "j"), TURN, limits=BREAKING)
    stage(Failed(T0, LATER), Failed(T1, LATER))
    stage(a_delivery(2, "j", try_number=2))
    assert T1 not in stage.state.flights
    assert stage(TURN, Probed(True), TURN) == [
        Probe(), Resume((P0,)), started(2, job_id="j", try_number=2),
    ]  # fmt: skip


# ---- start markers, pauses and holds


def test_a_held_stage_starts_what_was_entering_when_it_is_well() -> None:
    stage = Stage(a_delivery(0), Tick(), SICK)
    assert stage(Committed(True)) == []
    assert stage.at(5.0)(TURN) == []
    assert stage(HostWell(), TURN) == [Resume((P0,)), started(0)]


def test_a_marker_that_is_refused_while_the_stage_is_paused_is_committed_again_after_it() -> None:
    stage = Stage(a_delivery(0), Tick(), StagePaused(True))
    assert stage(Committed(False)) == []
    stage.at(5.0)(TURN)
    stage(StagePaused(False))
    assert stage(TURN) == [started(0)]


def test_an_operators_pause_outlasts_the_hold() -> None:
    stage = Stage(a_delivery(0), SICK, StagePaused(True))
    assert stage(HostWell(), TURN) == []
    assert stage(StagePaused(False), TURN) == [Resume((P0,)), started(0)]


def test_a_success_ends_the_row_of_failures() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, limits=BREAKING)
    stage(Failed(T0, LATER))
    stage.finish(T1)
    stage(a_delivery(2), TURN)
    assert [type(each) for each in stage(Failed(T2, LATER))] == [Retry]


def test_a_good_probe_does_not_overrule_an_engine_that_says_it_is_sick() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, limits=BREAKING)
    stage(Failed(T0, LATER), Failed(T1, LATER), SICK, TURN)
    assert Resume((P0,)) not in stage(Probed(True))
    assert stage(HostWell()) == [Resume((P0,))]


# ---- what goes away


def test_a_lost_partition_keeps_the_count_of_what_runs() -> None:
    stage = After(Crashes(1), a_delivery(0), TURN)
    assert stage(Lost((P0,))) == [Drop((T0,))]
    assert stage.at(9.0)(Tick()) == []


def test_a_drain_that_runs_out_of_time_clears_the_count_of_what_runs() -> None:
    stage = Stage(a_delivery(0), TURN, Drain())
    assert stage.at(5.0)(Tick()) == [
        Commit({P0: CommitPoint(0)}, must_finish=True), Drop((T0,)),
    ]  # fmt: skip


def test_a_judged_record_whose_partition_is_lost_takes_no_fate() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, limits=BREAKING)
    stage(Failed(T0, LATER), Failed(T1, LATER))
    assert stage(TURN, Lost((P0,))) == [Probe(), Drop((T0, T1))]
    assert stage(Probed(True)) == []


def test_a_partition_resumes_when_none_of_its_records_is_delayed() -> None:
    stage = Stage()
    assert stage(a_delivery(0, due_s=5.0), a_delivery(1, due_s=6.0)) == [Pause((P0,))]
    assert stage.at(5.0)(TURN) == [started(0, due_s=5.0)]
    assert stage.at(6.0)(TURN) == [Resume((P0,))]


def test_a_wish_is_forgotten_when_no_run_can_last_that_long() -> None:
    stage = Stage(JobCancelled("j", 1, issued_s=0.0))
    stage.at(LIMITS.longest_run_s - 100.0)(TURN)
    assert stage(a_delivery(0, "j")) == [End(T0, a_work("j"), CANCELLED)]
    stage(Ended(T0, ()), Acknowledged(T0))
    stage.at(LIMITS.longest_run_s)(TURN)
    assert stage(a_delivery(1, "j"), TURN) == [started(1, job_id="j")]
