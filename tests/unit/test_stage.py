"""StageState, case by case: the commands that an event leads to, in order."""

from __future__ import annotations

from streams.core.events import (
    Acknowledged,
    Announce,
    Announced,
    Assigned,
    Command,
    Commit,
    Committed,
    DeadLetter,
    Delivered,
    Drain,
    Drop,
    Emitted,
    End,
    Ended,
    Ending,
    Event,
    Failed,
    JobCancelled,
    JobDeadline,
    Lost,
    NotAcknowledged,
    NotEnded,
    Pause,
    Produce,
    Resume,
    Revoked,
    StagePaused,
    Start,
    StartOffset,
    Tick,
    Ticket,
)
from streams.core.stage import CANCELLED, EXPIRED, StageLimits, StageState
from tests.builders import (
    P0,
    P1,
    a_delivery,
    a_fault,
    a_start_offset,
    a_ticket,
    a_work,
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


def started(*offsets: int, **changes: str | None) -> Start:
    """A batch of records as `a_delivery` makes them."""
    return Start(
        tuple((a_ticket(offset), a_delivery(offset, **changes).work) for offset in offsets)
    )


# ---- the way of a record


def test_an_idle_worker_starts_a_record_at_the_next_tick() -> None:
    stage = Stage()
    assert stage(a_delivery(0)) == []
    assert stage(Tick()) == [started(0)]


def test_what_the_engine_emits_is_produced() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage(Emitted(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]


def test_a_record_is_finished_by_its_acknowledgement_and_then_committed() -> None:
    stage = Stage(a_delivery(0), Tick(), Emitted(T0, OUTPUTS))
    assert stage.at(2.0)(Tick()) == []
    assert stage(Acknowledged(T0)) == []
    assert stage(Tick()) == [Commit({P0: 1}, must_finish=False)]


def test_an_acknowledgement_that_nobody_waits_for_changes_nothing() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage(Acknowledged(T0), Acknowledged(T1)) == []
    assert stage(Emitted(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]


def test_a_record_that_was_not_acknowledged_is_produced_again() -> None:
    stage = Stage(a_delivery(0), Tick(), Emitted(T0, OUTPUTS))
    assert stage(NotAcknowledged(T0, "timed out", is_permanent=False)) == [Produce(T0, OUTPUTS)]


def test_a_refusal_that_nobody_waits_for_changes_nothing() -> None:
    stage = Stage(a_delivery(0), Tick())
    for ticket in (T0, T1):
        assert stage(NotAcknowledged(ticket, "late", is_permanent=False)) == []


def test_a_record_that_can_never_be_written_is_dead_lettered() -> None:
    stage = Stage(a_delivery(0), Tick(), Emitted(T0, OUTPUTS))
    fault = a_fault(reason_code="record_too_large", message="too large")
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == [
        DeadLetter(T0, a_delivery(0).work, fault)
    ]


def test_a_dead_letter_that_was_not_acknowledged_is_asked_for_again() -> None:
    stage = Stage(a_delivery(0), Tick(), Failed(T0, a_fault()))
    assert stage(NotAcknowledged(T0, "timed out", is_permanent=False)) == [
        DeadLetter(T0, a_delivery(0).work, a_fault())
    ]


def test_an_outcome_that_was_not_acknowledged_is_told_again() -> None:
    stage = Stage(a_delivery(0), Tick(), Failed(T0, a_fault()), Acknowledged(T0))
    stage(Ended(T0, OUTPUTS))
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == [Produce(T0, OUTPUTS)]


def test_a_failed_record_is_dead_lettered_then_its_run_ends_then_that_is_told() -> None:
    stage = Stage(a_delivery(0), Tick())
    work = a_delivery(0).work
    assert stage(Failed(T0, a_fault())) == [DeadLetter(T0, work, a_fault())]
    assert stage(Acknowledged(T0)) == [End(T0, work, Ending("failed", "bad", "it is bad"))]
    assert stage(Ended(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]
    assert stage(Acknowledged(T0)) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: 1}, must_finish=False)]


def test_a_fault_that_is_not_its_jobs_ends_no_run() -> None:
    stage = Stage(a_delivery(0), Tick(), Failed(T0, a_fault(ends_job=False)))
    assert stage(Acknowledged(T0)) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: 1}, must_finish=False)]


def test_a_record_that_nobody_can_decode_is_dead_lettered_and_finished() -> None:
    work = a_work(job_id=None)
    stage = Stage()
    assert stage(Delivered(P0, 0, work, a_fault())) == [DeadLetter(T0, work, a_fault())]
    assert stage(Acknowledged(T0)) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: 1}, must_finish=False)]


