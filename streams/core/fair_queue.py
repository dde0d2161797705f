"""Who goes next among the records that wait: fair by cost over tiers, then over tenants.

Deficit scheduling in its sorted form, start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996):
every tier, and in it every tenant, has an account of what it was served, and of those that wait
the one that was served least, for its weight, goes next. Round robin (Shreedhar, Varghese, 1995)
shares alike, but a newcomer waits for a whole round there: long, where one job is minutes. An idle
account earns a record at most: who comes back begins where the others are now, and has one free of
what it missed. So who asks for less than its share seldom waits for who asks for more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Generic, NamedTuple, TypeVar

from streams.core.accounts import (
    CAME_S,
    COST_S,
    ITEM,
    KEY,
    PRICE,
    TENANT,
    KeyTurns,
    Line,
    Tier,
    Turn,
)
from streams.core.ranking import Ranking
from streams.core.tiers import OFF_PEAK, OFF_PEAK_WEIGHT

T = TypeVar("T", bound=Hashable)

#: What the cheapest record is charged: turns cost something even where work is free.
LEAST_COST_S = 1e-3


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
      divided by weight, by more than one record of each; likewise of two tenants of one tier, but
      for a record more of who had less while it waited for nothing.
    - A tenant's records go by deadline, earliest first, but none passes one that has waited
      `ageing_s`. Ageing ends there: if old records passed other tenants', whoever floods a worker
      would own it. What bounds a tenant's wait is its share.
    - What is off-peak (`tiers.OFF_PEAK`) goes where nothing else waits, and changes no account of
      who else there is. It does not age: under a load that never ends it waits without end.
    - A turn of one key never waits for records of another, and charges the same accounts.
    - Memory: what waits, and a few times `accounts.MAX_IDLE` accounts of tenants that don't. Where
      a tier has more of those, newcomers begin where the least of them is.

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
        self._tiers: dict[str, Tier] = {}
        self._keys: dict[Hashable, KeyTurns] = {}
        self._oldest_keys: Ranking[KeyTurns] = Ranking()
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
            if tenant.rank <= tier.served:
                tenant.come_back(cost_s)
            if not tenant.is_ranked:
                tier.ranking.add(tenant)
        own_key = self._keys.get(key)
        if own_key is None:
            own_key = self._keys[key] = KeyTurns(key)
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
        best: Tier | None = None
        for tier in self._tiers.values():
            if tier.num and tier.weight > weight and (best is None or tier.rank < best.rank):
                best = tier
        return None if best is None else best.lead()

    def leads(self) -> list[Turn]:
        """Of each tier that waits, whose turn it is in it; in the order of the tiers' turns."""
        waiting = (tier for tier in self._tiers.values() if tier.num)
        return [tier.lead() for tier in sorted(waiting, key=lambda tier: tier.rank)]

    def lead_of(self, key: Hashable) -> Turn:
        """Whose turn it is among the records of that key; one waits."""
        best: Line | None = None
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
        tenant, price = turn[TENANT], turn[PRICE]
        tier, cost_s = tenant.tier, turn[COST_S] if price is None else price()
        charged_s = cost_s if cost_s > LEAST_COST_S else LEAST_COST_S
        if tenant.rank > tier.served:
            tier.served = tenant.rank
        tenant.rank += tenant.owed_s(charged_s) if tenant.free_s else charged_s
        tier.num_placed += 1
        tenant.place = tier.num_placed
        if tenant.rank > tier.highest:
            tier.highest = tenant.rank
        if self._served < tier.rank < inf:
            self._served = tier.rank
        tier.rank += charged_s / tier.weight
        self._leave(turn)
        return turn[ITEM]  # type: ignore[no-any-return]

    def remove(self, items: Collection[T]) -> tuple[T, ...]:
        """Take these out, as many as wait, and return them; nobody is charged."""
        found = sorted(self._turns[each] for each in items if each in self._turns)
        for turn in found:
            self._leave(turn)
        return tuple(turn[ITEM] for turn in found)

    def waiting(self) -> Iterator[tuple[str, int, float]]:
        """By tier, how many records wait and what they cost together."""
        for name, tier in self._tiers.items():
            yield name, tier.num, tier.cost_s

    def backlogs(self) -> Iterator[Backlog]:
        """What waits for each tenant; O(n), for people to look at."""
        for name, tier in self._tiers.items():
            for tenant in tier.tenants.values():
                turns = [each for each in tenant.turns if each[TENANT] is not None]
                if turns:
                    yield Backlog(
                        name, tenant.name, len(turns), sum(each[COST_S] for each in turns),
                        min(each[CAME_S] for each in turns), tenant.rank - tier.served,
                    )  # fmt: skip

    # ---- accounts

    def _tier(self, name: str) -> Tier:
        """Tiers that are in no table share one account, of the least weight."""
        weights = self._weights
        is_off_peak = name == OFF_PEAK
        name = name if name in weights or is_off_peak else ""
        tier = self._tiers.get(name)
        if tier is None:
            least = OFF_PEAK_WEIGHT if is_off_peak else min(weights.values(), default=1.0)
            # Nothing is ahead of what goes last, by however much that was served.
            tier = self._tiers[name] = Tier(weights.get(name, least), inf if is_off_peak else 0.0)
        return tier

    def _leave(self, turn: Turn) -> None:
        _, _, item, tenant, key, _, cost_s, line, _ = turn
        del self._turns[item]
        turn[TENANT] = None
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
    return turn[KEY].name  # type: ignore[no-any-return]


def payer_of(turn: Turn) -> tuple[float, Hashable]:
    """What its payer's tier weighs, and who it is."""
    tenant = turn[TENANT]
    return tenant.tier.weight, (tenant.tier, tenant.name)


def order_of(turn: Turn) -> tuple[float, float, float]:
    """Of two keys' turns the one of the lesser order goes first."""
    tenant = turn[TENANT]
    return tenant.tier.rank, tenant.rank, turn[0]
