"""Who waits how long, and why: what the topics say of all runs, folded into rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from streams.core.cost import CostModel, Prior
from streams.core.shares import Bulk
from streams.topology import worker_stages

_NAMES = tuple(stage.name for stage in worker_stages())
ENDED = len(_NAMES)
"""The position of a run that has ended; before it a stage's own, in the order of the pipeline."""
_COMPUTED = _NAMES.index("sampler") + 1  # from here on a run waits for little


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one record says of a run: whose it is, and which stage has it to do, or has begun it.

    `tier` and `requested_s` None: it does not say. `over`: the quota that it was parked for.
    `due_s`: of a retry copy. `cost_s`: GPU-seconds of a completed one.
    """

    tenant_id: str
    job_id: str
    run: int
    position: int
    tier: str | None = None
    requested_s: float | None = None
    is_deferrable: bool = False
    bulk: Bulk | None = None
    over: str | None = None
    due_s: float = 0.0
    is_begun: bool = False
    cost_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TenantRow:
    """Some jobs of a tenant that wait for the same.

    `waited_s`: since the oldest of them was requested. `gpu_s`: what those cost, by estimate, that
    are not sampled yet; None: nobody knows what such jobs cost.
    """

    tenant_id: str
    tier: str
    num_jobs: int
    waited_s: float
    gpu_s: float | None
    why: str


@dataclass(slots=True)
class _Run:
    run: int
    position: int = 0
    tier: str | None = None
    requested_s: float = float("inf")
    is_deferrable: bool = False
    bulk: Bulk | None = None
    over: str | None = None
    due_s: float = 0.0  # at its position
    is_begun: bool = False  # likewise
    cost_s: float = 0.0

    def see(self, seen: Sighting) -> None:
        if seen.position > self.position:
            self.position, self.due_s, self.is_begun = seen.position, 0.0, False
        if seen.position == self.position:
            self.due_s = max(self.due_s, seen.due_s)
            self.is_begun |= seen.is_begun
        # Of several answers the least, so that the order in which they are read does not matter.
        self.tier = min(filter(None, (self.tier, seen.tier)), default=None)
        self.over = min(filter(None, (self.over, seen.over)), default=None)
        self.bulk = min(filter(None, (self.bulk, seen.bulk)), default=None)
        self.is_deferrable |= seen.is_deferrable
        self.cost_s = max(self.cost_s, seen.cost_s)
        if seen.requested_s is not None:
            self.requested_s = min(self.requested_s, seen.requested_s)

    def why(self, paused: Collection[str], now_s: float) -> str:
        stage = _NAMES[self.position]
        if stage in paused:
            return f"{stage} is paused"
        if self.due_s > now_s:
            return f"delayed: {stage} tries it again"
        if self.is_begun:
            return f"running in {stage}"
        if self.over is not None and not self.position:
            return f"parked: {self.over}"
        if self.is_deferrable:
            return f"off-peak: {stage} has others"
        return f"queued for {stage}"


def fold_tenants(
    sightings: Iterable[Sighting], paused: Collection[str], prior: Prior, now_s: float
) -> list[TenantRow]:
    """Rows of all that has not ended, the longest wait first.

    The order of the sightings does not matter, and duplicates change nothing: a later run beats an
    earlier one, a later stage an earlier one.
    """
    runs = _runs(sightings)
    estimate_s = _estimates(runs.values(), prior)
    rows: dict[tuple[str, str, str], list[_Run]] = {}
    for (tenant_id, _), run in runs.items():
        if run.position < ENDED:
            key = tenant_id, run.tier or "?", run.why(paused, now_s)
            rows.setdefault(key, []).append(run)
    found = [
        TenantRow(
            tenant_id,
            tier,
            len(mine),
            max((now_s - run.requested_s for run in mine if run.requested_s < now_s), default=0.0),
            _sum([estimate_s(run) for run in mine if run.position < _COMPUTED]),
            why,
        )
        for (tenant_id, tier, why), mine in rows.items()
    ]
    return sorted(found, key=lambda row: (-row.waited_s, row.tenant_id, row.tier, row.why))


def _runs(sightings: Iterable[Sighting]) -> dict[tuple[str, str], _Run]:
    runs: dict[tuple[str, str], _Run] = {}
    for seen in sightings:
        key = seen.tenant_id, seen.job_id
        run = runs.get(key)
        if run is None or seen.run > run.run:
            run = runs[key] = _Run(seen.run)
        if seen.run == run.run:
            run.see(seen)
    return runs


def _estimates(runs: Collection[_Run], prior: Prior) -> Callable[[_Run], float | None]:
    """What a run costs; one whose work nobody has seen, as much as the mean of the others."""
    costs = CostModel(prior)
    for run in sorted(runs, key=lambda each: each.requested_s):
        if run.bulk is not None and run.cost_s > 0:
            costs.learn(*run.bulk, run.cost_s)
    known = [costs.estimate_s(*run.bulk) for run in runs if run.bulk is not None]
    mean_s = sum(known) / len(known) if known else None
    return lambda run: mean_s if run.bulk is None else costs.estimate_s(*run.bulk)


def _sum(costs_s: list[float | None]) -> float | None:
    known = [each for each in costs_s if each is not None]
    return sum(known) if len(known) == len(costs_s) else None
