"""`python -m tests.bench.fairness --kafka`: the floods with real workers on Apache Kafka.

The whole pipeline as real processes around a computation that sleeps (tests/echo.py): requests are
written, the prompt stage lets them in under the default quotas, and samplers work them in steps, a
row at a time. A job has waited all the time from when it was written until it was sampled, but for
that of its own steps. Plain FIFO is the same workers where every request names one payer, and so
goes through that payer's two partitions, where nothing is looked past and nobody has a quota. A
broker for each run: what a flood leaves behind would be the next run's. Two minutes a run, six
runs.

A flood is a hundred times the capacity of the samplers, for as long as others send theirs. The last
run has no goal: as many at once as would take the samplers 25 minutes, and who shares a partition
with them stands behind them until they are parked.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
PARTITIONS, SAMPLERS, JOB_S, NUM_STEPS = 12, 2, 0.5, 10
CAPACITY = SAMPLERS / JOB_S  # jobs a second
PAYER_OF_ALL = "free", "everybody"
FLOOD = "flood"
STREAM_S, SETTLE_S, START_S = 60.0, 20.0, 120.0
LOADS = {"enterprise": 0.3, "pro": 0.1, "free": 0.1}  # of the capacity, in eight tenants each
NUM_AT_ONCE = 6_000


@dataclass(frozen=True, slots=True)
class Case:
    """Who floods, if anybody, and how; whether the workers are fair."""

    flood: str | None = None
    is_fair: bool = True
    is_at_once: bool = False

    def __str__(self) -> str:
        who = f"{self.flood or 'nobody'} floods"
        at_once = f" with {NUM_AT_ONCE} at once" if self.is_at_once else ""
        return f"{who}{at_once}, {'fair' if self.is_fair else 'FIFO'}"


IDLE, FREE, ENTERPRISE = Case(), Case("free"), Case("enterprise")
CASES = (
    IDLE,
    FREE,
    replace(FREE, is_fair=False),
    ENTERPRISE,
    replace(ENTERPRISE, is_fair=False),
    replace(ENTERPRISE, is_at_once=True),
)


def bench_on_kafka(goals: Goals) -> list[Curve]:
    """Run the cases, print their table, and hold it against the goals of the simulation."""
    curves, rows, p99_s = [], [], {}
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="reel-fairness-") as name:
            waits_s, num_ended = Run(Path(name), case).measure()
        kind = "fair" if case.is_fair else "FIFO"
        at_once = "-at-once" if case.is_at_once else ""
        curves.append(Curve(f"kafka-{case.flood or 'nobody'}{at_once}", kind, waits_s))
        p99_s[case] = percentile(waits_s, 0.99)
        figures = (percentile(waits_s, 0.5), p99_s[case])
        rows.append([str(case), *(f"{each:.2f}" for each in figures), str(num_ended)])
    print(
        f"Apache Kafka, {PARTITIONS} partitions, {SAMPLERS} samplers, {JOB_S:g} s a job, a flood "
        f"of {100 * CAPACITY:g} requests a second for {STREAM_S:g} s: how long "
        f"{len(curves[0].waits_s)} enterprise jobs of others waited"
    )
    print_table(["what", "median s", "p99 s", "all sampled"], rows)
    step_s = JOB_S / NUM_STEPS
    goals.at_most("kafka_p99_wait_free_floods_s", p99_s[FREE], 1.2 * p99_s[IDLE] + step_s)
    goals.at_most("kafka_p99_wait_enterprise_floods_s", p99_s[ENTERPRISE], 2 * p99_s[IDLE])
    return curves


class Run:
    """A broker and workers of one run."""

    def __init__(self, folder: Path, case: Case) -> None:
        self._folder, self._case = folder, case
        self._ended: dict[str, datetime] = {}

    def measure(self) -> tuple[list[float], int]:
        """Waits of other enterprise jobs, ascending; how many jobs of all were sampled."""
        with ApacheKafka(self._folder / "kafka", home=read_settings().home) as broker:
            settings = Settings(
                home=self._folder, bootstrap=broker.bootstrap, partitions=PARTITIONS, batch_age_ms=0
            )
            if not self._case.is_fair:
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
                came = self._stream(producer, tail)
                end_s = time.monotonic() + SETTLE_S
                while time.monotonic() < end_s and not came.keys() <= self._ended.keys():
                    self._read(tail)
                ended = datetime.now(UTC)
        waits_s = [
            (self._ended.get(name, ended) - at).total_seconds() - JOB_S
            for name, at in came.items()
            if name.startswith("enterprise")
        ]
        return sorted(waits_s), len(self._ended)

    def _warm_up(self, producer: Producer, tail: Tail) -> None:
        """A job in each partition, so that all are held and what a job costs is learned."""
        for number in range(PARTITIONS):
            arrival = Arrival(0.0, "free", "warm", f"warm-{number}", JOB_S)
            self._send(producer, arrival, partition=number)
        give_up_s = time.monotonic() + START_S
        while len(self._ended) < PARTITIONS:
            assert time.monotonic() < give_up_s, f"workers have not begun: {self._logs()}"
            producer.poll(0)
            self._read(tail)

    def _stream(self, producer: Producer, tail: Tail) -> dict[str, datetime]:
        """Write all jobs as they come, and say when those of others than the flood did."""
        came: dict[str, datetime] = {}
        start_s = time.monotonic()
        for arrival in merged([quiet(), self._flood()]):
            while time.monotonic() < start_s + arrival.at_s:
                self._read(tail)
                producer.poll(0)
            if arrival.tenant_id != FLOOD:
                came[arrival.job_id] = datetime.now(UTC)
            self._send(producer, arrival)
        assert producer.flush(START_S) == 0, "the broker took everything"
        return came

    def _flood(self) -> Iterator[Arrival]:
        tier, is_at_once = self._case.flood, self._case.is_at_once
        if tier is not None:
            per_s = 100 * CAPACITY
            for number in range(NUM_AT_ONCE if is_at_once else int(per_s * STREAM_S)):
                at_s = 0.0 if is_at_once else number / per_s
                yield Arrival(at_s, tier, FLOOD, f"{FLOOD}-{number}", JOB_S)

    def _send(self, producer: Producer, arrival: Arrival, partition: int | None = None) -> None:
        if partition is None:
            partition = partition_of_job(
                arrival.tier, arrival.tenant_id, arrival.job_id, PARTITIONS
            )
        now = datetime.now(UTC)
        tier, tenant_id = (arrival.tier, arrival.tenant_id) if self._case.is_fair else PAYER_OF_ALL
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
            self._ended.setdefault(record.job.job_id, record.timings[-1].finished_at)

    @contextmanager
    def _workers(self, settings: Settings) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
        workers = []
        names = [each.name for each in worker_stages()]
        try:
            for number, name in enumerate([*names, *[SAMPLER.name] * (SAMPLERS - 1)]):
                is_sampler = name == SAMPLER.name
                one = {"step_rows_max": 1} if is_sampler else {}
                environment = python_environment(settings.model_dump(exclude_defaults=True) | one)
                time_and_steps = [str(JOB_S), str(NUM_STEPS)] if is_sampler else []
                argv = [sys.executable, "-m", "tests.echo", name, *time_and_steps]
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
        arrivals_of(rng, tier, f"{tier}-{number}", CAPACITY * load / 8, STREAM_S, JOB_S)
        for tier, load in LOADS.items()
        for number in range(8)
    )
