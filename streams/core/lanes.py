"""What was read ahead, a lane for each partition; they take turns, one record each.

A client hands on records as they were fetched: hundreds of one partition, then the next. A record
of a quiet partition would stand behind all that a flooded one has sent before it is even looked
at, and no fairness later on could know of it (head-of-line blocking).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    items: deque[tuple[T, int]] = field(default_factory=deque)
    num_bytes: int = 0
    is_held: bool = False
    is_full: bool = False
    has_turn: bool = False  # it stands in the line of turns, perhaps in vain


class Lanes(Generic[K, T]):
    """Items by key, in the order in which they were added.

    >>> lanes = Lanes(max_bytes=100)
    >>> lanes.add("p0", "a", 10), lanes.add("p0", "b", 90), lanes.add("p1", "c", 10)
    (False, True, False)
    >>> [lanes.take() for _ in range(4)], lanes.drained()
    ([('p0', 'a'), ('p1', 'c'), ('p0', 'b'), None], ['p0'])
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` are shared evenly by the lanes that hold anything."""
        self._max_bytes = max_bytes
        self._lanes: dict[K, _Lane[T]] = {}
        self._turns: deque[K] = deque()
        self._num_busy = 0
        self._full: dict[K, None] = {}

    @property
    def is_ready(self) -> bool:
        """Whether there is anything to take."""
        while self._turns and not self._may_go(self._turns[0]):
            self._end_turn()
        return bool(self._turns)

    def add(self, key: K, item: T, num_bytes: int) -> bool:
        """Put it last in its lane; whether the lane has just become full: add no more for now."""
        lane = self._grown(key, num_bytes)
        lane.items.append((item, num_bytes))
        self._give_turn(key, lane)
        if lane.is_full or lane.num_bytes * self._num_busy < self._max_bytes:
            return False
        lane.is_full = True
        self._full[key] = None
        return True

    def take(self) -> tuple[K, T] | None:
        """The first of the lane whose turn it is; None: all that are not held are empty."""
        if not self.is_ready:
            return None
        key = self._end_turn()
        lane = self._lanes[key]
        item, num_bytes = lane.items.popleft()
        lane.num_bytes -= num_bytes
        self._num_busy -= not lane.items
        self._give_turn(key, lane)
        return key, item

    def put_back(self, key: K, item: T, num_bytes: int) -> None:
        """It was taken last, and is to be the next of its lane."""
        lane = self._grown(key, num_bytes)
        lane.items.appendleft((item, num_bytes))
        self._give_turn(key, lane)

    def drained(self) -> list[K]:
        """Lanes that were full, and hold half of their share at most: they may be added to again.

        Each is told of once.
        """
        found = [
            key
            for key in self._full
            if 2 * self._lanes[key].num_bytes * max(1, self._num_busy) <= self._max_bytes
        ]
        for key in found:
            del self._full[key]
            self._lanes[key].is_full = False
        return found

    def hold(self, keys: Iterable[K]) -> None:
        """Take nothing of these until they are released."""
        for key in keys:
            self._lanes.setdefault(key, _Lane()).is_held = True

    def release(self, keys: Iterable[K]) -> None:
        """Take from these again."""
        for key in keys:
            lane = self._lanes.setdefault(key, _Lane())
            lane.is_held = False
            self._give_turn(key, lane)

    def forget(self, keys: Iterable[K]) -> None:
        """Drop these lanes with what is in them."""
        for key in keys:
            if (lane := self._lanes.pop(key, None)) is None:
                continue
            self._num_busy -= bool(lane.items)
            self._full.pop(key, None)
            if lane.has_turn:
                self._turns.remove(key)

    def _grown(self, key: K, num_bytes: int) -> _Lane[T]:
        """The lane that is about to hold one more of that size."""
        lane = self._lanes.setdefault(key, _Lane())
        self._num_busy += not lane.items
        lane.num_bytes += num_bytes
        return lane

    def _may_go(self, key: K) -> bool:
        lane = self._lanes[key]
        return bool(lane.items) and not lane.is_held

    def _give_turn(self, key: K, lane: _Lane[T]) -> None:
        if not lane.has_turn and self._may_go(key):
            lane.has_turn = True
            self._turns.append(key)

    def _end_turn(self) -> K:
        key = self._turns.popleft()
        self._lanes[key].has_turn = False
        return key
