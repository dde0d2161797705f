"""Who goes next among the records that wait: fair by cost over tiers, then over tenants.

Deficit scheduling in its sorted form, start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996):
every tier, and in it every tenant, has an account of what it was served, and of those that wait
the one that was served least, for its weight, goes next. Round robin (Shreedhar, Varghese, 1995)
shares alike, but a newcomer waits for a whole round there: long, where one job is minutes. An idle
account earns nothing: who comes back begins where the others are now.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic, NamedTuple, TypeVar

from streams.core.ranking import Ranking
from streams.core.tiers import OFF_PEAK, OFF_PEAK_WEIGHT

T = TypeVar("T", bound=Hashable)

#: Accounts kept of a tier's tenants that were served and wait for nothing now.
MAX_IDLE = 10_000
#: What the cheapest record is charged: turns cost something even where work is free.
LEAST_COST_S = 1e-3

#: A record that waits, and whose turn it may be: [due_s, order, item, tenant, key, came_s, cost_s,
#: line, price]; sorts by due_s, then as they came. A list, not a class: heaps compare many. What
#: waits no longer (`tenant` is None) stays in heaps and queues until it comes to their front.
Turn = list[Any]
_ORDER, _ITEM, _TENANT, _KEY, _CAME_S, _COST_S, _LINE, _PRICE = 1, 2, 3, 4, 5, 6, 7, 8


class Charge(NamedTuple):
    """Who pays for a record, and how much: seconds of the stage's device, estimated.

    `price` tells it anew in its turn: what came before anything was measured, a backlog of hundreds
    perhaps, must not go at another price than what comes after.
    """

    tier: str = ""
    tenant_id: str = ""
    cost_s: float = 0.0
    price: Callable[[], float] | None = None


NOBODY = Charge()


@dataclass(frozen=True, slots=True)
class Fairness:
    """How tiers share a worker while all of them wait, and how long a tenant's own job may.

    `ageing_s`: a record counts as due so long after it came, if its deadline is not sooner.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    ageing_s: float = 300.0


ALIKE = Fairness()
"""All tiers weigh the same."""


class Backlog(NamedTuple):
    """What waits for one payer, since `oldest_s`; `ahead_s`: served more than its tier's others."""

    tier: str
    tenant_id: str
    num_records: int
    cost_s: float
    oldest_s: float
    ahead_s: float


