"""A real worker without torch that sleeps, writes real bytes, keeps a ledger and dies when told.

`python -m tests.chaos.worker STAGE` runs one, configured like any worker. The loop, engine, fences,
Kafka clients and object store are the product's; only the computation is not. Of the environment:

    CHAOS_FOLDER    where the ledger and the armed failpoints lie (tests/chaos/ledger.py)
    CHAOS_SEED      decides how long each job takes and what bytes it makes
    CHAOS_WORK_MS   the mean of how long a job takes in a stage
    CHAOS_BUG       a bug to plant first (tests/chaos/planted.py)
    CHAOS_CLOCK_S   by so much its clock is fast
    CHAOS_SCHEMA    it writes records with that published version of their schemas
    CHAOS_REAL      the sampler's work is the real one, with the model in CHAOS_FOLDER/model
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schemas.records import GenerationRequest, Job, Record, StageTiming
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences, blob_prefix
from streams.blobs.named import blobs_of
from streams.claims import claim_request
from streams.core.events import Acknowledged, CommitPoint, Event, TopicPartition
from streams.engine import Task
from streams.errors import InvalidRecord, OutOfMemory, SickHost
from streams.runner import Dispatch, Sink, Source, StageRunner
from streams.settings import Settings
from streams.topology import Stage
from tests.chaos.ledger import POISONED, Ledger, is_held, is_ill, is_sick, is_tight
from tests.chaos.skew import FastClock, PublishedCodec, set_wall_clock
from tests.echo import EchoWork, job_of, next_record
from workers.engine import RowEngine
from workers.fenced import FencedWork
from workers.main import BuildWork, Worker, main
from workers.stage_work import Report, StageWork

MAX_BYTES = 64 * 1024
SLOW_S = 12.0  # longer than the poll interval of the suite's settings
TIGHT_ROWS = 2
MODEL = "model"


@dataclass(frozen=True, slots=True)
class Orders:
    """What the environment says."""

    folder: Path
    seed: int = 0
    work_s: float = 0.0
    clock_s: float = 0.0
    schema_version: int | None = None
    is_real: bool = False

    @property
    def model(self) -> Path:
        """Where the real sampler's model lies."""
        return self.folder / MODEL


def read_orders(environment: Mapping[str, str]) -> Orders:
    return Orders(
        Path(environment["CHAOS_FOLDER"]),
        int(environment.get("CHAOS_SEED", "0")),
        float(environment.get("CHAOS_WORK_MS", "0")) / 1000,
        float(environment.get("CHAOS_CLOCK_S", "0")),
        int(environment["CHAOS_SCHEMA"]) if "CHAOS_SCHEMA" in environment else None,
        "CHAOS_REAL" in environment,
    )


