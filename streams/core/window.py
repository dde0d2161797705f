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

    A fair queue can only be fair among what it sees, and a tenant's backlog at the front of a
    partition hides everybody behind it. So of each tenant at most `per_tenant` records count: the
    partition is read on past those of one that crowds it, until it holds `most` in all. Likewise
    past what counts as nobody's, which goes only where nothing else waits: it must not hide others.

    >>> window = Window(high=2, low=0)
    >>> window.enter("p0"), window.enter("p0"), window.is_full("p0")
    (False, True, True)
    >>> window.leave("p0"), window.is_full("p0"), window.leave("p0"), window.is_full("p0")
    (False, True, True, False)
    >>> window = Window(high=2, low=0, per_tenant=1, most=4)
    >>> [window.enter("p0", "noisy") for _ in range(3)], window.enter("p0", "quiet")
    ([False, False, False], True)
    >>> window.enter("p1", None), window.enter("p1", None), len(window)
    (False, False, 6)
    """

    def __init__(
        self, high: int, low: int, per_tenant: int | None = None, most: int | None = None
    ) -> None:
        """`per_tenant` None: all count. `most`: at least `high`, which it is if None."""
        most = high if most is None else most
        per_tenant = high if per_tenant is None else per_tenant
        if not 0 <= low < high <= most or per_tenant < 1:
            raise ValueError(
                f"thresholds: want 0 <= low < high <= most and per_tenant >= 1, "
                f"got {low}, {high}, {most} and {per_tenant}"
            )
        self._high, self._low, self._per_tenant, self._most = high, low, per_tenant, most
        self._held: dict[K, Counter[str | None]] = {}
        self._num_held: Counter[K] = Counter()
        self._num_counted: Counter[K] = Counter()
        self._full: set[K] = set()

    def __len__(self) -> int:
        return self._num_held.total()

    def is_full(self, key: K) -> bool:
        """Whether the partition takes no more records."""
        return key in self._full

    def is_full_of_nobodys(self, key: K) -> bool:
        """Whether it would take more, were it not for what does not count."""
        return key in self._full and self._num_counted[key] <= self._low

    def enter(self, key: K, tenant_id: str | None = "") -> bool:
        """Count one record in; True if that made the partition full (pause it). None: nobody's."""
        held = self._held.setdefault(key, Counter())
        held[tenant_id] += 1
        self._num_held[key] += 1
        self._num_counted[key] += tenant_id is not None and held[tenant_id] <= self._per_tenant
        has_room = self._num_counted[key] < self._high and self._num_held[key] < self._most
        if has_room or key in self._full:
            return False
        self._full.add(key)
        return True

    def leave(self, key: K, tenant_id: str | None = "") -> bool:
        """Count one record out; True if the partition was full and no longer is (resume it)."""
        held = self._held.get(key, Counter())
        assert held[tenant_id] > 0, f"{key!r} holds nothing of {tenant_id!r}"
        held[tenant_id] -= 1
        self._num_held[key] -= 1
        self._num_counted[key] -= tenant_id is not None and held[tenant_id] < self._per_tenant
        if not held[tenant_id]:
            del held[tenant_id]
        if key not in self._full or self._num_counted[key] > self._low:
            return False
        if self._num_held[key] > self._most - (self._high - self._low):
            return False
        self._full.remove(key)
        return True

    def forget(self, key: K) -> None:
        """Drop all that is known of a partition that was taken away."""
        self._held.pop(key, None)
        self._num_held.pop(key, None)
        self._num_counted.pop(key, None)
        self._full.discard(key)
