"""When each of some things is due, the soonest first."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SPARE = 64  # stale places that the heap may hold besides as many as there are keys


class Timers(Generic[K]):
    """A time for each of some keys, at most one. Operations cost O(log n), over many of them.

    A time that is replaced or discarded keeps its place in the heap until it comes first there, or
    until such outnumber the others: most of what has a deadline ends a day before that.

    >>> timers = Timers[str]()
    >>> timers.set("late", 9.0); timers.set("soon", 5.0); timers.set("gone", 1.0)
    >>> timers.discard("gone"); timers.set("soon", 3.0)
    >>> timers.first(), timers.pop_due(2.0), timers.pop_due(3.0), timers.pop_due(3.0), len(timers)
    ((3.0, 'soon'), None, 'soon', None, 1)
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._places: dict[K, int] = {}  # of each key's item; items of other places are stale
        self._num_set = 0

    def __len__(self) -> int:
        """Keys that have a time."""
        return len(self._places)

    @property
    def num_places(self) -> int:
        """Places in the heap, stale ones too: what memory it costs."""
        return len(self._heap)

    def set(self, key: K, at_s: float) -> None:
        """It is due then, whatever was said before."""
        self._num_set += 1
        self._places[key] = self._num_set
        heapq.heappush(self._heap, (at_s, self._num_set, key))
        self._tidy()

    def discard(self, key: K) -> None:
        """It has no time, if it had one."""
        if self._places.pop(key, None) is not None:
            self._tidy()

    def first(self) -> tuple[float, K] | None:
        """What is due first, and when; of equal times the one that was set first."""
        while self._heap:
            at_s, place, key = self._heap[0]
            if self._places.get(key) == place:
                return at_s, key
            heapq.heappop(self._heap)
        return None

    def pop_due(self, now_s: float) -> K | None:
        """Take what is due first, if it is due by then."""
        first = self.first()
        if first is None or first[0] > now_s:
            return None
        heapq.heappop(self._heap)
        self.discard(first[1])
        return first[1]

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._places) + _SPARE:
            self._heap = [item for item in self._heap if self._places.get(item[2]) == item[1]]
            heapq.heapify(self._heap)
