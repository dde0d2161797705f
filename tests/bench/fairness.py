"""`make bench-fairness`: tenants that flood, beside plain FIFO, under the project's own clock.

`--sweep` prints instead how wait and shares move with partitions, workers and the defaults;
`--kafka` runs the floods on Apache Kafka with real workers; `--plots FOLDER` draws waits as PNG.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from streams.core.admission import Quotas
from streams.core.fair_queue import NOBODY, Charge, Fairness, FairQueue
from streams.core.rates import RateLimit
from streams.core.tiers import DEFAULT_TIERS, DEFAULT_WEIGHTS, partition_of_job
from tests.bench.fairness_kafka import bench_on_kafka
from tests.bench.fairness_plots import Curve, plot_waits
from tests.bench.fairness_sweep import print_sweep
from tests.bench.goals import Goals, print_table
from tests.simulation.fairness import (
    Arrival,
    Cluster,
    Served,
    arrivals_of,
    jain_index,
    limited,
    merged,
    percentile,
    served_s,
    simulate,
    waits_s,
    zipf_shares,
)

PARTITIONS, WORKERS, UNTIL_S, JOB_S = 24, 8, 300.0, 1.0
NUM_TENANTS = 10_000
#: Long enough that a tenant of the free tier is served often: whole jobs can be shared no finer.
SATURATED_S, NUM_SATURATING = 1200.0, 50
NUMS_KEYS = (1, 4, 16)
PER_MINUTE = 60.0  # twice what the heaviest of the others asks for
LIMITED = f"enterprise at {PER_MINUTE:g}/min"
JOBS = 16.0  # of a tenant in the pipeline: twice what the workers do at a time
QUOTA = f"enterprise, {JOBS:g} at a time,"


def main() -> int:
    """Simulate, print, and hold against the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="clusters and defaults, as tables")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write PNG files there")
    parser.add_argument("--kafka", action="store_true", help="real workers, about five minutes")
    options = parser.parse_args()
    if options.sweep:
        print_sweep()
        return 0
    goals = Goals()
    curves = bench_on_kafka(goals) if options.kafka else floods(goals)
    if not options.kafka:
        saturation(goals)
        queue_costs(goals)
    if options.plots is not None:
        for path in plot_waits(options.plots, curves):
            print(path)
    return goals.report()


def floods(goals: Goals) -> list[Curve]:
    """One tenant floods: how long enterprise jobs of others wait."""
    quiet = others()
    rows, p99_s, curves = [], {}, []
    flooded = merged([quiet, flood_of("enterprise")])
    none, quotas = Quotas(), Quotas(jobs=dict.fromkeys(DEFAULT_TIERS, JOBS))
    for flood, arrivals, quota in (
        ("nobody", quiet, none),
        ("free", merged([quiet, flood_of("free")]), none),
        ("enterprise", flooded, none),
        (LIMITED, taken(flooded), none),
        (QUOTA, flooded, quotas),
    ):
        for is_fair in (True, False):
            cluster = Cluster(PARTITIONS, WORKERS, is_fair, quotas=quota)
            found = [
                each
                for each in simulate(cluster, arrivals, UNTIL_S)
                if each.arrival.tier == "enterprise" and each.arrival.tenant_id != "flood"
            ]
            waited_s = waits_s(found, UNTIL_S)
            p99_s[flood, is_fair] = percentile(waited_s, 0.99)
            curves.append(Curve(flood, _kind(is_fair), waited_s))
            figures = (percentile(waited_s, 0.5), p99_s[flood, is_fair])
            rows.append([f"{flood} floods, {_kind(is_fair)}", *(f"{each:.2f}" for each in figures)])
    print(f"{PARTITIONS} partitions, {WORKERS} workers: how long other enterprise jobs waited")
    print_table(["what", "median s", "p99 s"], rows)
    idle_s = p99_s["nobody", True]
    goals.at_most("p99_wait_free_floods_s", p99_s["free", True], 1.2 * idle_s + 1.5 * JOB_S)
    goals.at_most("p99_wait_enterprise_floods_with_quota_s", p99_s[QUOTA, True], 2 * idle_s)
    goals.at_most("p99_wait_enterprise_floods_with_rate_s", p99_s[LIMITED, True], 2 * idle_s)
    return curves


