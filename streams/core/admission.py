"""Who is let into the pipeline now, who waits before it, and who is told to come again.

A fair queue can only be fair among what it sees. So a tenant has no more in the pipeline than its
quota, and what is beyond it waits in `requests.deferred`: the later topics stay shallow. Over the
rate, over the bound on what may be parked, or with a deadline out of reach, a request is refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from streams.core.cost import Prior
from streams.core.ledger import Ledger
from streams.core.rates import RateLimit
from streams.core.runs import RunOfJob
from streams.core.shares import Bulk, Level, Over, Payer, Rung, Share, Source
from streams.core.timers import Timers

T = TypeVar("T", bound=Hashable)

_PRIOR = Prior(fixed_s=1.0)


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a tenant of each tier may have; no limit for a tier that is not named.

    A tenant's jobs hash to `num_parts` partitions, whose owners share nothing: it has that part of
    everything in each, but one job at least.

    `jobs` and `gpu_s` in the pipeline at a time, `parked` requests before it, `rates` requests a
    minute. `deadline_margin`: a request whose predicted wait is longer than that many times what
    its deadline leaves is refused; None: none is. `prior`: GPU-seconds of a unit of work before
    any job has ended.
    """

    jobs: Mapping[str, float] = field(default_factory=dict)
    gpu_s: Mapping[str, float] = field(default_factory=dict)
    parked: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    deadline_margin: float | None = None
    num_parts: int = 2
    prior: Prior = _PRIOR

    @property
    def is_any(self) -> bool:
        """Whether there is anything to keep a ledger for."""
        limits = self.jobs or self.gpu_s or self.rates
        return bool(limits) or self.deadline_margin is not None


class LetIn(NamedTuple):
    """It goes on, and holds its share; without what is let go of."""

    degradations: tuple[str, ...] = ()


class Park(NamedTuple):
    """It waits, because that quota is used up."""

    over: Over


class Refuse(NamedTuple):
    """It is rejected; from `retry_at_s` on the same wish may be taken."""

    reason_code: str
    reason: str
    retry_at_s: float


Decision = LetIn | Park | Refuse


