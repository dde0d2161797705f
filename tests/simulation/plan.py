"""What one schedule is made of: a shape, jobs, faults. Drawn from a seed, and plain data since."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from streams.core.admission import Quotas
from streams.core.cost import Prior
from streams.core.fair_queue import Fairness
from streams.core.limits import StageLimits
from streams.core.offset_map import BACK_PRESSURE_SPAN
from streams.core.retry import RetryPolicy
from streams.core.tiers import DEFAULT_WEIGHTS, OFF_PEAK

NUM_PARTITIONS = 6
STAGES = ("prompt", "sampler", "decoder", "finisher")
RETRY = RetryPolicy(delays_s=(1, 3, 10), max_tries=4)

FAULTS_END_S = 20.0
"""From then on nothing new goes wrong, and what can be healed is."""

SETTLED_AFTER_S = 180.0
"""By then, counted from the end of the faults, everything must have ended (simulated seconds)."""

SESSION_S = 3.0
"""A member that is silent for so long is none any more."""

Behaviour = Literal[
    "sound",
    "flaky",  # fails `count` times at its stage, then works
    "permanent",  # fails at its stage, in every run
    "first_run",  # fails for good at its stage in run 1, and works after a redrive
    "killer",  # kills the process at its stage `count` times
    "rejected",  # is refused by the prompt stage
    "invalid",  # the stage's intake finds that it can never be worked
    "large",  # fails for good, and its original fits no dead-letter topic
    "hasty",  # has a deadline that is soon over
]


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job, and all that is put on `requests` for it."""

    number: int
    at_s: float
    behaviour: Behaviour
    stage: str  # where it misbehaves
    count: int = 0
    num_copies: int = 1
    is_misplaced: bool = False
    has_conflict: bool = False  # another request follows under the same id
    deadline_s: float | None = 50_000.0
    is_deferrable: bool = False

    @property
    def job_id(self) -> str:
        """Also names what the trace is about."""
        return f"job-{self.number}"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Something that goes wrong. `slot` numbers a worker of the stage; `number` is the kind's."""

    at_s: float
    kind: str
    stage: str
    slot: int
    for_s: float
    number: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole schedule; with the seed it fixes everything that happens."""

    seed: int
    is_incremental: bool  # KIP-848, else classic
    num_workers: tuple[int, ...]  # of each stage
    longest_compute_s: float
    limits: StageLimits
    jobs: tuple[JobPlan, ...]
    faults: tuple[FaultPlan, ...]
    faults_end_s: float = FAULTS_END_S


#: kind -> weight, longest duration, what `number` means
KINDS: dict[str, tuple[int, float, Callable[[random.Random], int]]] = {
    "crash": (14, 4.0, lambda r: r.randrange(40)),  # after so many steps
    "crash_at_outcome": (3, 4.0, lambda r: 0),
    "stop": (3, 3.0, lambda r: 0),  # SIGTERM, back after a while
    "join": (3, 0.0, lambda r: 0),
    "leave": (2, 0.0, lambda r: 0),
    "shuffle": (5, 0.0, lambda r: 1 + r.randrange(2)),  # partitions move, nobody comes or goes
    "freeze": (12, 10.0, lambda r: r.randrange(2)),  # SIGSTOP; 1: only the loop stands still
    "store_away": (4, 5.0, lambda r: 0),
    "store_slow": (2, 5.0, lambda r: 0),
    "lost_answers": (5, 8.0, lambda r: 30),  # percent of the creates
    "refused_calls": (2, 6.0, lambda r: 30),  # percent of the store's calls
    "blob_lost": (3, 0.0, lambda r: r.randrange(1000)),
    "blob_corrupt": (2, 0.0, lambda r: r.randrange(1000)),
    "sick_device": (3, 6.0, lambda r: r.randrange(2)),  # 1: says so itself
    "lost_acks": (4, 6.0, lambda r: 40),  # percent of the produces
    "refused_produces": (2, 5.0, lambda r: 40),
    "lost_commits": (4, 6.0, lambda r: 50),  # percent of the commits
    "slow_brokers": (2, 5.0, lambda r: 0),
    "cancel": (3, 0.0, lambda r: r.randrange(1000)),
    "deadline": (1, 0.0, lambda r: r.randrange(1000)),
    "redrive": (5, 0.0, lambda r: r.randrange(1000)),
    "offset_reset": (2, 1.0, lambda r: r.randrange(2)),  # 1: the offsets are forgotten
    "clock_jump": (2, 0.0, lambda r: 1 + r.randrange(40)),  # seconds
    "garbage": (3, 0.0, lambda r: r.randrange(1000)),
    "pause_stage": (1, 4.0, lambda r: 0),
}  # fmt: skip

_BEHAVIOURS: tuple[tuple[Behaviour, int], ...] = (
    ("sound", 40), ("flaky", 10), ("permanent", 4), ("first_run", 6), ("killer", 8),
    ("rejected", 2), ("invalid", 2), ("large", 2), ("hasty", 2),
)  # fmt: skip


def make_plan(seed: int) -> Plan:
    """The schedule of a seed."""
    rng = random.Random(seed)
    num_faults = rng.choice((0, 3, 6, 6, 10, 14))
    plan = Plan(
        seed=seed,
        is_incremental=rng.random() < 0.6,
        num_workers=tuple(rng.choice((1, 2, 2, 3)) for _ in STAGES),
        longest_compute_s=rng.choice((0.5, 0.5, 6.0)),
        limits=replace(_limits(rng), quotas=_quotas(seed)),
        jobs=tuple(_job(rng, number) for number in range(1, rng.randint(4, 9))),
        faults=tuple(sorted((_fault(rng) for _ in range(num_faults)), key=lambda each: each.at_s)),
    )
    return _at_night(_unhurried(plan))


def _unhurried(plan: Plan) -> Plan:
    """In a third of the schedules many jobs name no deadline. A generator of its own, as quotas."""
    rng = random.Random(f"unhurried-{plan.seed}")
    if rng.random() > 0.33:
        return plan
    jobs = tuple(
        replace(each, deadline_s=None)
        if each.behaviour != "hasty" and rng.random() < 0.6 else each
        for each in plan.jobs
    )  # fmt: skip
    return replace(plan, jobs=jobs)


def _at_night(plan: Plan) -> Plan:
    """In a quarter of the schedules most jobs are deferrable, and windows small. Likewise."""
    rng = random.Random(f"night-{plan.seed}")
    if rng.random() > 0.25:
        return plan
    jobs = tuple(replace(each, is_deferrable=rng.random() < 0.8) for each in plan.jobs)
    limits = replace(plan.limits, look_ahead=plan.limits.window_high)
    return replace(plan, jobs=jobs, limits=limits)


def _limits(rng: random.Random) -> StageLimits:
    window_high = rng.choice((2, 3, 8))
    return StageLimits(
        window_high=window_high,
        window_low=(window_low := rng.randrange(window_high)),
        window_per_tenant=window_high - window_low % 2,
        look_ahead=2 * window_high,
        fairness=Fairness(DEFAULT_WEIGHTS, ageing_s=2.0),
        batch_max=rng.choice((1, 2, 4, 4)),
        batch_age_s=0.2,
        max_batches=rng.choice((1, 2)),
        retry=RETRY,
        breaker_limit=rng.choice((2, 3, 5)),
        probe_wait_s=0.3,
        longest_probe_wait_s=2.0,
        leave_after_s=rng.choice((3.0, 30.0)),
        ask_again_s=0.5,
        make_way_s=1.0,
        longest_run_s=100_000.0,
        map_span=3 if window_low % 2 else BACK_PRESSURE_SPAN,
        commit_interval_s=rng.choice((0.2, 1.0)),
        drain_s=2.0,
    )


def _quotas(seed: int) -> Quotas:
    """In a third of the schedules; of a generator of its own, so that others stay as they are."""
    rng = random.Random(f"quotas-{seed}")
    if rng.random() > 0.35:
        return Quotas()
    payers = (*DEFAULT_WEIGHTS, OFF_PEAK)
    jobs = dict.fromkeys(payers, float(rng.choice((1, 2, 4))))
    gpu_s = dict.fromkeys(payers, 4.0) if rng.random() < 0.3 else {}
    parked = dict.fromkeys(payers, 2.0) if rng.random() < 0.2 else {}
    return Quotas(jobs, gpu_s, parked, prior=Prior(fixed_s=1.0))


def _job(rng: random.Random, number: int) -> JobPlan:
    names = [name for name, _ in _BEHAVIOURS]
    behaviour = rng.choices(names, [weight for _, weight in _BEHAVIOURS])[0]
    count = 0
    if behaviour == "flaky":
        count = rng.randint(1, 3)
    elif behaviour == "killer":
        count = rng.choice((1, 2, 2, 3, 1000))
    return JobPlan(
        number=number,
        at_s=rng.uniform(0.0, 8.0),
        behaviour=behaviour,
        stage="prompt" if behaviour in ("rejected", "invalid") else rng.choice(STAGES),
        count=count,
        num_copies=rng.choice((1, 1, 1, 1, 2, 3)),
        is_misplaced=rng.random() < 0.15,
        has_conflict=rng.random() < 0.08,
        deadline_s=rng.uniform(0.5, 12.0) if behaviour == "hasty" else 50_000.0,
    )


def _fault(rng: random.Random) -> FaultPlan:
    kind = rng.choices(list(KINDS), [weight for weight, _, _ in KINDS.values()])[0]
    _, longest_s, number = KINDS[kind]
    return FaultPlan(
        at_s=rng.choice((rng.uniform(0.2, 10.0), rng.uniform(0.2, FAULTS_END_S - 1.0))),
        kind=kind,
        stage=rng.choice(STAGES),
        slot=rng.randrange(3),
        for_s=rng.uniform(0.1, 1.0) * longest_s,
        number=number(rng),
    )
