"""Golden bytes: `<Record>.<version>.hex`, single-object encoding of SAMPLES in that version.

They hold the wire format still. `python -m tests.golden` writes the files that are missing, for a
version newly put into schemas/history; it never changes one that is there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from schemas.records import (
    BlobRef,
    CleanedPrompt,
    FrameChunk,
    FramesDecoded,
    GenerationRequest,
    Job,
    JobControl,
    JobEvent,
    JobState,
    LatentsReady,
    Record,
    StageControl,
    StageTiming,
    VideoDone,
)

FOLDER = Path(__file__).parent

_AT = datetime(2025, 6, 7, 8, 9, 10, 123456, tzinfo=UTC)
_LATER = datetime(2025, 6, 7, 9, 9, 10, 1, tzinfo=UTC)
_BLOB = BlobRef(
    uri="s3://reel/acme/job-1/1/sampler/" + "5a" * 32,
    sha256="5a" * 32,
    size_bytes=5_000_000_000,
    media_type="application/vnd.safetensors",
)
_TIMING = StageTiming("sampler", _AT, _LATER, 12.5, 4, "gpu-1:4242")
_JOB = Job(
    job_id="48e8a918213b6590aa0d1ca4f5bfe25a",
    run=2,
    tenant_id="acme",
    tier="pro",
    partition=23,
    model="tiny-wan",
    model_version="0f" * 32,
    num_frames=17,
    width_px=832,
    height_px=480,
    fps=16,
    num_inference_steps=30,
    guidance_scale=5.5,
    seed=2**40 + 1,
    created_at=_AT,
    deadline=_LATER,
)

SAMPLES: dict[str, Record | BlobRef] = {
    "BlobRef": _BLOB,
    "GenerationRequest": GenerationRequest(
        job_id=_JOB.job_id,
        tenant_id="acme",
        prompt="a red circle moving right, café ☕",
        created_at=_AT,
        negative_prompt="blurry",
        idempotency_key="order-7",
        tier="pro",
        model="tiny-wan",
        num_frames=17,
        width_px=832,
        height_px=480,
        fps=16,
        num_inference_steps=30,
        guidance_scale=5.5,
        seed=0,
        deadline=_LATER,
        run=2,
        is_deferrable=True,
        is_step_cached=True,
        allowed_degradations=("fewer_steps",),
    ),
    "CleanedPrompt": CleanedPrompt(
        job=_JOB,
        prompt="a red circle moving right",
        negative_prompt="",
        safety_verdict="allowed",
        conditioning=_BLOB,
        text_pad_length=512,
        is_step_cached=True,
        timings=(_TIMING,),
    ),
    "LatentsReady": LatentsReady(
        job=_JOB,
        latents=_BLOB,
        layout="CTHW",
        is_normalised=True,
        num_latent_frames=5,
        decode_parameters={"decode_timestep": 0.05},
        timings=(_TIMING, _TIMING),
    ),
    "FramesDecoded": FramesDecoded(
        job=_JOB,
        chunks=(FrameChunk(_BLOB, 0, 9), FrameChunk(_BLOB, 9, 8)),
        degradations=("vae_tiled",),
        timings=(_TIMING,),
    ),
    "VideoDone": VideoDone(
        job_id=_JOB.job_id,
        run=2,
        tenant_id="acme",
        status="expired",
        partition=23,
        created_at=_AT,
        finished_at=_LATER,
        tier="pro",
        reason_code="deadline",
        reason="the deadline passed",
        ended_by="sampler",
        video=_BLOB,
        thumbnail=_BLOB,
        model="tiny-wan",
        model_version="0f" * 32,
        num_frames=17,
        width_px=832,
        height_px=480,
        fps=16,
        seed=2**40 + 1,
        retry_at=_LATER,
        degradations=("vae_tiled",),
        cost_gpu_s=12.5,
        timings=(_TIMING,),
    ),
    "JobEvent": JobEvent(
        job_id=_JOB.job_id,
        run=2,
        tenant_id="acme",
        stage="sampler",
        kind="progress",
        at=_AT,
        worker="gpu-1:4242",
        try_number=3,
        step=7,
        num_steps=30,
        preview=_BLOB,
        batched_with=4,
        detail="resumed",
    ),
    "JobControl": JobControl(_JOB.job_id, 2, "new_deadline", _AT, "cli", _LATER, "acme"),
    "StageControl": StageControl("sampler", "paused", _AT, "cli", "new driver"),
    "JobState": JobState(
        job_id=_JOB.job_id,
        run=2,
        tenant_id="acme",
        status="running",
        version=2**33,
        created_at=_AT,
        updated_at=_LATER,
        tier="pro",
        stage="sampler",
        step=7,
        num_steps=30,
        reason_code="none",
        video=_BLOB,
    ),
}
"""One record of each kind with every field set; a new field is added here, no value is changed."""


def golden_bytes(name: str, version: int) -> bytes:
    """The bytes that the sample of `name` must have in `version`, today and ever after."""
    return bytes.fromhex((FOLDER / f"{name}.{version}.hex").read_text())
