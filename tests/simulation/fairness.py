"""Tenants on many partitions and workers: who waits how long, under the project's own clock.

Partition function, stage state, window, batches and fair queue are the real ones; what is simulated
is the log, the `range` assignment and an engine that takes a job's cost for it, one at a time, with
neither faults nor rebalances (tests/simulation has those). Deterministic.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from math import isfinite
from typing import NamedTuple

from streams.core.admission import Admission, LetIn, Park, Quotas
from streams.core.cost import Shape
from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    Committed,
    Delivered,
    Emitted,
    Event,
    Pause,
    Produce,
    Resume,
    Start,
    StartOffset,
    Tick,
    Ticket,
    TopicPartition,
    Work,
)
from streams.core.fair_queue import NOBODY, Charge, Fairness
from streams.core.limits import StageLimits
from streams.core.offset_map import OffsetMap
from streams.core.runs import RunOfJob
from streams.core.shares import Bulk, Payer, Share, Source
from streams.core.stage import StageState
from streams.core.tiers import DEFAULT_WEIGHTS, partition_of_job

TOPIC = "prompts.cleaned"
_SHAPE = Shape(17, 64, 64)


class Arrival(NamedTuple):
    """A job that comes at `at_s` and will take `cost_s` of a device."""

    at_s: float
    tier: str
    tenant_id: str
    job_id: str
    cost_s: float


class Served(NamedTuple):
    """A job and when it began; infinity: not before the end."""

    arrival: Arrival
    began_s: float
    worker: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """What serves. `is_fair` False: plain FIFO, as if all records were one tenant's."""

    num_partitions: int
    num_workers: int
    is_fair: bool = True
    window: int = 64
    per_tenant: int = 16
    look_ahead: int = 256
    weights: Mapping[str, float] = field(default_factory=lambda: DEFAULT_WEIGHTS)
    quotas: Quotas = field(default_factory=Quotas)

    def limits(self) -> StageLimits:
        """Of each worker: a job at a time, started as it comes."""
        return StageLimits(
            window_high=self.window,
            window_low=self.window // 2,
            window_per_tenant=self.per_tenant if self.is_fair else self.window,
            look_ahead=self.look_ahead if self.is_fair else self.window,
            batch_max=1,
            batch_age_s=0.0,
            max_batches=1,
            commit_interval_s=1e9,
            fairness=Fairness(self.weights),
        )


def range_assignment(num_partitions: int, num_workers: int) -> list[range]:
    """Kafka's `range` assignor on one topic: contiguous, the first ones get one more.

    >>> range_assignment(7, 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    each, more = divmod(num_partitions, num_workers)
    ends = [number * each + min(number, more) for number in range(num_workers + 1)]
    return [range(first, end) for first, end in pairwise(ends)]


def zipf_shares(num: int, exponent: float = 1.0) -> list[float]:
    """What share of the load each of so many tenants has, the heaviest first; together 1."""
    weights = [1 / rank**exponent for rank in range(1, num + 1)]
    return [each / sum(weights) for each in weights]


def arrivals_of(
    rng: random.Random, tier: str, tenant_id: str, per_s: float, until_s: float, cost_s: float
) -> Iterable[Arrival]:
    """A tenant's jobs: exponential gaps, and costs of half to one and a half times the mean."""
    at_s, number = rng.expovariate(per_s), 0
    while at_s < until_s:
        number += 1
        yield Arrival(
            at_s, tier, tenant_id, f"{tenant_id}-{number}", cost_s * rng.uniform(0.5, 1.5)
        )
        at_s += rng.expovariate(per_s)


def merged(streams: Iterable[Iterable[Arrival]]) -> list[Arrival]:
    """All arrivals in order of time."""
    return sorted(each for stream in streams for each in stream)


def limited(stream: Iterable[Arrival], most: int) -> Iterable[Arrival]:
    """The first so many: a backlog that is never reached need not be drawn to its end."""
    return islice(stream, most)


