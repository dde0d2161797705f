"""StageState, case by case: a sick host holds, a probe tells, and what stays sick leaves."""

from __future__ import annotations

import dataclasses

from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    CommitPoint,
    Committed,
    DeadLetter,
    Drain,
    Drop,
    End,
    Ended,
    Failed,
    Fate,
    HostSick,
    HostWell,
    JobCancelled,
    Lost,
    Pause,
    Probe,
    Probed,
    Resume,
    Retry,
    StagePaused,
    Tick,
)
from streams.core.flights import CANCELLED
from streams.core.retry import RetryPolicy
from tests.builders import P0, P1, a_delivery, a_fault, a_start_offset, a_work
from tests.unit.staging import LIMITS, T0, T1, T2, TURN, Stage, started

SICK = HostSick("device_lost", "the device fell off the bus", is_local=True)
AWAY = HostSick("store_away", "no answer", is_local=False)
LIMITED = dataclasses.replace(
    LIMITS, breaker_limit=2, retry=RetryPolicy(delays_s=(10,), max_tries=3), leave_after_s=60.0
)
LATER = a_fault(fate=Fate.LATER, reason_code="busy", message="not now")


def a_tripped_stage() -> Stage:
    """Two jobs ran and failed, one after the other: the second waits for the probe."""
    stage = Stage(a_delivery(0), a_delivery(1, "j"), TURN, limits=LIMITED)
    stage(Failed(T0, LATER))
    assert stage(Failed(T1, LATER)) == [Pause((P0,))]
    return stage


# ---- the engine says so


def test_a_sick_host_takes_nothing_in_and_starts_nothing_until_it_is_well() -> None:
    stage = Stage(a_delivery(0))
    assert stage(SICK, TURN) == [Pause((P0,))]
    assert stage(Assigned({P1: a_start_offset()})) == [Pause((P1,))]
    assert stage.at(5.0)(TURN) == []
    assert stage(HostWell(), TURN) == [Resume((P0, P1)), started(0)]


def test_a_held_stage_starts_nothing_that_was_entering() -> None:
    stage = Stage(a_delivery(0), Tick(), SICK)
    assert stage(Committed(True)) == []
    assert stage.at(5.0)(TURN) == []
    assert stage(HostWell(), TURN) == [Resume((P0,)), started(0)]


def test_an_operators_pause_outlasts_the_hold() -> None:
    stage = Stage(a_delivery(0), SICK, StagePaused(True))
    assert stage(HostWell(), TURN) == []
    assert stage(StagePaused(False), TURN) == [Resume((P0,)), started(0)]


def test_what_runs_on_a_sick_host_is_waited_for_and_counted() -> None:
    stage = Stage(a_delivery(0), TURN, SICK)
    stage.finish(T0)
    assert stage.at(2.0)(Tick()) == [Commit({P0: CommitPoint(1)}, must_finish=False)]


# ---- jobs fail in a row


def test_failures_in_a_row_of_different_jobs_ask_for_one_probe() -> None:
    stage = a_tripped_stage()
    assert stage(TURN) == [Probe()]
    assert stage(TURN) == []


def test_a_good_probe_blames_the_records_and_they_take_their_fates() -> None:
    stage = a_tripped_stage()
    stage(TURN)
    assert stage(Probed(True)) == [
        Retry(T1, a_work("j", try_number=2), 10, LATER), Resume((P0,)),
    ]  # fmt: skip


def test_a_judged_dead_letter_takes_its_fate_too() -> None:
    stage = Stage(a_delivery(0), a_delivery(1, "j"), TURN, limits=LIMITED)
    stage(Failed(T0, LATER), Failed(T1, a_fault()), Tick())
    assert stage(Probed(True)) == [DeadLetter(T1, a_work("j"), a_fault()), Resume((P0,))]


def test_a_bad_probe_then_a_good_one_blames_the_host_and_the_failure_never_happened() -> None:
    stage = a_tripped_stage()
    stage(TURN)
    assert stage(Probed(False)) == []
    assert stage.at(0.4)(TURN) == []
    assert stage.at(0.5)(TURN) == [Probe()]
    assert stage(Probed(True)) == [Resume((P0,))]
    assert stage(TURN) == [started(1, job_id="j")]


