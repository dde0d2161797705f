"""Members by rank, the least first, where ranks only ever grow."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar


class Member(Protocol):
    """`num` records wait for it; `is_ranked` belongs to the ranking."""

    num: int
    is_ranked: bool

    @property
    def rank(self) -> float:
        """Never less than it was."""
        ...


M = TypeVar("M", bound=Member)


class Ranking(Generic[M]):
    """Members by rank, least first; of equal rank as they came. Ranks only ever grow.

    So a place that is out of date is too far in front, and is put right when it comes first.
    """

    __slots__ = ("_heap", "_num_added", "_tidy_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, M]] = []
        self._num_added = 0
        self._tidy_at = 64

    def add(self, member: M) -> None:
        """A member that has something waiting, and is not here since when it last had."""
        if len(self._heap) >= self._tidy_at:
            self._tidy()
        member.is_ranked = True
        self._num_added += 1
        heapq.heappush(self._heap, (member.rank, self._num_added, member))

    def first(self) -> M | None:
        """The member of the least rank that has something waiting."""
        heap = self._heap
        while heap:
            rank, _, member = heap[0]
            if not member.num:
                heapq.heappop(heap)
                member.is_ranked = False
            elif member.rank > rank:
                self._num_added += 1
                heapq.heapreplace(heap, (member.rank, self._num_added, member))
            else:
                return member
        return None

    def _tidy(self) -> None:
        for _, _, member in self._heap:
            member.is_ranked = member.num > 0
        self._heap = [each for each in self._heap if each[2].is_ranked]
        heapq.heapify(self._heap)
        self._tidy_at = 2 * len(self._heap) + 64