@dataclass(slots=True)
class _Front:
    """The prompt stage before some partitions: it lets jobs in by quotas, and takes no time."""

    coming: dict[TopicPartition, Sequence[Arrival]]
    logs: dict[TopicPartition, list[Arrival]]
    admission: Admission[Arrival]
    positions: dict[TopicPartition, int]

    def turn(self, now_s: float) -> None:
        """What has come by now is let in, or waits."""
        for partition, coming in self.coming.items():
            position = self.positions[partition]
            while position < len(coming) and coming[position].at_s <= now_s:
                self._ask(partition, coming[position], Source.NEW, now_s)
                position += 1
            self.positions[partition] = position

    def _ask(self, at: TopicPartition, job: Arrival, source: Source, now_s: float) -> bool:
        share = Share(self._payer(at, job), Bulk("", _SHAPE, job.cost_s), source)
        match self.admission.decide(_run_of(job), share, float("inf"), now_s):
            case LetIn():
                self.logs[at].append(job)
                return True
            case Park(over):
                self.admission.wait(share.payer, job, float("inf"), over)
        return False

    def ended(self, at: TopicPartition, job: Arrival, now_s: float) -> None:
        """Its share is free."""
        payer = self._payer(at, job)
        self.admission.ledger.ended(at.partition, _run_of(job), job.cost_s, now_s)
        while (first := self.admission.first(payer)) is not None:
            self.admission.leave(payer, first)
            if not self._ask(at, first, Source.PARKED, now_s):
                return

    def next_s(self) -> float:
        """When the next job comes."""
        return min(
            (
                coming[self.positions[at]].at_s
                for at, coming in self.coming.items()
                if self.positions[at] < len(coming)
            ),
            default=1e18,
        )

    @staticmethod
    def _payer(at: TopicPartition, job: Arrival) -> Payer:
        return Payer(at.partition, job.tier, job.tenant_id)


def _run_of(job: Arrival) -> RunOfJob:
    return RunOfJob(job.tenant_id, job.job_id, 1)


def _front_of(
    partitions: Iterable[TopicPartition], logs: Sequence[list[Arrival]], quotas: Quotas
) -> _Front:
    coming: dict[TopicPartition, Sequence[Arrival]] = {
        each: logs[each.partition] for each in partitions
    }
    admission: Admission[Arrival] = Admission(quotas)
    for each in coming:
        admission.ledger.open(each.partition)
        admission.ledger.read(each.partition)
    return _Front(coming, {each: [] for each in coming}, admission, dict.fromkeys(coming, 0))


@dataclass(slots=True)
class _Worker:
    """One worker: its partitions' logs, the real state, and a device that does a job at a time."""

    number: int
    state: StageState
    is_fair: bool
    logs: dict[TopicPartition, list[Arrival]]
    positions: dict[TopicPartition, int]
    front: _Front | None
    paused: set[TopicPartition] = field(default_factory=set)
    began: list[Served] = field(default_factory=list)
    running: list[tuple[float, Ticket]] = field(default_factory=list)  # heap: until, what

    def handle(self, event: Event, now_s: float) -> None:
        """Let the state decide, and do what it says."""
        for command in self.state.handle(event, now_s):
            match command:
                case Start(batch):
                    for ticket, work in batch:
                        assert isinstance(work.payload, Arrival)
                        self.began.append(Served(work.payload, now_s, self.number))
                        heapq.heappush(self.running, (now_s + work.payload.cost_s, ticket))
                case Produce(ticket):
                    self.handle(Acknowledged(ticket), now_s)
                case Commit():
                    self.handle(Committed(True), now_s)
                case Pause(partitions):
                    self.paused.update(partitions)
                case Resume(partitions):
                    self.paused.difference_update(partitions)
                case _:
                    raise AssertionError(f"nobody asked for {command}")

    def poll(self, now_s: float) -> None:
        """Deliver what has come and what the window takes, then start what may start."""
        for partition, log in self.logs.items():
            position = self.positions[partition]
            while (
                position < len(log) and log[position].at_s <= now_s and partition not in self.paused
            ):
                arrival = log[position]
                charge = NOBODY
                if self.is_fair:
                    charge = Charge(arrival.tier, arrival.tenant_id, arrival.cost_s)
                work = Work(arrival.job_id, 1, None, None, arrival, charge=charge)
                self.handle(Delivered(partition, position, work), now_s)
                position += 1
            self.positions[partition] = position
        self.handle(Tick(), now_s)

    def next_s(self) -> float:
        """When something happens next: a job ends, or one comes that may be delivered."""
        coming = (
            log[self.positions[partition]].at_s
            for partition, log in self.logs.items()
            if partition not in self.paused and self.positions[partition] < len(log)
        )
        next_s = 1e18 if self.front is None else self.front.next_s()
        running_s = self.running[0][0] if self.running else 1e18
        return min(running_s, next_s, min(coming, default=1e18))

    def turn(self, now_s: float) -> None:
        """Time has come for it."""
        while self.running and self.running[0][0] <= now_s:
            _, ticket = heapq.heappop(self.running)
            if self.front is not None:
                job = self.logs[ticket.partition][ticket.offset]
                self.front.ended(ticket.partition, job, now_s)
            self.handle(Emitted(ticket, ()), now_s)
        if self.front is not None:
            self.front.turn(now_s)
        self.poll(now_s)


