"""StageState, case by case: retries, crashes, holds, copies, dead letters that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    CommitPoint,
    Committed,
    DeadLetter,
    Drop,
    Emitted,
    End,
    Ending,
    Failed,
    HostSick,
    HostWell,
    JobCancelled,
    Lost,
    NotAcknowledged,
    NotEnded,
    Offload,
    Offloaded,
    Pause,
    Produce,
    Resume,
    Retry,
    Revoked,
    StagePaused,
    Start,
    StartOffset,
    Tick,
    Ticket,
)
from streams.core.flights import CANCELLED, EXPIRED
from streams.core.limits import StageLimits
from streams.core.offset_map import Crashes, OffsetMap
from tests.builders import P0, P1, a_delivery, a_fault, a_start_offset, a_ticket, a_work
from tests.unit.staging import (
    LATER,
    LIMITS,
    OUTPUTS,
    T0,
    T1,
    TURN,
    Stage,
    a_point,
    a_retry,
    entered,
    started,
)

BREAKING = replace(LIMITS, breaker_limit=2, probe_wait_s=1.0, leave_after_s=10.0)


def after(known: OffsetMap, limits: StageLimits = LIMITS) -> Stage:
    """A stage to which P0 comes from an owner that died; its tickets are of epoch 2."""
    return Stage(Lost((P0,)), Assigned({P0: StartOffset(known, True)}), limits=limits)


def again(offset: int) -> Ticket:
    return a_ticket(offset, assignment_epoch=2)


# ---- start markers


def test_nothing_starts_before_its_start_marker_is_committed() -> None:
    stage = Stage(a_delivery(0), a_delivery(1))
    assert stage(Tick()) == [Commit({P0: entered(0, 0, 1)}, must_finish=False)]
    assert stage(Tick()) == []
    assert stage(Committed(True)) == [started(0, 1)]


def test_a_start_marker_that_was_refused_is_committed_again_after_a_moment() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage(Committed(False), Tick()) == []
    assert stage.at(0.2)(Tick()) == [Commit({P0: entered(0, 0)}, must_finish=False)]
    assert stage(Committed(True)) == [started(0)]


def test_a_batch_waits_for_the_commit_before_its_own() -> None:
    stage = Stage(a_delivery(0), Tick(), a_delivery(1, batch_key="b"))
    assert stage.at(1.0)(Tick()) == []
    assert stage(Committed(True)) == [started(0)]
    assert stage(Tick()) == [Commit({P0: entered(0, 0, 1)}, must_finish=False)]
    assert stage(Committed(True)) == [started(1, batch_key="b")]


def test_what_is_taken_away_while_its_marker_is_committed_does_not_start() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage(Revoked((P0,))) == [Commit({P0: a_point(0)}, must_finish=True), Drop((T0,))]
    stage(Assigned({P0: a_start_offset()}), a_delivery(0))
    assert stage(Committed(True)) == []
    assert stage(TURN) == [Start(((again(0), a_delivery(0).work),))]


def test_a_run_that_ends_while_its_marker_is_committed_does_not_start() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1), Tick())
    stage(JobCancelled("j", 1, 0.0))
    assert stage(Committed(True)) == [started(1)]


def test_a_deadline_that_passed_while_a_record_waited_ends_its_run() -> None:
    stage = Stage(a_delivery(0, deadline_s=0.5))
    late = a_delivery(0, deadline_s=0.5).work
    assert stage.at(0.5)(TURN) == [End(T0, late, EXPIRED)]


def test_a_deadline_that_passes_while_the_marker_is_committed_ends_the_run() -> None:
    stage = Stage(a_delivery(0, deadline_s=0.5), Tick())
    late = a_delivery(0, deadline_s=0.5).work
    assert stage.at(0.5)(Committed(True)) == [End(T0, late, EXPIRED)]


def test_a_pause_while_the_marker_is_committed_delays_the_start() -> None:
    stage = Stage(a_delivery(0), Tick(), StagePaused(True))
    assert stage(Committed(True), Tick()) == []
    assert stage(StagePaused(False), Tick()) == [Resume((P0,)), started(0)]


def test_a_loop_that_waits_for_a_marker_looks_very_often() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage.state.poll_timeout_s(0.0) == LIMITS.shortest_poll_s
    stage(Committed(False))
    assert stage.state.poll_timeout_s(0.0) == LIMITS.shortest_poll_s
    stage(StagePaused(True))  # then nothing enters, and nobody's answer is due
    assert stage.state.poll_timeout_s(0.0) == LIMITS.poll_s


def test_what_had_not_entered_when_a_hold_begins_is_blamed_for_nothing() -> None:
    stage = Stage(a_delivery(0), Tick(), HostSick("store_away", "gone", is_local=False))
    assert stage(Committed(True), Tick()) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: CommitPoint(0)}, must_finish=False)]
    assert stage(Committed(True), HostWell(), TURN) == [Resume((P0,)), started(0)]


# ---- later


def test_a_failure_that_may_pass_is_retried_and_then_finished() -> None:
    stage = Stage(a_delivery(0), TURN)
    retry = a_retry(a_delivery(0).work)
    assert stage(Failed(T0, LATER)) == [retry]
    assert stage(NotAcknowledged(T0, "timed out", is_permanent=False)) == []
    assert stage.at(1.0)(TURN) == [retry]
    assert stage(Acknowledged(T0)) == []
    assert stage.at(3.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_a_copy_that_can_never_be_written_is_dead_lettered() -> None:
    stage = Stage(a_delivery(0), TURN, Failed(T0, LATER))
    fault = a_fault(reason_code="record_too_large", message="too large")
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == [
        DeadLetter(T0, a_delivery(0).work, fault)
    ]


def test_the_last_try_is_dead_lettered() -> None:
    stage = Stage(a_delivery(0, try_number=4), TURN)
    work = a_delivery(0, try_number=4).work
    assert stage(Failed(T0, LATER)) == [DeadLetter(T0, work, LATER)]


def test_a_record_that_is_not_due_waits_and_nothing_behind_it_is_read() -> None:
    stage = Stage()
    assert stage(a_delivery(0, due_s=7.0)) == [Pause((P0,))]
    assert stage(a_delivery(1, due_s=8.0)) == []  # was on its way
    assert stage.at(6.9)(TURN) == []
    assert stage.at(7.0)(TURN) == [started(0, due_s=7.0)]
    assert stage.at(8.0)(Tick())[0] == Resume((P0,))


def test_a_record_that_is_due_already_does_not_wait() -> None:
    stage = Stage().at(7.0)
    assert stage(a_delivery(0, due_s=7.0), TURN) == [started(0, due_s=7.0)]


def test_a_record_of_a_clock_ahead_of_ours_waits_no_longer_than_its_topic_makes_it() -> None:
    stage = Stage().at(3.0)
    assert stage(a_delivery(0, due_s=607.0, delay_s=7.0)) == [Pause((P0,))]
    assert stage.at(9.9)(TURN) == []
    assert stage.at(10.0)(TURN) == [Resume((P0,)), started(0, due_s=10.0, delay_s=7.0)]


def test_what_is_not_due_can_be_taken_away_and_cancelled() -> None:
    stage = Stage(a_delivery(0, "j", due_s=7.0), Assigned({P1: a_start_offset()}))
    stage(a_delivery(0, partition=P1, due_s=7.0))
    assert stage(JobCancelled("j", 1, 0.0)) == [
        Resume((P0,)),
        End(T0, a_work("j", due_s=7.0), CANCELLED),
    ]
    stage(Lost((P1,)))
    assert stage.at(7.0)(TURN) == []


def test_a_run_that_cannot_be_ended_for_now_is_asked_for_again_a_few_times() -> None:
    stage = Stage(JobCancelled("j", 1, 0.0), a_delivery(0, "j"))
    for turn in range(4):
        assert stage(NotEnded(T0, LATER)) == []
        assert stage.at(turn + 1.0)(TURN) == [End(T0, a_work("j"), CANCELLED)]
    assert stage(NotEnded(T0, LATER)) == [
        DeadLetter(T0, a_work("j"), replace(LATER, ends_job=False))
    ]


# ---- crashes


def test_two_crashes_make_a_suspect_that_runs_alone() -> None:
    stage = after(OffsetMap(0, 0, {0: Crashes(2, 0)}))
    stage(a_delivery(0), a_delivery(1))
    assert stage(Tick()) == [Commit({P0: a_point(0, crashes={0: Crashes(3, 1)})}, False)]
    assert stage(Committed(True)) == [Start(((again(0), a_delivery(0).work),))]
    assert stage.at(9.0)(TURN) == []
    stage(Emitted(again(0), OUTPUTS))
    assert stage(TURN) == [Start(((again(1), a_delivery(1).work),))]


def test_a_crash_alone_sends_to_the_longest_retry_with_its_count() -> None:
    stage = after(OffsetMap(0, 0, {0: Crashes(3, 1)}))
    (retry,) = stage(a_delivery(0))
    assert isinstance(retry, Retry)
    work = replace(a_delivery(0).work, crashes=Crashes(3, 1))
    assert (retry.work, retry.delay_s) == (work, 600)
    assert retry.fault.reason_code == "killed_worker"
    stage(Acknowledged(again(0)))
    assert stage.state.flights == {}


def test_a_copy_that_tells_of_its_crash_alone_is_worked_once_more() -> None:
    stage = Stage(a_delivery(0, crashes=Crashes(3, 1)))
    assert stage(Tick()) == [
        Commit({P0: a_point(0, crashes={0: Crashes(4, 2)})}, must_finish=False)
    ]


def test_the_third_crash_alone_is_dead_lettered_with_its_count() -> None:
    stage = after(OffsetMap(0, 0, {0: Crashes(5, 3)}))
    (letter,) = stage(a_delivery(0, crashes=Crashes(4, 2)))
    assert isinstance(letter, DeadLetter)
    assert (letter.fault.reason_code, letter.work.crashes) == ("killed_workers", Crashes(5, 3))


def test_what_leaves_the_engine_has_not_crashed_there() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN)
    stage(Failed(T0, LATER), Emitted(T1, OUTPUTS))
    assert stage.at(1.0)(Tick()) == [Commit({P0: a_point(0)}, must_finish=False)]


def test_a_hand_back_of_what_runs_takes_its_count_away() -> None:
    stage = after(OffsetMap(0, 0, {0: Crashes(1, 0), 9: Crashes(1, 0)}))
    stage(a_delivery(0), TURN)
    assert stage(Revoked((P0,)))[0] == Commit(
        {P0: a_point(0, crashes={9: Crashes(1, 0)})}, must_finish=True
    )


def test_a_hand_back_of_what_has_not_started_leaves_its_count() -> None:
    stage = after(OffsetMap(0, 0, {0: Crashes(1, 0)}))
    stage(a_delivery(0), Tick())
    assert stage(Revoked((P0,)))[0] == Commit(
        {P0: a_point(0, crashes={0: Crashes(1, 0)})}, must_finish=True
    )


# ---- hold


def test_a_sick_host_starts_nothing_takes_nothing_in_and_ends_by_itself() -> None:
    stage = Stage(a_delivery(0))
    assert stage(HostSick("store_away", "it is away", is_local=False)) == [Pause((P0,))]
    assert stage.at(9999.0)(TURN) == []
    assert stage(HostWell(), TURN) == [Resume((P0,)), started(0)]
    assert stage.state.left_because is None


def test_what_the_engine_holds_counts_as_nothing() -> None:
    stage = Stage(a_delivery(0), TURN, HostSick("store_away", "it is away", is_local=False))
    stage.at(600.0)(TURN)
    assert stage(HostWell(), Emitted(T0, OUTPUTS)) == [Resume((P0,)), Produce(T0, OUTPUTS)]


def test_a_host_that_stays_sick_leaves() -> None:
    stage = Stage(a_delivery(0), limits=BREAKING)
    stage(HostSick("device_lost", "gone", is_local=True))
    assert stage.at(9.9)(Tick()) == []
    stage.at(10.0)(Tick())
    assert (stage.state.left_because, stage.state.is_draining) == ("device_lost", True)
    assert stage(Tick()) == []
    assert stage.state.stopped


# ---- copies by rank


def test_a_higher_copy_is_worked_instead_of_a_lower_one_that_waits() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j", try_number=2))
    assert stage(TURN) == [started(1, job_id="j", try_number=2)]
    stage.finish(T1)
    assert stage.state.flights == {}


def test_a_lower_copy_is_finished_unworked() -> None:
    stage = Stage(a_delivery(0, "j", run=2), a_delivery(1, "j"))
    assert list(stage.state.flights) == [T0]


def test_a_higher_run_stops_a_lower_one_in_the_engine() -> None:
    stage = Stage(a_delivery(0, "j"), TURN)
    assert stage(a_delivery(1, "j", run=2)) == [Drop((T0,))]
    assert stage(TURN) == [started(1, job_id="j", run=2)]


def test_a_failure_whose_next_try_is_here_already_is_finished() -> None:
    stage = Stage(a_delivery(0, "j"), TURN, a_delivery(1, "j", try_number=2))
    assert stage(Failed(T0, a_fault())) == []
    assert stage(TURN) == [started(1, job_id="j", try_number=2)]


def test_twins_of_what_was_retried_have_nothing_left_to_do() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j"), TURN)
    stage(Failed(T0, LATER), Acknowledged(T0))
    assert stage.state.flights == {}


# ---- dead letters that do not fit


def test_a_dead_letter_that_is_too_large_goes_to_a_blob() -> None:
    stage = Stage(a_delivery(0), TURN, Failed(T0, a_fault()))
    work, blob = a_delivery(0).work, (("uri", b"there"),)
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == [Offload(T0, work)]
    assert stage(NotAcknowledged(T0, "late", is_permanent=True)) == []
    assert stage(Offloaded(T0, blob)) == [DeadLetter(T0, work, a_fault(), blob)]
    assert stage(Offloaded(T0, blob)) == []
    assert stage(NotAcknowledged(T0, "still", is_permanent=True)) == []
    assert stage.at(1.0)(TURN) == [DeadLetter(T0, work, a_fault(), blob)]
    assert stage(Acknowledged(T0)) == [End(T0, work, Ending("failed", "bad", "it is bad"))]


@pytest.mark.parametrize("event", [Offloaded(T0, ()), Acknowledged(T0), Failed(T0, LATER)])
def test_an_answer_about_what_is_not_here_changes_nothing(
    event: Offloaded | Acknowledged | Failed,
) -> None:
    assert Stage()(event) == []