def test_what_fails_while_a_probe_is_awaited_waits_for_it_too() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, a_delivery(2, "k"), limits=LIMITED)
    stage.at(1.0)(TURN)
    stage(Failed(T0, LATER), Failed(T1, LATER))
    assert stage(Failed(T2, LATER)) == []
    retries = [each for each in stage(TURN, Probed(True)) if isinstance(each, Retry)]
    assert [each.ticket for each in retries] == [T1, T2]


def test_a_success_ends_the_row() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, limits=LIMITED)
    stage(Failed(T0, LATER))
    stage.finish(T1)
    stage(a_delivery(2), TURN)
    assert [type(each) for each in stage(Failed(T2, LATER))] == [Retry]


def test_a_fault_that_is_not_its_jobs_says_nothing_of_the_host() -> None:
    fault = a_fault(ends_job=False)
    stage = Stage(a_delivery(0), a_delivery(1), TURN, limits=LIMITED)
    letters = stage(Failed(T0, fault), Failed(T1, fault))
    assert [type(each) for each in letters] == [DeadLetter, DeadLetter]


def test_a_judged_run_can_be_cancelled() -> None:
    stage = a_tripped_stage()
    assert stage(JobCancelled("j", 1, 0.0)) == [End(T1, a_work("j"), CANCELLED)]
    assert stage(TURN, Probed(True)) == [Probe(), Resume((P0,))]


def test_a_judged_try_gives_way_to_its_next_one() -> None:
    stage = a_tripped_stage()
    stage(a_delivery(2, "j", try_number=2), TURN)
    assert T1 not in stage.state.flights
    assert stage(Probed(True), TURN) == [Resume((P0,)), started(2, job_id="j", try_number=2)]


def test_a_judged_record_is_handed_back_by_a_drain() -> None:
    stage = a_tripped_stage()
    stage(Drain())
    assert T1 not in stage.state.flights


def test_a_judged_record_whose_partition_is_lost_takes_no_fate() -> None:
    stage = a_tripped_stage()
    assert stage(TURN, Lost((P0,))) == [Probe(), Drop((T0, T1))]
    assert stage(Probed(True)) == []


def test_a_good_probe_does_not_overrule_an_engine_that_says_it_is_sick() -> None:
    stage = a_tripped_stage()
    stage(SICK, TURN)
    assert Resume((P0,)) not in stage(Probed(True))
    assert stage(HostWell()) == [Resume((P0,))]


# ---- what stays sick


def test_a_host_that_stays_sick_drains_and_leaves() -> None:
    stage = Stage(a_delivery(0), SICK, limits=LIMITED)
    assert stage.at(59.9)(Tick()) == []
    assert stage.state.left_because is None
    stage.at(60.0)(Tick())
    assert (stage.state.left_because, stage.state.is_draining) == ("device_lost", True)
    stage(Tick())
    assert stage.state.stopped


def test_a_host_whose_probes_keep_failing_leaves() -> None:
    stage = a_tripped_stage()
    stage(TURN, Probed(False))
    stage.at(60.0)(TURN)
    assert stage.state.left_because == "probe_failed"


def test_nobody_leaves_because_of_what_is_away_for_all() -> None:
    stage = Stage(AWAY, limits=LIMITED)
    stage.at(9_999.0)(Tick())
    assert (stage.state.left_because, stage.state.is_draining) == (None, False)


def test_a_host_that_was_well_in_between_does_not_leave() -> None:
    stage = Stage(SICK, limits=LIMITED)
    stage.at(50.0)(HostWell(), SICK)
    stage.at(100.0)(Tick())
    assert stage.state.left_because is None


def test_wishes_are_forgotten_when_no_run_can_last_that_long() -> None:
    stage = Stage(JobCancelled("j", 1, issued_s=0.0))
    stage.at(LIMITS.longest_run_s - 100.0)(Tick())
    assert stage(a_delivery(0, "j")) == [End(T0, a_work("j"), CANCELLED)]
    stage(Ended(T0, ()), Acknowledged(T0))
    stage.at(LIMITS.longest_run_s)(TURN)
    assert stage(a_delivery(1, "j"), TURN) == [started(1, job_id="j")]
