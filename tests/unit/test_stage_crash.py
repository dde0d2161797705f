"""StageState, case by case: start markers, and what the crashes that they tell of lead to."""

from __future__ import annotations

from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    CommitPoint,
    Committed,
    DeadLetter,
    Drain,
    Drop,
    Emitted,
    End,
    Event,
    Failed,
    JobCancelled,
    Lost,
    Retry,
    Revoked,
    StagePaused,
    StartOffset,
    Tick,
)
from streams.core.flights import CANCELLED, EXPIRED
from streams.core.offset_map import Crashes, OffsetMap
from streams.core.stage import StageState
from tests.builders import P0, a_delivery, a_fault, a_work
from tests.unit.staging import LIMITS, OUTPUTS, T0, T1, T2, TURN, Stage, a_point, entered, started

KILLED = a_fault(reason_code="killed_workers")


class After(Stage):
    """A stage that takes over P0 from a process that died; it committed these crash counts."""

    def __init__(self, *events: Event, **crashes: Crashes) -> None:
        self.state, self.now_s = StageState(LIMITS), 0.0
        counts = {int(name.removeprefix("at_")): each for name, each in crashes.items()}
        self(Assigned({P0: StartOffset(OffsetMap(0, 0, counts), is_committed=True)}), *events)


def marked(offset: int, crashes: dict[int, Crashes]) -> Commit:
    """An asynchronous commit with these counts."""
    return Commit({P0: a_point(offset, crashes=crashes)}, must_finish=False)


# ---- the start marker


def test_a_batch_starts_when_its_start_marker_is_committed() -> None:
    stage = Stage(a_delivery(0), a_delivery(1))
    assert stage(Tick()) == [Commit({P0: entered(0, 0, 1)}, must_finish=False)]
    assert stage(Tick()) == []
    assert stage(Committed(True)) == [started(0, 1)]


def test_the_loop_hurries_while_a_batch_waits_for_its_marker() -> None:
    state = Stage(a_delivery(0), Tick()).state
    assert state.poll_timeout_s(0.0) == LIMITS.mark_poll_s
    state.handle(Committed(False), 0.0)
    assert state.poll_timeout_s(0.0) == LIMITS.mark_poll_s


def test_a_batch_that_could_not_be_marked_is_marked_again() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage(Committed(False), Tick()) == []
    assert stage.at(0.1)(Tick()) == []
    assert stage.at(0.2)(Tick()) == [Commit({P0: entered(0, 0)}, must_finish=False)]
    assert stage(Committed(True)) == [started(0)]


def test_a_batch_waits_while_the_commit_before_is_under_way() -> None:
    stage = Stage(a_delivery(0), Tick(), a_delivery(1), a_delivery(2))
    assert stage(Tick()) == []
    assert stage(Committed(True)) == [started(0)]
    assert stage(Tick()) == [Commit({P0: entered(0, 0, 1, 2)}, must_finish=False)]
    assert stage(Committed(True)) == [started(1, 2)]


def test_a_record_that_has_left_the_engine_is_not_marked_any_more() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, Emitted(T1, OUTPUTS))
    assert stage.at(1.0)(Tick()) == [Commit({P0: entered(0, 0)}, must_finish=False)]


def test_a_paused_stage_starts_nothing_that_was_entering_until_it_goes_on() -> None:
    stage = Stage(a_delivery(0), Tick())
    stage(StagePaused(True))
    assert stage(Committed(True)) == []
    assert stage.at(2.0)(TURN) == []
    stage(StagePaused(False))
    assert stage(TURN) == [started(0)]


def test_a_run_that_is_cancelled_while_it_enters_never_starts() -> None:
    stage = Stage(a_delivery(0, "j"), a_delivery(1), Tick())
    assert stage(JobCancelled("j", 1, 0.0)) == [End(T0, a_work("j"), CANCELLED)]
    assert stage(Committed(True)) == [started(1)]


def test_a_batch_of_which_nothing_is_left_when_it_is_marked_is_not_started() -> None:
    stage = Stage(a_delivery(0, "j"), Tick(), JobCancelled("j", 1, 0.0))
    assert stage(Committed(True)) == []


def test_a_batch_of_a_partition_that_is_lost_while_it_enters_is_not_started() -> None:
    stage = Stage(a_delivery(0), Tick())
    assert stage(Lost((P0,))) == [Drop((T0,))]
    assert stage(Committed(True)) == []


def test_a_deadline_that_passes_in_the_queue_is_seen_when_the_batch_is_taken() -> None:
    delivery = a_delivery(0, deadline_s=3.0)
    stage = Stage(delivery)
    assert stage.at(3.0)(TURN) == [End(T0, delivery.work, EXPIRED)]


def test_a_deadline_that_passes_while_the_marker_is_committed_is_seen() -> None:
    delivery = a_delivery(0, deadline_s=3.0)
    stage = Stage(delivery, a_delivery(1), Tick())
    assert stage.at(3.0)(Committed(True)) == [End(T0, delivery.work, EXPIRED), started(1)]


# ---- who is blamed


