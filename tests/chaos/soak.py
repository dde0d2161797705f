"""`make soak`: 2,000 jobs under faults that each seed draws, and one long calm run; resumable.

    python -m tests.chaos.soak [--seeds N] [--calm-jobs N] [--folder F]

A row a scenario goes to F/soak.csv; what is there is not run again, and any row is replayed by
`python -m tests.chaos --seed N FAULT`. The calm run, as fast as its workers are, samples each
process's memory and descriptors (F/processes.csv, and F/processes.png): over its second half they
must be flat.
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from streams.settings import read_settings
from tests.bench.goals import Goals, print_table
from tests.chaos.cluster import open_cluster
from tests.chaos.crew import Crew
from tests.chaos.faults import FAULTS
from tests.chaos.recovery import RECOVERY_S, STEPS_AGAIN, measured_bounds
from tests.chaos.rows import run_rows
from tests.chaos.scene import Scene, Verdict, open_scene

HEAD = (
    "seed", "fault", "jobs", "outcomes", "records", "duplicates", "redone", "stall_s", "findings",
    RECOVERY_S, STEPS_AGAIN,
)  # fmt: skip
CALM = "calm"
CALM_IN_FLIGHT = 160  # full batches: a job costs brokers less, and the run takes less of the night
JOBS_OF_SEED = 2_000
SAMPLE_EVERY_S, STALLED_S = 5.0, 60.0
WIDTH_PX, HEIGHT_PX = 960, 400  # of a panel


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at a time: resident memory and open descriptors, from /proc."""

    at_s: float
    name: str
    rss_mib: float
    num_descriptors: int


def main(arguments: Sequence[str]) -> int:
    """Run what is not in the table yet; 0 if every goal over all of it is met."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--calm-jobs", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path("tmp/soak"))
    wishes = parser.parse_args(arguments)
    table: Path = wishes.folder / "soak.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(1, wishes.seeds + 1):
        there = {row["fault"] for row in rows_of(table) if int(row["seed"]) == seed}
        if missing := [name for name in drawn(seed) if name not in there]:
            _run_seed(table, seed, missing)
    samples = wishes.folder / "processes.csv"
    if not any(row["fault"] == CALM for row in rows_of(table)):
        _run_calm(table, samples, wishes.calm_jobs)
    return report(rows_of(table), read_samples(samples), wishes.folder / "processes.png")


def drawn(seed: int) -> list[str]:
    """Names of that seed's faults, in its order: so many that 2,000 jobs at least pass."""
    names = list(FAULTS)
    random.Random(seed).shuffle(names)
    num_jobs, found = 0, []
    while num_jobs < JOBS_OF_SEED:
        found.append(names.pop())
        num_jobs += FAULTS[found[-1]].num_jobs
    return found


def _run_seed(table: Path, seed: int, names: Sequence[str]) -> None:
    place = _new_folder(table.parent, f"seed-{seed}")
    for verdict in run_rows([FAULTS[name] for name in names], seed, place):
        _append(table, seed, verdict)


def _run_calm(table: Path, path: Path, num_jobs: int) -> None:
    place = _new_folder(table.parent, CALM)
    with (
        open_cluster(place, read_settings().home) as cluster,
        open_scene(cluster, place / CALM, CALM, 1) as scene,
        path.open("w", newline="") as file,
    ):
        writer = csv.writer(file)

        def watch(scene: Scene) -> None:
            scene.feed_fast(CALM_IN_FLIGHT)
            while (num_before := scene.heard.num_told) < num_jobs:
                scene.wait_s(SAMPLE_EVERY_S)
                has_more = scene.until(lambda: scene.heard.num_told > num_before, STALLED_S)
                assert has_more, f"no job has ended for {STALLED_S:g} s"
                for each in sample(scene.crew, time.monotonic()):
                    writer.writerow([each.at_s, each.name, each.rss_mib, each.num_descriptors])
                file.flush()

        _append(table, 1, scene.run(num_jobs, watch))


def _new_folder(folder: Path, name: str) -> Path:
    """What an interrupted run left is in the way of nobody."""
    place = folder / f"{name}-{time.time_ns()}"
    place.mkdir()
    return place


