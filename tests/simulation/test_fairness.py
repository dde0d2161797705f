"""Floods, small: what a heavy tenant does to others beside plain FIFO."""

from __future__ import annotations

import random

from tests.simulation.fairness import (
    Arrival,
    Cluster,
    arrivals_of,
    merged,
    percentile,
    simulate,
    waits_s,
)

UNTIL_S = 100.0


def p99_s(arrivals: list[Arrival], is_fair: bool) -> float:
    served = simulate(Cluster(6, 2, is_fair), arrivals, UNTIL_S)
    assert len(served) == len(arrivals), "each arrival is told of once"
    quiet = [each for each in served if each.arrival.tier == "enterprise"]
    return percentile(waits_s(quiet, UNTIL_S), 0.99)


def test_a_free_tenant_that_floods_does_not_delay_enterprise_where_fifo_would() -> None:
    quiet = list(arrivals_of(random.Random(1), "enterprise", "acme", 0.3, 90.0, 1.0))
    flood = arrivals_of(random.Random(2), "free", "noisy", 20.0, UNTIL_S, 1.0)
    both = merged([quiet, flood])
    # A step, here a whole job of at most a second and a half, is never interrupted.
    assert p99_s(both, is_fair=True) <= 1.2 * p99_s(quiet, is_fair=True) + 1.5
    assert p99_s(both, is_fair=False) > 3 * p99_s(both, is_fair=True)