def test_a_verdict_settles_a_record_without_work() -> None:
    ending = Ending("rejected", "over_quota", "too much")
    stage = Stage()
    assert stage(a_delivery(0, verdict=a_fault()), a_delivery(1, verdict=ending)) == [
        DeadLetter(T0, a_delivery(0).work, a_fault()),
        End(T1, a_delivery(1).work, ending),
    ]
    assert stage(Tick()) == []


def test_a_run_that_cannot_be_ended_is_dead_lettered_and_finished() -> None:
    stage = Stage(JobCancelled("job-0-0", 1), a_delivery(0))
    assert stage(NotEnded(T0, a_fault())) == [
        DeadLetter(T0, a_delivery(0).work, a_fault(ends_job=False))
    ]
    assert stage(Acknowledged(T0)) == []
    assert stage.state.flights == {}


def test_a_dead_letter_whose_run_cannot_be_ended_is_finished() -> None:
    stage = Stage(a_delivery(0), Tick(), Failed(T0, a_fault()), Acknowledged(T0))
    assert stage(NotEnded(T0, a_fault(reason_code="conflict"))) == []
    assert stage.state.flights == {}


def test_a_hint_is_announced_and_forgotten() -> None:
    assert Stage()(Announced(an_output("step 1"))) == [Announce(an_output("step 1"))]


# ---- batches


def test_records_of_one_key_wait_for_a_full_batch_while_the_engine_is_busy() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage(a_delivery(1), Tick()) == []
    assert stage(a_delivery(2), Tick()) == [started(1, 2)]


def test_no_more_batches_start_than_the_engine_takes() -> None:
    stage = Stage(a_delivery(0), Tick(), a_delivery(1), a_delivery(2), Tick(), a_delivery(3))
    assert stage.at(5.0)(Tick()) == []
    stage(Emitted(T0, OUTPUTS))
    assert stage(Tick()) == [started(3)]


def test_records_of_two_keys_make_two_batches() -> None:
    stage = Stage(a_delivery(0, batch_key="a"), a_delivery(1, batch_key="b"))
    assert stage.at(1.0)(Tick()) == [started(0, batch_key="a"), started(1, batch_key="b")]


# ---- copies of a job


def test_a_copy_waits_until_the_one_before_it_has_finished() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j"), a_delivery(2, "j"))
    assert stage(Tick()) == [started(0, job_id="j")]
    stage.finish(T0)
    assert stage(Tick())[0] == started(1, job_id="j")
    stage.finish(T1)
    assert stage(Tick()) == [started(2, job_id="j")]


def test_another_run_of_the_job_is_no_copy() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j", run=2))
    assert stage(Tick()) == [
        Start(((T0, a_work("j")), (T1, a_work("j", run=2)))),
    ]


def test_a_copy_keeps_its_verdict_while_it_waits() -> None:
    stage = Stage(a_delivery(0, "j"), Tick())
    assert stage(a_delivery(1, "j", verdict=a_fault())) == []
    stage(Emitted(T0, OUTPUTS))
    assert stage(Acknowledged(T0)) == [DeadLetter(T1, a_work("j"), a_fault())]


def test_a_copy_in_another_partition_takes_over_when_the_first_is_taken_away() -> None:
    stage = Stage(Assigned({P1: a_start_offset()}), a_delivery(0, "j"), Tick())
    stage(a_delivery(0, "j", partition=P1))
    stage(Lost((P0,)))
    copy = a_ticket(0, P1, assignment_epoch=2)
    assert stage(Tick()) == [Start(((copy, a_work("j")),))]


def test_a_waiting_copy_in_another_partition_can_be_taken_away() -> None:
    stage = Stage(Assigned({P1: a_start_offset()}), a_delivery(0, "j"), Tick())
    stage(a_delivery(0, "j", partition=P1), a_delivery(1, "j"))
    assert stage(Lost((P1,))) == [Drop((a_ticket(0, P1, assignment_epoch=2),))]
    stage.finish(T0)
    assert stage(Tick())[0] == started(1, job_id="j")


# ---- partitions


def test_a_partition_without_a_commit_gets_one_at_once() -> None:
    state = StageState(LIMITS)
    assert state.handle(Assigned({P0: StartOffset(0, is_committed=False)}), 0.0) == []
    assert state.handle(Tick(), 0.0) == [Commit({P0: 0}, must_finish=False)]


def test_an_empty_assignment_is_normal() -> None:
    assert Stage()(Assigned({}), Tick()) == []


def test_an_offset_that_is_delivered_twice_is_ignored() -> None:
    stage = Stage(a_delivery(0))
    assert stage(a_delivery(0), Tick()) == [started(0)]


def test_a_record_of_a_partition_that_is_not_ours_is_ignored() -> None:
    assert Stage()(a_delivery(0, partition=P1), Tick()) == []


def test_a_revoked_partition_is_committed_before_it_goes_and_its_work_dropped() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), Tick(), a_delivery(2))
    stage.finish(T0)
    assert stage(Revoked((P0,))) == [Commit({P0: 1}, must_finish=True), Drop((T1, T2))]
    assert stage(Tick()) == []


