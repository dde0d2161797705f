"""Which head holds up its partition, beside a naive count of what lies behind it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.core import offset_map
from streams.core.head_of_line import is_held_up
from streams.core.offset_map import OffsetMap
from streams.core.offsets import OffsetTracker

MAX_SPAN = 20
WIDE = [offset_map.MAX_SPAN - 2, offset_map.MAX_SPAN, 2 * offset_map.MAX_SPAN]


def naive(delivered: list[int], finished: set[int]) -> bool:
    """By looking at every record."""
    unfinished = [each for each in delivered if each not in finished]
    behind = [each for each in finished if unfinished and each > unfinished[0]]
    if not behind:
        return False
    head, last = unfinished[0], max(behind)
    if 10 * (last - head + 1) <= 9 * MAX_SPAN:
        return False
    num_behind = last - head  # gaps are never waited for: they count as finished
    return 100 * (num_behind - len(unfinished[1:])) > 98 * num_behind


@given(
    gaps=st.lists(st.integers(1, 3) | st.sampled_from(WIDE), min_size=1, max_size=40),
    finishing=st.lists(st.integers(0, 39), max_size=60),
)
def test_a_head_is_to_blame_as_counted_record_by_record(
    gaps: list[int], finishing: list[int]
) -> None:
    tracker = OffsetTracker(1, OffsetMap(0))
    delivered, at = [], 0
    for gap in gaps:
        at += gap
        delivered.append(at)
        tracker.deliver(at)
    finished: set[int] = set()
    for number in finishing:
        if number < len(delivered) and delivered[number] not in finished:
            finished.add(delivered[number])
            tracker.complete(delivered[number], 1)
    assert is_held_up(tracker.span, tracker.num_unfinished, MAX_SPAN) == naive(delivered, finished)


@given(st.integers(0, 30_000), st.integers(0, 300))
def test_a_partition_without_a_head_is_held_up_by_nobody(span: int, num_unfinished: int) -> None:
    if is_held_up(span, num_unfinished, MAX_SPAN):
        assert span > 0.9 * MAX_SPAN
        assert not is_held_up(span, num_unfinished + span, MAX_SPAN)
    assert not is_held_up(0, num_unfinished, MAX_SPAN)
