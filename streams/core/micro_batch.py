"""When a micro-batch closes: on size, on age, or because the device has nothing to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class MicroBatcher(Generic[T]):
    """Gathers items of equal batch key until a batch is worth starting.

    A key's queue is ready when it holds `max_size` items, when its head has waited `max_age_s`,
    or at once while the device is idle. Of the ready queues the one with the oldest head goes
    first, so no key waits for ever; inside a key the order is that of arrival.

    >>> batcher = MicroBatcher(max_size=2, max_age_s=1.0)
    >>> batcher.add("64x64", "a", now_s=0.0)
    >>> batcher.take(now_s=0.5, is_idle=False)
    ()
    >>> batcher.add("64x64", "b", now_s=0.6)
    >>> batcher.add("96x64", "c", now_s=0.7)
    >>> batcher.take(now_s=0.7, is_idle=False), batcher.take(now_s=0.7, is_idle=True)
    (('a', 'b'), ('c',))
    """

    def __init__(self, max_size: int, max_age_s: float) -> None:
        if max_size < 1 or max_age_s < 0:
            raise ValueError(f"want max_size >= 1 and max_age_s >= 0, got {max_size}, {max_age_s}")
        self._max_size, self._max_age_s = max_size, max_age_s
        self._queues: dict[Hashable, deque[tuple[float, T]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, key: Hashable, item: T, now_s: float) -> None:
        """Put an item at the end of its key's queue."""
        self._queues.setdefault(key, deque()).append((now_s, item))

    def take(self, now_s: float, is_idle: bool) -> tuple[T, ...]:
        """The next batch, at most `max_size` items of one key; empty if none is ready."""
        ready = [
            key
            for key, queue in self._queues.items()
            if is_idle or len(queue) >= self._max_size or now_s - queue[0][0] >= self._max_age_s
        ]
        if not ready:
            return ()
        key = min(ready, key=lambda each: self._queues[each][0][0])
        queue = self._queues[key]
        batch = tuple(queue.popleft()[1] for _ in range(min(self._max_size, len(queue))))
        if not queue:
            del self._queues[key]
        return batch

    def next_due_s(self) -> float | None:
        """When the oldest head will have waited `max_age_s`; None if nothing waits."""
        heads = [queue[0][0] for queue in self._queues.values()]
        return min(heads) + self._max_age_s if heads else None

    def drop(self, is_dropped: Callable[[T], bool]) -> tuple[T, ...]:
        """Remove and return every waiting item that the predicate names."""
        dropped: list[T] = []
        for key, queue in list(self._queues.items()):
            dropped += [item for _, item in queue if is_dropped(item)]
            kept = deque(pair for pair in queue if not is_dropped(pair[1]))
            if kept:
                self._queues[key] = kept
            else:
                del self._queues[key]
        return tuple(dropped)
