"""`make bench-sampler`: continuous batching against one job at a time, and against static batches.

The real sampler's work on CPU or GPU, without Kafka and store: what is compared is who takes part
in which forward. Both sides run in one process, one after the other, on the same jobs.

The main thread never computes: on the CPU torch keeps a team of threads for each thread that did,
and once they are more than the cores they sleep at every barrier instead of spinning (libgomp): it
doubles the time of a small step. Whatever is measured runs on one thread, which then ends.

`python -m tests.bench.sampler [--model DIR] [--device cuda] [--jobs N]`
"""

from __future__ import annotations

import argparse
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from schemas.codec import Codec
from schemas.records import CleanedPrompt, Job, LatentsReady, Record, StageTiming
from streams.core.events import Emitted, Failed, Start, Ticket, TopicPartition, Work
from streams.core.step_caps import StepCap
from streams.engine import Task
from streams.topology import stage
from tests.bench.goals import Goals, print_table
from tests.bench.relay_side import NoStore
from tests.builders import CREATED_AT, a_blob, a_job
from workers.fenced import FencedWork
from workers.models.tiny import write_tiny_model
from workers.sampler.families.base import NEGATIVE
from workers.sampler.work import Conditioned, Denoising, SamplerWork
from workers.step_engine import StepEngine, StepSettings
from workers.torch_device import DeviceSettings

T = TypeVar("T")

CLIENTS = 8
STEPS = 8
MIXED_STEPS = (4, 8, 20, 50)
SAMPLER = stage("sampler")


class BenchWork(SamplerWork):
    """The sampler's work with its inputs in memory, and nowhere to put its results."""

    def __init__(self, model: Path, device: DeviceSettings) -> None:
        super().__init__(model, device, NoStore())
        rng = np.random.default_rng(0)
        self.load()
        (denoiser,) = self._denoisers.values()
        _, shape = denoiser.text_layout()["prompt_embeds"]
        self._text, self._negative = (
            {"prompt_embeds": rng.standard_normal([size or 1 for size in shape], dtype=np.float32)}
            for _ in range(2)
        )

    def fetch(self, task: Task) -> Conditioned:
        is_guided = task.record.job.is_guided
        return Conditioned(task.record, self._text, self._negative if is_guided else None)

    def store(self, task: Task, result: Any, timing: StageTiming) -> Record:
        timings = (*task.record.timings, timing)
        return LatentsReady(task.record.job, a_blob(), "CTHW", True, result.shape[1], {}, timings)

    def jobs(self, count: int, name: str, scale: float, steps: Sequence[int]) -> list[Job]:
        """Small jobs of that guidance, and of those steps in turn."""
        card = self._models.card
        base = replace(
            a_job(), model=card.name, model_version=card.version, num_frames=17, height_px=64,
            width_px=64, guidance_scale=scale,
        )  # fmt: skip
        return [
            replace(base, job_id=f"{name}-{n}", seed=n, num_inference_steps=steps[n % len(steps)])
            for n in range(count)
        ]

    def begin_job(self, job: Job) -> Denoising:
        """As the engine does, from inputs in memory."""
        return self.open(self.fetch(_task(job)))


@dataclass(slots=True)
class Served:
    """When a job came, began and ended, in seconds of one clock."""

    came_s: float
    began_s: float = 0.0
    ended_s: float = 0.0

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.came_s


@dataclass
class Serving:
    """Jobs given to one side, by id."""

    jobs: dict[str, Served] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=list)  # began, ended

    def stepped(self, seconds: float) -> None:
        """A step has just ended."""
        self.steps.append((time.time() - seconds, time.time()))

    def latencies(self, percent: float) -> float:
        return _percentile([each.latency_s for each in self.jobs.values()], percent)

    def starts_in_steps(self, percent: float) -> float:
        """From submission to the first step, in steps such as ran meanwhile."""
        waits = []
        for each in self.jobs.values():
            meanwhile = [
                ended_s - began_s
                for began_s, ended_s in self.steps
                if began_s < each.began_s and ended_s > each.came_s
            ]
            wait_s = each.began_s - each.came_s
            waits.append(wait_s / statistics.mean(meanwhile) if meanwhile else 0.0)
        return _percentile(waits, percent)


class Continuous:
    """Our engine."""

    def __init__(self, work: BenchWork, rows_max: int) -> None:
        self.served = Serving()
        fenced = FencedWork(work, SAMPLER, NoStore(), Codec(), lambda: CREATED_AT)
        self._engine = StepEngine(
            fenced, "bench", 4, lambda _: None, lambda _: None, self._stepped,
            StepSettings(rows_max, checkpoint_s=10.0),
        )  # fmt: skip
        self._num_started = 0

    def _stepped(self, _rows: int, seconds: float) -> None:
        self.served.stepped(seconds)

    def submit(self, job: Job) -> None:
        self.served.jobs[job.job_id] = Served(time.time())
        ticket = Ticket(TopicPartition(SAMPLER.reads, 0), self._num_started, 1)
        self._num_started += 1
        self._engine.start(Start(((ticket, Work(job.job_id, 1, None, None, _task(job))),)))

    def ended(self) -> int:
        """How many have ended since this was last asked."""
        count = 0
        for event in self._engine.completions():
            assert not isinstance(event, Failed), event
            if isinstance(event, Emitted):
                record = Codec().decode(event.outputs[0].value, LatentsReady)
                timing, served = record.timings[-1], self.served.jobs[record.job.job_id]
                served.began_s = timing.started_at.timestamp()
                served.ended_s = time.time()
                count += 1
        return count

    def stop(self) -> None:
        self._engine.stop()


