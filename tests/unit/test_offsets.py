"""OffsetTracker, case by case."""

from __future__ import annotations

from streams.core.offset_map import MAX_SPAN, NO_CRASHES, Crashes, OffsetMap
from streams.core.offsets import OffsetTracker


def deliver(tracker: OffsetTracker, *offsets: int) -> None:
    for offset in offsets:
        assert tracker.deliver(offset)


def test_the_start_offset_is_what_may_be_committed_before_the_first_record() -> None:
    tracker = OffsetTracker(1, OffsetMap(40))
    assert (tracker.commit_offset, tracker.next_offset) == (40, 40)


def test_the_commit_offset_stays_at_the_lowest_unfinished_record() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0, 1, 2)
    assert tracker.complete(2, 1)
    assert tracker.complete(1, 1)
    assert (tracker.commit_offset, tracker.num_unfinished) == (0, 1)


def test_finishing_the_lowest_record_passes_everything_that_finished_behind_it() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0, 1, 2, 3)
    for offset in (2, 1, 0):
        tracker.complete(offset, 1)
    assert tracker.commit_offset == 3


def test_when_all_have_finished_the_next_record_to_read_is_committed() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0, 1)
    tracker.complete(1, 1)
    tracker.complete(0, 1)
    assert (tracker.commit_offset, tracker.num_unfinished) == (2, 0)


def test_gaps_are_never_waited_for() -> None:
    tracker = OffsetTracker(1, OffsetMap(5))
    deliver(tracker, 10, 14)
    assert tracker.commit_offset == 10
    tracker.complete(10, 1)
    assert tracker.commit_offset == 14


def test_a_record_that_was_delivered_before_changes_nothing() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0, 1)
    tracker.complete(0, 1)
    assert not tracker.deliver(0)
    assert not tracker.deliver(1)
    assert (tracker.commit_offset, tracker.next_offset, tracker.num_unfinished) == (1, 2, 1)


def test_a_record_below_the_start_is_not_taken() -> None:
    assert not OffsetTracker(1, OffsetMap(5)).deliver(4)


def test_results_of_another_assignment_change_nothing() -> None:
    tracker = OffsetTracker(7, OffsetMap(0))
    deliver(tracker, 0)
    assert not tracker.complete(0, assignment_epoch=6)
    assert not tracker.complete(0, assignment_epoch=8)
    assert tracker.commit_offset == 0


def test_a_record_finishes_once() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0)
    assert tracker.complete(0, 1)
    assert not tracker.complete(0, 1)


def test_an_offset_that_was_never_delivered_cannot_finish() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0, 2)
    assert not tracker.complete(1, 1)
    assert tracker.commit_offset == 0


# ---- the map


def test_what_finished_beyond_the_commit_offset_is_in_the_map() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0, 1, 2, 4)
    tracker.complete(2, 1)
    tracker.complete(4, 1)
    assert tracker.offset_map() == OffsetMap(0, 0b10100)


def test_what_an_earlier_owner_finished_is_not_delivered_again() -> None:
    tracker = OffsetTracker(1, OffsetMap(0, 0b1010))
    assert [tracker.deliver(offset) for offset in range(5)] == [True, False, True, False, True]
    tracker.complete(0, 1)
    assert tracker.commit_offset == 2
    tracker.complete(2, 1)
    assert tracker.commit_offset == 4


def test_records_finished_by_an_earlier_owner_move_the_commit_while_nothing_is_open() -> None:
    tracker = OffsetTracker(1, OffsetMap(0, 0b011))
    assert [tracker.deliver(offset) for offset in (0, 1)] == [False, False]
    assert tracker.offset_map() == OffsetMap(2)


def test_a_map_reaches_no_further_than_it_can_be_written() -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    deliver(tracker, 0, MAX_SPAN - 1, MAX_SPAN)
    tracker.complete(MAX_SPAN, 1)
    assert tracker.offset_map() == OffsetMap(0)
    assert tracker.span == MAX_SPAN + 1, "but it has finished"
    tracker.complete(MAX_SPAN - 1, 1)
    assert tracker.offset_map().finished() == [MAX_SPAN - 1]
    tracker.complete(0, 1)
    assert tracker.offset_map() == OffsetMap(MAX_SPAN + 1)


def test_the_span_is_that_of_what_was_delivered_not_of_what_an_earlier_owner_finished() -> None:
    tracker = OffsetTracker(1, OffsetMap(0, 0b1111000))
    deliver(tracker, 0, 2)
    assert tracker.span == 3
    tracker.complete(2, 1)
    tracker.complete(0, 1)
    assert (tracker.commit_offset, tracker.span) == (3, 0)


def test_crash_counts_are_told_until_their_record_has_finished() -> None:
    tracker = OffsetTracker(1, OffsetMap(0, 0, {0: Crashes(1, 0), 7: Crashes(2, 1)}))
    deliver(tracker, 0, 7)
    assert (tracker.crashes(0), tracker.crashes(1)) == (Crashes(1, 0), None)
    tracker.set_crashes(0, Crashes(2, 0))
    assert tracker.offset_map().crashes == {0: Crashes(2, 0), 7: Crashes(2, 1)}
    tracker.complete(7, 1)
    tracker.set_crashes(0, NO_CRASHES)
    assert tracker.offset_map().crashes == {}


def test_crash_counts_below_the_commit_offset_are_forgotten() -> None:
    tracker = OffsetTracker(1, OffsetMap(0, 0, {0: Crashes(1, 0), 7: Crashes(2, 1)}))
    deliver(tracker, 5)  # 0 was compacted away
    assert tracker.offset_map() == OffsetMap(5, 0, {7: Crashes(2, 1)})
