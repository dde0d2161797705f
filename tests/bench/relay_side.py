"""One side of `make bench-relay` in a process of its own: our worker, or a bare loop beside it.

`python -m tests.bench.relay_side PLAN` (a `Plan` as JSON) relays `plan.total` records and prints a
`Figures` as JSON. CPU time is the whole process's, threads included, between the record
`plan.first` and the record `plan.last`, so neither start-up nor the end of the topic counts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from schemas.cloudevents import event_headers
from schemas.codec import Codec
from schemas.records import BlobRef, GenerationRequest, Job, JobEvent, StageTiming, VideoDone
from streams import topology
from streams.blobs.base import BlobStore, Found, open_store
from streams.client.connection import Connection
from streams.client.subscription import subscribe
from streams.core.events import Acknowledged, Command, Commit, Event, Produce
from streams.kafka.config import consumer_config, producer_config
from streams.monitor.health import Health
from streams.monitor.logs import configure_logs
from streams.runner import StageRunner, Watch
from streams.settings import Settings, read_settings
from streams.topology import JOB_EVENTS, Stage
from tests.echo import echo, job_of, next_record
from workers.engine import RowEngine
from workers.fenced import FencedWork
from workers.main import Worker

BARE = "bare."
"""Before the names of the groups and topics of the bare side."""

_SOME_BLOB = BlobRef("file:///nowhere/acme/job/1/stage/" + 64 * "0", 64 * "0", 24, "text/plain")
_FETCH = 100  # records that a subscriber takes at once, as ours does


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What one process relays. `batch`: records between two commits of the bare side."""

    side: str
    stage: str
    total: int
    first: int
    last: int
    batch: int = 1
    has_fences: bool = False  # in the store of the settings
    has_events: bool = False  # `jobs.events` are written


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What was measured between the first and the last record."""

    cpu_us: float  # a record
    wall_us: float  # a record
    commits: int
    produces: int
    num_records: int


class Meter:
    """Counts finished records; reads the clocks at the plan's first and last."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.num_done = self.commits = self.produces = 0
        self._marks: list[tuple[float, float, int, int]] = []

    @property
    def is_over(self) -> bool:
        """Whether all is relayed."""
        return self.num_done >= self._plan.total

    def done(self) -> None:
        """One record is acknowledged."""
        self.num_done += 1
        if self.num_done in (self._plan.first, self._plan.last):
            clocks = time.process_time(), time.perf_counter()
            self._marks.append((*clocks, self.commits, self.produces))

    def figures(self) -> Figures:
        """What lay between the two marks."""
        begun, ended = self._marks
        num_records = self._plan.last - self._plan.first
        return Figures(
            1e6 * (ended[0] - begun[0]) / num_records,
            1e6 * (ended[1] - begun[1]) / num_records,
            ended[2] - begun[2],
            ended[3] - begun[3],
            num_records,
        )


# ---- ours


class NoStore:
    """A BlobStore that keeps nothing: fences are always won, blobs are always the same one."""

    root_uri = "file:///nowhere"

    def put(self, prefix: str, data: Iterable[bytes], media_type: str) -> BlobRef:
        return _SOME_BLOB

    def get(self, ref: BlobRef) -> Iterator[bytes]:
        return iter((b"",))

    def read(self, ref: BlobRef, max_bytes: int) -> bytes:
        return b""

    def verify(self, ref: BlobRef) -> bool:
        return True

    def create(self, key: str, body: bytes) -> bytes:
        return body

    def load(self, key: str) -> bytes | None:
        return None

    def walk(self, prefix: str) -> Iterator[Found]:
        return iter(())

    def remove(self, key: str) -> None:
        """Nothing is there."""


class MeteredWatch:
    """The worker's own watch, and the meter."""

    def __init__(self, watch: Watch, meter: Meter, drain: Callable[[], None]) -> None:
        self._watch, self._meter, self._drain = watch, meter, drain
        self.turned = watch.turned

    def event(self, event: Event) -> None:
        self._watch.event(event)
        if type(event) is Acknowledged:
            self._meter.done()
            if self._meter.is_over:
                self._drain()

    def command(self, command: Command) -> None:
        self._watch.command(command)
        if type(command) is Produce:
            self._meter.produces += 1
        elif type(command) is Commit:
            self._meter.commits += 1


class MeteredWorker(Worker):
    """The real worker, with a meter, and with no store where fences are off."""

    def __init__(self, plan: Plan, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings, f"{socket.gethostname()}:bench", echo(0.0))
        self.meter = Meter(plan)
        if not plan.has_fences:
            self.store: BlobStore = NoStore()

    def _join(self, engine: RowEngine, fenced: FencedWork, health: Health) -> StageRunner:
        runner = super()._join(engine, fenced, health)
        runner.watch = MeteredWatch(runner.watch, self.meter, runner.drain)
        return runner


def ours(plan: Plan, stage: Stage, settings: Settings) -> Figures:
    """A whole worker with work of no effort, or the client's subscription."""
    if not stage.is_worker:
        return asyncio.run(_our_subscriber(plan, stage, settings))
    configure_logs(stage=stage.name)
    worker = MeteredWorker(plan, stage, settings)
    with ExitStack() as stack:
        if not plan.has_events:
            stack.enter_context(patch.object(RowEngine, "_announce", lambda *_, **__: None))
        worker.run()
    return worker.meter.figures()


async def _our_subscriber(plan: Plan, stage: Stage, settings: Settings) -> Figures:
    meter = Meter(plan)
    endings = subscribe(Connection(settings.bootstrap), Codec(), stage.group, from_beginning=True)
    async for _ in endings:
        meter.done()
        if meter.is_over:
            break
    await endings.aclose()
    return meter.figures()


