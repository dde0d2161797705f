"""`make bench-sampler`, second part: the whole sampler stage at saturation, against a bare loop.

Ours: a real worker on Apache Kafka, with fences, checkpoints, progress and uploads to a folder, its
topic full of jobs from the start. The bare loop: the same forwards on the same number of threads,
in batches that run to their end, from inputs in memory to nowhere. Both are processes of their own,
taking turns on one machine with the broker running.

`python -m tests.bench.sampler_stage [--model DIR] [--jobs N] [--repeats N]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer

from schemas.codec import Codec
from schemas.records import CleanedPrompt, Job, LatentsReady
from streams.blobs import tensors
from streams.blobs.opening import store_of
from streams.kafka.admin import apply_topics
from streams.local.apache import ApacheKafka
from streams.local.worker_process import python_environment
from streams.settings import Settings, read_settings
from streams.topology import stage
from tests.bench.goals import Goals, print_table
from tests.bench.sampler import BenchWork, run_to_end
from tests.builders import a_job
from tests.e2e.reading import Tail
from workers.models.card import read_card
from workers.models.demo.model import demo_model_dir
from workers.torch_device import DeviceSettings

SAMPLER = stage("sampler")
STEPS = 64  # guided, 17 frames: a second of compute, alone
BARE_BATCHES = (4, 8)
NUM_THREADS = 2
LIMIT_S = 300.0


class Bench:
    """A broker and a store with one prompt's embeddings in it."""

    def __init__(self, folder: Path, bootstrap: str, model: Path) -> None:
        self._settings = Settings(
            home=folder, bootstrap=bootstrap, model=model, torch_threads=NUM_THREADS,
            checkpoint_ms=2_000,
        )  # fmt: skip
        self._folder, self._model = folder, model
        apply_topics(self._settings)
        card = read_card(model)
        dim = json.loads((model / "transformer" / "config.json").read_text())["text_dim"]
        shape = (2, card.text_pad_length, dim)
        prompt, negative = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        data = tensors.dump({"prompt_embeds": prompt, "negative_prompt_embeds": negative})
        store = store_of(self._settings)
        self._embeds = store.put("bench/prompt", [data], tensors.MEDIA_TYPE)
        self._pad_length = card.text_pad_length
        self._job = replace(
            a_job(), model=card.name, model_version=card.version, num_frames=17, height_px=64,
            width_px=64, guidance_scale=3.0, num_inference_steps=STEPS,
        )  # fmt: skip

    def ours(self, name: str, count: int) -> float:
        """Jobs a second of a worker that finds so many on its topic."""
        jobs = {f"{name}-{number}" for number in range(count)}
        with Tail(self._settings.bootstrap, [str(SAMPLER.writes)]) as tail:
            tail.read()
            self._fill(sorted(jobs))
            ended_ms: list[int] = []
            began: list[datetime] = []
            with self._worker(name) as worker:
                give_up_s = time.monotonic() + LIMIT_S
                while jobs:
                    assert time.monotonic() < give_up_s, f"{len(jobs)} jobs have not ended"
                    assert worker.poll() is None, f"the worker has ended: see {self._folder}"
                    for message in tail.read():
                        record = Codec().decode(message.value() or b"", LatentsReady)
                        if record.job.job_id in jobs:
                            jobs.remove(record.job.job_id)
                            ended_ms.append(message.timestamp()[1])
                            began.append(record.timings[-1].started_at)
                worker.terminate()
        return count / (max(ended_ms) / 1000 - min(began).timestamp())

    def _worker(self, name: str) -> subprocess.Popen[bytes]:
        settings = self._settings.model_dump(exclude_defaults=True)
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "workers.main", SAMPLER.name],
                env=python_environment(settings), stdout=log, stderr=log,
            )  # fmt: skip

    def bare(self, batch: int, count: int) -> float:
        """Jobs a second of a loop without anything around it."""
        argv = [sys.executable, "-m", "tests.bench.sampler_stage", "--model", str(self._model)]
        run = subprocess.run(
            [*argv, "--bare", str(batch), "--jobs", str(count)],
            capture_output=True, text=True, timeout=LIMIT_S, check=True,
        )  # fmt: skip
        return float(run.stdout.splitlines()[-1])

    def _fill(self, job_ids: Sequence[str]) -> None:
        producer = Producer({"bootstrap.servers": self._settings.bootstrap})
        for number, job_id in enumerate(job_ids):
            partition = number % self._settings.partitions
            job = a_bench_job(self._job, job_id, number, partition)
            record = CleanedPrompt(job, "p", "", "unchecked", self._embeds, self._pad_length)
            producer.produce(SAMPLER.reads, Codec().encode(record), job_id, partition)
        assert producer.flush(LIMIT_S) == 0, "the broker took everything"


def a_bench_job(base: Job, job_id: str, seed: int, partition: int) -> Job:
    """A job of now, with a seed of its own."""
    now = datetime.now(UTC)
    deadline = now + timedelta(hours=1)
    return replace(
        base, job_id=job_id, seed=seed, partition=partition, created_at=now, deadline=deadline
    )


def _bare(model: Path, batch: int, count: int) -> None:
    work = BenchWork(model, DeviceSettings("cpu", num_threads=NUM_THREADS))
    jobs = work.jobs(count, "bare", 3.0, (STEPS,))

    def run(some: Sequence[Job]) -> None:
        for first in range(0, len(some), batch):
            run_to_end(work, some[first : first + batch], lambda _: None)

    run(work.jobs(batch, "warm", 3.0, (4,)))
    began_s = time.perf_counter()
    run(jobs)
    print(count / (time.perf_counter() - began_s))


def main() -> int:
    """Measure, print, and hold against the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=demo_model_dir())
    parser.add_argument("--jobs", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bare", type=int, help="be the bare loop, in batches of so many")
    words: Any = parser.parse_args()
    if words.bare:
        _bare(words.model, words.bare, words.jobs)
        return 0
    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="reel-sampler-") as name:
        folder = Path(name)
        with ApacheKafka(folder / "kafka", home=read_settings().home) as broker:
            bench = Bench(folder, broker.bootstrap, words.model.absolute())
            bench.ours("learning", words.jobs // 2)  # caps
            found: dict[str, list[float]] = {}
            for repeat in range(words.repeats):
                ours = bench.ours(f"r{repeat}", words.jobs)
                found.setdefault("the stage on Kafka", []).append(ours)
                for batch in BARE_BATCHES:
                    per_s = bench.bare(batch, words.jobs)
                    found.setdefault(f"bare batches of {batch}", []).append(per_s)
    medians = {side: statistics.median(each) for side, each in found.items()}
    print(f"\n{words.jobs} jobs of {STEPS} guided steps, {words.repeats} repeats: jobs a second")
    print_table(
        ["side", "median", "least", "most"],
        [[side, f"{medians[side]:.2f}", f"{min(each):.2f}", f"{max(each):.2f}"]
         for side, each in found.items()],
    )  # fmt: skip
    ours = medians.pop("the stage on Kafka")
    goals.at_least("stage_share_of_bare_loop", ours / max(medians.values()), 0.97)
    return goals.report()


if __name__ == "__main__":
    sys.exit(main())