def test_a_record_that_was_inside_one_crash_is_worked_among_others() -> None:
    stage = After(a_delivery(0), a_delivery(1), at_0=Crashes(1))
    assert stage(Tick()) == [marked(0, {0: Crashes(2), 1: Crashes(1)})]
    assert stage(Committed(True)) == [started(0, 1)]


def test_a_record_that_was_inside_two_crashes_runs_alone() -> None:
    stage = After(a_delivery(0), a_delivery(1), a_delivery(2), at_1=Crashes(2))
    assert stage(Tick()) == [marked(0, {1: Crashes(3, 1)})]
    assert stage(Committed(True)) == [started(1)]
    assert stage.at(9.0)(TURN) == []
    stage.finish(T1)
    assert stage(TURN) == [started(0, 2)]


def test_a_suspect_waits_for_an_empty_engine() -> None:
    stage = Stage(a_delivery(0), TURN, a_delivery(1, crashes=Crashes(2)))
    assert stage.at(9.0)(TURN) == []
    stage.finish(T0)
    assert stage(TURN) == [started(1, crashes=Crashes(2))]


def test_a_crash_alone_sends_a_record_to_the_longest_retry_with_its_count() -> None:
    stage = After(at_0=Crashes(3, 1))
    (retry,) = stage(a_delivery(0, "j", try_number=2))
    assert isinstance(retry, Retry)
    assert retry.work == a_work("j", try_number=2, crashes=Crashes(3, 1))
    assert (retry.delay_s, retry.fault.reason_code) == (600, "killed_worker")


def test_a_copy_that_killed_a_process_alone_comes_back_as_a_suspect() -> None:
    copy = a_delivery(0, crashes=Crashes(3, 1))
    stage = Stage(copy, a_delivery(1), Tick())
    assert stage(Committed(True)) == [started(0, crashes=Crashes(3, 1))]


def test_a_copy_outranks_its_original_by_the_crash_that_it_tells_of() -> None:
    """Delivered before its acknowledgement, it was once taken for a twin and finished."""
    stage = After(a_delivery(0, "j"), at_0=Crashes(3, 1))
    stage(a_delivery(1, "j", crashes=Crashes(3, 1)))
    stage(Acknowledged(T0))
    assert set(stage.state.flights) == {T1}


def test_a_third_crash_alone_is_a_dead_letter() -> None:
    stage = After(at_0=Crashes(5, 3))
    (letter,) = stage(a_delivery(0, "j", crashes=Crashes(4, 2)))
    assert isinstance(letter, DeadLetter)
    assert letter.work == a_work("j", crashes=Crashes(5, 3))
    assert letter.fault == a_fault(
        reason_code="killed_workers",
        message="5 processes died with it, 3 held nothing else",
    )


def test_a_record_that_fails_takes_the_counts_of_its_crashes_along() -> None:
    stage = After(a_delivery(0, "j"), TURN, at_0=Crashes(1))
    assert stage(Failed(T0, KILLED)) == [DeadLetter(T0, a_work("j", crashes=Crashes(1)), KILLED)]


# ---- hand-backs


def test_a_hand_back_clears_the_count_of_what_runs() -> None:
    stage = After(a_delivery(0), TURN, at_0=Crashes(1))
    assert stage(Revoked((P0,))) == [
        Commit({P0: CommitPoint(0)}, must_finish=True), Drop((T0,)),
    ]  # fmt: skip


def test_a_hand_back_keeps_the_count_of_what_has_only_entered() -> None:
    stage = After(a_delivery(0), Tick(), at_0=Crashes(1))
    commit = Commit({P0: a_point(0, crashes={0: Crashes(1)})}, must_finish=True)
    assert stage(Revoked((P0,))) == [commit, Drop((T0,))]


def test_a_lost_partition_keeps_the_count_of_what_runs() -> None:
    stage = After(a_delivery(0), TURN, at_0=Crashes(1))
    assert stage(Lost((P0,))) == [Drop((T0,))]
    assert stage.at(9.0)(Tick()) == []


def test_a_drain_hands_back_what_has_only_entered_with_the_count_it_had() -> None:
    stage = After(a_delivery(0), Tick(), at_0=Crashes(1))
    stage(Drain())
    assert stage.state.flights == {}
    commit = Commit({P0: a_point(0, crashes={0: Crashes(1)})}, must_finish=True)
    assert stage(Committed(True), Tick()) == [commit]


def test_a_drain_that_runs_out_of_time_clears_the_count_of_what_runs() -> None:
    stage = Stage(a_delivery(0), TURN, Drain())
    assert stage.at(5.0)(Tick()) == [
        Commit({P0: CommitPoint(0)}, must_finish=True), Drop((T0,)),
    ]  # fmt: skip


def test_what_was_handed_back_can_be_delivered_again() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), a_delivery(2), TURN)
    assert set(stage.state.flights) == {T0, T1, T2}
    stage(Revoked((P0,)), Assigned({P0: StartOffset(OffsetMap(0), is_committed=True)}))
    (start,) = stage(a_delivery(0), TURN)
    assert start != started(0)  # of a later assignment
