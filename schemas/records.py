"""The records of the pipeline: one frozen dataclass per `.avsc`, field for field.

The `.avsc` files are the source of truth; a test holds these classes equal to them. Times are
aware UTC datetimes with microseconds (Avro timestamp-micros).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Status = Literal["completed", "failed", "rejected", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Where bytes lie and what they are (claim check)."""

    uri: str
    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Job:
    """What every stage must know of the request; fixed by the prompt stage, carried unchanged."""

    job_id: str
    run: int
    tenant_id: str
    tier: str
    partition: int
    model: str
    model_version: str
    num_frames: int
    width_px: int
    height_px: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    created_at: datetime
    deadline: datetime
    is_deferrable: bool = False
    degradations: tuple[str, ...] = ()

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is on (two forward rows a step)."""
        return self.guidance_scale > 1.0


@dataclass(frozen=True, slots=True)
class StageTiming:
    """What one stage spent on one job."""

    stage: str
    started_at: datetime
    finished_at: datetime
    compute_s: float
    batch_size: int
    worker: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A client's wish for a video: topic `requests`. None means the default of model or tier."""

    job_id: str
    tenant_id: str
    prompt: str
    created_at: datetime
    negative_prompt: str = ""
    idempotency_key: str | None = None
    tier: str | None = None
    model: str | None = None
    num_frames: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    deadline: datetime | None = None
    run: int = 1
    is_deferrable: bool = False
    is_step_cached: bool = False
    allowed_degradations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CleanedPrompt:
    """An admitted request with its prompt encoded: topic `prompts.cleaned`."""

    job: Job
    prompt: str
    negative_prompt: str
    safety_verdict: str
    conditioning: BlobRef
    text_pad_length: int
    is_step_cached: bool = False
    timings: tuple[StageTiming, ...] = ()


@dataclass(frozen=True, slots=True)
class LatentsReady:
    """Denoised latents: topic `latents.ready`."""

    job: Job
    latents: BlobRef
    layout: str
    is_normalised: bool
    num_latent_frames: int
    decode_parameters: Mapping[str, float] = field(default_factory=dict)
    timings: tuple[StageTiming, ...] = ()


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """A window of consecutive frames."""

    blob: BlobRef
    first_frame: int
    num_frames: int


@dataclass(frozen=True, slots=True)
class FramesDecoded:
    """Decoded frames in chunks, in order, without gap or overlap: topic `frames.decoded`."""

    job: Job
    chunks: tuple[FrameChunk, ...]
    degradations: tuple[str, ...] = ()
    timings: tuple[StageTiming, ...] = ()


@dataclass(frozen=True, slots=True)
class VideoDone:
    """How a run of a job ended: topic `videos.done`."""

    job_id: str
    run: int
    tenant_id: str
    status: Status
    partition: int
    created_at: datetime
    finished_at: datetime
    tier: str | None = None
    reason_code: str | None = None
    reason: str | None = None
    ended_by: str | None = None
    video: BlobRef | None = None
    thumbnail: BlobRef | None = None
    model: str | None = None
    model_version: str | None = None
    num_frames: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    fps: int | None = None
    seed: int | None = None
    retry_at: datetime | None = None
    degradations: tuple[str, ...] = ()
    cost_gpu_s: float = 0.0
    timings: tuple[StageTiming, ...] = ()


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something happened to a job on its way, a hint: topic `jobs.events`."""

    job_id: str
    run: int
    tenant_id: str
    stage: str
    kind: str
    at: datetime
    worker: str
    try_number: int = 1
    step: int | None = None
    num_steps: int | None = None
    preview: BlobRef | None = None
    batched_with: int = 1
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class JobControl:
    """A wish about one run of a job: topic `jobs.control`, key `<job>/<run>/<kind>`."""

    job_id: str
    run: int
    kind: str
    issued_at: datetime
    issued_by: str
    deadline: datetime | None = None
    tenant_id: str | None = None


@dataclass(frozen=True, slots=True)
class StageControl:
    """Whether a stage takes records: topic `stages.control`, key = stage."""

    stage: str
    state: str
    issued_at: datetime
    issued_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as the job view has folded it: topic `jobs.state`, key = job id."""

    job_id: str
    run: int
    tenant_id: str
    status: str
    version: int
    created_at: datetime
    updated_at: datetime
    tier: str | None = None
    stage: str | None = None
    step: int | None = None
    num_steps: int | None = None
    reason_code: str | None = None
    video: BlobRef | None = None


Record = (
    GenerationRequest
    | CleanedPrompt
    | LatentsReady
    | FramesDecoded
    | VideoDone
    | JobEvent
    | JobControl
    | StageControl
    | JobState
)


def derive_job_id(tenant_id: str, idempotency_key: str) -> str:
    """The job id of (tenant, idempotency key): the same pair always names the same job.

    The first 32 hex digits of SHA-256 over the UTF-8 of tenant, one NUL, key.

    >>> derive_job_id("acme", "order-7")
    '48e8a918213b6590aa0d1ca4f5bfe25a'
    """
    return hashlib.sha256(f"{tenant_id}\0{idempotency_key}".encode()).hexdigest()[:32]
