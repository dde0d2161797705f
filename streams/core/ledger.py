"""How much work each tenant has in the pipeline, as the log tells it: what quotas stand on.

An entry for each run of the last `longest_run_s`, by partition. Records of several topics are read
in no order, and some twice; a run only ever goes up (parked, admitted, ended), so whoever has read
the same records holds the same ledger, in whatever order they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from streams.core.cost import CostModel, Prior
from streams.core.runs import RunOfJob, Wished, whosever
from streams.core.shares import Bulk, Level, Payer
from streams.core.timers import Timers

#: How long the ending of a run is remembered, in seconds: what the log told of it before its end
#: may be read after.
MARKER_S = 60.0

_WINDOW_S = 300.0  # of which the drain rate is told
_LEAST_ENDED = 5
_LEAST_S = 10.0


@dataclass(slots=True)
class _Entry:
    level: Level
    payer: Payer
    bulk: Bulk
    cost_s: float
    is_logged: bool = False  # else only this worker knows of it


@dataclass(slots=True)
class Held:
    """What a payer has in the pipeline, and what of its is parked."""

    num_jobs: int = 0
    cost_s: float = 0.0
    num_parked: int = 0
    parked_cost_s: float = 0.0

    def add(self, level: Level, cost_s: float, sign: int) -> None:
        """One run more (1) or less (-1) of that level."""
        if level is Level.ADMITTED:
            self.num_jobs += sign
            self.cost_s = self.cost_s + sign * cost_s if self.num_jobs else 0.0
        else:
            self.num_parked += sign
            self.parked_cost_s = self.parked_cost_s + sign * cost_s if self.num_parked else 0.0


@dataclass(slots=True)
class _Partition:
    is_read: bool = False
    entries: dict[RunOfJob, _Entry] = field(default_factory=dict)
    ended: dict[RunOfJob, float] = field(default_factory=dict)  # until when; in that order
    held: dict[Payer, Held] = field(default_factory=dict)
    num_jobs: int = 0  # admitted, of all payers
    busy_since_s: float | None = None
    drained: deque[tuple[float, float]] = field(default_factory=deque)  # when, GPU-seconds

    def named(self, wished: Wished) -> list[RunOfJob]:
        """The runs here that a wish names. All are looked through where it is an old one."""
        tenant_id, job_id, run = wished
        if tenant_id is None:
            return [each for each in self.entries if whosever(each) == wished]
        named = RunOfJob(tenant_id, job_id, run)
        return [named] if named in self.entries else []

    def forget_drained(self, now_s: float) -> None:
        """Let go of what ended too long ago to tell how fast it drains."""
        while self.drained and self.drained[0][0] < now_s - _WINDOW_S:
            self.drained.popleft()


class Ledger:
    """Entries of the partitions that are open. Times in seconds since the epoch, by one clock.

    >>> from streams.core.cost import Shape
    >>> ledger, acme = Ledger(Prior(fixed_s=2.0)), Payer(0, "free", "acme")
    >>> ledger.open(0); bulk = Bulk("v1", Shape(17, 64, 64), 10)
    >>> job = RunOfJob("acme", "job-1", 1)
    >>> ledger.hold(job, acme, bulk, until_s=99.0, now_s=0.0), ledger.held(acme)
    (None, Held(num_jobs=1, cost_s=20.0, num_parked=0, parked_cost_s=0.0))
    >>> ledger.ended(0, job, cost_s=25.0, now_s=5.0) == acme, ledger.held(acme).num_jobs
    (True, 0)
    """

    def __init__(self, prior: Prior) -> None:
        """`prior`: what a unit of work costs before any run has ended."""
        self.costs = CostModel(prior)
        self._partitions: dict[int, _Partition] = {}
        self._until: Timers[tuple[int, RunOfJob]] = Timers()  # deadlines of entries

    def __len__(self) -> int:
        """Runs and endings that are remembered."""
        return sum(len(each.entries) + len(each.ended) for each in self._partitions.values())

    # ---- partitions

    def open(self, partition: int) -> None:
        """Begin with nothing; it is to be read."""
        self.forget(partition)
        self._partitions[partition] = _Partition()

    def read(self, partition: int) -> None:
        """All that was on the log when it was opened has been told."""
        self._partitions[partition].is_read = True

    def forget(self, partition: int) -> None:
        """It is another's now."""
        if (found := self._partitions.pop(partition, None)) is not None:
            for run_of_job in found.entries:
                self._until.discard((partition, run_of_job))

    def is_open(self, partition: int) -> bool:
        """Whether it is kept."""
        return partition in self._partitions

    @property
    def numbers(self) -> set[int]:
        """Of the partitions that are kept."""
        return set(self._partitions)

    @property
    def num_unread(self) -> int:
        """Partitions that cannot be trusted yet."""
        return sum(not each.is_read for each in self._partitions.values())

    def is_read(self, partition: int) -> bool:
        """Whether it can be trusted."""
        return partition in self._partitions and self._partitions[partition].is_read

    # ---- runs

    def level(self, partition: int, run_of_job: RunOfJob) -> Level | None:
        """How far a run has come; None: nobody knows of it."""
        found = self._partitions[partition]
        if run_of_job in found.ended:
            return Level.ENDED
        entry = found.entries.get(run_of_job)
        return None if entry is None else entry.level

    def cost_s(self, partition: int, run_of_job: RunOfJob, bulk: Bulk) -> float:
        """GPU-seconds: as estimated when it was first seen, or now."""
        entry = self._partitions[partition].entries.get(run_of_job)
        return self.costs.estimate_s(*bulk) if entry is None else entry.cost_s

    def park(
        self, run_of_job: RunOfJob, payer: Payer, bulk: Bulk, until_s: float, now_s: float
    ) -> None:
        """Its request is on `requests.deferred`, or about to be."""
        self._rise(Level.PARKED, run_of_job, payer, bulk, until_s, now_s)

    def hold(
        self,
        run_of_job: RunOfJob,
        payer: Payer,
        bulk: Bulk,
        until_s: float,
        now_s: float,
        is_logged: bool = False,
    ) -> None:
        """It is in the pipeline, as the log says (`is_logged`), or as we have decided.

        The log knows best what work it is: a retry may be let in as another job than the first try.
        """
        entry = self._rise(Level.ADMITTED, run_of_job, payer, bulk, until_s, now_s)
        if entry is not None and is_logged and not entry.is_logged:
            entry.is_logged = True
            if entry.bulk != bulk:
                held = self._partitions[payer.partition].held[entry.payer]
                held.add(entry.level, entry.cost_s, -1)
                entry.bulk, entry.cost_s = bulk, self.costs.estimate_s(*bulk)
                held.add(entry.level, entry.cost_s, 1)

    def ended(
        self, partition: int, run_of_job: RunOfJob, cost_s: float, now_s: float
    ) -> Payer | None:
        """It has ended, having cost so much; whose share is free now, if it held one."""
        found = self._partitions[partition]
        if run_of_job in found.ended:
            return None
        found.ended[run_of_job] = now_s + MARKER_S
        entry = self._pop(partition, run_of_job)
        if entry is None:
            return None
        if cost_s > 0:
            self.costs.learn(*entry.bulk, cost_s)
            if found.is_read:
                found.drained.append((now_s, cost_s))
                found.forget_drained(now_s)
        self._drop(found, entry, now_s)
        return entry.payer

    def release(self, partition: int, run_of_job: RunOfJob, now_s: float) -> Payer | None:
        """What we had decided comes to nothing; what the log says stands."""
        found = self._partitions.get(partition)
        entry = None if found is None else found.entries.get(run_of_job)
        if found is None or entry is None or entry.is_logged:
            return None
        self._pop(partition, run_of_job)
        self._drop(found, entry, now_s)
        return entry.payer

    def extend(self, wished: Wished, until_s: float) -> None:
        """Its deadline is another."""
        for number, found in self._partitions.items():
            for run_of_job in found.named(wished):
                self._until.set((number, run_of_job), until_s)

    def expire(self, now_s: float) -> list[Payer]:
        """Let go of what is past its deadline, and of old endings; whose shares are free now."""
        freed = []
        while (due := self._until.pop_due(now_s)) is not None:
            number, run_of_job = due
            found = self._partitions[number]
            entry = found.entries.pop(run_of_job)
            self._drop(found, entry, now_s)
            freed.append(entry.payer)
        for found in self._partitions.values():
            if found.is_read:  # before that, what an ending belongs to may be still to come
                for old in list(_outdated(found.ended, now_s)):
                    del found.ended[old]
        return freed

    # ---- sums

    def held(self, payer: Payer) -> Held:
        """What a payer has; to be looked at."""
        found = self._partitions.get(payer.partition)
        return Held() if found is None else found.held.get(payer, Held())

    def payers(self, partition: int) -> Iterator[tuple[Payer, Held]]:
        """Who has anything in that partition."""
        yield from self._partitions[partition].held.items()

    def drain_rate(self, partition: int, now_s: float) -> float | None:
        """GPU-seconds that end in a second while there is work; None: too little was seen."""
        found = self._partitions[partition]
        found.forget_drained(now_s)
        if found.busy_since_s is None or len(found.drained) < _LEAST_ENDED:
            return None
        elapsed_s = now_s - max(found.busy_since_s, now_s - _WINDOW_S)
        if elapsed_s < _LEAST_S:
            return None
        return sum(cost_s for _, cost_s in found.drained) / elapsed_s

    def _rise(
        self,
        level: Level,
        run_of_job: RunOfJob,
        payer: Payer,
        bulk: Bulk,
        until_s: float,
        now_s: float,
    ) -> _Entry | None:
        found = self._partitions[payer.partition]
        if run_of_job in found.ended or until_s <= now_s:
            return None
        entry = found.entries.get(run_of_job)
        if entry is None:
            entry = _Entry(level, payer, bulk, self.costs.estimate_s(*bulk))
            found.entries[run_of_job] = entry
            self._until.set((payer.partition, run_of_job), until_s)
        elif entry.level >= level:
            return entry
        else:
            self._drop(found, entry, now_s)
            entry.level, entry.payer = level, payer
            if entry.bulk != bulk:
                entry.bulk, entry.cost_s = bulk, self.costs.estimate_s(*bulk)
        found.held.setdefault(payer, Held()).add(level, entry.cost_s, 1)
        if level is Level.ADMITTED:
            found.num_jobs += 1
            found.busy_since_s = now_s if found.busy_since_s is None else found.busy_since_s
        return entry

    def _pop(self, partition: int, run_of_job: RunOfJob) -> _Entry | None:
        self._until.discard((partition, run_of_job))
        return self._partitions[partition].entries.pop(run_of_job, None)

    def _drop(self, found: _Partition, entry: _Entry, now_s: float) -> None:
        held = found.held[entry.payer]
        held.add(entry.level, entry.cost_s, -1)
        if not held.num_jobs and not held.num_parked:
            del found.held[entry.payer]
        found.num_jobs -= entry.level is Level.ADMITTED
        if not found.num_jobs:  # how fast it drains is told by times in which there is work
            found.busy_since_s = None
            found.drained.clear()


def _outdated(ended: dict[RunOfJob, float], now_s: float) -> Iterator[RunOfJob]:
    for run_of_job, until_s in ended.items():
        if until_s > now_s:
            return
        yield run_of_job
