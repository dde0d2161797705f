"""`make chaos`: the fault table on three Apache Kafka brokers, then goal lines; exit 1 on a miss.

    python -m tests.chaos [--seed N] [--folder F] [FAULT...]

Everything real but the computation: workers, Kafka, SeaweedFS. Without names, every fault.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.goals import Goals, print_table
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.recovery import measured_bounds
from tests.chaos.rows import run_rows
from tests.chaos.scene import Verdict

HEAD = ["fault", "jobs", "outcomes", "duplicates", "redone", "stall s", "after heal s", "took s"]


def main(arguments: Sequence[str]) -> int:
    """Run the faults that are named; 0 if every goal is met."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept; else a temporary one")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    wishes = parser.parse_args(arguments)
    if unknown := [each for each in wishes.faults if each not in FAULTS]:
        parser.error(f"no fault {unknown[0]}: of {', '.join(FAULTS)}")
    chosen = [FAULTS[name] for name in wishes.faults or FAULTS]
    if wishes.folder is not None:
        return run_all(chosen, wishes.seed, wishes.folder)
    with tempfile.TemporaryDirectory(prefix="reel-chaos-") as folder:
        return run_all(chosen, wishes.seed, Path(folder))


def run_all(chosen: Sequence[Fault], seed: int, folder: Path) -> int:
    """Row after row, each told as it ends; then all of them."""
    verdicts = []
    for verdict in run_rows(chosen, seed, folder):
        verdicts.append(verdict)
        tell(verdict)
    return report(verdicts)


def tell(verdict: Verdict) -> None:
    """How it went and what is wrong, for people."""
    cost = verdict.figures
    print(
        f"  {cost.num_jobs} jobs, {cost.num_outcomes} outcomes, {len(verdict.findings)} findings, "
        f"{verdict.seconds:.0f} s",
        flush=True,
    )
    for line in (*map(str, verdict.findings[:20]), *verdict.notes):
        print(f"  {line}", flush=True)
    if len(verdict.findings) > 20:
        print(f"  and {len(verdict.findings) - 20} more", flush=True)


def report(verdicts: Sequence[Verdict]) -> int:
    """The table, and the goals."""
    rows = []
    for each in verdicts:
        cost = each.figures
        counts = cost.num_jobs, cost.num_outcomes, cost.num_duplicates, cost.num_redone
        times = cost.longest_stall_s, cost.after_heal_s, each.seconds
        rows.append([each.fault, *map(str, counts), *(f"{time_s:.1f}" for time_s in times)])
    print_table(HEAD, rows)
    checks = [each.check for verdict in verdicts for each in verdict.findings]
    held = [each.figures for each in verdicts if not FAULTS[each.fault].replays]
    written = sum(each.num_records for each in held)
    duplicates = sum(each.num_duplicates for each in held)
    goals = Goals()
    goals.at_most("lost", sum(each in ("lost", "untold", "vanished") for each in checks), 0)
    goals.at_most(
        "second_endings", sum(each in ("second ending", "no fence") for each in checks), 0
    )
    goals.at_most("findings_of_all_kinds", len(checks), 0)
    # A dead letter that its job's deaths do not explain is an unfit ending (tests/chaos/oracle.py).
    goals.at_most("dead_lettered_though_killed_fewer_than_5_times", checks.count("unfit ending"), 0)
    goals.at_most("duplicates_on_the_wire_percent", 100 * duplicates / max(1, written), 5)
    for name, bound in measured_bounds().items():
        if measured := [each.measured[name] for each in verdicts if name in each.measured]:
            goals.at_most(name, max(measured), bound)
    return goals.report()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