def simulate(cluster: Cluster, arrivals: Sequence[Arrival], until_s: float) -> list[Served]:
    """What became of each arrival by `until_s`."""
    logs: list[list[Arrival]] = [[] for _ in range(cluster.num_partitions)]
    for each in arrivals:
        number = partition_of_job(each.tier, each.tenant_id, each.job_id, cluster.num_partitions)
        logs[number].append(each)
    served: list[Served] = []
    for number, held in enumerate(range_assignment(cluster.num_partitions, cluster.num_workers)):
        partitions = [TopicPartition(TOPIC, each) for each in held]
        front = None
        if cluster.quotas.is_any:
            front = _front_of(partitions, logs, cluster.quotas)
        worker = _Worker(
            number,
            StageState(cluster.limits()),
            cluster.is_fair,
            {each: logs[each.partition] for each in partitions} if front is None else front.logs,
            dict.fromkeys(partitions, 0),
            front,
        )
        # Workers share nothing but the log, so they may run one after the other.
        start = StartOffset(OffsetMap(0), is_committed=True)
        worker.handle(Assigned(dict.fromkeys(partitions, start)), 0.0)
        while (now_s := worker.next_s()) <= until_s:
            worker.turn(now_s)
        served += worker.began
    began = {each.arrival.job_id for each in served}
    never = [each for each in arrivals if each.job_id not in began]
    return served + [Served(each, float("inf"), -1) for each in never]


def waits_s(served: Iterable[Served], until_s: float) -> list[float]:
    """How long each waited to begin, ascending; one that never did, until the end."""
    return sorted(min(each.began_s, until_s) - each.arrival.at_s for each in served)


def served_s(served: Iterable[Served], tier: str) -> dict[str, float]:
    """Device seconds of what began, by tenant of that tier; 0.0 for one that only waited."""
    found: dict[str, float] = {}
    for arrival, began_s, _ in served:
        if arrival.tier == tier:
            cost_s = arrival.cost_s if isfinite(began_s) else 0.0
            found[arrival.tenant_id] = found.get(arrival.tenant_id, 0.0) + cost_s
    return found


def jain_index(shares: Collection[float]) -> float:
    """How evenly something is shared: 1 if all have as much, 1/n if one has it all.

    R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness", DEC TR-301, 1984.

    >>> jain_index([2.0, 2.0]), jain_index([1.0, 0.0, 0.0, 0.0])
    (1.0, 0.25)
    """
    squares = sum(each * each for each in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def percentile(ascending: Sequence[float], share: float) -> float:
    """The least value that this share of them does not exceed (nearest rank).

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    return ascending[max(0, -(-int(share * 1000) * len(ascending) // 1000) - 1)]
