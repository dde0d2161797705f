"""FairQueue beside what was promised: shares, bounds, order, and nothing lost or made up."""

from __future__ import annotations

import random
from collections import defaultdict

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.core.accounts import ITEM
from streams.core.fair_queue import Charge, Fairness, FairQueue, key_of
from streams.core.tiers import OFF_PEAK

WEIGHTS = {"enterprise": 8.0, "pro": 3.0, "free": 1.0}
TIERS = (*WEIGHTS, "unknown", OFF_PEAK)
COSTS_S = (1.0, 2.0, 5.0)
AGEING_S = 10.0

Payer = tuple[str, str]


class FairQueueMachine(RuleBasedStateMachine):
    """What comes, is taken, withdrawn and comes again; the model is a table of what waits."""

    @initialize(max_batch=st.integers(1, 3))
    def begin(self, max_batch: int) -> None:
        self.queue: FairQueue[int] = FairQueue(Fairness(WEIGHTS, AGEING_S))
        self.max_batch = max_batch
        # Key, charge, when it came and is due, in the order in which they came.
        self.waiting: dict[int, tuple[str, Charge, float, float]] = {}
        self.num_added, self.now_s = 0, 0.0

    @rule(elapsed_s=st.sampled_from([0.5, 4.0]))
    def wait(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s

    @rule(
        tier=st.sampled_from(TIERS), tenant=st.sampled_from("xyz"), key=st.sampled_from("ab"),
        cost_s=st.sampled_from(COSTS_S), patience_s=st.sampled_from([None, 1.0, 30.0]),
        num=st.integers(1, 4),
    )  # fmt: skip
    def add(
        self, tier: str, tenant: str, key: str, cost_s: float, patience_s: float | None, num: int
    ) -> None:
        for _ in range(num):
            self.num_added += 1
            charge = Charge(tier, tenant, cost_s)
            deadline_s = None if patience_s is None else self.now_s + patience_s
            self.queue.add(key, self.num_added, charge, deadline_s, self.now_s)
            due_s = min(self.now_s + AGEING_S, deadline_s or self.now_s + AGEING_S)
            self.waiting[self.num_added] = key, charge, self.now_s, due_s

    @rule()
    def take(self) -> None:
        if not self.waiting:
            return
        turn = self.queue.lead()
        key = str(key_of(turn))
        for tier in self.queue._tiers.values():
            ranks = {name: each.rank for name, each in tier.tenants.items() if each.num}
            leader = tier.ranking.first()
            assert leader is None or leader.rank == min(ranks.values()), "served least, goes first"
        for place in range(min(self.max_batch, self.queue.num(key))):
            item = self.queue.pop(turn if place == 0 else self.queue.lead_of(key))
            own_key, charge, _, due_s = self.waiting.pop(item)
            assert own_key == key, "a batch holds one key"
            if charge.tier == OFF_PEAK:
                rivals = self.waiting.values() if place == 0 else self.of_key(key)
                assert all(each[1].tier == OFF_PEAK for each in rivals), "nothing else waits"
            own = [
                each[3]
                for each in self.waiting.values()
                if each[1][:2] == charge[:2] and each[0] == key
            ]
            assert due_s <= min(own, default=due_s), "due first goes first"

    def of_key(self, key: str) -> list[tuple[str, Charge, float, float]]:
        return [each for each in self.waiting.values() if each[0] == key]

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from(sorted(self.waiting)))) if self.waiting else set()
        assert set(self.queue.remove({*gone, -1})) == gone
        for item in gone:
            del self.waiting[item]

    @rule(data=st.data())
    def come_again(self, data: st.DataObject) -> None:
        """What was taken out may wait again, at once, as after a hold."""
        if not self.waiting:
            return
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        key, charge, _, _ = self.waiting.pop(item)
        self.queue.remove([item])
        self.queue.add(key, item, charge, None, self.now_s)
        self.waiting[item] = key, charge, self.now_s, self.now_s + AGEING_S

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting)
        for key in "ab":
            came = [each[2] for each in self.waiting.values() if each[0] == key]
            assert self.queue.num(key) == len(came)
            assert not came or self.queue.oldest_s(key) == min(came)
        if self.waiting:
            assert self.queue.oldest_s(self.queue.oldest_key()) == min(
                each[2] for each in self.waiting.values()
            )
        costs_s: dict[str, float] = defaultdict(float)
        for _, charge, _, _ in self.waiting.values():
            costs_s[charge.tier if charge.tier in (*WEIGHTS, OFF_PEAK) else ""] += charge.cost_s
        told = {tier: cost_s for tier, num, cost_s in self.queue.waiting() if num}
        assert told == dict(costs_s)
        assert sum(each.num_records for each in self.queue.backlogs()) == len(self.waiting)

    def teardown(self) -> None:
        """Work-conserving: whatever waits can be taken, one after the other."""
        if hasattr(self, "queue"):
            taken = [self.queue.pop(self.queue.lead()) for _ in range(len(self.queue))]
            assert sorted(taken) == sorted(self.waiting)