class FairQueue(Generic[T]):
    """Records that wait, by tier, tenant and batch key. All operations are O(log n).

    - Of two tiers that wait all the time, neither is ever ahead of the other, in seconds served
      divided by weight, by more than one record of each; likewise of two tenants of one tier.
    - A tenant's records go by deadline, earliest first, but none passes one that has waited
      `ageing_s`. Ageing ends there: if old records passed other tenants', whoever floods a worker
      would own it. What bounds a tenant's wait is its share.
    - What is off-peak (`tiers.OFF_PEAK`) goes where nothing else waits, and changes no account of
      who else there is. It does not age: under a load that never ends it waits without end.
    - A turn of one key never waits for records of another, and charges the same accounts.
    - Memory: what waits, and a few times `MAX_IDLE` accounts of tenants that don't. Where a tier
      has more of those, newcomers begin where the least of them is.

    >>> queue = FairQueue(Fairness({"pro": 3.0, "free": 1.0}))
    >>> for number in range(4):
    ...     queue.add("k", f"f{number}", Charge("free", "noisy", 1.0), None, now_s=0.0)
    ...     queue.add("k", f"p{number}", Charge("pro", "acme", 1.0), None, now_s=1.0)
    >>> queue.add("k", "late", Charge("free", "quiet", 1.0), None, now_s=2.0)
    >>> " ".join(queue.pop(queue.lead()) for _ in range(len(queue)))
    'f0 p0 p1 p2 late p3 f1 f2 f3'
    """

    def __init__(self, fairness: Fairness) -> None:
        if any(not 0 < weight < float("inf") for weight in fairness.weights.values()):
            raise ValueError(f"want weights > 0, got {dict(fairness.weights)}")
        self._weights, self._ageing_s = fairness.weights, fairness.ageing_s
        self._tiers: dict[str, _Tier] = {}
        self._keys: dict[Hashable, _Key] = {}
        self._oldest_keys: Ranking[_Key] = Ranking()
        self._turns: dict[T, Turn] = {}
        self._served = 0.0  # of the tier that was served last, at that time
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._turns)

    def num(self, key: Hashable) -> int:
        """How many records of that key wait."""
        found = self._keys.get(key)
        return 0 if found is None else found.num

    def oldest_s(self, key: Hashable) -> float:
        """When the record of that key that waits longest came; there is one."""
        return self._keys[key].rank

    def oldest_key(self) -> Hashable:
        """The key of the record that waits longest; there is one."""
        found = self._oldest_keys.first()
        assert found is not None, "nothing waits"
        return found.name

    def add(
        self, key: Hashable, item: T, charge: Charge, deadline_s: float | None, now_s: float
    ) -> None:
        """A record waits from now on."""
        assert item not in self._turns, f"{item!r} waits already"
        tier_name, tenant_id, cost_s, price = charge
        tier = self._tiers.get(tier_name) or self._tier(tier_name)
        if not tier.num and tier.rank < self._served:
            tier.rank = self._served
        tenant = tier.tenants.get(tenant_id) or tier.open(tenant_id)
        if not tenant.num:
            tier.num_placed += 1
            tenant.place = tier.num_placed
            is_behind = tenant.rank <= tier.served
            if is_behind:
                tenant.rank = tier.served
            if not tenant.is_ranked:
                (tier.ranking.add_in_order if is_behind else tier.ranking.add)(tenant)
        own_key = self._keys.get(key)
        if own_key is None:
            own_key = self._keys[key] = _Key(key)
        due_s = now_s + self._ageing_s
        if deadline_s is not None and deadline_s < due_s:
            due_s = deadline_s
        self._num_added += 1
        turn: Turn = [due_s, self._num_added, item, tenant, own_key, now_s, cost_s, None, price]
        heapq.heappush(tenant.turns, turn)
        own_key.turns.append(turn)
        own_key.num += 1
        if len(own_key.turns) > 2 * own_key.num + 64:
            own_key.tidy()
        if own_key.lines is not None:
            own_key.rank_record(turn)
        if not own_key.is_ranked:
            self._oldest_keys.add(own_key)
        self._turns[item] = turn
        tenant.num += 1
        tier.num += 1
        tier.cost_s += cost_s

    def lead(self) -> Turn:
        """Whose turn it is; something waits."""
        turn = self.lead_above(0.0)
        assert turn is not None, "nothing waits"
        return turn

    def lead_above(self, weight: float) -> Turn | None:
        """Whose turn it is among tiers of more than that weight; None if none of them waits."""
        best: _Tier | None = None
        for tier in self._tiers.values():
            if tier.num and tier.weight > weight and (best is None or tier.rank < best.rank):
                best = tier
        if best is None:
            return None
        tenant = best.ranking.first()
        assert tenant is not None, "a tier that waits has a tenant that does"
        return tenant.first()

    def lead_of(self, key: Hashable) -> Turn:
        """Whose turn it is among the records of that key; one waits."""
        best: _Line | None = None
        rankings = self._keys[key].rankings()
        for tier in self._tiers.values():
            if best is not None and best.tenant.tier.rank <= tier.rank:
                continue
            if tier in rankings and (line := rankings[tier].first()) is not None:
                best = line
        assert best is not None, f"nothing waits of {key!r}"
        return best.first()

    def pop(self, turn: Turn) -> T:
        """Take the record whose turn it is. Its payer is charged."""
        tenant, price = turn[_TENANT], turn[_PRICE]
        tier, cost_s = tenant.tier, turn[_COST_S] if price is None else price()
        charged_s = cost_s if cost_s > LEAST_COST_S else LEAST_COST_S
        if tenant.rank > tier.served:
            tier.served = tenant.rank
        tenant.rank += charged_s
        tier.num_placed += 1
        tenant.place = tier.num_placed
        if tenant.rank > tier.highest:
            tier.highest = tenant.rank
        if self._served < tier.rank < inf:
            self._served = tier.rank
        tier.rank += charged_s / tier.weight
        self._leave(turn)
        return turn[_ITEM]  # type: ignore[no-any-return]

    def remove(self, items: Collection[T]) -> tuple[T, ...]:
        """Take these out, as many as wait, and return them; nobody is charged."""
        found = sorted(self._turns[each] for each in items if each in self._turns)
        for turn in found:
            self._leave(turn)
        return tuple(turn[_ITEM] for turn in found)

    def waiting(self) -> Iterator[tuple[str, int, float]]:
        """By tier, how many records wait and what they cost together."""
        for name, tier in self._tiers.items():
            yield name, tier.num, tier.cost_s

    def backlogs(self) -> Iterator[Backlog]:
        """What waits for each tenant; O(n), for people to look at."""
        for name, tier in self._tiers.items():
            for tenant in tier.tenants.values():
                turns = [each for each in tenant.turns if each[_TENANT] is not None]
                if turns:
                    yield Backlog(
                        name, tenant.name, len(turns), sum(each[_COST_S] for each in turns),
                        min(each[_CAME_S] for each in turns), tenant.rank - tier.served,
                    )  # fmt: skip

    # ---- accounts

    def _tier(self, name: str) -> _Tier:
        """Tiers that are in no table share one account, of the least weight."""
        weights = self._weights
        is_off_peak = name == OFF_PEAK
        name = name if name in weights or is_off_peak else ""
        tier = self._tiers.get(name)
        if tier is None:
            least = OFF_PEAK_WEIGHT if is_off_peak else min(weights.values(), default=1.0)
            # Nothing is ahead of what goes last, by however much that was served.
            tier = self._tiers[name] = _Tier(weights.get(name, least), inf if is_off_peak else 0.0)
        return tier

    def _leave(self, turn: Turn) -> None:
        _, _, item, tenant, key, _, cost_s, line, _ = turn
        del self._turns[item]
        turn[_TENANT] = None
        tenant.leave(turn)
        if line is not None:
            line.leave(turn)
        key.num -= 1
        if not key.num:
            del self._keys[key.name]
        tier = tenant.tier
        tier.num -= 1
        tier.cost_s -= cost_s
        if not tier.num:
            tier.cost_s = 0.0
            tier.served = tier.highest  # nobody waits: nobody owes anything


