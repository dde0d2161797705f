"""`python -m tests.bench.fairness --kafka`: the floods with real workers on Apache Kafka.

The whole pipeline as real processes around a computation that sleeps (tests/echo.py): requests are
written, the prompt stage lets them in under the default quotas, and a job has waited until a
sampler begins it. Plain FIFO is the same workers where every request names one payer but lies in
the partition of its true one, where nothing is looked past and nobody has a quota. A broker for
each run: what a flood leaves behind would be the next run's. About a minute a run, five runs.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.codec import Codec
from schemas.records import LatentsReady
from streams.core.tiers import partition_of_job
from streams.kafka.admin import apply_topics
from streams.kafka.config import producer_config
from streams.local.apache import ApacheKafka
from streams.local.worker_process import python_environment
from streams.settings import Settings, read_settings
from streams.topology import REQUESTS, stage, worker_stages
from tests.bench.fairness_plots import Curve
from tests.bench.goals import Goals, print_table
from tests.builders import a_request
from tests.e2e.reading import Tail
from tests.simulation.fairness import Arrival, arrivals_of, merged, percentile

SAMPLER = stage("sampler")
PARTITIONS, SAMPLERS, JOB_S = 12, 2, 0.1
PAYER_OF_ALL = "free", "everybody"
STREAM_S, SETTLE_S, START_S = 20.0, 8.0, 120.0
LOADS = {"enterprise": 0.3, "pro": 0.1, "free": 0.1}  # of the capacity, in eight tenants each
#: More than the samplers can reach in that time.
NUM_FLOOD = 6_000
CASES = (("nobody", True), ("free", True), ("free", False), ("enterprise", True),
         ("enterprise", False))  # fmt: skip


def bench_on_kafka(goals: Goals) -> list[Curve]:
    """Run the cases, print their table, and hold it against the goals of the simulation."""
    curves, rows, p99_s = [], [], {}
    for flood, is_fair in CASES:
        with tempfile.TemporaryDirectory(prefix="reel-fairness-") as name:
            waits_s, num_ended = Run(Path(name), is_fair).measure(flood)
        kind = "fair" if is_fair else "FIFO"
        curves.append(Curve(f"kafka-{flood}", kind, waits_s))
        p99_s[flood, is_fair] = percentile(waits_s, 0.99)
        figures = (percentile(waits_s, 0.5), p99_s[flood, is_fair])
        rows.append([f"{flood} floods, {kind}", *(f"{each:.2f}" for each in figures),
                     str(num_ended)])  # fmt: skip
    print(
        f"Apache Kafka, {PARTITIONS} partitions, {SAMPLERS} samplers, {JOB_S:g} s a job: how long "
        f"{len(curves[0].waits_s)} enterprise jobs of others waited"
    )
    print_table(["what", "median s", "p99 s", "all ended"], rows)
    idle_s = p99_s["nobody", True]
    # A job is never interrupted, and a worker prepares the next while one computes.
    step_s = 2 * JOB_S
    goals.at_most("kafka_p99_wait_free_floods_s", p99_s["free", True], 1.2 * idle_s + step_s)
    goals.at_most("kafka_p99_wait_enterprise_floods_s", p99_s["enterprise", True], 2 * idle_s)
    return curves


class Run:
    """A broker and workers of one run."""

    def __init__(self, folder: Path, is_fair: bool) -> None:
        self._folder, self._is_fair = folder, is_fair
        self._began: dict[str, datetime] = {}

    def measure(self, flood: str) -> tuple[list[float], int]:
        """Waits of other enterprise jobs, ascending; how many jobs of all were worked."""
        with ApacheKafka(self._folder / "kafka", home=read_settings().home) as broker:
            settings = Settings(
                home=self._folder, bootstrap=broker.bootstrap, partitions=PARTITIONS, batch_age_ms=0
            )
            if not self._is_fair:
                window = settings.window
                changes = {"window_per_tenant": window, "look_ahead": window, "tenant_jobs": 0}
                settings = settings.model_copy(update=changes)
            apply_topics(settings)
            # It outlives the broker, and would say so.
            producer = Producer(producer_config(settings, "bench") | {"log_level": 0})
            with (
                Tail(broker.bootstrap, [str(SAMPLER.writes)]) as tail,
                self._workers(settings),
            ):
                self._warm_up(producer, tail)
                for number in range(NUM_FLOOD if flood != "nobody" else 0):
                    self._send(producer, Arrival(0.0, flood, "flood", f"flood-{number}", JOB_S))
                assert producer.flush(START_S) == 0, "the broker took everything"
                came = self._stream(producer, tail)
                end_s = time.monotonic() + SETTLE_S
                while time.monotonic() < end_s and not came.keys() <= self._began.keys():
                    self._read(tail)
                ended = datetime.now(UTC)
        waits_s = [
            (self._began.get(name, ended) - at).total_seconds()
            for name, at in came.items()
            if name.startswith("enterprise")
        ]
        return sorted(waits_s), len(self._began)

    def _warm_up(self, producer: Producer, tail: Tail) -> None:
        """A job in each partition, so that all are held and what a job costs is learned."""
        for number in range(PARTITIONS):
            arrival = Arrival(0.0, "free", "warm", f"warm-{number}", JOB_S)
            self._send(producer, arrival, partition=number)
        give_up_s = time.monotonic() + START_S
        while len(self._began) < PARTITIONS:
            assert time.monotonic() < give_up_s, f"workers have not begun: {self._logs()}"
            producer.poll(0)
            self._read(tail)

    def _stream(self, producer: Producer, tail: Tail) -> dict[str, datetime]:
        """Write the quiet tenants' jobs as they come, and say when each did."""
        came: dict[str, datetime] = {}
        start_s = time.monotonic()
        for arrival in quiet():
            while time.monotonic() < start_s + arrival.at_s:
                self._read(tail)
                producer.poll(0)
            came[arrival.job_id] = datetime.now(UTC)
            self._send(producer, arrival)
        producer.flush(START_S)
        return came

    def _send(self, producer: Producer, arrival: Arrival, partition: int | None = None) -> None:
        if partition is None:
            partition = partition_of_job(
                arrival.tier, arrival.tenant_id, arrival.job_id, PARTITIONS
            )
        now = datetime.now(UTC)
        tier, tenant_id = (arrival.tier, arrival.tenant_id) if self._is_fair else PAYER_OF_ALL
        request = a_request(
            job_id=arrival.job_id, tier=tier, tenant_id=tenant_id, created_at=now,
            deadline=now + timedelta(hours=1),
        )  # fmt: skip
        producer.produce(
            REQUESTS, Codec().encode(request), arrival.job_id, partition, on_delivery=_delivered
        )

    def _read(self, tail: Tail) -> None:
        for message in tail.read():
            record = Codec().decode(message.value() or b"", LatentsReady)
            self._began.setdefault(record.job.job_id, record.timings[-1].started_at)

    @contextmanager
    def _workers(self, settings: Settings) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
        workers = []
        names = [each.name for each in worker_stages()]
        try:
            for number, name in enumerate([*names, *[SAMPLER.name] * (SAMPLERS - 1)]):
                is_sampler = name == SAMPLER.name
                one = {"batch_max": 1} if is_sampler else {}
                environment = python_environment(settings.model_dump(exclude_defaults=True) | one)
                argv = [sys.executable, "-m", "tests.echo", name, str(JOB_S if is_sampler else 0)]
                with (self._folder / f"worker-{number}.log").open("wb") as log:
                    workers.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log))
            yield workers
        finally:
            for each in workers:
                each.terminate()
            for each in workers:
                each.wait(START_S)

    def _logs(self) -> str:
        return "\n".join(each.read_text()[-1000:] for each in self._folder.glob("worker-*.log"))


def _delivered(error: KafkaError | None, _message: Message) -> None:
    if error is not None:
        raise KafkaException(error)


def quiet() -> list[Arrival]:
    """Eight tenants of each tier, together at half of the capacity."""
    rng = random.Random(21)
    return merged(
        arrivals_of(rng, tier, f"{tier}-{number}", SAMPLERS / JOB_S * load / 8, STREAM_S, JOB_S)
        for tier, load in LOADS.items()
        for number in range(8)
    )
