"""OffsetTracker, case by case."""

from __future__ import annotations

from streams.core.offsets import OffsetTracker


def deliver(tracker: OffsetTracker, *offsets: int) -> None:
    for offset in offsets:
        assert tracker.deliver(offset)


def test_nothing_is_known_before_the_first_record_without_a_start() -> None:
    tracker = OffsetTracker(assignment_epoch=1)
    assert (tracker.commit_offset, tracker.next_offset, tracker.num_unfinished) == (None, -1, 0)


def test_the_start_offset_is_what_may_be_committed_before_the_first_record() -> None:
    tracker = OffsetTracker(1, start_offset=40)
    assert (tracker.commit_offset, tracker.next_offset) == (40, 40)


def test_the_commit_offset_stays_at_the_lowest_unfinished_record() -> None:
    tracker = OffsetTracker(1, start_offset=0)
    deliver(tracker, 0, 1, 2)
    assert tracker.complete(2, 1)
    assert tracker.complete(1, 1)
    assert (tracker.commit_offset, tracker.num_unfinished) == (0, 1)


def test_finishing_the_lowest_record_passes_everything_that_finished_behind_it() -> None:
    tracker = OffsetTracker(1, start_offset=0)
    deliver(tracker, 0, 1, 2, 3)
    for offset in (2, 1, 0):
        tracker.complete(offset, 1)
    assert tracker.commit_offset == 3


def test_when_all_have_finished_the_next_record_to_read_is_committed() -> None:
    tracker = OffsetTracker(1, start_offset=0)
    deliver(tracker, 0, 1)
    tracker.complete(1, 1)
    tracker.complete(0, 1)
    assert (tracker.commit_offset, tracker.num_unfinished) == (2, 0)


def test_gaps_are_never_waited_for() -> None:
    tracker = OffsetTracker(1, start_offset=5)
    deliver(tracker, 10, 14)
    assert tracker.commit_offset == 10
    tracker.complete(10, 1)
    assert tracker.commit_offset == 14


def test_a_record_that_was_delivered_before_changes_nothing() -> None:
    tracker = OffsetTracker(1, start_offset=0)
    deliver(tracker, 0, 1)
    tracker.complete(0, 1)
    assert not tracker.deliver(0)
    assert not tracker.deliver(1)
    assert (tracker.commit_offset, tracker.next_offset, tracker.num_unfinished) == (1, 2, 1)


def test_a_record_below_the_start_is_not_taken() -> None:
    assert not OffsetTracker(1, start_offset=5).deliver(4)


def test_results_of_another_assignment_change_nothing() -> None:
    tracker = OffsetTracker(7, start_offset=0)
    deliver(tracker, 0)
    assert not tracker.complete(0, assignment_epoch=6)
    assert not tracker.complete(0, assignment_epoch=8)
    assert tracker.commit_offset == 0


def test_a_record_finishes_once() -> None:
    tracker = OffsetTracker(1, start_offset=0)
    deliver(tracker, 0)
    assert tracker.complete(0, 1)
    assert not tracker.complete(0, 1)


def test_an_offset_that_was_never_delivered_cannot_finish() -> None:
    tracker = OffsetTracker(1, start_offset=0)
    deliver(tracker, 0, 2)
    assert not tracker.complete(1, 1)
    assert tracker.commit_offset == 0