class Static:
    """Batches that close, and run to the end of their longest job; then all are answered.

    Rows whose own steps are done leave the forward, which is kinder than most do it.
    """

    def __init__(self, work: BenchWork, most_jobs: int) -> None:
        self.served = Serving()
        self._work, self._most_jobs = work, most_jobs
        self._waiting: deque[Job] = deque()
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self.served.jobs[job.job_id] = Served(time.time())
        self._waiting.append(job)

    def _run(self) -> None:
        while not self._stopping.is_set():
            batch = [
                self._waiting.popleft() for _ in range(min(len(self._waiting), self._most_jobs))
            ]
            if not batch:
                self._stopping.wait(0.0005)
                continue
            began_s = time.time()
            run_to_end(self._work, batch, self.served.stepped)
            for job in batch:
                served = self.served.jobs[job.job_id]
                served.began_s, served.ended_s = began_s, time.time()
                self._ended.put(job.job_id)

    def ended(self) -> int:
        count = 0
        while not self._ended.empty():
            self._ended.get()
            count += 1
        return count

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def _apart(call: Callable[[], T]) -> T:
    """What the call returns, done on a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def run_to_end(work: BenchWork, jobs: Sequence[Job], stepped: Callable[[float], None]) -> None:
    """All of these in one batch; who has taken its steps leaves the forward."""
    states: list[Any] = [work.begin_job(job) for job in jobs]
    while states:
        began_s = time.perf_counter()
        states = list(work.step(states, is_split=False))
        stepped(time.perf_counter() - began_s)
        states = [each for each in states if each.num_done < each.job.num_inference_steps]


def _task(job: Job) -> Task:
    record = CleanedPrompt(job, "a prompt", "", "unchecked", a_blob(), 32)
    return Task(record, 0, b"", SAMPLER.reads)


def _closed_loop(side: Continuous, jobs: Sequence[Job]) -> float:
    """Jobs a second with `CLIENTS` clients, each with one job at a time."""
    left, num_ended, began_s = deque(jobs), 0, time.perf_counter()
    for _ in range(CLIENTS):
        side.submit(left.popleft())
    while num_ended < len(jobs):
        for _ in range(side.ended()):
            num_ended += 1
            if left:
                side.submit(left.popleft())
        time.sleep(0.0005)
    return len(jobs) / (time.perf_counter() - began_s)


def _open_loop(side: Continuous | Static, jobs: Sequence[Job], per_s: float) -> Serving:
    """Poisson arrivals, the same instants for whoever is measured."""
    rng, num_ended = random.Random(1), 0
    at_s, arrivals = time.perf_counter(), []
    for job in jobs:
        at_s += rng.expovariate(per_s)
        arrivals.append((at_s, job))
    while num_ended < len(jobs):
        while arrivals and arrivals[0][0] <= time.perf_counter():
            side.submit(arrivals.pop(0)[1])
        num_ended += side.ended()
        time.sleep(0.0005)
    side.stop()
    return side.served


def _percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _throughput(work: BenchWork, pipeline: Any, goals: Goals, count: int) -> None:
    rows, gains = [], {}

    def by_diffusers(jobs: Sequence[Job]) -> None:
        for job in jobs:
            _by_diffusers(pipeline, work, job)

    def one_at_a_time(jobs: Sequence[Job]) -> None:
        for job in jobs:
            run_to_end(work, [job], lambda _: None)

    def in_batches(jobs: Sequence[Job]) -> None:
        for first in range(0, len(jobs), CLIENTS):
            run_to_end(work, jobs[first : first + CLIENTS], lambda _: None)

    for text, scale in (("unguided", 1.0), ("guided", 3.0)):
        jobs = work.jobs(count, text, scale, (STEPS,))
        figures: dict[str, float] = {}
        sides = (("diffusers, one at a time", by_diffusers), ("one at a time", one_at_a_time))
        for name, run in (*sides, ("bare batches of 8", in_batches)):
            figures[name] = _apart(partial(_timed, jobs, run))
        side = Continuous(work, rows_max=2 * CLIENTS)
        _closed_loop(side, work.jobs(count // 2, f"warm-{text}", scale, (STEPS,)))
        figures["ours"] = _closed_loop(side, jobs)
        side.stop()
        one = figures["one at a time"]
        gains[text] = figures["ours"] / one, figures["bare batches of 8"] / one
        rows += [[text, name, f"{each:.2f}", f"{each / one:.2f}"] for name, each in figures.items()]
    print(f"\n{CLIENTS} clients, {STEPS} steps of 17 frames 64x64: jobs a second")
    print_table(["", "side", "jobs/s", "gain"], rows)
    goals.at_least("unguided_gain", gains["unguided"][0], 1.7)
    ours, bare = gains["guided"]
    goals.at_least("guided_gain_share_of_bare", (ours - 1) / max(1e-9, bare - 1), 0.9)


def _timed(jobs: Sequence[Job], run: Callable[[Sequence[Job]], None]) -> float:
    run(jobs[:CLIENTS])
    began_s = time.perf_counter()
    run(jobs)
    return len(jobs) / (time.perf_counter() - began_s)


def _by_diffusers(pipeline: Any, work: BenchWork, job: Job) -> None:
    import torch

    given = work.fetch(_task(job))
    texts = {
        f"{prefix}{name}": torch.from_numpy(each)[None]
        for prefix, text in (("", given.text), (NEGATIVE, given.negative_text or {}))
        for name, each in text.items()
    }
    pipeline(
        **texts,
        num_frames=job.num_frames, height=job.height_px, width=job.width_px,
        num_inference_steps=job.num_inference_steps, guidance_scale=job.guidance_scale,
        generator=torch.Generator().manual_seed(job.seed), output_type="latent",
    )  # fmt: skip


def _knees(work: BenchWork) -> None:
    """What a step takes by rows, and the cap that is learned from it."""
    rows = []
    for text, frames, side_px in (("small", 17, 64), ("large", 33, 128)):
        cap, most = StepCap(64), 16
        jobs = [
            replace(job, num_frames=frames, height_px=side_px, width_px=side_px)
            for job in work.jobs(most, f"knee-{text}", 1.0, (STEPS,))
        ]
        states = [work.begin_job(job) for job in jobs]
        while cap.rows <= most:
            count, times = cap.rows, []
            for _ in range(5):
                began_s = time.perf_counter()
                work.step(states[:count], is_split=False)
                times.append(time.perf_counter() - began_s)
                cap.took(count, times[-1])
            step_s = statistics.median(times)
            rows.append([f"{text} {frames}x{side_px}x{side_px}", str(count), f"{1e3 * step_s:.1f}",
                         f"{1e3 * step_s / count:.1f}", str(cap.rows)])  # fmt: skip
            if cap.rows <= count:
                break
    print("\nOne step by rows, and the cap learned so far")
    print_table(["latents of", "rows", "ms", "ms a row", "cap"], rows)


def _latency(work: BenchWork, goals: Goals, count: int) -> None:
    side = Continuous(work, rows_max=2 * CLIENTS)
    _closed_loop(side, work.jobs(count // 2, "warm", 3.0, MIXED_STEPS))
    capacity = _closed_loop(side, work.jobs(count, "capacity", 3.0, MIXED_STEPS))
    side.stop()
    print(
        f"\nPoisson arrivals, steps of {MIXED_STEPS}, guided; capacity {capacity:.2f} jobs a second"
    )
    rows = []
    for percent in (70, 110):
        jobs = work.jobs(count, f"at-{percent}", 3.0, MIXED_STEPS)
        random.Random(2).shuffle(jobs)
        per_s = capacity * percent / 100
        static = _open_loop(Static(work, CLIENTS), jobs, per_s)
        ours = _open_loop(Continuous(work, rows_max=2 * CLIENTS), jobs, per_s)
        for name, served in (("static batches", static), ("ours", ours)):
            rows.append(
                [
                    f"{percent} %", name, f"{served.latencies(50):.2f}",
                    f"{served.latencies(99):.2f}", f"{served.starts_in_steps(99):.2f}",
                ]
            )  # fmt: skip
        if percent == 70:
            goals.at_most(
                "p99_latency_at_70_percent", ours.latencies(99) / static.latencies(99), 0.6
            )
        goals.at_most(f"first_step_p99_steps_at_{percent}_percent", ours.starts_in_steps(99), 1.5)
    print_table(["load", "side", "p50 s", "p99 s", "first step p99, steps"], rows)


def main() -> int:
    """Measure, print, and hold against the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a WanPipeline folder; else tiny random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=96)
    words = parser.parse_args()

    import torch
    from diffusers import WanPipeline

    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="reel-bench-") as name:
        model = words.model
        if model is None:
            model = Path(name) / "tiny"
            _apart(lambda: write_tiny_model(model))
        device = DeviceSettings(words.device, num_threads=2)
        work = _apart(lambda: BenchWork(model, device))
        pipeline: Any = _apart(
            lambda: WanPipeline.from_pretrained(model, torch_dtype=torch.float32).to(words.device)
        )
        pipeline.set_progress_bar_config(disable=True)
        _throughput(work, pipeline, goals, words.jobs)
        _apart(lambda: _knees(work))
        _latency(work, goals, words.jobs)
    return goals.report()


if __name__ == "__main__":
    sys.exit(main())
