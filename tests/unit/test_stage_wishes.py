"""StageState, case by case: back-pressure, commits, wishes of clients and operators, drain."""

from __future__ import annotations

from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    Committed,
    Drain,
    Drop,
    Emitted,
    End,
    Ended,
    Failed,
    JobCancelled,
    JobDeadline,
    Lost,
    Pause,
    Produce,
    Resume,
    StagePaused,
    Start,
    StartOffset,
    Tick,
)
from streams.core.flights import CANCELLED, EXPIRED
from streams.core.gate import Why
from streams.core.offset_map import BACK_PRESSURE_SPAN, OffsetMap
from streams.core.stage import StageState
from tests.builders import (
    P0,
    P1,
    a_delivery,
    a_fault,
    a_start_offset,
    a_ticket,
    a_work,
)
from tests.unit.staging import (
    ENTERED,
    LIMITS,
    OUTPUTS,
    T0,
    T1,
    T2,
    TURN,
    Stage,
    a_point,
    entered,
    started,
)

# ---- back-pressure


def test_a_full_partition_is_paused_and_resumed_when_it_has_emptied() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), a_delivery(2))
    assert stage(a_delivery(3)) == [Pause((P0,))]
    stage(TURN, TURN)
    stage.finish(T0, T1)
    stage(TURN, Emitted(T2, OUTPUTS))
    assert stage(Acknowledged(T2)) == [Resume((P0,))]


def test_an_operators_pause_starts_no_work_and_takes_no_records() -> None:
    stage = Stage(a_delivery(0))
    assert stage(StagePaused(True), TURN) == [Pause((P0,))]
    assert stage(StagePaused(True)) == []
    assert stage(Assigned({P1: a_start_offset()})) == [Pause((P1,))]
    assert stage(StagePaused(False), TURN) == [Resume((P0, P1)), started(0)]


def test_what_runs_is_seen_through_while_the_stage_is_paused() -> None:
    stage = Stage(a_delivery(0), TURN, StagePaused(True))
    stage.finish(T0)
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_a_partition_that_empties_while_the_stage_is_paused_resumes_with_it() -> None:
    stage = Stage(*(a_delivery(offset) for offset in range(4)), TURN, StagePaused(True))
    stage.finish(T0, T1)
    assert stage(StagePaused(False)) == []  # still full: two are held, one would be few enough
    stage(TURN, StagePaused(True), Emitted(T2, OUTPUTS))
    assert stage(Acknowledged(T2)) == []
    assert stage(StagePaused(False)) == [Resume((P0,))]


def test_a_pause_without_partitions_asks_for_nothing() -> None:
    assert StageState(LIMITS).handle(StagePaused(True), 0.0) == []


# ---- commits


def test_commits_keep_their_interval() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN)
    stage.finish(T0)
    assert stage.at(0.9)(Tick()) == []
    assert stage.at(1.0)(Tick()) == [Commit({P0: entered(1, 1)}, must_finish=False)]
    stage(Committed(True))
    stage.finish(T1)
    assert stage.at(1.9)(Tick()) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(2)}, must_finish=False)]


def test_a_commit_waits_for_the_answer_to_the_one_before() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN)
    stage.finish(T0)
    stage.at(1.0)(Tick())
    stage.finish(T1)
    assert stage.at(3.0)(Tick()) == []
    assert stage(Committed(True), Tick()) == [Commit({P0: a_point(2)}, must_finish=False)]


def test_a_commit_that_failed_is_made_again() -> None:
    stage = Stage(a_delivery(0), TURN)
    stage.finish(T0)
    stage.at(1.0)(Tick())
    assert stage.at(2.0)(Committed(False), Tick()) == []  # not at once
    assert stage.at(2.3)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_a_failed_commit_of_what_went_away_meanwhile_is_not_made_again() -> None:
    stage = Stage(a_delivery(0), TURN)
    stage.finish(T0)
    stage.at(1.0)(Tick())
    assert stage(Lost((P0,)), Committed(False)) == []
    assert stage.at(3.0)(Tick()) == []


def test_a_record_that_finishes_behind_an_unfinished_one_is_told_beside_the_offset() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN)
    stage.finish(T1)
    point = a_point(0, 1, crashes={0: ENTERED})
    assert stage.at(2.0)(Tick()) == [Commit({P0: point}, must_finish=False)]


def test_what_an_earlier_owner_finished_is_not_worked_again() -> None:
    stage = Stage(Lost((P0,)), Assigned({P0: StartOffset(OffsetMap(0, 0b010), True)}))
    stage(a_delivery(0), a_delivery(1), a_delivery(2))
    (start,) = stage(TURN)
    assert isinstance(start, Start)
    assert [ticket.offset for ticket, _ in start.batch] == [0, 2]


def test_a_map_that_is_nearly_full_takes_no_more_records_until_its_head_has_finished() -> None:
    far = BACK_PRESSURE_SPAN
    stage = Stage(a_delivery(0), a_delivery(far - 1), TURN)
    stage(Emitted(a_ticket(far - 1), OUTPUTS))
    assert stage(Acknowledged(a_ticket(far - 1))) == [Pause((P0,))]
    stage(Emitted(T0, OUTPUTS))
    assert stage(Acknowledged(T0)) == [Resume((P0,))]


def test_a_long_map_of_an_earlier_owner_does_not_keep_its_records_away() -> None:
    finished = (1 << BACK_PRESSURE_SPAN + 9) - 0b10
    known = OffsetMap(0, finished & ~0b100)  # 0 and 2 are not
    stage = Stage(Lost((P0,)), Assigned({P0: StartOffset(known, True)}))
    stage(a_delivery(0), a_delivery(1), a_delivery(2), TURN)
    stage.finish(a_ticket(2, assignment_epoch=2), a_ticket(0, assignment_epoch=2))
    assert stage.state.ours.gate.close(P0, Why.WINDOW) == (P0,), "it was open"