TestFairQueue = FairQueueMachine.TestCase
TestFairQueue.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

A_COST = st.floats(0.01, 100.0)
PAYERS = tuple((tier, tenant) for tier in WEIGHTS for tenant in "xyz")


def backlogged(
    costs_s: dict[Payer, list[float]], num_served: int, weights: dict[str, float] = WEIGHTS
) -> dict[Payer, float]:
    """What each payer was served while each of them waited all the time; costs come round."""
    queue: FairQueue[tuple[Payer, int]] = FairQueue(Fairness(weights, AGEING_S))

    def add(payer: Payer, number: int) -> None:
        cost_s = costs_s[payer][number % len(costs_s[payer])]
        queue.add("k", (payer, number), Charge(*payer, cost_s), None, float(number))

    for payer in costs_s:
        add(payer, 0)
        add(payer, 1)
    served_s = dict.fromkeys(costs_s, 0.0)
    for _ in range(num_served):
        payer, number = queue.pop(queue.lead())
        served_s[payer] += costs_s[payer][number % len(costs_s[payer])]
        add(payer, number + 2)
    return served_s


@given(
    st.dictionaries(
        st.sampled_from(PAYERS), st.lists(A_COST, min_size=1, max_size=4), min_size=2
    ),
    st.integers(1, 150),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_nobody_who_waits_is_ahead_by_more_than_a_record_of_each(
    costs_s: dict[Payer, list[float]], num_served: int
) -> None:
    served_s = backlogged(costs_s, num_served)
    most_s = {payer: max(each) for payer, each in costs_s.items()}
    for one in costs_s:
        for other in costs_s:
            if one[0] == other[0]:
                bound_s = most_s[one] + most_s[other] + 1e-6
                assert abs(served_s[one] - served_s[other]) <= bound_s
    share: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    for payer, seconds in served_s.items():
        share[payer[0]] += seconds / WEIGHTS[payer[0]]
        largest[payer[0]] = max(largest[payer[0]], most_s[payer] / WEIGHTS[payer[0]])
    for tier in share:
        for other_tier in share:
            bound = largest[tier] + largest[other_tier] + 1e-6
            assert abs(share[tier] - share[other_tier]) <= bound


@given(st.integers(1, 20), st.integers(1, 30), A_COST)
@settings(max_examples=60, deadline=None)
def test_a_newcomer_waits_for_one_record_of_each_tenant_of_its_tier_at_most(
    num_tenants: int, num_served: int, cost_s: float
) -> None:
    """The bound on a wait, whatever others have queued: ageing is not what gives it."""
    queue: FairQueue[tuple[int, int]] = FairQueue(Fairness(WEIGHTS, AGEING_S))
    for tenant in range(num_tenants):
        for number in range(40):
            queue.add("k", (tenant, number), Charge("free", str(tenant), cost_s), None, 0.0)
    for _ in range(num_served):
        queue.pop(queue.lead())
    queue.add("k", (-1, 0), Charge("free", "new", cost_s), None, 1e9)
    order = [queue.pop(queue.lead()) for _ in range(len(queue))]
    assert order.index((-1, 0)) <= num_tenants


@given(st.floats(0.01, 100.0), st.integers(20, 60))
@settings(max_examples=40, deadline=None)
def test_a_backlog_goes_at_the_price_of_what_comes_later(factor: float, num_before: int) -> None:
    """It came when nothing was measured yet: by its old price it would pass others, or wait."""
    queue: FairQueue[tuple[str, int]] = FairQueue(Fairness(WEIGHTS, AGEING_S))
    known_s = [factor]
    for number in range(num_before):
        charge = Charge("pro", "flood", factor, lambda: known_s[0])
        queue.add("k", ("flood", number), charge, None, 0.0)
    known_s[0] = 1.0  # measured
    for number in range(num_before):
        queue.add("k", ("quiet", number), Charge("pro", "quiet", 1.0), None, 0.0)
    order = [queue.pop(queue.lead())[0] for _ in range(len(queue))]
    assert abs(order[:20].count("flood") - 10) <= 1


@given(st.integers(1, 12), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_a_job_that_has_aged_is_passed_by_none_of_its_tenants_however_urgent(
    num_urgent: int, num_others: int
) -> None:
    queue: FairQueue[int] = FairQueue(Fairness(WEIGHTS, AGEING_S))
    queue.add("k", 0, Charge("pro", "acme", 1.0), 1e9, now_s=0.0)
    for number in range(1, num_others + 1):
        queue.add("k", number, Charge("pro", "bolt", 1.0), None, now_s=0.0)
    now_s = AGEING_S + 0.1
    for number in range(1000, 1000 + num_urgent):
        queue.add("k", number, Charge("pro", "acme", 1.0), now_s + 1.0, now_s)
    order = [queue.pop(queue.lead()) for _ in range(len(queue))]
    own = [each for each in order if each == 0 or each >= 1000]
    assert own[0] == 0
    assert order.index(0) <= 1, "its tenant has a turn in two"


@given(st.integers(1, 20), A_COST)
@settings(max_examples=40, deadline=None)
def test_who_waits_for_nothing_earns_nothing(num_alone: int, cost_s: float) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(Fairness(WEIGHTS, AGEING_S))

    def add(tenant: str, first: int, num: int) -> None:
        for number in range(first, first + num):
            queue.add("k", (tenant, number), Charge("free", tenant, cost_s), None, 0.0)

    add("idle", 0, 1)
    add("busy", 0, num_alone + 40)
    for _ in range(num_alone + 1):
        queue.pop(queue.lead())
    add("idle", 1, 10)
    turns = [queue.pop(queue.lead())[0] for _ in range(12)]
    assert 5 <= turns.count("busy") <= 7


@given(st.integers(1, 20), st.integers(1, 6), A_COST)
@settings(max_examples=40, deadline=None)
def test_who_missed_turns_has_one_record_free_however_many_and_how_often(
    num_missed: int, num_visits: int, cost_s: float
) -> None:
    """Each visit two records: the first goes at once, the second before the flood's turn too."""
    queue: FairQueue[tuple[str, int]] = FairQueue(Fairness(WEIGHTS, AGEING_S))

    def add(tenant: str, num: int) -> None:
        for number in range(num):
            item = tenant, 1000 * len(queue) + number
            queue.add("k", item, Charge("free", tenant, cost_s), None, 0.0)

    add("seldom", 1)
    queue.pop(queue.lead())
    add("flood", 40 * num_visits)
    for _ in range(num_visits):
        turns = [queue.pop(queue.lead())[0] for _ in range(num_missed + 2)]
        assert turns == ["flood"] * (num_missed + 2)
        add("seldom", 4)
        turns = [queue.pop(queue.lead())[0] for _ in range(6)]
        assert turns[:2] == ["seldom"] * 2, "its turn, and one that it missed"
        assert turns.count("flood") >= 2, "from then on it shares"


def test_leads_are_of_each_tier_that_waits_in_the_order_of_their_turns() -> None:
    queue: FairQueue[str] = FairQueue(Fairness(WEIGHTS, AGEING_S))
    assert queue.leads() == []
    for tier in WEIGHTS:
        for number in range(2):
            queue.add("k", f"{tier}-{number}", Charge(tier, "acme", 1.0), None, 0.0)
    queue.pop(queue.lead())
    assert [turn[ITEM] for turn in queue.leads()] == ["pro-0", "free-0", "enterprise-1"]
    assert queue.leads()[0] is queue.lead()


def test_tenants_that_come_and_go_leave_nothing_behind() -> None:
    queue: FairQueue[int] = FairQueue(Fairness(WEIGHTS, AGEING_S))
    for number in range(3):
        queue.add("k", -1 - number, Charge("free", "patient", 1e6), None, 0.0)
    queue.pop(queue.lead())
    for number in range(30_000):
        queue.add(number, number, Charge("free", f"tenant-{number}", 1.0), None, float(number))
        assert queue.pop(queue.lead()) == number
    (free,) = queue._tiers.values()
    assert len(free.tenants) <= 25_000
    assert len(queue._keys) == 1
    assert len(queue._oldest_keys) < 200


def test_lines_of_a_key_that_is_asked_for_are_not_kept_of_tenants_that_went() -> None:
    queue: FairQueue[int] = FairQueue(Fairness(WEIGHTS, AGEING_S))
    queue.add("k", -1, Charge("free", "patient", 1.0), None, 0.0)
    for number in range(2_000):
        queue.add("k", number, Charge("pro", f"tenant-{number}", 1.0), None, float(number))
        queue.pop(queue.lead_of("k"))
    lines = queue._keys["k"].lines
    assert lines is not None
    assert len(lines) < 100


COMING = st.tuples(
    st.sampled_from(TIERS), st.sampled_from("xy"), st.sampled_from("ab"),
    st.sampled_from(COSTS_S), st.booleans(),
)  # fmt: skip


@given(st.lists(COMING, max_size=60))
def test_off_peak_work_changes_nobody_elses_order(
    coming: list[tuple[str, str, str, float, bool]],
) -> None:
    """What comes and goes in batches of two, with off-peak work among it and without."""

    def order(has_off_peak: bool) -> list[int]:
        queue: FairQueue[int] = FairQueue(Fairness(WEIGHTS, AGEING_S))
        taken: list[int] = []
        peak: set[int] = set()

        def take() -> None:
            turn = queue.lead()
            key = key_of(turn)
            for place in range(min(2, queue.num(key))):
                item = queue.pop(turn if place == 0 else queue.lead_of(key))
                if item in peak:
                    taken.append(item)
                    peak.discard(item)

        for number, (tier, tenant, key, cost_s, is_taken) in enumerate(coming):
            if tier != OFF_PEAK:
                peak.add(number)
            if tier != OFF_PEAK or has_off_peak:
                queue.add(key, number, Charge(tier, tenant, cost_s), None, float(number))
            if is_taken and peak:
                take()
        while peak:
            take()
        return taken

    assert order(has_off_peak=True) == order(has_off_peak=False)


@given(num_stay=st.integers(0, 5), num_go=st.integers(100, 200), chance=st.randoms())
def test_who_stays_while_many_others_come_and_go_is_not_forgotten(
    num_stay: int, num_go: int, chance: random.Random
) -> None:
    queue: FairQueue[str] = FairQueue(Fairness(WEIGHTS, AGEING_S))
    order = ["stays"] * num_stay + ["goes"] * num_go
    chance.shuffle(order)
    staying: set[str] = set()
    for number, kind in enumerate(order):
        queue.add("key", f"{kind}-{number}", Charge("pro", f"t{number}", 1.0), None, 0.0)
        if kind == "stays":
            staying.add(f"{kind}-{number}")
        else:
            queue.remove([f"{kind}-{number}"])
    assert {queue.pop(queue.lead_of("key")) for _ in range(len(queue))} == staying


def test_who_was_served_and_comes_back_goes_after_those_that_were_not() -> None:
    queue: FairQueue[str] = FairQueue(Fairness(WEIGHTS, AGEING_S))

    def add(item: str, cost_s: float) -> None:
        queue.add("k", item, Charge("pro", item[0], cost_s), None, 0.0)

    add("served 1", 5.0)
    add("waits 1", 1.0)
    add("waits 2", 1.0)
    assert queue.pop(queue.lead()) == "served 1"
    queue.lead()  # now it is known that it waits for nothing
    add("served 2", 5.0)
    add("newcomer 1", 1.0)
    order = [queue.pop(queue.lead()) for _ in range(len(queue))]
    assert order == ["waits 1", "newcomer 1", "waits 2", "served 2"]
