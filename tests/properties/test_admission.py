"""The ledger and what is decided by it, beside models that remember everything."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.admission import Admission, LetIn, Park, Quotas, Refuse
from streams.core.cost import Prior, Shape
from streams.core.ledger import MARKER_S, Ledger
from streams.core.runs import RunOfJob
from streams.core.shares import Bulk, Level, Payer, Rung, Share, Source

PRIOR = Prior(fixed_s=1.0)
SHAPE = Shape(17, 64, 64)
ACME, BOLT = Payer(0, "free", "acme"), Payer(0, "free", "bolt")
FOREVER_S = 1e9


def a_bulk(units: float = 1.0) -> Bulk:
    return Bulk("v1", SHAPE, units)


def a_share(payer: Payer = ACME, units: float = 1.0, source: Source = Source.NEW) -> Share:
    return Share(payer, a_bulk(units), source)


@dataclass(frozen=True)
class Told:
    """What the log tells of a run, as often and as late as it likes."""

    job_id: str
    payer: Payer
    level: Level
    units: float


RUNS = [Told(str(n // 2), (ACME, BOLT)[n % 2], level, 1.0 + n) for n in range(4) for level in Level]


def run(name: object, payer: Payer = ACME) -> RunOfJob:
    return RunOfJob(payer.tenant_id, f"job-{name}", 1)


def tell(ledger: Ledger, told: Told) -> None:
    which = run(told.job_id, told.payer)
    match told.level:
        case Level.PARKED:
            ledger.park(which, told.payer, a_bulk(told.units), FOREVER_S, 0.0)
        case Level.ADMITTED:
            ledger.hold(which, told.payer, a_bulk(told.units), FOREVER_S, 0.0, is_logged=True)
        case Level.ENDED:
            ledger.ended(0, which, 0.0, 0.0)


def summed(ledger: Ledger) -> dict[Payer, tuple[int, float, int, float]]:
    return {
        payer: (held.num_jobs, held.cost_s, held.num_parked, held.parked_cost_s)
        for payer, held in ledger.payers(0)
    }


@given(st.lists(st.sampled_from(RUNS)), st.randoms(use_true_random=False))
def test_whoever_has_read_the_same_records_holds_the_same_in_any_order(
    records: list[Told], random: object
) -> None:
    shuffled = [*records, *records[: len(records) // 2]]  # some are told twice
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = []
    for told in (records, shuffled):
        ledger = Ledger(PRIOR)
        ledger.open(0)
        for each in told:
            tell(ledger, each)
        found.append(summed(ledger))
    assert found[0] == found[1]
    highest: dict[tuple[Payer, str], Told] = {}
    for each in records:
        job = each.payer, each.job_id
        if each.level > highest.get(job, replace(each, level=0)).level:  # type: ignore[arg-type]
            highest[job] = each
    for payer in (ACME, BOLT):
        mine = [each for each in highest.values() if each.payer == payer]
        admitted = [each.units for each in mine if each.level is Level.ADMITTED]
        parked = [each.units for each in mine if each.level is Level.PARKED]
        wanted = (len(admitted), sum(admitted), len(parked), sum(parked))
        assert found[0].get(payer, (0, 0.0, 0, 0.0)) == wanted


@given(st.lists(st.sampled_from(RUNS)), st.integers(0, 20))
def test_a_ledger_that_is_read_again_is_the_one_before(records: list[Told], cut: int) -> None:
    """What another has decided, and the log says, is all that a new owner needs."""
    first, second = Ledger(PRIOR), Ledger(PRIOR)
    for ledger in (first, second):
        ledger.open(0)
    for each in records:
        tell(first, each)
    for each in records[:cut]:
        tell(second, each)
    second.read(0)
    for each in records[cut:]:
        tell(second, each)
    assert summed(first) == summed(second)


class AdmissionMachine(RuleBasedStateMachine):
    """Requests come, wait and end; a model of sets says what each payer may have."""

    def __init__(self) -> None:
        super().__init__()
        self.quotas = Quotas(
            jobs={"free": 6.0}, gpu_s={"free": 20.0}, parked={"free": 8.0}, prior=PRIOR
        )
        self.admission: Admission[str] = Admission(self.quotas)
        self.admission.ledger.open(0)
        self.admission.ledger.read(0)
        self.now_s = 0.0
        self.numbers = itertools.count()
        self.inside: dict[str, tuple[Payer, float]] = {}
        self.waiting: dict[str, tuple[Payer, float, float]] = {}  # units, deadline
        self.ended: set[str] = set()

    def decide(
        self, job_id: str, payer: Payer, units: float, source: Source, until_s: float
    ) -> LetIn | Park | Refuse:
        found = self.admission.decide(
            run(job_id, payer), a_share(payer, units, source), until_s, self.now_s
        )
        if isinstance(found, LetIn):
            self.inside[job_id] = payer, units
        elif isinstance(found, Park):
            self.waiting[job_id] = payer, units, until_s
        return found

    @rule(
        payer=st.sampled_from([ACME, BOLT]), units=st.sampled_from([1.0, 2.0, 5.0, 50.0]),
        patience_s=st.sampled_from([10.0, 1000.0]),
    )  # fmt: skip
    def a_request_comes(self, payer: Payer, units: float, patience_s: float) -> None:
        job_id, until_s = f"job-{next(self.numbers)}", self.now_s + patience_s
        before = self.of(payer)
        others = [each for each, *_ in self.waiting.values() if each == payer]
        found = self.decide(job_id, payer, units, Source.NEW, until_s)
        if isinstance(found, Park):
            assert before, "it has nothing in the pipeline: there is room"
            # As `requests.deferred` delivers it.
            self.admission.wait(payer, job_id, until_s, found.over)
        elif isinstance(found, Refuse):
            assert found.reason_code == "quota_exceeded"
            assert found.retry_at_s > self.now_s
            assert len(others) >= 4, "half of its bound, for one of its two partitions"
        else:
            assert self.has_room(before, units)

    @rule(job=st.integers(0, 30))
    def a_run_ends(self, job: int) -> None:
        if not self.inside:
            return
        job_id = sorted(self.inside)[job % len(self.inside)]
        payer, _ = self.inside.pop(job_id)
        self.ended.add(job_id)
        ledger = self.admission.ledger
        ended = run(job_id, payer)
        assert ledger.ended(0, ended, 0.0, self.now_s) == payer
        assert ledger.ended(0, ended, 0.0, self.now_s) is None, "it frees its share once"
        self.let_in(payer)

    def let_in(self, payer: Payer) -> None:
        while (first := self.admission.first(payer)) is not None:
            earliest = min(u for each, _, u in self.waiting.values() if each == payer)
            _, units, until_s = self.waiting[first]
            assert until_s == earliest, "the earliest deadline is next"
            before = self.of(payer)
            self.admission.leave(payer, first)
            del self.waiting[first]
            found = self.decide(first, payer, units, Source.PARKED, until_s)
            if isinstance(found, Park):
                assert not self.has_room(before, units), "work-conserving"
                self.admission.wait(payer, first, until_s, found.over)
                return
            assert isinstance(found, LetIn), "what was parked is not refused"

    @rule(seconds=st.sampled_from([1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for job_id, (payer, _, until_s) in list(self.waiting.items()):
            if until_s <= self.now_s:
                self.admission.leave(payer, job_id)
                del self.waiting[job_id]
        freed = Counter(self.admission.ledger.expire(self.now_s))
        for payer in freed:
            gone = [
                job_id
                for job_id, (own, _) in self.inside.items()
                if own == payer and self.admission.ledger.level(0, run(job_id, own)) is None
            ]
            for job_id in gone:
                del self.inside[job_id]
            self.let_in(payer)

    def of(self, payer: Payer) -> list[float]:
        return [units for each, units in self.inside.values() if each == payer]

    def has_room(self, inside: list[float], units: float) -> bool:
        return not inside or (len(inside) < 3 and sum(inside) + units <= 10.0)

    @invariant()
    def nobody_is_over_the_quota(self) -> None:
        for payer in (ACME, BOLT):
            mine = self.of(payer)
            assert len(mine) <= 3
            assert sum(mine) <= 10.0 or len(mine) == 1
            held = self.admission.ledger.held(payer)
            assert (held.num_jobs, held.cost_s) == (len(mine), sum(mine))
            assert held.num_parked == sum(each == payer for each, *_ in self.waiting.values())

    @invariant()
    def memory_is_bounded(self) -> None:
        most = len(self.inside) + len(self.waiting) + len(self.ended)
        assert len(self.admission.ledger) <= most
        self.admission.ledger.expire(self.now_s)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def an_admission(**changes: object) -> Admission[str]:
    quotas = Quotas(jobs={"free": 2.0}, prior=PRIOR, num_parts=1)
    admission: Admission[str] = Admission(replace(quotas, **changes))  # type: ignore[arg-type]
    admission.ledger.open(0)
    admission.ledger.read(0)
    return admission


def test_a_run_that_is_in_the_pipeline_or_has_ended_is_let_in_whatever_the_quota() -> None:
    admission = an_admission()
    for number in (1, 2):
        assert admission.decide(run(number), a_share(), FOREVER_S, 0.0) == LetIn()
    assert admission.decide(run(3), a_share(), FOREVER_S, 0.0) == Park("concurrent_jobs")
    assert admission.decide(run(2), a_share(), FOREVER_S, 0.0) == LetIn()
    admission.ledger.ended(0, run(4), 0.0, 0.0)
    assert admission.decide(run(4), a_share(), FOREVER_S, 0.0) == LetIn()
    assert admission.ledger.held(ACME).num_jobs == 2


def test_what_is_tried_again_has_its_share() -> None:
    admission = an_admission()
    for number in (1, 2, 3):
        share = a_share(source=Source.TRIED)
        assert admission.decide(run(number), share, FOREVER_S, 0.0) == LetIn()
    assert admission.ledger.held(ACME).num_jobs == 3


def test_what_we_had_decided_is_taken_back_and_what_the_log_says_is_not() -> None:
    ledger = Ledger(PRIOR)
    ledger.open(0)
    ledger.hold(run(1), ACME, a_bulk(), FOREVER_S, 0.0)
    assert ledger.release(0, run(1), 0.0) == ACME
    ledger.hold(run(1), ACME, a_bulk(), FOREVER_S, 0.0)
    ledger.hold(run(1), ACME, a_bulk(), FOREVER_S, 0.0, is_logged=True)
    assert ledger.release(0, run(1), 0.0) is None
    assert ledger.held(ACME).num_jobs == 1


def test_an_ending_is_remembered_until_the_log_is_read_and_a_minute_longer() -> None:
    ledger = Ledger(PRIOR)
    ledger.open(0)
    ledger.ended(0, run(1), 0.0, 0.0)
    ledger.expire(10 * MARKER_S)
    assert ledger.level(0, run(1)) is Level.ENDED
    ledger.read(0)
    ledger.expire(10 * MARKER_S)
    assert len(ledger) == 0


def test_a_moved_deadline_moves_the_end_of_a_share() -> None:
    ledger = Ledger(PRIOR)
    ledger.open(0)
    ledger.hold(run(1), ACME, a_bulk(), 10.0, 0.0)
    ledger.extend(run(1), 20.0)
    assert ledger.expire(15.0) == []
    assert ledger.expire(20.0) == [ACME]


def test_costs_are_learned_from_what_ended() -> None:
    ledger = Ledger(PRIOR)
    ledger.open(0)
    ledger.hold(run(1), ACME, a_bulk(), FOREVER_S, 0.0)
    ledger.ended(0, run(1), 8.0, 0.0)
    assert ledger.cost_s(0, run(2), a_bulk()) > 4.0


def draining(margin: float) -> Admission[str]:
    """A partition in which a GPU-second ends every two seconds, and of two tenants 40 wait."""
    admission = an_admission(jobs={}, deadline_margin=margin)
    for number in range(50):
        admission.ledger.hold(run(number), (ACME, BOLT)[number % 2], a_bulk(), FOREVER_S, 0.0)
    for number in range(10):
        admission.ledger.ended(0, run(number), 1.0, 2.0 + 2.0 * number)
    return admission


def test_a_deadline_out_of_reach_is_refused_early() -> None:
    admission = draining(1.0)
    rate = admission.ledger.drain_rate(0, 20.0)
    assert rate == 0.5
    # 20 of its own are before it, itself, and as much of the other's as there is: 41 at a half.
    assert admission.predicted_s(ACME, a_bulk(), 20.0) == 82.0
    assert admission.decide(run(60), a_share(), 20.0 + 83.0, 20.0) == LetIn()
    found = admission.decide(run(61), a_share(), 20.0 + 80.0, 20.0)
    assert isinstance(found, Refuse)
    assert found.reason_code == "deadline_unreachable"
    assert found.retry_at_s > 20.0
    newcomer = a_share(Payer(0, "free", "cube"))  # before it is only as much again of each other
    assert admission.decide(run(62), newcomer, 20.0 + 7.0, 20.0) == LetIn()


def test_what_a_request_allows_is_let_go_of_where_it_would_miss_its_deadline_else() -> None:
    admission = draining(1.0)
    fewer, both = Rung(("fewer_steps",), a_bulk(10.0)), Rung(("fewer_steps", "smaller"), a_bulk(1))
    share = replace(a_share(units=20.0), rungs=(fewer, both))
    whole_s, fewer_s, least_s = (
        admission.predicted_s(ACME, bulk, 20.0) or 0.0 for bulk in (share.bulk, fewer[1], both[1])
    )
    assert whole_s > fewer_s > least_s
    assert admission.decide(run(60), share, 20.0 + whole_s, 20.0) == LetIn()
    admission = draining(1.0)
    found = admission.decide(run(60), share, 20.0 + (whole_s + fewer_s) / 2, 20.0)
    assert found == LetIn(("fewer_steps",))
    assert admission.ledger.held(ACME).cost_s == 20.0 + 10.0, "it holds what it will take"
    admission = draining(1.0)
    assert admission.decide(run(60), share, 20.0 + (fewer_s + least_s) / 2, 20.0) == LetIn(
        ("fewer_steps", "smaller")
    )
    admission = draining(1.0)
    found = admission.decide(run(60), share, 20.0 + least_s / 2, 20.0)
    assert isinstance(found, Refuse), "not even the least would be in time"
    parked = replace(share, source=Source.PARKED)
    assert admission.decide(run(61), parked, 20.0 + least_s / 2, 20.0) == LetIn(
        ("fewer_steps", "smaller")
    ), "what waited is not refused: its deadline will tell"


FAST = Bulk("fast", SHAPE, 1.0)
MOVED = ("distilled_model",)


def test_the_least_of_several_models_is_found_by_cost() -> None:
    share = replace(
        a_share(units=20.0), rungs=(Rung(MOVED, FAST), Rung(("smaller",), a_bulk(10.0)))
    )
    admission = draining(1.0)
    least_s = admission.predicted_s(ACME, FAST, 20.0) or 0.0
    assert admission.decide(run(60), share, 20.0 + least_s, 20.0) == LetIn(MOVED)
    admission = draining(1.0)
    assert isinstance(admission.decide(run(60), share, 20.0 + least_s / 2, 20.0), Refuse)
    parked = replace(share, source=Source.PARKED)
    assert admission.decide(run(61), parked, 20.0 + least_s / 2, 20.0) == LetIn(MOVED)


def test_a_parked_job_that_is_moved_is_charged_and_taught_as_what_it_became() -> None:
    admission = draining(1.0)
    before_s = admission.ledger.held(ACME).cost_s
    share = replace(a_share(units=20.0), rungs=(Rung(MOVED, FAST),), source=Source.PARKED)
    admission.ledger.park(run(60), ACME, share.bulk, FOREVER_S, 20.0)
    assert admission.decide(run(60), share, 21.0, 20.0) == LetIn(MOVED)
    assert admission.ledger.held(ACME).cost_s == before_s + 1.0
    whole_s = admission.ledger.costs.estimate_s(*share.bulk)
    admission.ledger.ended(0, run(60), 0.5, 20.5)
    assert admission.ledger.costs.num_measured("fast", SHAPE) == 1.0
    assert admission.ledger.costs.estimate_s(*share.bulk) == whole_s


def test_what_is_tried_again_is_what_is_in_time_now() -> None:
    admission = draining(1.0)
    share = replace(a_share(units=20.0), rungs=(Rung(MOVED, FAST),))
    whole_s = admission.predicted_s(ACME, share.bulk, 20.0) or 0.0
    before_s = admission.ledger.held(ACME).cost_s
    assert admission.decide(run(60), share, 20.0 + whole_s, 20.0) == LetIn()
    tried = replace(share, source=Source.TRIED)
    assert admission.decide(run(60), tried, 20.0 + whole_s, 20.0) == LetIn()
    assert admission.decide(run(60), tried, 19.0 + whole_s, 20.0) == LetIn(MOVED)
    assert admission.ledger.held(ACME).cost_s == before_s + 1.0
    admission.ledger.hold(run(60), ACME, FAST, FOREVER_S, 20.0, is_logged=True)
    assert admission.decide(run(60), tried, 19.0 + whole_s, 20.0) == LetIn(), "it is on the log"


def test_the_log_knows_best_what_work_a_run_is() -> None:
    ledger = Ledger(PRIOR)
    ledger.open(0)
    ledger.hold(run(1), ACME, a_bulk(20.0), FOREVER_S, 0.0)
    ledger.hold(run(1), ACME, FAST, FOREVER_S, 0.0, is_logged=True)
    assert ledger.held(ACME).cost_s == 1.0
    ledger.hold(run(1), ACME, a_bulk(20.0), FOREVER_S, 0.0, is_logged=True)
    assert ledger.held(ACME).cost_s == 1.0, "what lies first is what others work"
    ledger.ended(0, run(1), 3.0, 1.0)
    assert ledger.costs.num_measured("fast", SHAPE) == 1.0


def test_who_does_not_know_how_fast_it_drains_refuses_nobody() -> None:
    admission = an_admission(jobs={}, deadline_margin=1.0)
    for number in range(50):
        admission.ledger.hold(run(number), ACME, a_bulk(), FOREVER_S, 0.0)
    assert admission.predicted_s(ACME, a_bulk(), 20.0) is None
    assert admission.decide(run(60), a_share(), 21.0, 20.0) == LetIn()


def test_the_rate_is_asked_first_and_once() -> None:
    admission = an_admission(rates={"free": 2.0})
    for number in (1, 2):
        for _ in range(3):
            assert admission.decide(run(number), a_share(), FOREVER_S, 0.0) == LetIn()
    found = admission.decide(run(3), a_share(), FOREVER_S, 0.0)
    assert isinstance(found, Refuse)
    assert (found.reason_code, found.retry_at_s) == ("rate_limited", 30.0)
    uncharged = replace(a_share(), is_charged=False)
    assert admission.decide(run(4), uncharged, FOREVER_S, 0.0) == Park("concurrent_jobs")
    found = admission.decide(run(5), a_share(source=Source.PARKED), FOREVER_S, 0.0)
    assert found == Park("concurrent_jobs")


def test_a_larger_job_is_not_passed_for_ever_by_smaller_ones() -> None:
    admission = an_admission(jobs={}, gpu_s={"free": 10.0})
    assert admission.decide(run(1), a_share(units=6.0), FOREVER_S, 0.0) == LetIn()
    large = a_share(units=8.0, source=Source.PARKED)
    found = admission.decide(run(2), large, 100.0, 0.0)
    assert found == Park("queued_gpu_seconds")
    admission.wait(ACME, "large", 100.0, "queued_gpu_seconds")
    assert isinstance(admission.decide(run(3), a_share(units=1.0), 101.0, 0.0), Park)
    assert admission.decide(run(4), a_share(units=1.0), 99.0, 0.0) == LetIn()


def test_who_has_room_and_is_hidden_behind_others_is_seen() -> None:
    admission = an_admission()
    for number in (1, 2, 3):
        admission.decide(run(number), a_share(), FOREVER_S, 0.0)
    assert not admission.hides_anyone(0), "acme has no room"
    admission.ledger.park(run(4), BOLT, a_bulk(), FOREVER_S, 0.0)
    assert admission.hides_anyone(0)
    admission.wait(BOLT, "job-4", FOREVER_S, "concurrent_jobs")
    assert not admission.hides_anyone(0), "it is here"
