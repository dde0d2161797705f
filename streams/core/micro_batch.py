"""When a micro-batch closes: on size, on age, or because the device has nothing to do."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

from streams.core.accounts import Turn
from streams.core.fair_queue import ALIKE, Charge, Fairness, FairQueue, key_of, order_of

T = TypeVar("T", bound=Hashable)


class MicroBatcher(Generic[T]):
    """Gathers items of equal batch key until a batch is worth starting.

    A key is ready when it has `max_size` items, when one of them has waited `max_age_s`, or at
    once while the device is idle. The fair queue says whose item leads a batch and which others
    of its key fill it; where the leader's key is not ready, the fairest of those that are goes.

    >>> batcher = MicroBatcher(max_size=2, max_age_s=1.0)
    >>> batcher.add("64x64", "a", Charge(), None, now_s=0.0)
    >>> batcher.take(now_s=0.5, is_idle=False)
    ()
    >>> batcher.add("64x64", "b", Charge(), None, now_s=0.6)
    >>> batcher.add("96x64", "c", Charge(), None, now_s=0.7)
    >>> batcher.take(now_s=0.7, is_idle=False), batcher.take(now_s=0.7, is_idle=True)
    (('a', 'b'), ('c',))
    """

    def __init__(self, max_size: int, max_age_s: float, fairness: Fairness = ALIKE) -> None:
        if max_size < 1 or max_age_s < 0:
            raise ValueError(f"want max_size >= 1 and max_age_s >= 0, got {max_size}, {max_age_s}")
        self._max_size, self._max_age_s = max_size, max_age_s
        self.queue: FairQueue[T] = FairQueue(fairness)
        self._full: dict[Hashable, None] = {}  # keys that have a batch together, in order

    def __len__(self) -> int:
        return len(self.queue)

    def add(
        self, key: Hashable, item: T, charge: Charge, deadline_s: float | None, now_s: float
    ) -> None:
        """Let an item wait."""
        self.queue.add(key, item, charge, deadline_s, now_s)
        if self.queue.num(key) >= self._max_size:
            self._full[key] = None

    def take(self, now_s: float, is_idle: bool) -> tuple[T, ...]:
        """The next batch, at most `max_size` items of one key; empty if none is ready."""
        turn = self.choose(now_s, is_idle)
        return () if turn is None else self.pop(turn)

    def choose(self, now_s: float, is_idle: bool) -> Turn | None:
        """What leads the next batch; None if none is ready."""
        if not len(self.queue):
            return None
        turn = self.queue.lead()
        if is_idle or self._is_ready(key_of(turn), now_s):
            return turn
        oldest = self.queue.oldest_key()
        ready = [*self._full, *([oldest] if self._is_ready(oldest, now_s) else [])]
        return min(map(self.queue.lead_of, ready), key=order_of) if ready else None

    def pop(self, turn: Turn) -> tuple[T, ...]:
        """A batch that this one leads, filled up with the fairest others of its key."""
        key = key_of(turn)
        batch = [self.queue.pop(turn)]
        while len(batch) < self._max_size and self.queue.num(key):
            batch.append(self.queue.pop(self.queue.lead_of(key)))
        self._note_size(key)
        return tuple(batch)

    def next_due_s(self) -> float | None:
        """When the item that waits longest will have waited `max_age_s`; None if nothing waits."""
        if not len(self.queue):
            return None
        return self.queue.oldest_s(self.queue.oldest_key()) + self._max_age_s

    def remove(self, items: Collection[T]) -> tuple[T, ...]:
        """Take these out, as many as wait, and return them."""
        removed = self.queue.remove(items)
        for key in list(self._full):
            self._note_size(key)
        return removed

    def _is_ready(self, key: Hashable, now_s: float) -> bool:
        return key in self._full or now_s - self.queue.oldest_s(key) >= self._max_age_s

    def _note_size(self, key: Hashable) -> None:
        if self.queue.num(key) < self._max_size:
            self._full.pop(key, None)
