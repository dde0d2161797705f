"""Members by rank, the least first, where ranks only ever grow."""

from __future__ import annotations

from bisect import insort
from math import inf
from typing import Any, Generic, Protocol, TypeVar


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

_FEW = 64  # so many are near at once, or an eighth of all


class Ranking(Generic[M]):
    """Members by rank and place, the least first.

    Both only ever grow: so who is out of date here is too far in front, and is put right when that
    comes first. Those in front are in order, the others as they came until it is their turn to be
    in front (as in a ladder queue, Tang, Goh, Thng, ACM TOMACS 15(3), 2005).
    """

    __slots__ = ("_at", "_bound", "_far", "_near", "_num_added", "_tidy_at")

    def __init__(self) -> None:
        self._near: list[_Standing[M]] = []  # in order
        self._at = 0  # where the first stands; those before have gone
        self._far: list[_Standing[M]] = []  # not before the bound
        self._bound: tuple[Any, ...] = (inf,)
        self._num_added = 0
        self._tidy_at = 64  # of members added

    def __len__(self) -> int:
        """Members, also those that have nothing waiting and are not forgotten yet."""
        return len(self._near) - self._at + len(self._far)

    def add(self, member: M) -> None:
        """A member that has something waiting, and is not here since when it last had."""
        if self._num_added >= self._tidy_at:
            self._tidy()
        self._num_added += 1
        member.is_ranked = True
        self._insert((member.rank, member.place, member))

    def first(self) -> M | None:
        """The member of the least rank that has something waiting."""
        while True:
            near, at = self._near, self._at
            if at == len(near):
                if not self._far:
                    return None
                self._draw_near()
                continue
            _, place, member = near[at]
            if not member.num:
                member.is_ranked = False
            elif member.place == place:
                return member
            self._at = at + 1
            if member.num:
                self._insert((member.rank, member.place, member))

    def _insert(self, standing: _Standing[M]) -> None:
        if standing < self._bound:
            if self._at > _FEW and 2 * self._at > len(self._near):
                del self._near[: self._at]
                self._at = 0
            insort(self._near, standing, self._at)
        else:
            self._far.append(standing)

    def _draw_near(self) -> None:
        """Nobody is left in front."""
        far = self._far
        far.sort()
        num = max(_FEW, len(far) // 8)
        self._near, self._at, self._far = far[:num], 0, far[num:]
        self._bound = self._far[0] if self._far else (inf,)

    def _tidy(self) -> None:
        """Who has nothing waiting goes, and no more are in front than there should be."""
        for _, _, member in (standings := self._near[self._at :] + self._far):
            member.is_ranked = member.num > 0
        self._near, self._at = [], 0
        self._far = [each for each in standings if each[2].is_ranked]
        self._draw_near()
        self._tidy_at = self._num_added + len(self) + 64