class Admission(Generic[T]):
    """Decides about each request, and keeps those that wait here, of each payer in order.

    `T` is whatever stands for a parked request here. Times in seconds since the epoch.
    """

    def __init__(self, quotas: Quotas) -> None:
        self.ledger = Ledger(quotas.prior)
        self._quotas, self._rates = quotas, RateLimit()
        self._parked: dict[Payer, _Line[T]] = {}

    def decide(
        self, run_of_job: RunOfJob, share: Share, deadline_s: float, now_s: float
    ) -> Decision:
        """What becomes of a request that has its turn. Let in, or parked, it is in the ledger.

        A run that is in the pipeline already, or has ended, is let in: it has its share, and its
        fences know what to do. What is tried again is let in too, as what is in time now.
        """
        ledger, payer = self.ledger, share.payer
        level = ledger.level(payer.partition, run_of_job)
        is_tried = share.source is Source.TRIED
        if level is Level.ENDED:
            return LetIn()
        if level is Level.ADMITTED:
            # Its own share, from the try before, is not before it.
            is_taken_back = is_tried and ledger.release(payer.partition, run_of_job, now_s)
            if not is_taken_back:
                return LetIn()
        if is_tried:
            return self._let_in(run_of_job, share, deadline_s, now_s)
        is_new = share.source is Source.NEW and level is None
        if is_new and (refusal := self._refusal(run_of_job, share, deadline_s, now_s)):
            return refusal
        over = self._over(payer, ledger.cost_s(payer.partition, run_of_job, share.bulk))
        line = self._parked.get(payer)
        if over is None and line is not None and line.first_deadline_s < deadline_s:
            over = line.over  # or those before it would be passed for ever by what is smaller
        if over is None:
            return self._let_in(run_of_job, share, deadline_s, now_s)
        if is_new and (refusal := self._too_many(share, now_s)):
            return refusal
        ledger.park(run_of_job, payer, share.bulk, deadline_s, now_s)
        return Park(over)

    def _let_in(self, run_of_job: RunOfJob, share: Share, deadline_s: float, now_s: float) -> LetIn:
        rung = self._rung(share, deadline_s, now_s)
        self.ledger.hold(run_of_job, share.payer, rung.bulk, deadline_s, now_s)
        return LetIn(rung.degradations)

    # ---- what waits here

    def wait(self, payer: Payer, item: T, deadline_s: float, over: Over) -> None:
        """A parked request is here, to be asked about again when its payer has room."""
        line = self._parked.setdefault(payer, _Line())
        line.over = over
        line.waiting.set(item, deadline_s)

    def leave(self, payer: Payer, item: T) -> None:
        """It waits no longer."""
        line = self._parked[payer]
        line.waiting.discard(item)
        if not line.waiting:
            del self._parked[payer]

    def first(self, payer: Payer) -> T | None:
        """Who of a payer's is next: the earliest deadline, then as they came."""
        line = self._parked.get(payer)
        return None if line is None else line.first[1]

    def num_parked(self) -> dict[str, int]:
        """Requests that wait here, by tier."""
        found: dict[str, int] = {}
        for payer, line in self._parked.items():
            found[payer.tier] = found.get(payer.tier, 0) + len(line.waiting)
        return found

    def hides_anyone(self, partition: int) -> bool:
        """Whether somebody has room and a parked request that has not been delivered here."""
        for payer, held in self.ledger.payers(partition):
            line = self._parked.get(payer)
            num_here = 0 if line is None else len(line.waiting)
            if held.num_parked > num_here and self._over(payer, 0.0) is None:
                return True
        return False

    # ---- rules

    def _over(self, payer: Payer, cost_s: float) -> Over | None:
        """Which quota a job of so many GPU-seconds more would be over."""
        held = self.ledger.held(payer)
        if not held.num_jobs:  # a job larger than the quota runs too, alone
            return None
        jobs = self._quotas.jobs.get(payer.tier)
        if jobs is not None and held.num_jobs >= max(1, jobs // self._quotas.num_parts):
            return "concurrent_jobs"
        gpu_s = self._quotas.gpu_s.get(payer.tier)
        if gpu_s is not None and held.cost_s + cost_s > gpu_s / self._quotas.num_parts:
            return "queued_gpu_seconds"
        return None

    def _refusal(
        self, run_of_job: RunOfJob, share: Share, deadline_s: float, now_s: float
    ) -> Refuse | None:
        payer = share.payer
        rate = self._quotas.rates.get(payer.tier)
        if rate is not None and share.is_charged:
            wait_s = self._rates.wait_s(
                (payer.partition, payer.tenant_id),
                run_of_job.job_id,
                rate / self._quotas.num_parts,
                now_s,
            )
            if wait_s:
                text = f"more than {rate:g} requests a minute: try again in {wait_s:.0f} s"
                return Refuse("rate_limited", text, now_s + wait_s)
        least = self._least(share).bulk
        if self._is_in_time(payer, least, deadline_s, now_s):
            return None
        predicted_s, left_s = self.predicted_s(payer, least, now_s), deadline_s - now_s
        assert predicted_s is not None, "or it were in time"
        text = f"it would take about {predicted_s:.0f} s, and the deadline is in {left_s:.0f} s"
        return Refuse("deadline_unreachable", text, now_s + predicted_s - left_s)

    def _rung(self, share: Share, deadline_s: float, now_s: float) -> Rung:
        """The job as it was asked for if that is in time, else the least loss that is."""
        for rung in _rungs(share):
            if self._is_in_time(share.payer, rung.bulk, deadline_s, now_s):
                return rung
        return self._least(share)

    def _least(self, share: Share) -> Rung:
        """What is made soonest; of equals the lesser loss."""
        if not share.rungs:  # mostly, and then nothing need be priced
            return Rung((), share.bulk)
        return min(_rungs(share), key=lambda rung: self.ledger.costs.estimate_s(*rung.bulk))

    def _is_in_time(self, payer: Payer, bulk: Bulk, deadline_s: float, now_s: float) -> bool:
        """Whether it is predicted to meet its deadline, or nobody can tell."""
        margin = self._quotas.deadline_margin
        if margin is None:
            return True
        predicted_s = self.predicted_s(payer, bulk, now_s)
        return predicted_s is None or predicted_s <= (deadline_s - now_s) * margin

    def predicted_s(self, payer: Payer, bulk: Bulk, now_s: float) -> float | None:
        """How long until such a request ends, at the rate at which its partition drains now.

        By fluid fair queueing: its tenant's own work is before it, and of each other tenant's as
        much again at most. None: too little has ended lately to know the rate.
        """
        ledger = self.ledger
        rate = ledger.drain_rate(payer.partition, now_s)
        if not rate:
            return None
        own = ledger.held(payer)
        own_s = own.cost_s + own.parked_cost_s + ledger.costs.estimate_s(*bulk)
        others_s = sum(
            min(held.cost_s, own_s)
            for other, held in ledger.payers(payer.partition)
            if other != payer
        )
        return (own_s + others_s) / rate

    def _too_many(self, share: Share, now_s: float) -> Refuse | None:
        payer = share.payer
        most = self._quotas.parked.get(payer.tier)
        held = self.ledger.held(payer)
        if most is None or held.num_parked < max(1, most // self._quotas.num_parts):
            return None
        # What is before it, at the rate of its partition; where nobody knows that, of one device.
        predicted_s = self.predicted_s(payer, share.bulk, now_s)
        if predicted_s is None:
            predicted_s = held.cost_s + held.parked_cost_s
        text = f"more than {most:g} requests wait already: try again in {predicted_s:.0f} s"
        return Refuse("quota_exceeded", text, now_s + max(1.0, predicted_s))


def _rungs(share: Share) -> tuple[Rung, ...]:
    return (Rung((), share.bulk), *share.rungs)


@dataclass(slots=True)
class _Line(Generic[T]):
    """What waits of one payer, by deadline; something does. `over`: what the last was told."""

    waiting: Timers[T] = field(default_factory=Timers)
    over: Over = "concurrent_jobs"

    @property
    def first(self) -> tuple[float, T]:
        found = self.waiting.first()
        assert found is not None, "an empty line is let go"
        return found

    @property
    def first_deadline_s(self) -> float:
        return self.first[0]
