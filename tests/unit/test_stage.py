"""StageState, case by case: records, batches, copies, partitions."""

from __future__ import annotations

from streams.core.events import (
    Acknowledged,
    Announce,
    Announced,
    Assigned,
    Commit,
    Committed,
    DeadLetter,
    Delivered,
    Drop,
    Emitted,
    End,
    Ended,
    Ending,
    Event,
    Failed,
    JobCancelled,
    Lost,
    NotAcknowledged,
    NotEnded,
    Produce,
    Revoked,
    Start,
    Tick,
)
from streams.core.stage import StageState
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
from tests.unit.staging import (
    LIMITS,
    OUTPUTS,
    T0,
    T1,
    T2,
    TURN,
    Stage,
    a_point,
    started,
)

# ---- the way of a record


def test_an_idle_worker_starts_a_record_at_the_next_tick() -> None:
    stage = Stage()
    assert stage(a_delivery(0)) == []
    assert stage(TURN) == [started(0)]


def test_what_the_engine_emits_is_produced() -> None:
    stage = Stage(a_delivery(0), TURN)
    assert stage(Emitted(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]


def test_a_record_is_finished_by_its_acknowledgement_and_then_committed() -> None:
    stage = Stage(a_delivery(0), TURN, Emitted(T0, OUTPUTS))
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(0)}, must_finish=False)]  # no longer in
    assert stage(Committed(True), Acknowledged(T0)) == []
    assert stage.at(3.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_an_acknowledgement_that_nobody_waits_for_changes_nothing() -> None:
    stage = Stage(a_delivery(0), TURN)
    assert stage(Acknowledged(T0), Acknowledged(T1)) == []
    assert stage(Emitted(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]


def test_a_record_that_was_not_acknowledged_is_produced_again_after_a_while() -> None:
    stage = Stage(a_delivery(0), TURN, Emitted(T0, OUTPUTS))
    assert stage(NotAcknowledged(T0, "timed out", is_permanent=False)) == []
    assert stage.at(0.9)(TURN) == []
    assert stage.at(1.0)(TURN) == [Produce(T0, OUTPUTS)]
    assert stage.at(5.0)(TURN) == []


def test_what_is_to_be_asked_again_may_be_gone_by_then() -> None:
    stage = Stage(a_delivery(0), TURN, Emitted(T0, OUTPUTS))
    stage(NotAcknowledged(T0, "timed out", is_permanent=False), Lost((P0,)))
    assert stage.at(1.0)(TURN) == []


def test_a_refusal_that_nobody_waits_for_changes_nothing() -> None:
    stage = Stage(a_delivery(0), TURN)
    for ticket in (T0, T1):
        assert stage(NotAcknowledged(ticket, "late", is_permanent=False)) == []


def test_a_record_that_can_never_be_written_is_dead_lettered() -> None:
    stage = Stage(a_delivery(0), TURN, Emitted(T0, OUTPUTS))
    fault = a_fault(reason_code="record_too_large", message="too large")
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == [
        DeadLetter(T0, a_delivery(0).work, fault)
    ]


def test_a_dead_letter_that_was_not_acknowledged_is_asked_for_again() -> None:
    stage = Stage(a_delivery(0), TURN, Failed(T0, a_fault()))
    assert stage(NotAcknowledged(T0, "timed out", is_permanent=False)) == []
    assert stage.at(1.0)(TURN) == [DeadLetter(T0, a_delivery(0).work, a_fault())]


def test_an_outcome_that_was_not_acknowledged_is_told_again() -> None:
    stage = Stage(a_delivery(0), TURN, Failed(T0, a_fault()), Acknowledged(T0))
    stage(Ended(T0, OUTPUTS))
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == []
    assert stage.at(1.0)(TURN) == [Produce(T0, OUTPUTS)]


def test_a_failed_record_is_dead_lettered_then_its_run_ends_then_that_is_told() -> None:
    stage = Stage(a_delivery(0), TURN)
    work = a_delivery(0).work
    assert stage(Failed(T0, a_fault())) == [DeadLetter(T0, work, a_fault())]
    assert stage(Acknowledged(T0)) == [End(T0, work, Ending("failed", "bad", "it is bad"))]
    assert stage(Ended(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]
    assert stage(Acknowledged(T0)) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_a_fault_that_is_not_its_jobs_ends_no_run() -> None:
    stage = Stage(a_delivery(0), TURN, Failed(T0, a_fault(ends_job=False)))
    assert stage(Acknowledged(T0)) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_a_record_that_nobody_can_decode_is_dead_lettered_and_finished() -> None:
    work = a_work(job_id=None)
    stage = Stage()
    assert stage(Delivered(P0, 0, work, a_fault())) == [DeadLetter(T0, work, a_fault())]
    assert stage(Acknowledged(T0)) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_a_verdict_settles_a_record_without_work() -> None:
    ending = Ending("rejected", "over_quota", "too much")
    stage = Stage()
    assert stage(a_delivery(0, verdict=a_fault()), a_delivery(1, verdict=ending)) == [
        DeadLetter(T0, a_delivery(0).work, a_fault()),
        End(T1, a_delivery(1).work, ending),
    ]
    assert stage(TURN) == []


def test_a_run_that_cannot_be_ended_is_dead_lettered_and_finished() -> None:
    stage = Stage(JobCancelled("job-0-0", 1, 0.0), a_delivery(0))
    assert stage(NotEnded(T0, a_fault())) == [
        DeadLetter(T0, a_delivery(0).work, a_fault(ends_job=False))
    ]
    assert stage(Acknowledged(T0)) == []
    assert stage.state.flights == {}


def test_a_dead_letter_whose_run_cannot_be_ended_is_finished() -> None:
    stage = Stage(a_delivery(0), TURN, Failed(T0, a_fault()), Acknowledged(T0))
    assert stage(NotEnded(T0, a_fault(reason_code="conflict"))) == []
    assert stage.state.flights == {}


def test_a_hint_is_announced_and_forgotten() -> None:
    assert Stage()(Announced(an_output("step 1"))) == [Announce(an_output("step 1"))]


# ---- batches


def test_records_of_one_key_wait_for_a_full_batch_while_the_engine_is_busy() -> None:
    stage = Stage(a_delivery(0), TURN)
    assert stage(a_delivery(1), TURN) == []
    assert stage(a_delivery(2), TURN) == [started(1, 2)]


def test_no_more_batches_start_than_the_engine_takes() -> None:
    stage = Stage(a_delivery(0), TURN, a_delivery(1), a_delivery(2), TURN, a_delivery(3))
    assert stage.at(5.0)(TURN) == []
    stage(Emitted(T0, OUTPUTS))
    assert stage(TURN) == [started(3)]


def test_records_of_two_keys_make_two_batches() -> None:
    stage = Stage(a_delivery(0, batch_key="a"), a_delivery(1, batch_key="b"))
    assert stage.at(1.0)(TURN) == [started(0, batch_key="a"), started(1, batch_key="b")]


# ---- copies of a job


def test_a_copy_waits_until_the_one_before_it_has_finished() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j"), a_delivery(2, "j"))
    assert stage(TURN) == [started(0, job_id="j")]
    stage.finish(T0)
    assert stage(TURN)[0] == started(1, job_id="j")
    stage.finish(T1)
    assert stage(TURN) == [started(2, job_id="j")]


def test_a_copy_keeps_its_verdict_while_it_waits() -> None:
    stage = Stage(a_delivery(0, "j"), TURN)
    assert stage(a_delivery(1, "j", verdict=a_fault())) == []
    stage(Emitted(T0, OUTPUTS))
    assert stage(Acknowledged(T0)) == [DeadLetter(T1, a_work("j"), a_fault())]


def test_a_copy_in_another_partition_takes_over_when_the_first_is_taken_away() -> None:
    stage = Stage(Assigned({P1: a_start_offset()}), a_delivery(0, "j"), TURN)
    stage(a_delivery(0, "j", partition=P1))
    stage(Lost((P0,)))
    copy = a_ticket(0, P1, assignment_epoch=2)
    assert stage(TURN) == [Start(((copy, a_work("j")),))]


def test_a_waiting_copy_in_another_partition_can_be_taken_away() -> None:
    stage = Stage(Assigned({P1: a_start_offset()}), a_delivery(0, "j"), TURN)
    stage(a_delivery(0, "j", partition=P1), a_delivery(1, "j"))
    assert stage(Lost((P1,))) == [Drop((a_ticket(0, P1, assignment_epoch=2),))]
    stage.finish(T0)
    assert stage(TURN)[0] == started(1, job_id="j")


# ---- partitions


def test_a_partition_without_a_commit_gets_one_at_once() -> None:
    state = StageState(LIMITS)
    assert state.handle(Assigned({P0: a_start_offset(is_committed=False)}), 0.0) == []
    assert state.handle(Tick(), 0.0) == [Commit({P0: a_point(0)}, must_finish=False)]


def test_an_empty_assignment_is_normal() -> None:
    assert Stage()(Assigned({}), TURN) == []


def test_an_offset_that_is_delivered_twice_is_ignored() -> None:
    stage = Stage(a_delivery(0))
    assert stage(a_delivery(0), TURN) == [started(0)]


def test_a_record_of_a_partition_that_is_not_ours_is_ignored() -> None:
    assert Stage()(a_delivery(0, partition=P1), TURN) == []


def test_a_revoked_partition_is_committed_before_it_goes_and_its_work_dropped() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, a_delivery(2))
    stage.finish(T0)
    assert stage(Revoked((P0,))) == [Commit({P0: a_point(1)}, must_finish=True), Drop((T1, T2))]
    assert stage(TURN) == []


def test_a_revoked_partition_is_committed_again_while_an_answer_is_due() -> None:
    stage = Stage(a_delivery(0), TURN)
    stage.finish(T0)
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]
    assert stage(Revoked((P0,))) == [Commit({P0: a_point(1)}, must_finish=True)]


def test_a_revoked_partition_whose_commit_stands_is_not_committed_again() -> None:
    assert Stage()(Revoked((P0,))) == []


def test_partitions_that_nothing_is_known_of_can_be_taken_away() -> None:
    assert Stage()(Revoked((P1,)), Lost((P1,)), Revoked(())) == []


def test_a_lost_partition_is_never_committed() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN)
    stage.finish(T0)
    assert stage(Lost((P0,))) == [Drop((T1,))]
    assert stage.at(2.0)(Tick()) == []


def test_an_answer_for_a_record_that_is_not_ending_changes_nothing() -> None:
    stage = Stage(a_delivery(0), TURN)
    assert stage(Ended(T0, OUTPUTS), NotEnded(T0, a_fault())) == []


def test_results_of_an_older_assignment_change_nothing() -> None:
    stage = Stage(a_delivery(0), TURN, Lost((P0,)), Assigned({P0: a_start_offset()}))
    stage(a_delivery(0), TURN)
    stale: list[Event] = [
        Emitted(T0, OUTPUTS), Failed(T0, a_fault()), Ended(T0, ()), NotEnded(T0, a_fault()),
        Acknowledged(T0), NotAcknowledged(T0, "late", is_permanent=True),
    ]  # fmt: skip
    assert stage(*stale) == []
    assert stage(Emitted(a_ticket(0, assignment_epoch=2), OUTPUTS)) != []