def key_of(turn: Turn) -> Hashable:
    """The batch key of what waits."""
    return turn[_KEY].name  # type: ignore[no-any-return]


def payer_of(turn: Turn) -> tuple[float, Hashable]:
    """What its payer's tier weighs, and who it is."""
    tenant = turn[_TENANT]
    return tenant.tier.weight, (tenant.tier, tenant.name)


def order_of(turn: Turn) -> tuple[float, float, float]:
    """Of two keys' turns the one of the lesser order goes first."""
    tenant = turn[_TENANT]
    return tenant.tier.rank, tenant.rank, turn[0]


class _Tier:
    """Accounts of a tier: `rank`, the least goes first, in seconds served by weight."""

    __slots__ = (
        "cost_s", "highest", "num", "num_placed", "rank", "ranking", "served", "sweep_at",
        "tenants", "weight",
    )  # fmt: skip

    def __init__(self, weight: float, rank: float) -> None:
        self.weight, self.rank = weight, rank
        self.num = self.num_placed = 0
        self.cost_s = 0.0
        self.tenants: dict[str, _Tenant] = {}
        self.sweep_at = 64  # tenants
        self.ranking: Ranking[_Tenant] = Ranking()
        self.served = 0.0  # of the tenant that was served last, at that time: where newcomers begin
        self.highest = 0.0

    def open(self, name: str) -> _Tenant:
        """A new account."""
        if len(self.tenants) >= self.sweep_at:
            self._sweep()
        tenant = self.tenants[name] = _Tenant(self, name)
        return tenant

    def _sweep(self) -> None:
        """Forget who waits for nothing and is not ahead of newcomers."""
        idle = sorted((each.rank, name) for name, each in self.tenants.items() if not each.num)
        if len(idle) > MAX_IDLE:
            self.served = max(self.served, idle[len(idle) - MAX_IDLE - 1][0])
        for rank, name in idle:
            if rank <= self.served:
                del self.tenants[name]
        self.sweep_at = 2 * len(self.tenants) + 64


