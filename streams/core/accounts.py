"""The accounts of a fair queue: tiers, their tenants, and what waits of these and of a key.

Whatever is asked for its `rank` here goes into a `Ranking`, the least first.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Any

from streams.core.ranking import Ranking

#: Accounts kept of a tier's tenants that were served and wait for nothing now.
MAX_IDLE = 10_000

#: A record that waits, and whose turn it may be: [due_s, order, item, tenant, key, came_s, cost_s,
#: line, price]; sorts by due_s, then as they came. A list, not a class: heaps compare many. What
#: waits no longer (`tenant` is None) stays in heaps and queues until it comes to their front.
Turn = list[Any]
ORDER, ITEM, TENANT, KEY, CAME_S, COST_S, LINE, PRICE = 1, 2, 3, 4, 5, 6, 7, 8


class Tier:
    """Accounts of a tier: `rank`, the least goes first, in seconds served by weight."""

    __slots__ = (
        "cost_s", "highest", "num", "num_placed", "rank", "ranking", "served", "sweep_at",
        "tenants", "weight",
    )  # fmt: skip

    def __init__(self, weight: float, rank: float) -> None:
        self.weight, self.rank = weight, rank
        self.num = self.num_placed = 0
        self.cost_s = 0.0
        self.tenants: dict[str, Tenant] = {}
        self.sweep_at = 64  # tenants
        self.ranking: Ranking[Tenant] = Ranking()
        self.served = 0.0  # of the tenant that was served last, at that time: where newcomers begin
        self.highest = 0.0

    def open(self, name: str) -> Tenant:
        """A new account."""
        if len(self.tenants) >= self.sweep_at:
            self._sweep()
        tenant = self.tenants[name] = Tenant(self, name)
        return tenant

    def lead(self) -> Turn:
        """Whose turn it is among its tenants; one waits."""
        tenant = self.ranking.first()
        assert tenant is not None, "a tier that waits has a tenant that does"
        return tenant.first()

    def _sweep(self) -> None:
        """Forget who waits for nothing and is not ahead of newcomers."""
        idle = sorted((each.rank, name) for name, each in self.tenants.items() if not each.num)
        if len(idle) > MAX_IDLE:
            self.served = max(self.served, idle[len(idle) - MAX_IDLE - 1][0])
        for rank, name in idle:
            if rank <= self.served:
                del self.tenants[name]
        self.sweep_at = 2 * len(self.tenants) + 64


class Turns:
    """Records of a tenant that wait, by what is due first."""

    __slots__ = ("is_ranked", "num", "turns")

    def __init__(self) -> None:
        self.num, self.is_ranked = 0, False
        self.turns: list[Turn] = []  # heap

    def first(self) -> Turn:
        """What is due first; something waits."""
        turns = self.turns
        while turns[0][TENANT] is None:
            heapq.heappop(turns)
        return turns[0]

    def leave(self, turn: Turn) -> None:
        """One of them waits no longer."""
        self.num -= 1
        turns = self.turns
        if not self.num:
            turns.clear()
        elif turns[0] is turn:
            heapq.heappop(turns)
        elif len(turns) > 2 * self.num + 8:
            self.turns = [each for each in turns if each[TENANT] is not None]
            heapq.heapify(self.turns)


class Tenant(Turns):
    """All that waits of a tenant. `rank`: seconds served; `place`: when it came, or was served.

    `free_s`: of what it missed while nothing of it waited, what it may still have uncharged.
    """

    __slots__ = ("free_s", "name", "place", "rank", "tier")

    def __init__(self, tier: Tier, name: str) -> None:
        super().__init__()
        self.tier, self.name, self.rank, self.place = tier, name, tier.served, 0
        self.free_s = 0.0

    def come_back(self, cost_s: float) -> None:
        """Something waits of it again, that costs so much; others had more meanwhile."""
        missed_s = self.tier.served - self.rank
        self.rank = self.tier.served
        self.free_s = min(self.free_s + missed_s, cost_s)

    def owed_s(self, cost_s: float) -> float:
        """What it is charged of that."""
        free_s = min(self.free_s, cost_s)
        self.free_s -= free_s
        return cost_s - free_s


class Line(Turns):
    """What waits of a tenant and of one key."""

    __slots__ = ("tenant",)

    def __init__(self, tenant: Tenant) -> None:
        super().__init__()
        self.tenant = tenant

    @property
    def rank(self) -> float:
        """What its tenant was served."""
        return self.tenant.rank

    @property
    def place(self) -> int:
        """Its tenant's."""
        return self.tenant.place


class KeyTurns:
    """All records of one key, at least one; in lines from when somebody asks for its turns.

    Lines are kept for a while: where turns are anybody's nobody asks.
    """

    __slots__ = ("_rankings", "is_ranked", "lines", "name", "num", "num_ranked", "turns")

    def __init__(self, name: Hashable) -> None:
        self.name, self.num, self.is_ranked = name, 0, False
        self.turns: deque[Turn] = deque()  # as they came
        self.lines: dict[Tenant, Line] | None = None
        self.num_ranked = 0  # records, since the lines were made
        self._rankings: dict[Tier, Ranking[Line]] = {}

    @property
    def rank(self) -> float:
        """When the record that waits longest came."""
        return self._oldest()[CAME_S]  # type: ignore[no-any-return]

    @property
    def place(self) -> int:
        """The number of that record."""
        return self._oldest()[ORDER]  # type: ignore[no-any-return]

    def _oldest(self) -> Turn:
        turns = self.turns
        while turns[0][TENANT] is None:
            turns.popleft()
        return turns[0]

    def tidy(self) -> None:
        """Forget what waits no longer."""
        self.turns = deque(each for each in self.turns if each[TENANT] is not None)

    def rankings(self) -> dict[Tier, Ranking[Line]]:
        """Its lines, by tier."""
        if self.lines is None:
            self.lines, self._rankings, self.num_ranked = {}, {}, 0
            for each in self.turns:
                if each[TENANT] is not None:
                    self._rank(each)
        return self._rankings

    def rank_record(self, turn: Turn) -> None:
        """It waits, and somebody may ask for this key's turns."""
        if self.num_ranked > 2 * self.num + 64:
            self.lines = None  # most are of tenants that wait for nothing; made anew if asked for
        else:
            self._rank(turn)

    def _rank(self, turn: Turn) -> None:
        assert self.lines is not None
        tenant = turn[TENANT]
        line = self.lines.get(tenant)
        if line is None:
            line = self.lines[tenant] = Line(tenant)
        turn[LINE] = line
        heapq.heappush(line.turns, turn)
        line.num += 1
        self.num_ranked += 1
        if not line.is_ranked:
            ranking = self._rankings.get(tenant.tier)
            if ranking is None:
                ranking = self._rankings[tenant.tier] = Ranking()
            ranking.add(line)