def rows_of(table: Path) -> list[dict[str, str]]:
    """What has been run so far."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(table: Path, seed: int, verdict: Verdict) -> None:
    is_new = not table.exists()
    cost = verdict.figures
    with table.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(HEAD)
        writer.writerow(
            [
                seed, verdict.fault, cost.num_jobs, cost.num_outcomes, cost.num_records,
                cost.num_duplicates, cost.num_redone, f"{cost.longest_stall_s:.1f}",
                len(verdict.findings),
                *(verdict.measured.get(name, "") for name in (RECOVERY_S, STEPS_AGAIN)),
            ]
        )  # fmt: skip
    for line in (*map(str, verdict.findings), *verdict.notes):
        print(f"seed {seed}, {verdict.fault}: {line}", flush=True)


def sample(crew: Crew, at_s: float) -> Iterator[Sample]:
    """Of each process that runs."""
    for member in crew.members.values():
        if not member.is_running:
            continue
        process = Path("/proc") / str(member.pids[-1])
        try:
            pages = int((process / "statm").read_text().split()[1])
            num_descriptors = len(list((process / "fd").iterdir()))
        except OSError:  # it has just ended
            continue
        yield Sample(at_s, member.name, pages * resource.getpagesize() / 2**20, num_descriptors)


def read_samples(path: Path) -> list[Sample]:
    """Of the calm run, as they were taken."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return [Sample(float(at_s), name, float(rss), int(num)) for at_s, name, rss, num in rows]


def growth(samples: Sequence[Sample]) -> tuple[float, int]:
    """The most that a process grew over the second half: MiB, and descriptors."""
    most_mib, most_descriptors = 0.0, 0
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for each in samples:
        by_name[each.name].append(each)
    for own in by_name.values():
        quarter = max(1, len(own) // 4)
        middle, end = own[len(own) // 2 :][:quarter], own[-quarter:]
        most_mib = max(most_mib, _mean(end) - _mean(middle))
        before = max(each.num_descriptors for each in middle)
        after = max(each.num_descriptors for each in end)
        most_descriptors = max(most_descriptors, after - before)
    return most_mib, most_descriptors


def _mean(samples: Sequence[Sample]) -> float:
    return sum(each.rss_mib for each in samples) / len(samples)


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Memory and descriptors of each process over time, one panel above the other, as a PNG."""
    image = Image.new("RGB", (WIDTH_PX, 2 * HEIGHT_PX), "white")
    pen = ImageDraw.Draw(image)
    memory = [(each.at_s, each.name, each.rss_mib) for each in samples]
    descriptors = [(each.at_s, each.name, float(each.num_descriptors)) for each in samples]
    _draw_panel(pen, 0, "resident memory, MiB", memory)
    _draw_panel(pen, HEIGHT_PX, "open descriptors", descriptors)
    image.save(path)


def _draw_panel(
    pen: ImageDraw.ImageDraw, top_px: int, title: str, points: Sequence[tuple[float, str, float]]
) -> None:
    """A line a process, named at its end, of its values (time in s, name, value) from 0 up."""
    begin_s, end_s = points[0][0], max(points[0][0] + 1, points[-1][0])
    most = max(1.0, *(value for _, _, value in points))
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for at_s, name, value in points:
        x_px = 60 + (WIDTH_PX - 160) * (at_s - begin_s) / (end_s - begin_s)
        lines[name].append((x_px, top_px + HEIGHT_PX - 40 - (HEIGHT_PX - 80) * value / most))
    bottom_px = top_px + HEIGHT_PX - 40
    pen.line([(60, top_px + 40), (60, bottom_px), (WIDTH_PX - 100, bottom_px)], fill="black")
    pen.text((60, top_px + 12), f"{title}, of {len(lines)} processes", fill="black")
    pen.text((24, top_px + 34), f"{most:.0f}", fill="black")
    pen.text((44, bottom_px - 6), "0", fill="black")
    pen.text((WIDTH_PX - 160, bottom_px + 12), f"{end_s - begin_s:.0f} s", fill="black")
    free_px = float(top_px)
    for number, name in enumerate(sorted(lines, key=lambda name: lines[name][-1][1])):
        colour = f"hsl({number * 360 // len(lines)}, 70%, 40%)"
        pen.line(lines[name], fill=colour)
        free_px = max(free_px, lines[name][-1][1] - 6)
        pen.text((WIDTH_PX - 94, free_px), name, fill=colour)
        free_px += 12


def report(rows: Sequence[dict[str, str]], samples: Sequence[Sample], picture: Path) -> int:
    """The table, the plot, and the goals over all rows."""
    print_table(list(HEAD), [[row[name] for name in HEAD] for row in rows])
    told = [row for row in rows if row["fault"] == CALM or not FAULTS[row["fault"]].replays]
    duplicates = sum(int(row["duplicates"]) for row in told)
    goals = Goals()
    goals.at_most("findings", sum(int(row["findings"]) for row in rows), 0)
    num_records = max(1, sum(int(row["records"]) for row in told))
    goals.at_most("duplicates_on_the_wire_percent", 100 * duplicates / num_records, 5)
    for name, bound in measured_bounds().items():
        if measured := [float(row[name]) for row in rows if row[name]]:
            goals.at_most(name, max(measured), bound)
    if samples:
        plot(samples, picture)
        most_mib, most_descriptors = growth(samples)
        goals.at_most("memory_growth_mib", most_mib, 8)
        goals.at_most("descriptor_growth", most_descriptors, 4)
    return goals.report()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
