"""StageState, case by case: what is tried again later, and the copies that come of it."""

from __future__ import annotations

import dataclasses

from streams.core.events import (
    Acknowledged,
    Commit,
    DeadLetter,
    Delivered,
    Drop,
    Emitted,
    End,
    Ended,
    Ending,
    Failed,
    Fate,
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
    Tick,
)
from streams.core.flights import CANCELLED
from streams.core.retry import RetryPolicy
from tests.builders import P0, a_delivery, a_fault, a_ticket, a_work
from tests.unit.staging import LIMITS, OUTPUTS, T0, T1, T2, TURN, Stage, a_point, started

RETRYING = dataclasses.replace(LIMITS, retry=RetryPolicy(delays_s=(10,), max_tries=3))
LATER = a_fault(fate=Fate.LATER, reason_code="busy", message="not now")


def a_stage_with(*deliveries: Delivered) -> Stage:
    """These were delivered, and what may have started has; a retry waits ten seconds."""
    return Stage(*deliveries, TURN, limits=RETRYING)


# ---- the original


def test_what_failed_for_now_goes_to_a_retry_topic_as_its_next_try() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    assert stage(Failed(T0, LATER)) == [Retry(T0, a_work("j", try_number=2), 10, LATER)]


def test_a_record_is_finished_by_the_acknowledgement_of_its_copy_without_ending_its_run() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(Failed(T0, LATER))
    assert stage.state.ours.trackers[P0].commit_offset == 0
    assert stage(Acknowledged(T0)) == []
    assert stage.at(2.0)(Tick()) == [Commit({P0: a_point(1)}, must_finish=False)]


def test_the_last_try_that_fails_is_dead_lettered_and_ends_its_run() -> None:
    stage = a_stage_with(a_delivery(0, "j", try_number=3))
    work = a_work("j", try_number=3)
    assert stage(Failed(T0, LATER)) == [DeadLetter(T0, work, LATER)]
    assert stage(Acknowledged(T0)) == [End(T0, work, Ending("failed", "busy", "not now"))]


def test_a_copy_that_was_not_acknowledged_is_asked_for_again() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    retry = stage(Failed(T0, LATER))
    assert stage(NotAcknowledged(T0, "timed out", is_permanent=False)) == []
    assert stage.at(1.0)(TURN) == retry


def test_a_copy_that_can_never_be_written_is_dead_lettered() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(Failed(T0, LATER))
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == [
        DeadLetter(T0, a_work("j"), a_fault(reason_code="record_too_large", message="too large"))
    ]


def test_a_dead_letter_that_is_too_large_goes_to_the_object_store() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(Failed(T0, a_fault()))
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == [Offload(T0, a_work("j"))]
    blob = (("blob-uri", b"s3://dead/letter"),)
    assert stage(Offloaded(T0, blob)) == [DeadLetter(T0, a_work("j"), a_fault(), blob)]
    assert stage(Offloaded(T0, blob)) == []


def test_a_dead_letter_that_is_too_large_even_so_is_asked_for_again() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(Failed(T0, a_fault()), NotAcknowledged(T0, "too large", is_permanent=True))
    letter = stage(Offloaded(T0, (("blob-uri", b"s3://dead/letter"),)))
    assert stage(NotAcknowledged(T0, "too large", is_permanent=True)) == []
    assert stage.at(1.0)(TURN) == letter


def test_an_ending_that_fails_for_now_is_asked_for_five_times_and_then_dead_lettered() -> None:
    stage = Stage(JobCancelled("j", 1, 0.0), a_delivery(0, "j"))
    for second in (1.0, 2.0, 3.0, 4.0):
        assert stage(NotEnded(T0, LATER)) == []
        assert stage.at(second)(TURN) == [End(T0, a_work("j"), CANCELLED)]
    letter = DeadLetter(T0, a_work("j"), dataclasses.replace(LATER, ends_job=False))
    assert stage(NotEnded(T0, LATER)) == [letter]


# ---- a copy that is not due


def test_a_record_that_is_not_due_pauses_its_partition_until_it_is() -> None:
    stage = Stage()
    assert stage(a_delivery(0, due_s=5.0)) == [Pause((P0,))]
    assert stage.at(4.9)(TURN) == []
    assert stage.at(5.0)(TURN) == [Resume((P0,)), started(0, due_s=5.0)]


