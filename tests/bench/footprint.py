"""`make bench-footprint`: what a worker weighs, what waiting requests cost it, how soon all is up.

Everything is measured on real processes and the embedded broker, so that it runs anywhere.
"""

from __future__ import annotations

import http.client
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import Producer

from schemas.codec import Codec
from schemas.records import CleanedPrompt, FramesDecoded, GenerationRequest, LatentsReady
from streams.core.tiers import DEFAULT_TIERS, partition_of_job
from streams.kafka.admin import apply_topics
from streams.local.embedded import EmbeddedKafka
from streams.local.processes import free_port
from streams.local.stack import LocalStack, StackPlan
from streams.local.worker_process import python_environment
from streams.settings import Settings
from streams.topology import Stage, worker_stages
from tests.bench.goals import Goals
from tests.builders import a_blob, a_job

WAITING = 20_000
WARM_UP = 200
MIB = 1024 * 1024
START_S = 60.0
SETTLE_S = 10.0


def main() -> int:
    """Measure, print, and hold against the goals."""
    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="reel-footprint-") as folder:
        _waiting_requests(goals, Path(folder))
        _start_up(goals, Path(folder))
    _help(goals)
    return goals.report()


def _waiting_requests(goals: Goals, folder: Path) -> None:
    """Each stage's worker, torch-free and slow, with 20,000 records waiting on its topic."""
    print(f"one slow worker per stage, {WAITING} records waiting on each stage's topic")
    print(f"{'stage':<10} {'ready MiB':>10} {'warm MiB':>10} {'waiting MiB':>12} {'growth':>8}")
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedKafka(folder / "broker"))
        settings = Settings(
            bootstrap=broker.bootstrap, group_protocol="classic", blobs=(folder / "b").as_uri()
        )
        apply_topics(settings)
        ready, growth = [], []
        for stage in worker_stages():
            with ExitStack() as one:
                worker = one.enter_context(_Worker(stage, settings, folder))
                ready_mib = worker.rss_mib()
                _fill(stage, settings, WARM_UP)
                warm_mib = worker.peak_mib()
                _fill(stage, settings, WAITING)
                waiting_mib = worker.peak_mib()
            ready.append(warm_mib)
            growth.append(waiting_mib - warm_mib)
            print(
                f"{stage.name:<10} {ready_mib:>10.1f} {warm_mib:>10.1f} {waiting_mib:>12.1f} "
                f"{growth[-1]:>8.1f}"
            )
    goals.at_most("worker_without_torch_mib", max(ready), 150)
    goals.at_most("growth_by_20000_waiting_mib", max(growth), 30)


class _Worker:
    """`python -m tests.echo STAGE SECONDS` as a context; knows its memory."""

    def __init__(self, stage: Stage, settings: Settings, folder: Path) -> None:
        self._port = free_port()
        environment = python_environment(
            {
                "bootstrap": settings.bootstrap,
                "group_protocol": settings.group_protocol,
                "blobs": settings.blobs,
                "metrics_port": self._port,
                "drain_ms": 2000,
            }
        )
        with (folder / f"{stage.name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.echo", stage.name, "1.0"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> _Worker:
        deadline_s = time.monotonic() + START_S
        while not self._is_ready():
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                raise TimeoutError("the worker did not become ready")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(START_S)

    def rss_mib(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def peak_mib(self) -> float:
        """The most resident memory seen while the worker takes what its window allows."""
        until_s, peak = time.monotonic() + SETTLE_S, 0.0
        while time.monotonic() < until_s:
            peak = max(peak, self.rss_mib())
            time.sleep(0.1)
        return peak

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def _fill(stage: Stage, settings: Settings, count: int) -> None:
    codec, producer = Codec(), Producer({"bootstrap.servers": settings.bootstrap})
    now = datetime.now(UTC)
    for number in range(count):
        job_id, tier, tenant = uuid.uuid4().hex, DEFAULT_TIERS[number % 3], f"t{number % 50}"
        partition = partition_of_job(tier, tenant, job_id, settings.partitions)
        deadline = now + timedelta(hours=1)
        job = a_job(
            job_id=job_id, tenant_id=tenant, tier=tier, partition=partition, created_at=now,
            deadline=deadline,
        )  # fmt: skip
        record: GenerationRequest | CleanedPrompt | LatentsReady | FramesDecoded
        match stage.name:
            case "prompt":
                record = GenerationRequest(
                    job_id, tenant, "a red circle moving right", now, tier=tier, deadline=deadline
                )
            case "sampler":
                record = CleanedPrompt(job, "a red circle", "", "unchecked", a_blob(), 32)
            case "decoder":
                record = LatentsReady(job, a_blob(), "CTHW", True, 5)
            case _:
                record = FramesDecoded(job, ())
        while True:
            try:
                producer.produce(stage.reads, codec.encode(record), job_id, partition)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(START_S) == 0, "the broker took everything"


def _start_up(goals: Goals, folder: Path) -> None:
    """The local stack with the demo model, from nothing and again."""
    for name in ("first", "again"):
        home = folder / "home"
        plan = StackPlan(Settings(home=home), cache=folder / "cache")
        started_s = time.monotonic()
        with LocalStack(plan, print):
            ready_s = time.monotonic() - started_s
            print(f"stack ready, {name}: {ready_s:.1f} s")
    goals.at_most("up_to_ready_s", ready_s, 30)


def _help(goals: Goals) -> None:
    """CPU seconds until `reel --help` has spoken: what every command pays before its own work."""
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    reel = Path(sys.executable).with_name("reel")
    subprocess.run([reel, "--help"], check=True, capture_output=True)
    goals.at_most("help_cpu_s", resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s, 1)


if __name__ == "__main__":
    sys.exit(main())
