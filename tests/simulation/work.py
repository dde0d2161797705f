"""What the stages do: the echo of each record, unless the plan of its job says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.records import (
    CleanedPrompt,
    FrameChunk,
    FramesDecoded,
    GenerationRequest,
    Job,
    LatentsReady,
    Record,
    StageTiming,
    VideoDone,
)
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences, blob_prefix
from streams.blobs.named import blobs_of
from streams.claims import claim_request
from streams.core.fair_queue import Charge
from streams.core.tiers import OFF_PEAK, partition_of_job
from streams.engine import Task
from streams.errors import InvalidRecord, Rejected
from streams.topology import Stage
from tests.simulation.plan import NUM_PARTITIONS, JobPlan
from workers.stage_work import Report

START = datetime(2026, 1, 1, tzinfo=UTC)
START_S = START.timestamp()

_LONGEST_RUN_S = 50_000.0  # of what names no deadline

Effect = Callable[[str, int], Exception | None]
"""What working a run of a job does: nothing, or that; the process may die of it."""

_homes: dict[str, int] = {}


def home(job_id: str) -> int:
    """The partition that a job belongs to."""
    if job_id not in _homes:
        _homes[job_id] = partition_of_job(
            tier_of(job_id), tenant_of(job_id), job_id, NUM_PARTITIONS
        )
    return _homes[job_id]


def tier_of(job_id: str) -> str:
    """Most jobs share a tier, so that partitions hold several."""
    return ("pro", "pro", "enterprise", "free")[_number(job_id) % 4]


def place(request: GenerationRequest) -> int:
    """The partition that a request belongs to."""
    return home(request.job_id)


def tenant_of(job_id: str) -> str:
    """Two tenants share the jobs."""
    return ("acme", "bolt")[_number(job_id) % 2]


def _number(job_id: str) -> int:
    return int(job_id.rpartition("-")[2])


def request_of(job: JobPlan, is_conflict: bool = False) -> GenerationRequest:
    """The request of a job, or another one under the same id."""
    created_at = START + timedelta(seconds=job.at_s)
    return GenerationRequest(
        job_id=job.job_id,
        tenant_id=tenant_of(job.job_id),
        prompt="another" if is_conflict else "a red circle",
        created_at=created_at,
        tier=tier_of(job.job_id),
        deadline=None if job.deadline_s is None else created_at + timedelta(seconds=job.deadline_s),
        is_deferrable=job.is_deferrable,
    )


class SimulatedWork:
    """Implements `StageWork`; `compute` gets the tasks themselves."""

    def __init__(
        self, stage: Stage, store: BlobStore, jobs: dict[str, JobPlan], effect: Effect,
        probe: Callable[[], None],
    ) -> None:  # fmt: skip
        self.stage, self._store, self._jobs = stage.name, store, jobs
        self._fences = Fences(store)
        self._effect, self._probe = effect, probe

    def load(self) -> None:
        """Nothing to load."""

    def batch_key(self, task: Task) -> Hashable:
        """Two keys, so that not everything goes together."""
        job_id = _job(task).job_id
        plan = self._jobs[job_id]
        if self.stage == "prompt" and plan.behaviour == "rejected":
            raise Rejected("not this one", reason_code="planned_refusal")
        if self.stage == plan.stage and plan.behaviour == "invalid":
            raise InvalidRecord("never this one", reason_code="planned_invalid")
        return plan.number % 3 == 0

    def job(self, task: Task) -> Job:
        """As the prompt stage admits it."""
        self.batch_key(task)
        return _admitted(task.record)

    def begin(self, task: Task) -> Task:
        """The prompt stage claims the job id."""
        if self.stage != "prompt":
            return task
        claim = claim_request(self._fences, task.record, task.value or b"", task.partition)
        return replace(task, partition=claim.partition)

    def fetch(self, task: Task) -> Any:
        """Read the inputs, as every stage does."""
        if self.stage != "prompt":
            for ref in blobs_of(task.record):
                self._store.read(ref, max_bytes=1000)
        return task

    def compute(self, batch: Sequence[Any], report: Report) -> Sequence[Any]:
        """Each row's task again, or what it fails with."""
        results = []
        for task in batch:
            job = _job(task)
            results.append(self._effect(job.job_id, job.run) or task)
        report(1, 1)
        return results

    def store(self, task: Task, result: Any, timing: StageTiming) -> Record:
        """The next stage's record and its blob."""
        record = task.record
        if self.stage == "prompt":
            job, timings = _admitted(record), (timing,)
        else:
            job, timings = record.job, (*record.timings, timing)
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, self.stage)
        blob = self._store.put(prefix, [f"{self.stage} {job.job_id}".encode()], "text/plain")
        match self.stage:
            case "prompt":
                return CleanedPrompt(job, record.prompt, "", "unchecked", blob, 32, timings=timings)
            case "sampler":
                return LatentsReady(job, blob, "CTHW", True, 1, {}, timings)
            case "decoder":
                return FramesDecoded(job, (FrameChunk(blob, 0, 1),), timings=timings)
        return VideoDone(
            job.job_id, job.run, job.tenant_id, "completed", job.partition, job.created_at,
            timing.finished_at, tier=job.tier, video=blob, ended_by=self.stage, timings=timings,
        )  # fmt: skip

    def probe(self) -> None:
        """Fails where the device is sick."""
        self._probe()


def charge_of(task: Task) -> Charge:
    """Tenants share what there is; some jobs cost more."""
    job = _job(task)
    tier = OFF_PEAK if job.is_deferrable else tier_of(job.job_id)
    return Charge(tier, job.tenant_id, 1.0 + _number(job.job_id) % 3)


def _job(task: Task) -> Any:
    record = task.record
    return record if isinstance(record, GenerationRequest) else record.job


def _admitted(request: GenerationRequest) -> Job:
    deadline = request.deadline or request.created_at + timedelta(seconds=_LONGEST_RUN_S)
    return Job(
        request.job_id, request.run, request.tenant_id, request.tier or "", place(request), "echo",
        "0", 1, 16, 16, 8, 1, 1.0, 0, request.created_at, deadline,
        is_deferrable=request.is_deferrable,
    )  # fmt: skip
