"""Records, tasks and core events with defaults, so that a test names only what it is about."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.codec import Codec
from schemas.records import (
    BlobRef,
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
from streams import topology
from streams.core.events import (
    Delivered,
    Ending,
    Fate,
    Fault,
    Output,
    StartOffset,
    Ticket,
    TopicPartition,
    Work,
)
from streams.core.offset_map import OffsetMap
from streams.engine import Task

CREATED_AT = datetime(2025, 6, 7, 8, 9, 10, tzinfo=UTC)
DEADLINE = datetime(2125, 6, 7, 8, 9, 10, tzinfo=UTC)
"""Far enough that no test outlives it."""

P0, P1 = TopicPartition("prompts.cleaned", 0), TopicPartition("prompts.cleaned", 1)


# ---- records


def a_request(**changes: Any) -> GenerationRequest:
    """A request of tenant `acme`, tier `pro`, with all sizes named."""
    request = GenerationRequest(
        job_id="job-1",
        tenant_id="acme",
        prompt="a red circle moving right",
        created_at=CREATED_AT,
        tier="pro",
        num_frames=5,
        width_px=64,
        height_px=64,
        fps=8,
        num_inference_steps=2,
        guidance_scale=1.0,
        seed=7,
        deadline=DEADLINE,
    )
    return dataclasses.replace(request, **changes)


def a_job(**changes: Any) -> Job:
    """The job of `a_request`: 5 frames of 64x64, two steps, unguided."""
    job = Job(
        job_id="job-1",
        run=1,
        tenant_id="acme",
        tier="pro",
        partition=13,
        model="tiny-wan",
        model_version="0f" * 32,
        num_frames=5,
        width_px=64,
        height_px=64,
        fps=8,
        num_inference_steps=2,
        guidance_scale=1.0,
        seed=7,
        created_at=CREATED_AT,
        deadline=DEADLINE,
    )
    return dataclasses.replace(job, **changes)


def a_blob(**changes: Any) -> BlobRef:
    """A reference to a blob that no store holds."""
    blob = BlobRef(
        uri="file:///nowhere/acme/job-1/1/sampler/" + "5a" * 32,
        sha256="5a" * 32,
        size_bytes=1000,
        media_type="application/vnd.safetensors",
    )
    return dataclasses.replace(blob, **changes)


def a_timing(**changes: Any) -> StageTiming:
    """Two seconds in the sampler, alone."""
    timing = StageTiming(
        "sampler", CREATED_AT, CREATED_AT + timedelta(seconds=2), 2.0, 1, "worker-1"
    )
    return dataclasses.replace(timing, **changes)


def a_cleaned_prompt(**changes: Any) -> CleanedPrompt:
    """What the prompt stage makes of `a_request`."""
    record = CleanedPrompt(
        job=a_job(),
        prompt="a red circle moving right",
        negative_prompt="",
        safety_verdict="allowed",
        conditioning=a_blob(),
        text_pad_length=32,
        timings=(a_timing(stage="prompt"),),
    )
    return dataclasses.replace(record, **changes)


def a_latents_ready(**changes: Any) -> LatentsReady:
    """What the sampler makes of `a_cleaned_prompt`."""
    record = LatentsReady(
        job=a_job(),
        latents=a_blob(),
        layout="CTHW",
        is_normalised=True,
        num_latent_frames=2,
        timings=(a_timing(stage="prompt"), a_timing()),
    )
    return dataclasses.replace(record, **changes)


def a_frames_decoded(**changes: Any) -> FramesDecoded:
    """What the decoder makes of `a_latents_ready`: one chunk."""
    record = FramesDecoded(
        job=a_job(),
        chunks=(FrameChunk(a_blob(), 0, 5),),
        timings=(a_timing(stage="prompt"), a_timing(), a_timing(stage="decoder")),
    )
    return dataclasses.replace(record, **changes)


def a_video_done(**changes: Any) -> VideoDone:
    """How the run of `a_job` ended: completed."""
    job = a_job()
    record = VideoDone(
        job_id=job.job_id,
        run=job.run,
        tenant_id=job.tenant_id,
        status="completed",
        partition=job.partition,
        created_at=job.created_at,
        finished_at=job.created_at + timedelta(seconds=9),
        tier=job.tier,
        ended_by="finisher",
        video=a_blob(media_type="video/mp4"),
        thumbnail=a_blob(media_type="image/jpeg"),
        model=job.model,
        model_version=job.model_version,
        num_frames=job.num_frames,
        width_px=job.width_px,
        height_px=job.height_px,
        fps=job.fps,
        seed=job.seed,
    )
    return dataclasses.replace(record, **changes)


def a_task(record: Record | None = None, codec: Codec | None = None, **changes: Any) -> Task:
    """A record as its stage's consumer delivers it, encoded; by default `a_cleaned_prompt`."""
    record = a_cleaned_prompt() if record is None else record
    topics = {each.reads_record: each.reads for each in topology.STAGES}
    if isinstance(record, GenerationRequest):
        job_id, partition = record.job_id, 13
    else:
        job: Any = getattr(record, "job", record)
        job_id, partition = job.job_id, job.partition
    task = Task(
        record=record,
        partition=partition,
        value=(codec or Codec()).encode(record),
        topic=topics[type(record)],
        offset=0,
        key=job_id.encode(),
        timestamp_ms=int(CREATED_AT.timestamp() * 1000),
    )
    return dataclasses.replace(task, **changes)


# ---- core


def a_work(job_id: str | None = "job-1", **changes: Any) -> Work:
    """Work of batch key `64x64` without a deadline and with an opaque payload."""
    return dataclasses.replace(Work(job_id, 1, "64x64", None, "payload"), **changes)


def a_ticket(offset: int = 0, partition: TopicPartition = P0, assignment_epoch: int = 1) -> Ticket:
    """The ticket of a record in the first assignment."""
    return Ticket(partition, offset, assignment_epoch)


def a_delivery(
    offset: int = 0,
    job_id: str | None = None,
    partition: TopicPartition = P0,
    verdict: Fault | Ending | None = None,
    **changes: Any,
) -> Delivered:
    """A delivered record; without a job id it is a job of its own, `job-<partition>-<offset>`."""
    work = a_work(job_id or f"job-{partition.partition}-{offset}", **changes)
    return Delivered(partition, offset, work, verdict)


def a_start_offset(offset: int = 0, is_committed: bool = True) -> StartOffset:
    """Reading begins where the group had committed."""
    return StartOffset(OffsetMap(offset), is_committed)


def an_output(text: str = "next", **changes: Any) -> Output:
    """A record for the next stage's topic."""
    output = Output("latents.ready", 0, b"job-1", text.encode(), ())
    return dataclasses.replace(output, **changes)


def a_fault(**changes: Any) -> Fault:
    """A dead letter that ends its job."""
    return dataclasses.replace(Fault(Fate.DEAD_LETTER, "bad", "it is bad"), **changes)
