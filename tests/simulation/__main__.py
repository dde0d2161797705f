"""`python -m tests.simulation run|soak|replay|shrink`: any number of schedules, or one again."""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path

from tests.simulation.judge import Violation
from tests.simulation.plan import Plan, make_plan
from tests.simulation.verdict import Result, simulate

SOAK_HEAD = ("first_seed", "schedules", "events", "seconds")
SOAK_CHUNK = 1_000


def main() -> int:
    """The exit code: 1 if a schedule broke a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="so many schedules, from a seed on")
    run.add_argument("num_schedules", type=int)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--quick", action="store_true", help="stop at the first that fails")
    soak = commands.add_parser("soak", help="from seed 1 on, a row a thousand; resumable")
    soak.add_argument("num_schedules", type=int)
    soak.add_argument("table", type=Path, help="a CSV file: what is there is not run again")
    for name, text in (
        ("replay", "one schedule with its trace"),
        ("shrink", "its smallest part that fails alike"),
        ("digest", "the hash of its trace"),
    ):
        commands.add_parser(name, help=text).add_argument("seed", type=int)
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            return _run(arguments.seed, arguments.num_schedules, arguments.quick)
        case "soak":
            return _soak(arguments.num_schedules, arguments.table)
        case "replay":
            return _replay(make_plan(arguments.seed))
        case "digest":
            digest = hashlib.sha256()
            simulate(make_plan(arguments.seed), lambda line: digest.update(line.encode()))
            print(digest.hexdigest())
            return 0
    return _shrink(make_plan(arguments.seed))


def _run(first: int, num_schedules: int, is_quick: bool) -> int:
    counts: Counter[str] = Counter()
    failed, num_events, started_s = [], 0, time.monotonic()
    for seed in range(first, first + num_schedules):
        result = _simulate(seed)
        counts += result.counts
        num_events += result.num_events
        if result.violation is not None:
            failed.append(seed)
            print(f"seed {seed}: {result.violation}", flush=True)
            if is_quick:
                return 1
    for name, number in sorted(counts.items()):
        print(f"{number:9,}  {name}")
    took_s = time.monotonic() - started_s
    print(
        f"{num_schedules:,} schedules, {num_events:,} events, {took_s:.1f} s;"
        f" {len(failed)} failed{': ' if failed else ''}{' '.join(map(str, failed[:20]))}"
    )
    if failed:
        print(f"again, with its trace: make replay SEED={failed[0]}")
    return 1 if failed else 0


def _simulate(seed: int) -> Result:
    try:
        return simulate(make_plan(seed))
    except Exception as error:  # an AssertionError of the stages too
        print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
        raise


def _soak(num_schedules: int, table: Path) -> int:
    """Thousands that are not in the table yet, on every core, until a schedule breaks a rule."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("a+", newline="") as file, Pool() as pool:
        file.seek(0)
        there = {int(row["first_seed"]): row for row in csv.DictReader(file)}
        writer = csv.writer(file)
        if not there:
            file.truncate(0)
            writer.writerow(SOAK_HEAD)
        firsts = (each for each in range(1, num_schedules + 1, SOAK_CHUNK) if each not in there)
        for row, broken in pool.imap_unordered(_thousand, firsts):
            if broken is not None:
                print(broken)
                return 1
            there[row[0]] = dict(zip(SOAK_HEAD, map(str, row), strict=True))
            writer.writerow(row)
            file.flush()
    num_done, num_events = (
        sum(int(row[name]) for row in there.values()) for name in SOAK_HEAD[1:3]
    )
    print(f"{num_done:,} schedules, {num_events:,} events: every rule was kept")
    return 0


def _thousand(first: int) -> tuple[tuple[int, int, int, int], str | None]:
    """A row of the table; and which rule was broken, where one was."""
    num_events, started_s, broken = 0, time.monotonic(), None
    for seed in range(first, first + SOAK_CHUNK):
        result = _simulate(seed)
        num_events += result.num_events
        if result.violation is not None:
            broken = f"seed {seed}: {result.violation}: make replay SEED={seed}"
            break
    return (first, SOAK_CHUNK, num_events, round(time.monotonic() - started_s)), broken


def _replay(plan: Plan) -> int:
    print(f"seed {plan.seed}: {plan.num_workers} workers, {plan.limits}")
    for each in (*plan.jobs, *plan.faults):
        print(each)
    result = simulate(plan, print)
    print(result.violation or "every rule was kept")
    return 0 if result.violation is None else 1


def _shrink(plan: Plan) -> int:
    """Leave out jobs, faults and workers while the same rule is broken."""
    found = _violation(plan)
    if found is None:
        print(f"seed {plan.seed} breaks no rule")
        return 0
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for smaller in _smaller(plan):
            violation = _violation(smaller)
            if violation is not None and violation.kind == found.kind:
                plan, is_smaller = smaller, True
                print(f"{len(plan.jobs)} jobs, {len(plan.faults)} faults: {violation}", flush=True)
                break
    return _replay(plan)


def _violation(plan: Plan) -> Violation | None:
    return simulate(plan).violation


def _smaller(plan: Plan) -> list[Plan]:
    found = [
        replace(plan, faults=plan.faults[:at] + plan.faults[at + 1 :])
        for at in range(len(plan.faults))
    ]
    found += [
        replace(plan, jobs=plan.jobs[:at] + plan.jobs[at + 1 :]) for at in range(len(plan.jobs))
    ]
    for at, number in enumerate(plan.num_workers):
        if number > 1:
            fewer = (*plan.num_workers[:at], number - 1, *plan.num_workers[at + 1 :])
            found.append(replace(plan, num_workers=fewer))
    for at, job in enumerate(plan.jobs):
        for simpler in (
            replace(job, num_copies=1),
            replace(job, is_misplaced=False),
            replace(job, has_conflict=False),
            replace(job, behaviour="sound"),
        ):
            if simpler != job:
                found.append(replace(plan, jobs=(*plan.jobs[:at], simpler, *plan.jobs[at + 1 :])))
    return found


if __name__ == "__main__":
    sys.exit(main())
