"""Ten minutes without the object store, or without brokers, cost ten minutes and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.plan import FaultPlan, JobPlan, Plan, make_plan
from tests.simulation.verdict import simulate

TEN_MINUTES_S = 600.0


def a_plan(seed: int, *kinds: str) -> Plan:
    """Sound jobs before and during those faults, each of which hits every call."""
    return replace(
        make_plan(seed),
        jobs=tuple(JobPlan(n, 0.5 * n * n, "sound", "prompt") for n in range(1, 9)),
        faults=tuple(FaultPlan(1.5, kind, "prompt", 0, TEN_MINUTES_S, 100) for kind in kinds),
        faults_end_s=TEN_MINUTES_S + 2.0,
    )


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(
    "kinds", [("store_away",), ("refused_produces", "lost_commits")], ids=["store", "brokers"]
)
def test_nobody_is_dead_lettered_and_no_try_is_spent(seed: int, kinds: tuple[str, ...]) -> None:
    result = simulate(a_plan(seed, *kinds))
    assert result.violation is None
    assert result.lasted_s > TEN_MINUTES_S
    assert result.counts["jobs completed"] == 8
    assert result.counts["retries"] == 0
    assert result.counts["sick hosts left"] == 0
