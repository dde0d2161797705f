"""What one partition may commit while its records finish out of order."""

from __future__ import annotations

from collections import deque

from streams.core.offset_map import MAX_SPAN, NO_CRASHES, Crashes, OffsetMap


class OffsetTracker:
    """What one partition may commit when records finish out of order.

    Tracks delivered offsets only, so gaps (compaction, transaction markers) are never waited for.
    A commit offset is exclusive, as in Kafka: it names the next record to read. What is finished
    beyond it is the offset map; records that an earlier owner finished are not delivered to
    anybody again. Costs O(1) a record, amortised.

    >>> tracker = OffsetTracker(assignment_epoch=7, known=OffsetMap(10, 0b1000))
    >>> [tracker.deliver(offset) for offset in (10, 11, 13, 14)]    # 12 was compacted away
    [True, True, False, True]
    >>> tracker.complete(11, assignment_epoch=7), tracker.commit_offset
    (True, 10)
    >>> tracker.offset_map().finished()
    [11, 13]
    >>> tracker.complete(10, assignment_epoch=7), tracker.commit_offset
    (True, 14)
    >>> tracker.complete(14, assignment_epoch=6), tracker.commit_offset   # from before a rebalance
    (False, 14)
    """

    __slots__ = (
        "_bits", "_commit_offset", "_crashes", "_next_offset", "_open", "_order", "_untold",
        "assignment_epoch",
    )  # fmt: skip

    def __init__(self, assignment_epoch: int, known: OffsetMap) -> None:
        self.assignment_epoch = assignment_epoch
        self._commit_offset = self._next_offset = known.offset
        self._bits = known.finished_bits  # bit i: commit_offset + i is finished
        self._untold = 0  # one past the last offset that has finished too far away for a bit
        self._crashes = dict(known.crashes)
        self._open: set[int] = set()  # delivered, not finished
        self._order: deque[int] = deque()  # ascending: every open offset, and finished ones between

    @property
    def commit_offset(self) -> int:
        """The lowest unfinished offset, else the next to read."""
        return self._commit_offset

    @property
    def next_offset(self) -> int:
        """One past the highest delivered offset."""
        return self._next_offset

    @property
    def num_unfinished(self) -> int:
        """Delivered records that have not finished."""
        return len(self._open)

    @property
    def span(self) -> int:
        """How far what was delivered here and has finished reaches beyond the commit offset.

        Not the whole map: an earlier owner's may reach further than anything that is delivered
        yet, and no record that finishes here would shorten that. And more than the map where a
        record has finished that is too far away to be told, as beyond a wide gap.
        """
        reach = max(self._bits.bit_length(), self._untold - self._commit_offset)
        return min(reach, self._next_offset - self._commit_offset)

    def offset_map(self) -> OffsetMap:
        """What is to be committed beside `commit_offset`, as of now."""
        return OffsetMap(self._commit_offset, self._bits, dict(self._crashes))

    def deliver(self, offset: int) -> bool:
        """Take note of a delivered record; False: nothing is to be done for it.

        It was delivered before, or an earlier owner has finished it.
        """
        if offset < self._next_offset:
            return False
        self._next_offset = offset + 1
        if not self._order:
            self._advance(offset)
        if self._bits >> (offset - self._commit_offset) & 1:
            if self._order:
                self._order.append(offset)
            else:
                self._advance(offset + 1)
            return False
        self._order.append(offset)
        self._open.add(offset)
        return True

    def complete(self, offset: int, assignment_epoch: int) -> bool:
        """Finish a delivered record; False, and no change, for a stale epoch or an unknown offset.

        Unknown are offsets never delivered in this epoch and offsets that finished before.
        """
        if assignment_epoch != self.assignment_epoch or offset not in self._open:
            return False
        self._open.remove(offset)
        self._crashes.pop(offset, None)
        if offset != self._commit_offset:
            distance = offset - self._commit_offset
            if distance < MAX_SPAN:
                self._bits |= 1 << distance
            else:
                self._untold = max(self._untold, offset + 1)
            return True
        order, still_open = self._order, self._open
        while order and order[0] not in still_open:
            order.popleft()
        self._advance(order[0] if order else self._next_offset)
        return True

    def crashes(self, offset: int) -> Crashes | None:
        """What the map says of a record; None: nothing."""
        return self._crashes.get(offset)

    def set_crashes(self, offset: int, crashes: Crashes) -> None:
        """What the map shall say of a record from now on."""
        if crashes == NO_CRASHES:
            self._crashes.pop(offset, None)
        else:
            self._crashes[offset] = crashes

    def _advance(self, offset: int) -> None:
        """Everything below `offset` is finished, or was never there."""
        self._bits >>= offset - self._commit_offset
        self._commit_offset = offset
        if self._crashes:
            self._crashes = {at: each for at, each in self._crashes.items() if at >= offset}