class _Turns:
    """Records of a tenant that wait, by what is due first."""

    __slots__ = ("is_ranked", "num", "turns")

    def __init__(self) -> None:
        self.num, self.is_ranked = 0, False
        self.turns: list[Turn] = []  # heap

    def first(self) -> Turn:
        """What is due first; something waits."""
        turns = self.turns
        while turns[0][_TENANT] is None:
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
            self.turns = [each for each in turns if each[_TENANT] is not None]
            heapq.heapify(self.turns)


class _Tenant(_Turns):
    """All that waits of a tenant. `rank`: seconds served; `place`: when it came, or was served."""

    __slots__ = ("name", "place", "rank", "tier")

    def __init__(self, tier: _Tier, name: str) -> None:
        super().__init__()
        self.tier, self.name, self.rank, self.place = tier, name, tier.served, 0


class _Line(_Turns):
    """What waits of a tenant and of one key."""

    __slots__ = ("tenant",)

    def __init__(self, tenant: _Tenant) -> None:
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


class _Key:
    """All records of one key, at least one; in lines from when somebody asks for its turns.

    Lines are kept for a while: where turns are anybody's nobody asks.
    """

    __slots__ = ("_rankings", "is_ranked", "lines", "name", "num", "num_ranked", "turns")

    def __init__(self, name: Hashable) -> None:
        self.name, self.num, self.is_ranked = name, 0, False
        self.turns: deque[Turn] = deque()  # as they came
        self.lines: dict[_Tenant, _Line] | None = None
        self.num_ranked = 0  # records, since the lines were made
        self._rankings: dict[_Tier, Ranking[_Line]] = {}

    @property
    def rank(self) -> float:
        """When the record that waits longest came."""
        return self._oldest()[_CAME_S]  # type: ignore[no-any-return]

    @property
    def place(self) -> int:
        """The number of that record."""
        return self._oldest()[_ORDER]  # type: ignore[no-any-return]

    def _oldest(self) -> Turn:
        turns = self.turns
        while turns[0][_TENANT] is None:
            turns.popleft()
        return turns[0]

    def tidy(self) -> None:
        """Forget what waits no longer."""
        self.turns = deque(each for each in self.turns if each[_TENANT] is not None)

    def rankings(self) -> dict[_Tier, Ranking[_Line]]:
        """Its lines, by tier."""
        if self.lines is None:
            self.lines, self._rankings, self.num_ranked = {}, {}, 0
            for each in self.turns:
                if each[_TENANT] is not None:
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
        tenant = turn[_TENANT]
        line = self.lines.get(tenant)
        if line is None:
            line = self.lines[tenant] = _Line(tenant)
        turn[_LINE] = line
        heapq.heappush(line.turns, turn)
        line.num += 1
        self.num_ranked += 1
        if not line.is_ranked:
            ranking = self._rankings.get(tenant.tier)
            if ranking is None:
                ranking = self._rankings[tenant.tier] = Ranking()
            ranking.add(line)
