"""Which offset of one partition may be committed while its records finish out of order."""

from __future__ import annotations

from collections import deque


class OffsetTracker:
    """Which offset of one partition may be committed when records finish out of order.

    Tracks delivered offsets only, so gaps (compaction, transaction markers) are never waited for.
    A commit offset is exclusive, as in Kafka: it names the next record to read. Costs O(1) a
    record, amortised.

    >>> tracker = OffsetTracker(assignment_epoch=7)
    >>> for offset in (10, 11, 14):             # 12 and 13 were compacted away
    ...     _ = tracker.deliver(offset)
    >>> tracker.complete(11, assignment_epoch=7), tracker.commit_offset
    (True, 10)
    >>> tracker.complete(10, assignment_epoch=7), tracker.commit_offset
    (True, 14)
    >>> tracker.complete(14, assignment_epoch=6), tracker.commit_offset   # from before a rebalance
    (False, 14)
    """

    __slots__ = ("_commit_offset", "_next_offset", "_open", "_order", "assignment_epoch")

    def __init__(self, assignment_epoch: int, start_offset: int | None = None) -> None:
        self.assignment_epoch = assignment_epoch
        self._commit_offset = start_offset
        self._next_offset = -1 if start_offset is None else start_offset
        self._open: set[int] = set()  # delivered, not finished
        self._order: deque[int] = deque()  # ascending: every open offset, and finished ones between

    @property
    def commit_offset(self) -> int | None:
        """The lowest unfinished offset, else the next to read; None: nothing is known yet."""
        return self._commit_offset

    @property
    def next_offset(self) -> int:
        """One past the highest delivered offset; -1 before the first delivery without a start."""
        return self._next_offset

    @property
    def num_unfinished(self) -> int:
        """Delivered records that have not finished."""
        return len(self._open)

    def deliver(self, offset: int) -> bool:
        """Take note of a delivered record; False, and no change, if it was delivered before."""
        if offset < self._next_offset:
            return False
        self._next_offset = offset + 1
        if not self._order:
            self._commit_offset = offset
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
        while self._order and self._order[0] not in self._open:
            self._order.popleft()
        self._commit_offset = self._order[0] if self._order else self._next_offset
        return True
