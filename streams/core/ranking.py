"""Members by rank, the least first, where ranks only ever grow."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, Protocol, TypeVar


class Member(Protocol):
    """`num` records wait for it; `is_ranked` belongs to the ranking."""

    num: int
    is_ranked: bool

    @property
    def rank(self) -> float:
        """Grows only where `place` does."""
        ...

    @property
    def place(self) -> int:
        """Of equal ranks the least goes first; no two have the same. Never less than it was."""
        ...


M = TypeVar("M", bound=Member)
_Standing = tuple[float, int, M]


class Ranking(Generic[M]):
    """Members by rank and place, the least first.

    Both only ever grow: so who is out of date here is too far in front, and is put right when that
    comes first.
    """

    __slots__ = ("_heap", "_lane", "_num_added", "_tidy_at")

    def __init__(self) -> None:
        self._heap: list[_Standing[M]] = []
        self._lane: deque[_Standing[M]] = deque()  # in order as it is
        self._num_added = 0
        self._tidy_at = 64  # of members added

    def __len__(self) -> int:
        """Members, also those that have nothing waiting and are not forgotten yet."""
        return len(self._heap) + len(self._lane)

    def add(self, member: M) -> None:
        """A member that has something waiting, and is not here since when it last had."""
        if self._num_added >= self._tidy_at:
            self._tidy()
        self._num_added += 1
        standing = member.rank, member.place, member
        member.is_ranked = True
        heap = self._heap
        if heap and not heap[0][2].num:  # who was served last, most likely
            heapq.heapreplace(heap, standing)[2].is_ranked = False
            return
        heapq.heappush(heap, standing)

    def add_in_order(self, member: M) -> None:
        """As `add`, in less time, where no member that came this way goes after it."""
        if self._num_added >= self._tidy_at:
            self._tidy()
        self._num_added += 1
        self._lane.append((member.rank, member.place, member))
        member.is_ranked = True

    def first(self) -> M | None:
        """The member of the least rank that has something waiting."""
        heap, lane = self._heap, self._lane
        while heap or lane:
            if lane and not (heap and heap[0] < lane[0]):
                _, place, member = lane[0]
                if member.num and member.place == place:
                    return member
                lane.popleft()
                member.is_ranked = member.num > 0
                if member.num:
                    heapq.heappush(heap, (member.rank, member.place, member))
                continue
            _, place, member = heap[0]
            if not member.num:
                heapq.heappop(heap)
                member.is_ranked = False
            elif member.place != place:
                heapq.heapreplace(heap, (member.rank, member.place, member))
            else:
                return member
        return None

    def _tidy(self) -> None:
        for _, _, member in (*self._heap, *self._lane):
            member.is_ranked = member.num > 0
        self._heap = [each for each in self._heap if each[2].is_ranked]
        heapq.heapify(self._heap)
        self._lane = deque(each for each in self._lane if each[2].is_ranked)
        self._tidy_at = self._num_added + len(self) + 64