# ---- bare


class BareLoop:
    """Consume a batch, decode, encode, produce, wait for the acknowledgements, commit."""

    def __init__(self, plan: Plan, stage: Stage, settings: Settings) -> None:
        self._plan, self._stage = plan, stage
        self.meter = Meter(plan)
        self._codec = Codec()
        self._store = open_store(
            settings.blobs_uri, endpoint=settings.s3_endpoint,
            access_key=settings.s3_access_key, secret_key=settings.s3_secret_key,
        ) if plan.has_fences else None  # fmt: skip
        group = BARE + stage.group
        self._consumer = Consumer(
            consumer_config(settings, group, group)
            | {"auto.offset.reset": "earliest", "on_commit": lambda *_: None}
        )
        self._producer = Producer(producer_config(settings, group))

    def run(self) -> Figures:
        """Relay all of the plan's records."""
        self._consumer.subscribe([self._stage.reads])
        batch = self._plan.batch if self._stage.is_worker else _FETCH
        while not self.meter.is_over:
            messages = [m for m in self._consumer.consume(batch, 0.1) if m.error() is None]
            if not messages:
                continue
            for message in messages:
                if self._stage.is_worker:
                    self._relay(message, len(messages))
                else:
                    self._codec.decode(message.value(), VideoDone)
                    self.meter.done()
            self._producer.flush()
            self._commit(messages)
        self._producer.flush()
        self._consumer.close()
        return self.meter.figures()

    def _relay(self, message: Message, batch_size: int) -> None:
        stage, partition = self._stage, message.partition()
        headers: Any = message.headers() or ()
        assert partition is not None
        record: Any = self._codec.decode(message.value(), stage.reads_record)
        job = record if isinstance(record, GenerationRequest) else record.job
        self._ask_fences(job)
        started_at = datetime.now(UTC)
        if self._plan.has_events:
            self._announce(job, partition, headers, "started", "started")
            self._announce(job, partition, headers, "progress", "progress-1")
        timing = StageTiming(stage.name, started_at, datetime.now(UTC), 0.0, batch_size, "bench")
        made = self._next(record, partition, timing)
        body = self._codec.encode(made)
        if self._store is not None:
            name = "outcome" if isinstance(made, VideoDone) else f"{stage.name}/result.1"
            self._store.create(f"{job.tenant_id}/{job.job_id}/{job.run}/{name}", body)
        is_done = isinstance(made, VideoDone)
        written = event_headers(
            type(made).__name__, job_id=job.job_id, run=job.run, stage=stage.name,
            outcome="completed" if is_done else "done", time=timing.finished_at,
            deadline=None if is_done else job.deadline, cause=headers, partition_key=job.job_id,
        )  # fmt: skip
        assert stage.writes is not None
        self._produce(BARE + stage.writes, body, job.job_id, partition, written, self._acknowledged)

    def _next(self, record: Any, partition: int, timing: StageTiming) -> Any:
        is_first = isinstance(record, GenerationRequest)
        job: Job = job_of(record, partition) if is_first else record.job
        timings = (timing,) if is_first else (*record.timings, timing)
        blob, stage = _SOME_BLOB, self._stage.name
        if self._store is not None:
            prefix = f"{job.tenant_id}/{job.job_id}/{job.run}/{stage}"
            blob = self._store.put(prefix, [f"{stage} {job.job_id}".encode()], "text/plain")
        return next_record(stage, record, job, blob, timings)

    def _ask_fences(self, job: Any) -> None:
        """Has the run ended, has this stage its result: as at every delivery."""
        if self._store is not None:
            run = f"{job.tenant_id}/{job.job_id}/{job.run}"
            self._store.load(f"{run}/outcome")
            self._store.load(f"{run}/{self._stage.name}/result.1")

    def _announce(self, job: Any, partition: int, cause: Any, kind: str, word: str) -> None:
        stage, now = self._stage.name, datetime.now(UTC)
        event = JobEvent(job.job_id, job.run, job.tenant_id, stage, kind, now, "bench")
        headers = event_headers(
            "JobEvent", job_id=job.job_id, run=job.run, stage=stage, outcome=word, time=now,
            deadline=None, cause=cause, partition_key=job.job_id,
        )  # fmt: skip
        body = self._codec.encode(event)
        self._produce(BARE + JOB_EVENTS, body, job.job_id, partition, headers, lambda *_: None)

    def _produce(
        self, topic: str, body: bytes, key: str, partition: int, headers: Any, answered: Any
    ) -> None:
        self._producer.produce(topic, body, key, partition, answered, headers=headers)

    def _acknowledged(self, error: object, _message: Message) -> None:
        assert error is None, error
        self.meter.produces += 1
        self.meter.done()

    def _commit(self, messages: list[Message]) -> None:
        behind: Counter[tuple[str, int]] = Counter()
        for message in messages:
            behind[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
        points = [TopicPartition(*place, offset) for place, offset in behind.items()]
        self._consumer.commit(offsets=points, asynchronous=True)
        self.meter.commits += 1


def main(arguments: list[str]) -> int:
    """Relay as the plan says; print the figures."""
    plan = Plan(**json.loads(arguments[0]))
    stage, settings = topology.stage(plan.stage), read_settings()
    if plan.side == "ours":
        figures = ours(plan, stage, settings)
    else:
        figures = BareLoop(plan, stage, settings).run()
    print(json.dumps(dataclasses.asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
