"""Back-pressure with two thresholds: pause high, resume low, never flap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Window(Generic[K]):
    """How many records each partition holds, and which partitions take no more.

    A partition becomes full at `high` and stays full until it has fallen to `low`: resuming makes
    librdkafka refetch what it had prefetched, so it must not happen for every record.

    >>> window = Window(high=2, low=0)
    >>> window.enter("p0"), window.enter("p0"), window.is_full("p0")
    (False, True, True)
    >>> window.leave("p0"), window.is_full("p0"), window.leave("p0"), window.is_full("p0")
    (False, True, True, False)
    """

    def __init__(self, high: int, low: int) -> None:
        if not 0 <= low < high:
            raise ValueError(f"thresholds: want 0 <= low < high, got {low} and {high}")
        self._high, self._low = high, low
        self._held: Counter[K] = Counter()
        self._full: set[K] = set()

    def __len__(self) -> int:
        return self._held.total()

    def is_full(self, key: K) -> bool:
        """Whether the partition takes no more records."""
        return key in self._full

    def enter(self, key: K) -> bool:
        """Count one record in; True if that made the partition full (pause it)."""
        self._held[key] += 1
        if self._held[key] < self._high or key in self._full:
            return False
        self._full.add(key)
        return True

    def leave(self, key: K) -> bool:
        """Count one record out; True if the partition was full and no longer is (resume it)."""
        assert self._held[key] > 0, f"{key!r} holds nothing"
        self._held[key] -= 1
        if self._held[key] > self._low or key not in self._full:
            return False
        self._full.remove(key)
        return True

    def forget(self, key: K) -> None:
        """Drop all that is known of a partition that was taken away."""
        self._held.pop(key, None)
        self._full.discard(key)