class ChaosWork(EchoWork):
    """Reads its inputs, sleeps, stores bytes of its own; all told by the seed and the job."""

    def __init__(self, stage: Stage, store: BlobStore, orders: Orders, ledger: Ledger) -> None:
        super().__init__(stage, store, batch_s=0.0)
        self._blobs, self._orders, self._ledger = store, orders, ledger
        self._claims = Fences(store)

    def begin(self, task: Task) -> Task:
        """Claims the job id, as the prompt stage must."""
        if not isinstance(task.record, GenerationRequest):
            return task
        claim = claim_request(self._claims, task.record, task.value or b"", task.partition)
        return replace(task, partition=claim.partition)

    def fetch(self, task: Task) -> Any:
        """The record, once every blob that it names has been read and found right."""
        for ref in blobs_of(task.record):
            self._blobs.read(ref, max_bytes=MAX_BYTES)
        job_ids = [job_id_of(task.record)]
        self._ledger.write("fetched", job_ids)
        self._ledger.passes("after-fetch", job_ids)
        return task.record

    def compute(self, batch: Sequence[Any], report: Report) -> Sequence[Any]:
        """Sleep for as long as the slowest takes, then do as the jobs' ids say."""
        job_ids = [job_id_of(record) for record in batch]
        self._ledger.write("worked", job_ids)
        self._suffer(len(batch))
        time.sleep(max(self._chance(each).uniform(0, 2 * self._orders.work_s) for each in job_ids))
        results = super().compute(batch, report)
        self._ledger.passes("after-work", job_ids)
        return results

    def _suffer(self, num_rows: int) -> None:
        """What ails this device just now, if anything does."""
        folder = self._orders.folder
        if is_sick(folder, self.stage):
            raise SickHost("the device is lost")
        if num_rows > TIGHT_ROWS and is_tight(folder):
            raise OutOfMemory("no memory for so many", {"rows": str(num_rows)})

    def _act(self, record: Any) -> Any:
        job_id = job_id_of(record)
        if job_id.startswith(f"slow.{self.stage}."):
            time.sleep(SLOW_S)
        while is_held(self._orders.folder, self.stage, job_id):
            time.sleep(0.1)
        if is_ill(self._orders.folder, self.stage, job_id):
            return InvalidRecord("not while it is poisoned", reason_code=POISONED)
        return super()._act(record)

    def store(self, task: Task, result: Any, timing: StageTiming) -> Record:
        """The next stage's record, with a blob of up to 32 KiB."""
        record = task.record
        job = self._new_job(task) if self.stage == "prompt" else record.job
        chance = self._chance(job.job_id)
        data = chance.randbytes(chance.randint(1, MAX_BYTES // 2))
        if self._orders.is_real and self.stage == "prompt":
            from tests.chaos.real_jobs import conditioning  # numpy: half a second of every start

            data = conditioning(chance)
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, self.stage)
        blob = self._blobs.put(prefix, [data], "application/octet-stream")
        self._ledger.write("stored", [job.job_id])
        self._ledger.passes("after-upload", [job.job_id])
        timings = (timing,) if self.stage == "prompt" else (*record.timings, timing)
        return next_record(self.stage, record, job, blob, timings)

    def _new_job(self, task: Task) -> Job:
        job = job_of(task.record, task.partition)
        if not self._orders.is_real:
            return job
        from tests.chaos.real_jobs import as_real

        return as_real(job, self._orders.model)

    def _chance(self, job_id: str) -> random.Random:
        return random.Random(f"{self._orders.seed}/{self.stage}/{job_id}")


class MortalSink:
    """The worker's sink; may die with an acknowledgement that nobody has heard of."""

    def __init__(self, sink: Sink, ledger: Ledger) -> None:
        self._sink, self._ledger = sink, ledger
        self.produce, self.announce, self.close = sink.produce, sink.announce, sink.close

    def poll(self, dispatch: Dispatch) -> None:
        """Hand on answers as events."""

        def heard(event: Event) -> None:
            if isinstance(event, Acknowledged):
                self._ledger.passes("after-produce")
            dispatch(event)

        self._sink.poll(heard)


class MortalSource:
    """The worker's source; may die before it commits."""

    def __init__(self, source: Source, ledger: Ledger) -> None:
        self._source, self._ledger = source, ledger
        self.poll, self.close = source.poll, source.close
        self.pause, self.resume = source.pause, source.resume

    def commit(self, points: Mapping[TopicPartition, CommitPoint], must_finish: bool) -> None:
        """Commit, unless told to die first."""
        self._ledger.passes("before-commit")
        self._source.commit(points, must_finish)


class ChaosWorker(Worker):
    """The product's worker, with a ledger between its loop and its clients."""

    ledger: Ledger
    orders: Orders

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.orders.clock_s:
            self.clock = FastClock(self.orders.clock_s)
        if self.orders.schema_version is not None:
            self.codec = PublishedCodec(self.orders.schema_version)

    def _join(self, engine: RowEngine, fenced: FencedWork, health: Any) -> StageRunner:
        runner = super()._join(engine, fenced, health)
        runner.sink = MortalSink(runner.sink, self.ledger)
        runner.source = MortalSource(runner.source, self.ledger)
        return runner


def job_id_of(record: Any) -> str:
    job = record if isinstance(record, GenerationRequest) else record.job
    return str(job.job_id)


def build(orders: Orders, ledger: Ledger) -> BuildWork:
    """Takes the place of `workers.main.build_work`."""

    def build(stage: Stage, settings: Settings, store: BlobStore) -> StageWork:
        if orders.is_real and stage.name == "sampler":
            from tests.chaos.real_sampler import RealSamplerWork

            return RealSamplerWork(orders.model, store, orders.work_s, ledger)
        return ChaosWork(stage, store, orders, ledger)

    return build


def run(arguments: list[str]) -> int:
    """One worker; its exit code."""
    orders = read_orders(os.environ)
    if bug := os.environ.get("CHAOS_BUG"):
        from tests.chaos.planted import BUGS

        BUGS[bug].plant()
    ledger = ChaosWorker.ledger = Ledger(orders.folder, arguments[0])
    ChaosWorker.orders = orders
    if orders.clock_s:
        set_wall_clock(orders.clock_s)
    return main(arguments, build(orders, ledger), ChaosWorker)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:2]))