def taken(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """What `REEL_TIER_RATES` lets in: of each tenant half in each of its partitions."""
    limit = RateLimit()
    return [
        each
        for each in arrivals
        for partition in (partition_of_job(each.tier, each.tenant_id, each.job_id, PARTITIONS),)
        if not limit.wait_s((partition, each.tenant_id), each.job_id, PER_MINUTE / 2, each.at_s)
    ]


def saturation(goals: Goals) -> None:
    """Every tier wants twice what there is: what each tier gets, and how evenly its tenants do."""
    print(
        f"\nEvery tier asks for twice the capacity, {NUM_SATURATING} tenants each: "
        "share of device seconds; Jain index over tenants"
    )
    rows, free_share, least_jain = [], 0.0, 0.0
    for text, heaviest in (("equal demand", 1.0), ("one in ten asks tenfold", 10.0)):
        arrivals = merged(saturating(heaviest))
        for is_fair in (True, False):
            served = simulate(Cluster(PARTITIONS, WORKERS, is_fair), arrivals, SATURATED_S)
            shares, indexes = tier_shares(served), tier_indexes(served)
            cells = [f"{shares[tier]:.3f} / {indexes[tier]:.3f}" for tier in DEFAULT_TIERS]
            rows.append([f"{text}, {_kind(is_fair)}", *cells])
            if heaviest == 1 and is_fair:
                free_share, least_jain = shares["free"], min(indexes.values())
    print_table(["what", *DEFAULT_TIERS], rows)
    weight = DEFAULT_WEIGHTS["free"] / sum(DEFAULT_WEIGHTS.values())
    goals.at_least("free_share_of_its_weight", free_share / weight, 0.9)
    goals.at_least("least_jain_index_of_a_tier", least_jain, 0.95)


def saturating(heaviest: float) -> Iterable[Iterable[Arrival]]:
    """Tenants of all tiers; every tenth asks for `heaviest` times what the others do."""
    rng, per_s = random.Random(5), 2 * WORKERS / JOB_S / NUM_SATURATING
    for tier in DEFAULT_TIERS:
        for number in range(NUM_SATURATING):
            own_per_s = per_s * (heaviest if number % 10 == 0 else 1.0)
            yield arrivals_of(rng, tier, f"{tier}-{number}", own_per_s, SATURATED_S, JOB_S)


def tier_shares(served: list[Served]) -> dict[str, float]:
    """What share of the device seconds went to each tier."""
    spent_s = {tier: sum(served_s(served, tier).values()) for tier in DEFAULT_TIERS}
    return {tier: each / sum(spent_s.values()) for tier, each in spent_s.items()}


def tier_indexes(served: list[Served]) -> dict[str, float]:
    """Jain's index over each tier's tenants."""
    return {tier: jain_index(served_s(served, tier).values()) for tier in DEFAULT_TIERS}


def queue_costs(goals: Goals) -> None:
    """CPU time of a record in the queue, at several batch keys; the least of five."""
    print(f"\nQueue, {NUM_TENANTS} tenants that wait (FIFO: one): CPU us a record, in and out")
    rows = []
    for num_keys in NUMS_KEYS:
        cost_us, fifo_us = (
            min(queue_us(num_keys, is_fair) for _ in range(5)) for is_fair in (True, False)
        )
        rows.append([str(num_keys), f"{cost_us:.2f}", f"{fifo_us:.2f}"])
        name = "fair_queue_us_per_record"
        goals.at_most(name if num_keys == 1 else f"{name}_{num_keys}_keys", cost_us, 5)
    print_table(["batch keys", "fair", "FIFO"], rows)


def others() -> list[Arrival]:
    """Tenants by a Zipf law: two fifths of the capacity."""
    rng, streams = random.Random(1), []
    for tier, num, load in (("enterprise", 20, 0.2), ("pro", 50, 0.1), ("free", 200, 0.1)):
        for number, share in enumerate(zipf_shares(num)):
            per_s = WORKERS / JOB_S * load * share
            streams.append(arrivals_of(rng, tier, f"{tier}-{number}", per_s, 0.9 * UNTIL_S, JOB_S))
    return merged(streams)


def flood_of(tier: str) -> list[Arrival]:
    """One tenant with a hundred times the capacity, as far as it can be reached."""
    per_s = 100 * WORKERS / JOB_S
    stream = arrivals_of(random.Random(7), tier, "flood", per_s, UNTIL_S, JOB_S)
    return list(limited(stream, int(WORKERS * UNTIL_S) + 20_000))


def queue_us(num_keys: int, is_fair: bool) -> float:
    """CPU time of a record, added and popped, while each of many tenants waits, or one does."""
    rng, tiers = random.Random(3), tuple(DEFAULT_WEIGHTS)
    payers = [
        Charge(tiers[number % 3], f"tenant-{number}", 1.0 + number % 7) if is_fair else NOBODY
        for number in range(NUM_TENANTS)
    ]
    keys = [f"key-{number}" for number in range(num_keys)]
    queue: FairQueue[int] = FairQueue(Fairness(DEFAULT_WEIGHTS))
    for number, payer in enumerate(payers):
        queue.add(keys[number % num_keys], number, payer, None, 0.0)
    coming = [(rng.choice(keys), rng.choice(payers)) for _ in range(50_000)]
    started_s = time.process_time()
    for number, (key, payer) in enumerate(coming, start=NUM_TENANTS):
        queue.add(key, number, payer, None, float(number))
        queue.pop(queue.lead())
    return 1e6 * (time.process_time() - started_s) / len(coming)


def _kind(is_fair: bool) -> str:
    return "fair" if is_fair else "FIFO"


if __name__ == "__main__":
    sys.exit(main())