def test_a_record_that_has_come_due_waits_no_longer() -> None:
    assert Stage().at(5.0)(a_delivery(0, due_s=5.0), TURN) == [started(0, due_s=5.0)]


def test_a_partition_resumes_when_none_of_its_records_is_delayed() -> None:
    stage = Stage(a_delivery(0, due_s=5.0), a_delivery(1, due_s=6.0))
    assert stage.at(5.0)(TURN) == [started(0, due_s=5.0)]
    assert stage.at(6.0)(Tick())[0] == Resume((P0,))


def test_a_delayed_run_can_be_cancelled() -> None:
    stage = Stage(a_delivery(0, "j", due_s=5.0))
    assert stage(JobCancelled("j", 1, 0.0)) == [
        Resume((P0,)), End(T0, a_work("j", due_s=5.0), CANCELLED),
    ]  # fmt: skip
    assert stage.at(5.0)(Tick()) == []


def test_a_delayed_record_whose_partition_is_lost_is_forgotten() -> None:
    stage = Stage(a_delivery(0, due_s=5.0))
    assert stage(Lost((P0,))) == [Drop((T0,))]
    assert stage.at(5.0)(Tick()) == []


# ---- copies of one job


def test_a_copy_that_comes_before_its_acknowledgement_is_not_finished_with_its_original() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(Failed(T0, LATER), a_delivery(1, "j", try_number=2))
    stage(Acknowledged(T0))
    assert stage.state.ours.trackers[P0].commit_offset == 1
    assert stage(TURN) == [started(1, job_id="j", try_number=2)]


def test_twins_of_a_retried_record_are_finished_unworked() -> None:
    stage = a_stage_with(a_delivery(0, "j"), a_delivery(1, "j"), a_delivery(2, "j"))
    stage(Failed(T0, LATER))
    assert stage(Acknowledged(T0), TURN) == []
    assert stage.state.flights == {}
    assert stage.state.ours.trackers[P0].commit_offset == 3


def test_a_try_that_fails_while_its_next_one_is_here_asks_for_no_copy() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(a_delivery(1, "j", try_number=2))
    assert stage(Failed(T0, LATER)) == []
    assert stage(TURN) == [started(1, job_id="j", try_number=2)]


def test_a_try_that_works_although_its_next_one_is_here_counts() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(a_delivery(1, "j", try_number=2))
    assert stage(Emitted(T0, OUTPUTS)) == [Produce(T0, OUTPUTS)]
    assert stage(Acknowledged(T0), TURN) == [started(1, job_id="j", try_number=2)]


def test_a_later_try_replaces_one_that_waits() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1, "j", try_number=2))
    assert stage(TURN) == [started(1, job_id="j", try_number=2)]
    assert set(stage.state.flights) == {T1}


def test_an_earlier_try_behind_a_later_one_is_finished_unworked() -> None:
    stage = a_stage_with(a_delivery(0, "j", try_number=2), a_delivery(1, "j"))
    assert set(stage.state.flights) == {T0}


def test_a_later_try_replaces_an_earlier_one_that_waits_behind_another() -> None:
    stage = a_stage_with(a_delivery(0, "j"), a_delivery(1, "j"))
    stage(a_delivery(2, "j", try_number=2))
    assert set(stage.state.flights) == {T0, T2}


def test_a_later_run_stops_the_one_that_is_at_work() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    assert stage(a_delivery(1, "j", run=2)) == [Drop((T0,))]
    assert stage(Emitted(T0, OUTPUTS)) == []
    assert stage(TURN) == [started(1, job_id="j", run=2)]


def test_a_later_run_waits_for_what_is_being_produced() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(Emitted(T0, OUTPUTS))
    assert stage(a_delivery(1, "j", run=2), TURN) == []
    assert stage(Acknowledged(T0), TURN) == [started(1, job_id="j", run=2)]


def test_the_copy_of_the_highest_rank_has_its_turn_first() -> None:
    stage = a_stage_with(a_delivery(0, "j"))
    stage(Failed(T0, a_fault()), Acknowledged(T0))
    stage(a_delivery(1, "j", run=2), a_delivery(2, "j", run=3))
    stage(Ended(T0, OUTPUTS), Acknowledged(T0))
    assert stage(TURN) == [started(2, job_id="j", run=3)]
    assert set(stage.state.flights) == {a_ticket(2)}