def test_a_revoked_partition_is_committed_again_while_an_answer_is_due() -> None:
    stage = Stage(a_delivery(0), Tick())
    stage.finish(T0)
    assert stage(Tick()) == [Commit({P0: 1}, must_finish=False)]
    assert stage(Revoked((P0,))) == [Commit({P0: 1}, must_finish=True)]


def test_a_revoked_partition_whose_commit_stands_is_not_committed_again() -> None:
    assert Stage()(Revoked((P0,))) == []


def test_partitions_that_nothing_is_known_of_can_be_taken_away() -> None:
    assert Stage()(Revoked((P1,)), Lost((P1,)), Revoked(())) == []


def test_a_lost_partition_is_never_committed() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), Tick())
    stage.finish(T0)
    assert stage(Lost((P0,))) == [Drop((T1,))]
    assert stage.at(2.0)(Tick()) == []


def test_results_of_an_older_assignment_change_nothing() -> None:
    stage = Stage(a_delivery(0), Tick(), Lost((P0,)), Assigned({P0: a_start_offset()}))
    stage(a_delivery(0), Tick())
    stale: list[Event] = [
        Emitted(T0, OUTPUTS), Failed(T0, a_fault()), Ended(T0, ()), NotEnded(T0, a_fault()),
        Acknowledged(T0), NotAcknowledged(T0, "late", is_permanent=True),
    ]  # fmt: skip
    assert stage(*stale) == []
    assert stage(Emitted(a_ticket(0, assignment_epoch=2), OUTPUTS)) != []


# ---- back-pressure


def test_a_full_partition_is_paused_and_resumed_when_it_has_emptied() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), a_delivery(2))
    assert stage(a_delivery(3)) == [Pause((P0,))]
    stage(Tick(), Tick())
    stage.finish(T0, T1)
    stage(Tick(), Emitted(T2, OUTPUTS))
    assert stage(Acknowledged(T2)) == [Resume((P0,))]


def test_an_operators_pause_starts_no_work_and_takes_no_records() -> None:
    stage = Stage(a_delivery(0))
    assert stage(StagePaused(True), Tick()) == [Pause((P0,))]
    assert stage(StagePaused(True)) == []
    assert stage(Assigned({P1: a_start_offset()})) == [Pause((P1,))]
    assert stage(StagePaused(False), Tick()) == [Resume((P0, P1)), started(0)]


def test_what_runs_is_seen_through_while_the_stage_is_paused() -> None:
    stage = Stage(a_delivery(0), Tick(), StagePaused(True))
    stage.finish(T0)
    assert stage.at(2.0)(Tick()) == [Commit({P0: 1}, must_finish=False)]


def test_a_partition_that_empties_while_the_stage_is_paused_resumes_with_it() -> None:
    stage = Stage(*(a_delivery(offset) for offset in range(4)), Tick(), StagePaused(True))
    stage.finish(T0, T1)
    assert stage(StagePaused(False)) == []  # still full: two are held, one would be few enough
    stage(Tick(), StagePaused(True), Emitted(T2, OUTPUTS))
    assert stage(Acknowledged(T2)) == []
    assert stage(StagePaused(False)) == [Resume((P0,))]


def test_a_pause_without_partitions_asks_for_nothing() -> None:
    assert StageState(LIMITS).handle(StagePaused(True), 0.0) == []


# ---- commits


def test_commits_keep_their_interval() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), Tick())
    stage.finish(T0)
    assert stage(Tick()) == [Commit({P0: 1}, must_finish=False)]
    stage(Committed({P0: 1}, is_ok=True))
    stage.finish(T1)
    assert stage.at(0.9)(Tick()) == []
    assert stage.at(1.0)(Tick()) == [Commit({P0: 2}, must_finish=False)]


def test_a_commit_waits_for_the_answer_to_the_one_before() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), Tick())
    stage.finish(T0)
    stage(Tick())
    stage.finish(T1)
    assert stage.at(2.0)(Tick()) == []
    assert stage(Committed({P0: 1}, is_ok=True), Tick()) == [Commit({P0: 2}, must_finish=False)]


def test_a_commit_that_failed_is_made_again() -> None:
    stage = Stage(a_delivery(0), Tick())
    stage.finish(T0)
    stage(Tick())
    assert stage.at(2.0)(Committed({P0: 1, P1: 5}, is_ok=False), Tick()) == [
        Commit({P0: 1}, must_finish=False)
    ]


def test_a_record_that_finishes_behind_an_unfinished_one_commits_nothing() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), Tick())
    stage.finish(T1)
    assert stage.at(2.0)(Tick()) == []


# ---- wishes of clients