# ---- wishes of clients


def test_a_cancelled_run_ends_at_delivery() -> None:
    stage = Stage(JobCancelled("j", 1, 0.0))
    assert stage(a_delivery(0, "j")) == [End(T0, a_work("j"), CANCELLED)]


def test_a_cancelled_run_leaves_the_queue() -> None:
    stage = Stage(a_delivery(0, "j"))
    assert stage(JobCancelled("j", 1, 0.0)) == [End(T0, a_work("j"), CANCELLED)]
    assert stage(TURN) == []


def test_a_cancelled_run_is_dropped_by_the_engine_and_its_neighbour_goes_on() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1), TURN)
    assert stage(JobCancelled("j", 1, 0.0)) == [Drop((T0,)), End(T0, a_work("j"), CANCELLED)]
    assert stage(Emitted(T1, OUTPUTS)) == [Produce(T1, OUTPUTS)]


def test_an_answer_that_was_under_way_when_the_run_was_cancelled_is_not_that_of_its_end() -> None:
    stage = Stage(a_delivery(0, "j"), TURN, JobCancelled("j", 1, 0.0))
    assert stage(Emitted(T0, OUTPUTS), Failed(T0, a_fault())) == []
    assert stage(Ended(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]


def test_a_run_whose_result_is_being_produced_is_cancelled_no_more() -> None:
    stage = Stage(a_delivery(0, "j"), TURN, Emitted(T0, OUTPUTS))
    assert stage(JobCancelled("j", 1, 0.0)) == []


def test_cancelling_another_run_changes_nothing() -> None:
    stage = Stage(a_delivery(0, "j"))
    assert stage(JobCancelled("j", 2, 0.0), TURN) == [started(0, job_id="j")]


def test_a_run_whose_deadline_has_passed_expires_at_delivery() -> None:
    stage = Stage().at(7.0)
    delivery = a_delivery(0, deadline_s=7.0)
    assert stage(delivery) == [End(T0, delivery.work, EXPIRED)]


def test_a_new_deadline_counts_instead_of_the_records_own() -> None:
    stage = Stage(JobDeadline("j", 1, 20.0, 0.0)).at(7.0)
    assert stage(a_delivery(0, "j", deadline_s=5.0), TURN) == [
        Start(((T0, a_work("j", deadline_s=5.0)),))
    ]


# ---- drain


def test_a_drain_hands_back_what_has_not_begun_and_sees_through_what_runs() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j"), TURN, a_delivery(2))
    assert stage(Drain()) == [Pause((P0,))]
    assert stage(TURN, a_delivery(3)) == []
    stage.finish(T0)
    assert stage(TURN) == [Commit({P0: a_point(1)}, must_finish=True)]
    assert stage.state.stopped


def test_a_drain_ends_when_its_budget_is_spent() -> None:
    stage = Stage(a_delivery(0), TURN, Drain())
    assert stage.at(4.9)(Tick()) == []
    assert stage.at(5.0)(Tick()) == [Commit({P0: a_point(0)}, must_finish=True), Drop((T0,))]
    assert stage.state.stopped


def test_a_second_drain_buys_no_time() -> None:
    stage = Stage(a_delivery(0), TURN, Drain())
    assert stage.at(4.0)(Drain()) == []
    stage.at(5.0)(Tick())
    assert stage.state.stopped


def test_a_drain_takes_no_new_partition_and_resumes_none() -> None:
    stage = Stage(*(a_delivery(offset) for offset in range(4)), TURN, Drain())
    assert stage(Assigned({P1: a_start_offset()})) == [Pause((P1,))]
    assert stage(StagePaused(True), StagePaused(False)) == []
    stage.finish(T0, T1, T2)
    assert stage(Emitted(a_ticket(3), OUTPUTS), Acknowledged(a_ticket(3)), TURN) == [
        Produce(a_ticket(3), OUTPUTS),
        Commit({P0: a_point(4)}, must_finish=True),
    ]


def test_what_was_handed_back_by_a_drain_can_still_be_cancelled() -> None:
    stage = Stage(a_delivery(0, "j"), Drain())
    assert stage(JobCancelled("j", 1, 0.0)) == []


def test_a_worker_without_partitions_drains_at_once() -> None:
    state = StageState(LIMITS)
    assert state.handle(Drain(), 0.0) == []
    assert state.handle(Tick(), 0.0) == []
    assert state.stopped


# ---- how long the loop may wait


def test_an_idle_loop_waits_as_long_as_it_may() -> None:
    assert Stage().state.poll_timeout_s(0.0) == LIMITS.poll_s


def test_a_loop_with_answers_due_looks_often() -> None:
    timeout_s = Stage(a_delivery(0), TURN).state.poll_timeout_s
    assert timeout_s(0.0) == LIMITS.shortest_poll_s  # an event a moment ago: the next is near
    assert timeout_s(0.004) == 0.004
    assert timeout_s(1.0) == LIMITS.busy_poll_s  # nothing for long: a batch that takes its time


def test_a_loop_with_a_batch_in_the_making_wakes_when_that_is_due() -> None:
    state = Stage(a_delivery(0)).state
    assert state.num_waiting == 1
    assert state.poll_timeout_s(0.0) == LIMITS.poll_s
    assert state.poll_timeout_s(0.95) == 1.0 - 0.95
    assert state.poll_timeout_s(2.0) == 0.0


def test_a_paused_stage_does_not_spin_over_the_batch_that_it_may_not_start() -> None:
    state = Stage(a_delivery(0), StagePaused(True)).state
    assert state.poll_timeout_s(9.0) == LIMITS.poll_s
