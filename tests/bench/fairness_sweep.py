"""`python -m tests.bench.fairness --sweep`: what the defaults of tenancy rest on, as tables.

Clusters of 24 to 480 partitions and 1 to 1,000 workers under tenants by a Zipf law and a burst;
then one cluster in which a free and an enterprise tenant are tenfold too heavy, by each default.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from streams.core.tiers import DEFAULT_TIERS, tier_of_partition
from tests.bench.goals import print_table
from tests.simulation.fairness import (
    Arrival,
    Cluster,
    Served,
    arrivals_of,
    jain_index,
    merged,
    percentile,
    range_assignment,
    served_s,
    simulate,
    waits_s,
    zipf_shares,
)

UNTIL_S, JOB_S = 120.0, 1.0
NUM_TENANTS = 100  # of each tier
SHARDS = 2  # the partitions of a tenant, and so the most devices that ever work for it
NUMS_PARTITIONS, NUMS_WORKERS = (24, 96, 480), (1, 8, 32, 160, 1000)
LOADS = {"enterprise": 0.2, "pro": 0.2, "free": 0.3}  # of the capacity, quiet and bursty
BURST_AT_S, BURST_S = 40.0, 20.0
FLOOD_S = 240.0
WINDOWS, PER_TENANT, LOOK_AHEAD = (16, 64, 256), (4, 16, 64), (64, 256, 1024, 4096)
WEIGHTS = ((1.0, 1.0, 1.0), (4.0, 2.0, 1.0), (8.0, 3.0, 1.0), (32.0, 8.0, 1.0))


def print_sweep() -> None:
    """All tables."""
    print(
        f"Zipf tenants at {sum(LOADS.values()):.0%} of the capacity, {JOB_S:g} s a job, the free "
        f"tier six times that for {BURST_S:g} s; p99 wait in s of the tenants that "
        f"{SHARDS} devices can serve"
    )
    head = [
        "partitions x workers",
        "serve",
        "hold all tiers",
        "too heavy",
        "ent. fair",
        "ent. FIFO",
    ]
    print_table([*head, "free fair", "free FIFO"], list(_cluster_rows()))
    print(f"\nTwo tenants of 8 workers ask for ten times too much, {FLOOD_S:g} s; p99 in s")
    head = ["what", "ent. others", "pro", "free others", "free share", "Jain of ent. others"]
    print_table(head, list(_default_rows()))


def _cluster_rows() -> Iterable[list[str]]:
    for num_partitions in NUMS_PARTITIONS:
        for num_workers in NUMS_WORKERS:
            held = [each for each in range_assignment(num_partitions, num_workers) if each]
            full = sum({tier_of_partition(p) for p in each} == {*DEFAULT_TIERS} for each in held)
            arrivals, too_heavy = bursty(len(held)), heavy_tenants(len(held))
            fair, fifo = (
                [
                    each
                    for each in simulate(
                        Cluster(num_partitions, num_workers, is_fair), arrivals, UNTIL_S
                    )
                    if each.arrival.tenant_id not in too_heavy
                ]
                for is_fair in (True, False)
            )
            cells = [
                p99_s(served, tier, UNTIL_S)
                for tier in ("enterprise", "free")
                for served in (fair, fifo)
            ]
            name = f"{num_partitions} x {num_workers}"
            counts = map(str, (len(held), full, len(too_heavy)))
            yield [name, *counts, *(f"{each:.1f}" for each in cells)]


def _default_rows() -> Iterable[list[str]]:
    arrivals = two_floods()
    plain = Cluster(24, 8)
    cases = [("FIFO", replace(plain, is_fair=False)), ("as set", plain)]
    cases += [
        (f"window {each}", replace(plain, window=each, look_ahead=max(each, plain.look_ahead)))
        for each in WINDOWS
    ]
    cases += [(f"of one tenant {each}", replace(plain, per_tenant=each)) for each in PER_TENANT]
    cases += [(f"look-ahead {each}", replace(plain, look_ahead=each)) for each in LOOK_AHEAD]
    for each in WEIGHTS:
        weights = dict(zip(DEFAULT_TIERS, each, strict=True))
        name = f"weights {':'.join(f'{weight:g}' for weight in each)}"
        cases.append((name, replace(plain, weights=weights)))
    for name, cluster in cases:
        served = simulate(cluster, arrivals, FLOOD_S)
        quiet = [each for each in served if not each.arrival.tenant_id.startswith("flood")]
        waits = [p99_s(quiet, tier, FLOOD_S) for tier in DEFAULT_TIERS]
        spent_s = {tier: sum(served_s(served, tier).values()) for tier in DEFAULT_TIERS}
        share = spent_s["free"] / sum(spent_s.values())
        index = jain_index(served_s(quiet, "enterprise").values())
        yield [name, *(f"{each:.1f}" for each in waits), f"{share:.3f}", f"{index:.3f}"]


def bursty(num_serving: int) -> list[Arrival]:
    """Tenants by a Zipf law; for a while the free tier asks for six times as much."""
    rng, streams = random.Random(11), []
    for tier, load in LOADS.items():
        for number, share in enumerate(zipf_shares(NUM_TENANTS)):
            per_s = num_serving / JOB_S * load * share
            name = f"{tier}-{number}"
            streams.append(list(arrivals_of(rng, tier, name, per_s, 0.9 * UNTIL_S, JOB_S)))
            if tier == "free":
                burst = arrivals_of(rng, tier, f"{name}-burst", 5 * per_s, BURST_S, JOB_S)
                streams.append(
                    [each._replace(at_s=each.at_s + BURST_AT_S, tenant_id=name) for each in burst]
                )
    return merged(streams)


def heavy_tenants(num_serving: int) -> set[str]:
    """The tenants that ask all the time for more devices than ever hold their partitions."""
    return {
        f"{tier}-{number}"
        for tier, load in LOADS.items()
        for number, share in enumerate(zipf_shares(NUM_TENANTS))
        if num_serving * load * share > min(SHARDS, num_serving)
    }


def two_floods() -> list[Arrival]:
    """Equal tenants at two fifths of the capacity, and two that ask for ten times what there is."""
    rng, num_workers = random.Random(12), 8
    per_s = num_workers / JOB_S
    streams = [
        arrivals_of(rng, tier, f"{tier}-{number}", per_s * load / 20, 0.9 * FLOOD_S, JOB_S)
        for tier, load in (("enterprise", 0.2), ("pro", 0.15), ("free", 0.05))
        for number in range(20)
    ]
    streams += [
        arrivals_of(rng, tier, f"flood-{tier}", 5 * per_s, FLOOD_S, JOB_S)
        for tier in ("enterprise", "free")
    ]
    return merged(streams)


def p99_s(served: Sequence[Served], tier: str, until_s: float) -> float:
    """How long all but a hundredth of a tier's jobs waited at most."""
    return percentile(waits_s((s for s in served if s.arrival.tier == tier), until_s), 0.99)