def test_a_cancelled_run_ends_at_delivery() -> None:
    stage = Stage(JobCancelled("j", 1))
    assert stage(a_delivery(0, "j")) == [End(T0, a_work("j"), CANCELLED)]


def test_a_cancelled_run_leaves_the_queue() -> None:
    stage = Stage(a_delivery(0, "j"))
    assert stage(JobCancelled("j", 1)) == [End(T0, a_work("j"), CANCELLED)]
    assert stage(Tick()) == []


def test_a_cancelled_run_is_dropped_by_the_engine_and_its_neighbour_goes_on() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1), Tick())
    assert stage(JobCancelled("j", 1)) == [Drop((T0,)), End(T0, a_work("j"), CANCELLED)]
    assert stage(Emitted(T1, OUTPUTS)) == [Produce(T1, OUTPUTS)]


def test_an_answer_that_was_under_way_when_the_run_was_cancelled_is_not_that_of_its_end() -> None:
    stage = Stage(a_delivery(0, "j"), Tick(), JobCancelled("j", 1))
    assert stage(Emitted(T0, OUTPUTS), Failed(T0, a_fault())) == []
    assert stage(Ended(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]


def test_a_run_whose_result_is_being_produced_is_cancelled_no_more() -> None:
    stage = Stage(a_delivery(0, "j"), Tick(), Emitted(T0, OUTPUTS))
    assert stage(JobCancelled("j", 1)) == []


def test_cancelling_another_run_changes_nothing() -> None:
    stage = Stage(a_delivery(0, "j"))
    assert stage(JobCancelled("j", 2), Tick()) == [started(0, job_id="j")]


def test_a_run_whose_deadline_has_passed_expires_at_delivery() -> None:
    stage = Stage().at(7.0)
    delivery = a_delivery(0, deadline_s=7.0)
    assert stage(delivery) == [End(T0, delivery.work, EXPIRED)]


def test_a_new_deadline_counts_instead_of_the_records_own() -> None:
    stage = Stage(JobDeadline("j", 1, 20.0)).at(7.0)
    assert stage(a_delivery(0, "j", deadline_s=5.0), Tick()) == [
        Start(((T0, a_work("j", deadline_s=5.0)),))
    ]


# ---- drain


def test_a_drain_hands_back_what_has_not_begun_and_sees_through_what_runs() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j"), Tick(), a_delivery(2))
    assert stage(Drain()) == [Pause((P0,))]
    assert stage(Tick(), a_delivery(3)) == []
    stage.finish(T0)
    assert stage(Tick()) == [Commit({P0: 1}, must_finish=True)]
    assert stage.state.stopped


def test_a_drain_ends_when_its_budget_is_spent() -> None:
    stage = Stage(a_delivery(0), Tick(), Drain())
    assert stage.at(4.9)(Tick()) == []
    assert stage.at(5.0)(Tick()) == [Drop((T0,))]
    assert stage.state.stopped


def test_a_second_drain_buys_no_time() -> None:
    stage = Stage(a_delivery(0), Tick(), Drain())
    assert stage.at(4.0)(Drain()) == []
    stage.at(5.0)(Tick())
    assert stage.state.stopped


def test_a_drain_takes_no_new_partition_and_resumes_none() -> None:
    stage = Stage(*(a_delivery(offset) for offset in range(4)), Tick(), Drain())
    assert stage(Assigned({P1: a_start_offset()})) == [Pause((P1,))]
    assert stage(StagePaused(True), StagePaused(False)) == []
    stage.finish(T0, T1)
    assert stage(Tick()) == [Commit({P0: 2}, must_finish=True)]


def test_a_worker_without_partitions_drains_at_once() -> None:
    state = StageState(LIMITS)
    assert state.handle(Drain(), 0.0) == []
    assert state.handle(Tick(), 0.0) == []
    assert state.stopped


# ---- how long the loop may wait


def test_an_idle_loop_waits_as_long_as_it_may() -> None:
    assert Stage().state.poll_timeout_s(0.0) == LIMITS.poll_s


def test_a_loop_with_answers_due_looks_often() -> None:
    assert Stage(a_delivery(0), Tick()).state.poll_timeout_s(0.0) == LIMITS.busy_poll_s


def test_a_loop_with_a_batch_in_the_making_wakes_when_that_is_due() -> None:
    state = Stage(a_delivery(0)).state
    assert state.num_waiting == 1
    assert state.poll_timeout_s(0.0) == LIMITS.poll_s
    assert state.poll_timeout_s(0.95) == 1.0 - 0.95
    assert state.poll_timeout_s(2.0) == 0.0


def test_a_paused_stage_does_not_spin_over_the_batch_that_it_may_not_start() -> None:
    state = Stage(a_delivery(0), StagePaused(True)).state
    assert state.poll_timeout_s(9.0) == LIMITS.poll_s
