"""`make bench-fairness`: tenants that flood, beside plain FIFO, under the project's own clock."""

from __future__ import annotations

import random
import sys
import time

from streams.core.fair_queue import Charge, Fairness, FairQueue
from streams.core.tiers import DEFAULT_WEIGHTS
from tests.bench.goals import Goals, print_table
from tests.simulation.fairness import (
    Arrival,
    Cluster,
    arrivals_of,
    limited,
    merged,
    percentile,
    simulate,
    waits_s,
    zipf_shares,
)

PARTITIONS, WORKERS, UNTIL_S, JOB_S = 24, 8, 300.0, 1.0
NUM_TENANTS = 10_000


def main() -> int:
    """Simulate, print, and hold against the goals."""
    quiet = others()
    rows, p99_s = [], {}
    for flood in ("nobody", "free", "enterprise"):
        arrivals = quiet if flood == "nobody" else merged([quiet, flood_of(flood)])
        for is_fair in (True, False):
            found = [
                each
                for each in simulate(Cluster(PARTITIONS, WORKERS, is_fair), arrivals, UNTIL_S)
                if each.arrival.tier == "enterprise" and each.arrival.tenant_id != "flood"
            ]
            waited_s = waits_s(found, UNTIL_S)
            p99_s[flood, is_fair] = percentile(waited_s, 0.99)
            kind = "fair" if is_fair else "FIFO"
            figures = (percentile(waited_s, 0.5), p99_s[flood, is_fair])
            rows.append([f"{flood} floods, {kind}", *(f"{each:.2f}" for each in figures)])
    print(f"{PARTITIONS} partitions, {WORKERS} workers: how long other enterprise jobs waited")
    print_table(["what", "median s", "p99 s"], rows)
    goals = Goals()
    idle_s = p99_s["nobody", True]
    goals.at_most("p99_wait_free_floods_s", p99_s["free", True], 1.2 * idle_s + 1.5 * JOB_S)
    goals.at_most("p99_wait_enterprise_floods_s", p99_s["enterprise", True], 2 * idle_s)
    goals.at_most("fair_queue_us_per_record", min(queue_us() for _ in range(5)), 5)
    return goals.report()


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


def queue_us() -> float:
    """CPU time of a record, added and popped, while each of many tenants waits."""
    rng, tiers = random.Random(3), tuple(DEFAULT_WEIGHTS)
    payers = [
        Charge(tiers[number % 3], f"tenant-{number}", 1.0 + number % 7)
        for number in range(NUM_TENANTS)
    ]
    queue: FairQueue[int] = FairQueue(Fairness(DEFAULT_WEIGHTS))
    for number, payer in enumerate(payers):
        queue.add("k", number, payer, None, 0.0)
    coming = [rng.choice(payers) for _ in range(50_000)]
    started_s = time.process_time()
    for number, payer in enumerate(coming, start=NUM_TENANTS):
        queue.add("k", number, payer, None, float(number))
        queue.pop(queue.lead())
    return 1e6 * (time.process_time() - started_s) / len(coming)


if __name__ == "__main__":
    sys.exit(main())
