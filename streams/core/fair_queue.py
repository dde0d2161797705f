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
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from streams.core.ranking import Ranking
from streams.core.tiers import OFF_PEAK, OFF_PEAK_WEIGHT

T = TypeVar("T", bound=Hashable)

#: Accounts kept of a tier's tenants that were served and wait for nothing now.
MAX_IDLE = 10_000
#: Lines kept of a tenant that have nothing waiting: it is likely to ask for the same keys again.
MAX_LINES = 8
#: What the cheapest record is charged: turns cost something even where work is free.
LEAST_COST_S = 1e-3

#: [due_s, order, item, line, came_s, cost_s, is_waiting]; sorts by due_s, then as they came. What
#: waits no longer stays in heaps and queues until it comes to their front.
_Entry = list[Any]


class Charge(NamedTuple):
    """Who pays for a record, and how much: seconds of the stage's device, estimated."""

    tier: str = ""
    tenant_id: str = ""
    cost_s: float = 0.0


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
    """What waits for one payer. `ahead_s`: by how much it was served more than its tier's others.

    `oldest_s` is when the record that waits longest came.
    """

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
    - Memory: what waits, and a few times `MAX_IDLE` accounts of tenants that don't, `MAX_LINES`
      keys each. Where a tier has more of those, newcomers begin where the least of them is.

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
        self._fairness = fairness
        self._tiers: dict[str, _Tier] = {}
        self._keys: dict[Hashable, _Key] = {}
        self._oldest_keys: Ranking[_Key] = Ranking()
        self._entries: dict[T, _Entry] = {}
        self._served = 0.0  # of the tier that was served last, at that time
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._entries)

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
        assert item not in self._entries, f"{item!r} waits already"
        tier = self._tier(charge.tier)
        if not tier.num:
            tier.advance(max(tier.rank, self._served))
        tenant = tier.tenants.get(charge.tenant_id)
        if tenant is None:
            tenant = tier.open(charge.tenant_id)
        if not tenant.num:
            if tenant.rank < tier.served:
                tenant.rank = tier.served
            if not tenant.is_ranked:
                tier.ranking.add(tenant)
        own_key = self._keys.get(key)
        if own_key is None:
            own_key = self._keys[key] = _Key(key, now_s)
            self._oldest_keys.add(own_key)
        line = tenant.lines.get(key)
        if line is None or line.key is not own_key:
            line = tenant.lines[key] = Line(tenant, own_key)
        if not line.is_ranked:
            own_key.add(line)
        due_s = now_s + self._fairness.ageing_s
        if deadline_s is not None and deadline_s < due_s:
            due_s = deadline_s
        self._num_added += 1
        entry = [due_s, self._num_added, item, line, now_s, charge.cost_s, True]
        heapq.heappush(line.entries, entry)
        own_key.entries.append(entry)
        self._entries[item] = entry
        line.num += 1
        own_key.num += 1
        tenant.num += 1
        tier.num += 1
        tier.cost_s += charge.cost_s

    def lead(self) -> Line:
        """Whose turn it is; something waits."""
        line = self.lead_above(0.0)
        assert line is not None, "nothing waits"
        return line

    def lead_above(self, weight: float) -> Line | None:
        """Whose turn it is among tiers of more than that weight; None if none of them waits."""
        best: _Tier | None = None
        for tier in self._tiers.values():
            if tier.num and tier.weight > weight and (best is None or tier.order < best.order):
                best = tier
        if best is None:
            return None
        tenant = best.ranking.first()
        assert tenant is not None, "a tier that waits has a tenant that does"
        lead: Line | None = None
        for line in tenant.lines.values():
            if line.num and (lead is None or line.entries[0] < lead.entries[0]):
                lead = line
        assert lead is not None, "a tenant that waits has a line that does"
        return lead

    def lead_of(self, key: Hashable) -> Line:
        """Whose turn it is among the records of that key; one waits."""
        best: Line | None = None
        own_key = self._keys[key]
        own_key.rank_newcomers()
        for tier, ranking in own_key.rankings.items():
            if best is not None and best.tenant.tier.order <= tier.order:
                continue
            if (line := ranking.first()) is not None:
                best = line
        assert best is not None, f"nothing waits of {key!r}"
        return best

    def pop(self, line: Line) -> T:
        """Take the record that is due first of a line whose turn it is. Its payer is charged."""
        tenant, tier = line.tenant, line.tenant.tier
        entry = heapq.heappop(line.entries)
        charged_s = entry[5] if entry[5] > LEAST_COST_S else LEAST_COST_S
        if tenant.rank > tier.served:
            tier.served = tenant.rank
        tenant.rank += charged_s
        if tenant.rank > tier.highest:
            tier.highest = tenant.rank
        if tier.rank > self._served and not tier.is_off_peak:
            self._served = tier.rank
        tier.advance(tier.rank + charged_s / tier.weight)
        self._leave(entry)
        return entry[2]  # type: ignore[no-any-return]

    def remove(self, items: Collection[T]) -> tuple[T, ...]:
        """Take these out, as many as wait, and return them; nobody is charged."""
        found = [self._entries[each] for each in items if each in self._entries]
        for entry in sorted(found):
            self._leave(entry)
        return tuple(entry[2] for entry in sorted(found))

    def waiting(self) -> Iterator[tuple[str, int, float]]:
        """By tier, how many records wait and what they cost together."""
        for name, tier in self._tiers.items():
            yield name, tier.num, tier.cost_s

    def backlogs(self) -> Iterator[Backlog]:
        """What waits for each tenant; O(n), for people to look at."""
        for name, tier in self._tiers.items():
            for tenant in tier.tenants.values():
                entries = [
                    each for line in tenant.lines.values() for each in line.entries if each[6]
                ]
                if entries:
                    yield Backlog(
                        name, tenant.name, len(entries), sum(each[5] for each in entries),
                        min(each[4] for each in entries), tenant.rank - tier.served,
                    )  # fmt: skip

    # ---- accounts

    def _tier(self, name: str) -> _Tier:
        """Tiers that are in no table share one account, of the least weight."""
        weights = self._fairness.weights
        is_off_peak = name == OFF_PEAK
        name = name if name in weights or is_off_peak else ""
        tier = self._tiers.get(name)
        if tier is None:
            least = OFF_PEAK_WEIGHT if is_off_peak else min(weights.values(), default=1.0)
            tier = self._tiers[name] = _Tier(weights.get(name, least), is_off_peak)
        return tier

    def _leave(self, entry: _Entry) -> None:
        entry[6] = False
        del self._entries[entry[2]]
        line = entry[3]
        key, tenant = line.key, line.tenant
        tier = tenant.tier
        line.num -= 1
        key.num -= 1
        tenant.num -= 1
        tier.num -= 1
        tier.cost_s = tier.cost_s - entry[5] if tier.num else 0.0
        if key.num:
            key.tidy()
        else:
            del self._keys[key.name]
            key.clear()  # else a line that is kept keeps tenants that are forgotten
        if line.num:
            line.tidy()
        else:
            line.entries.clear()
            if len(tenant.lines) > MAX_LINES:
                del tenant.lines[key.name]
        if not tier.num:
            tier.served = tier.highest  # nobody waits: nobody owes anything


