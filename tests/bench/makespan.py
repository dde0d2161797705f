"""`make bench-makespan`: clips of 17, 49 and 81 frames on several samplers, beside the optimum.

Partition function, `range` assignment, stage state, fair queue, step batcher and learned caps are
the real ones; simulated are the log, which is full from the start, and the device, whose step takes
a fixed time and some more for each row. No assignment of jobs to workers, at whatever batch sizes,
ends before the bound: all rows in forwards as large as the learned caps grow, on all workers alike.
(They end at the knee, on purpose: the tenth that larger forwards would still give costs latency.)
"""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    Committed,
    Delivered,
    Emitted,
    Event,
    Pause,
    Places,
    Produce,
    Resume,
    Start,
    StartOffset,
    Tick,
    Ticket,
    TopicPartition,
    Work,
)
from streams.core.fair_queue import Charge, Fairness
from streams.core.limits import StageLimits
from streams.core.offset_map import OffsetMap
from streams.core.stage import StageState
from streams.core.step_batcher import StepBatcher
from streams.core.step_caps import Line, StepCap
from streams.core.tiers import DEFAULT_WEIGHTS, partition_of_job
from tests.bench.goals import Goals, print_table
from tests.simulation.fairness import TOPIC, range_assignment

PARTITIONS, TENANTS, STEPS, MOST_ROWS, RESIDENTS = 24, 300, 20, 32, 16
KNEE = 0.9  # of the throughput of endless batches, as in streams/core/step_caps.py
#: (fixed, each row) seconds of a step, by frames: of a device that batches small clips well.
STEP_S = {17: (0.0017, 0.0028), 49: (0.0020, 0.0085), 81: (0.0024, 0.0155)}


class Clip(NamedTuple):
    """A job of the bench."""

    job_id: str
    tier: str
    tenant_id: str
    num_frames: int
    num_rows: int  # 2 with guidance


@dataclass(slots=True)
class _Denoised:
    clip: Clip
    num_left: int = STEPS


def main() -> int:
    """Simulate, print, and hold against the goal."""
    rows, goals = [], Goals()
    for num_workers in (2, 4, 8):
        for per_worker in (200, 1000):
            clips = clips_of(random.Random(per_worker + num_workers), num_workers * per_worker)
            ended_s = [_worked(held, clips) for held in range_assignment(PARTITIONS, num_workers)]
            bound_s = sum(map(_least_s, clips)) / num_workers
            ratio, balance = max(ended_s) / bound_s, sum(ended_s) / num_workers / bound_s
            figures = f"{bound_s:.1f}", f"{max(ended_s):.1f}", f"{ratio:.3f}", f"{balance:.3f}"
            rows.append([f"{num_workers} workers, {len(clips)} clips", *figures])
            if num_workers == 2 and per_worker == 1000:
                goals.at_most("makespan_of_optimum_2_workers", ratio, 1.05)
    print(f"17, 49 and 81 frames, {STEPS} steps, {TENANTS} tenants, {PARTITIONS} partitions")
    head = ["what", "optimum s", "makespan s", "of optimum", "mean end of optimum"]
    print_table(head, rows)
    print("The last column is what forwards lack; what the one before has more, is hashing.")
    return goals.report()


def clips_of(rng: random.Random, num: int) -> list[Clip]:
    """Every length, tier and tenant alike, in a random order."""
    lengths, tiers = list(STEP_S), list(DEFAULT_WEIGHTS)
    return [
        Clip(
            f"job-{number}", tiers[tenant % 3], f"tenant-{tenant}",
            rng.choice(lengths), rng.choice((1, 2)),
        )
        for number in range(num)
        for tenant in (rng.randrange(TENANTS),)
    ]  # fmt: skip


def _least_s(clip: Clip) -> float:
    """Of a worker's time, in forwards of the size at the knee."""
    fixed_s, row_s = STEP_S[clip.num_frames]
    knee = min(MOST_ROWS, math.ceil(Line(fixed_s, row_s).rows_for(KNEE)))
    return STEPS * clip.num_rows * (row_s + fixed_s / knee)


def _worked(held: range, clips: Sequence[Clip]) -> float:
    """When a worker has denoised all clips of its partitions."""
    logs: dict[TopicPartition, deque[tuple[int, Clip]]] = {
        TopicPartition(TOPIC, number): deque() for number in held
    }
    for offset, clip in enumerate(clips):
        number = partition_of_job(clip.tier, clip.tenant_id, clip.job_id, PARTITIONS)
        if number in held:
            logs[TopicPartition(TOPIC, number)].append((offset, clip))
    return _Worker(logs).run()


class _Worker:
    def __init__(self, logs: dict[TopicPartition, deque[tuple[int, Clip]]]) -> None:
        self._logs, self._now_s = logs, 0.0
        self._state = StageState(
            StageLimits(
                batch_max=1, batch_age_s=0.0, max_batches=RESIDENTS, has_room_for_heavier=True,
                commit_interval_s=1e9, fairness=Fairness(DEFAULT_WEIGHTS),
            )
        )  # fmt: skip
        self._paused: set[TopicPartition] = set()
        self._batcher: StepBatcher[Ticket, int] = StepBatcher()
        self._caps = {frames: StepCap(most=MOST_ROWS) for frames in STEP_S}
        self._here: dict[Ticket, _Denoised] = {}
        start = StartOffset(OffsetMap(0), is_committed=True)
        self._handle(Assigned(dict.fromkeys(logs, start)))

    def run(self) -> float:
        while True:
            self._poll()
            tickets = self._batcher.pick(lambda frames: self._caps[frames].rows)
            if not tickets:
                assert not any(self._logs.values()), "nothing is left behind"
                return self._now_s
            jobs = [self._here[ticket] for ticket in tickets]
            rows, frames = sum(each.clip.num_rows for each in jobs), jobs[0].clip.num_frames
            fixed_s, row_s = STEP_S[frames]
            step_s = fixed_s + rows * row_s
            self._now_s += step_s
            self._caps[frames].took(rows, step_s, None)
            self._batcher.ran(tickets, step_s)
            for ticket, job in zip(tickets, jobs, strict=True):
                job.num_left -= 1
                if not job.num_left:
                    self._batcher.leave(ticket)
                    del self._here[ticket]
                    self._handle(Emitted(ticket, ()))
            if self._here:
                num = self._batcher.num_of_use(lambda frames: self._caps[frames].rows)
                self._handle(Places(num))

    def _poll(self) -> None:
        for partition, log in self._logs.items():
            while log and partition not in self._paused:
                offset, clip = log.popleft()
                charge = Charge(clip.tier, clip.tenant_id, _least_s(clip))
                work = Work(clip.job_id, 1, None, None, clip, charge=charge)
                self._handle(Delivered(partition, offset, work))
        self._handle(Tick())

    def _handle(self, event: Event) -> None:
        for command in self._state.handle(event, self._now_s):
            match command:
                case Start(batch):
                    for ticket, work in batch:
                        clip = work.payload
                        assert isinstance(clip, Clip)
                        self._here[ticket] = _Denoised(clip)
                        weight = DEFAULT_WEIGHTS[clip.tier]
                        self._batcher.join(
                            ticket, clip.num_frames, clip.num_rows, STEPS, weight, clip.tenant_id
                        )
                case Produce(ticket):
                    self._handle(Acknowledged(ticket))
                case Commit():
                    self._handle(Committed(True))
                case Pause(partitions):
                    self._paused.update(partitions)
                case Resume(partitions):
                    self._paused.difference_update(partitions)
                case _:
                    raise AssertionError(f"nobody asked for {command}")


if __name__ == "__main__":
    sys.exit(main())