class _Tier:
    """Accounts of a tier: `rank` in seconds served by weight; those of its tenants in seconds.

    The tier of the least `order` goes first.
    """

    __slots__ = (
        "cost_s", "highest", "is_off_peak", "num", "order", "rank", "ranking", "served", "sweep_at",
        "tenants", "weight",
    )  # fmt: skip

    def __init__(self, weight: float, is_off_peak: bool) -> None:
        self.weight, self.is_off_peak = weight, is_off_peak
        self.num = 0
        self.cost_s = 0.0
        self.advance(0.0)
        self.tenants: dict[str, _Tenant] = {}
        self.sweep_at = 64  # tenants
        self.ranking: Ranking[_Tenant] = Ranking()
        self.served = 0.0  # of the tenant that was served last, at that time: where newcomers begin
        self.highest = 0.0

    def advance(self, rank: float) -> None:
        """It has been served up to here."""
        self.rank = rank
        self.order = self.is_off_peak, rank

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


class _Tenant:
    __slots__ = ("is_ranked", "lines", "name", "num", "rank", "tier")

    def __init__(self, tier: _Tier, name: str) -> None:
        self.tier, self.name = tier, name
        self.num, self.rank, self.is_ranked = 0, tier.served, False
        self.lines: dict[Hashable, Line] = {}


class Line:
    """A tenant's records of one key; `head` is due first."""

    __slots__ = ("entries", "is_ranked", "key", "num", "tenant")

    def __init__(self, tenant: _Tenant, key: _Key) -> None:
        self.tenant, self.key = tenant, key
        self.num, self.is_ranked = 0, False
        self.entries: list[_Entry] = []  # heap

    @property
    def weight(self) -> float:
        """Of its tier."""
        return self.tenant.tier.weight

    @property
    def rank(self) -> float:
        """What its tenant was served."""
        return self.tenant.rank

    def head(self) -> _Entry:
        """The record that is due first; it has one."""
        return self.entries[0]

    def order(self) -> tuple[tuple[bool, float], float, float]:
        """Of two keys' turns the one of the lesser order goes first."""
        return self.tenant.tier.order, self.tenant.rank, self.entries[0][0]

    def tidy(self) -> None:
        """The head waits, and at most half of the others don't."""
        entries = self.entries
        while not entries[0][6]:
            heapq.heappop(entries)
        if len(entries) > 2 * self.num + 8:
            self.entries = [each for each in entries if each[6]]
            heapq.heapify(self.entries)


class _Key:
    """All records of one key. `rank` is when the one that waits longest came.

    Its lines are ranked when somebody asks for a turn of this key: most have gone by then, where
    turns are anybody's.
    """

    __slots__ = ("entries", "is_ranked", "name", "newcomers", "num", "rank", "rankings")

    def __init__(self, name: Hashable, now_s: float) -> None:
        self.name, self.num, self.rank, self.is_ranked = name, 0, now_s, False
        self.rankings: dict[_Tier, Ranking[Line]] = {}
        self.newcomers: list[Line] = []
        self.entries: deque[_Entry] = deque()  # as they came

    def add(self, line: Line) -> None:
        """A line that has something waiting, and is not here since when it last had."""
        line.is_ranked = True
        self.newcomers.append(line)
        if len(self.newcomers) > 2 * self.num + 64:
            for each in self.newcomers:
                each.is_ranked = each.num > 0 or each is line
            self.newcomers = [each for each in self.newcomers if each.is_ranked]

    def rank_newcomers(self) -> None:
        """From here on they take part."""
        for line in self.newcomers:
            if not line.num:
                line.is_ranked = False
                continue
            tier = line.tenant.tier
            ranking = self.rankings.get(tier)
            if ranking is None:
                ranking = self.rankings[tier] = Ranking()
            ranking.add(line)
        self.newcomers.clear()

    def clear(self) -> None:
        """Nothing waits any more."""
        self.rankings.clear()
        self.newcomers.clear()

    def tidy(self) -> None:
        """The head waits, and at most half of the others don't."""
        entries = self.entries
        while not entries[0][6]:
            entries.popleft()
        self.rank = entries[0][4]
        if len(entries) > 2 * self.num + 8:
            self.entries = deque(each for each in entries if each[6])
