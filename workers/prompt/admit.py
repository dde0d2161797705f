"""A request becomes a job, or is rejected with a reason: pure, and the same at every delivery."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from schemas.records import GenerationRequest, Job
from streams.core.tiers import tier_of
from streams.errors import Rejected
from workers.models.card import ModelCard

MAX_SEED = 2**63 - 1
#: What a request may allow to be let go of.
DEGRADATIONS = frozenset({"fewer_steps", "distilled_model", "smaller"})


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """What a deployment allows, beside the model's own limits. `tenants` None: all are welcome."""

    tiers: tuple[str, ...]
    default_tier: str
    tenants: Mapping[str, str] | None
    deadline_s: float
    max_prompt_chars: int = 2000
    max_guidance_scale: float = 50.0
    max_fps: int = 120


def admit(
    request: GenerationRequest, partition: int, card: ModelCard, rules: AdmissionRules
) -> Job:
    """The job of a request, defaults filled in. Depends on nothing but its arguments.

    Raises:
        Rejected: a value is out of bounds; the reason code says which.
    """
    job = Job(
        job_id=request.job_id,
        run=request.run,
        tenant_id=request.tenant_id,
        tier=_tier(request, rules),
        partition=partition,
        model=card.name if request.model is None else request.model,
        model_version=card.version,
        num_frames=_or(request.num_frames, card.num_frames),
        width_px=_or(request.width_px, card.width_px),
        height_px=_or(request.height_px, card.height_px),
        fps=_or(request.fps, card.fps),
        num_inference_steps=_or(request.num_inference_steps, card.num_inference_steps),
        guidance_scale=(
            card.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        seed=seed_of(request.job_id) if request.seed is None else request.seed,
        created_at=request.created_at,
        deadline=_deadline(request, rules),
        is_deferrable=request.is_deferrable,
    )
    if unknown := set(request.allowed_degradations) - DEGRADATIONS:
        raise Rejected(
            f"no degradation {min(unknown)[:64]!r}: want {' or '.join(sorted(DEGRADATIONS))}",
            reason_code="unknown_degradation",
        )
    _check_text(request, card, rules)
    _check_shape(job, card)
    _check_sampling(job, card, rules)
    return job


def degraded(
    job: Job, degradations: tuple[str, ...], card: ModelCard, distilled: ModelCard | None = None
) -> Job:
    """The job with half the steps, half the width and height, or the distilled model's steps and
    guidance, as it was decided. A model that takes no negative prompt is given none.

    Raises:
        Rejected: the model makes nothing so small, or takes no fewer steps; no distilled one, or
            none that does less.
    """
    if not degradations:
        return job
    width_px, height_px, num_steps = job.width_px, job.height_px, job.num_inference_steps
    guidance_scale = job.guidance_scale
    if "distilled_model" in degradations:
        if distilled is None or job.model_version == distilled.version:
            raise Rejected("there is no distilled model", reason_code="no_distilled_model")
        num_rows_before = num_steps * _num_rows(job, card)
        card, guidance_scale = distilled, distilled.guidance_scale
        num_steps = min(num_steps, distilled.num_inference_steps)
        moved = replace(job, guidance_scale=guidance_scale)
        if num_steps * _num_rows(moved, card) >= num_rows_before:
            raise Rejected("the distilled model is no faster", reason_code="no_distilled_model")
    if "fewer_steps" in degradations:
        num_steps //= 2
    if "smaller" in degradations:
        unit = card.size_multiple_px
        width_px, height_px = width_px // 2 // unit * unit, height_px // 2 // unit * unit
    less = replace(
        job, model=card.name, model_version=card.version, width_px=width_px, height_px=height_px,
        num_inference_steps=num_steps, guidance_scale=guidance_scale, degradations=degradations,
    )  # fmt: skip
    _check_shape(less, card)
    if num_steps < card.min_num_inference_steps:
        raise Rejected(f"{num_steps} steps are too few", reason_code="invalid_steps")
    return less


def _num_rows(job: Job, card: ModelCard) -> int:
    return 2 if card.is_guided(job) else 1


def clean_prompt(text: str) -> str:
    """The prompt in NFC, without control characters, white space folded to single spaces.

    >>> clean_prompt(" a red\\x00 circle \\n moving  right ")
    'a red circle moving right'
    """
    kept = "".join(
        letter if unicodedata.category(letter)[0] != "C" or letter.isspace() else ""
        for letter in unicodedata.normalize("NFC", text)
    )
    return " ".join(kept.split())


def seed_of(job_id: str) -> int:
    """The seed of a job that names none: the same at every delivery, 0 .. 2**63 - 1."""
    return int.from_bytes(hashlib.sha256(f"seed:{job_id}".encode()).digest()[:8], "big") >> 1


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _tier(request: GenerationRequest, rules: AdmissionRules) -> str:
    tier = tier_of(request.tenant_id, request.tier, rules.tenants, rules.default_tier)
    if tier is None:
        raise Rejected(f"no such tenant: {request.tenant_id}", reason_code="unknown_tenant")
    if tier not in rules.tiers:
        raise Rejected(f"no such tier: want {', '.join(rules.tiers)}", reason_code="unknown_tier")
    return tier


def _deadline(request: GenerationRequest, rules: AdmissionRules) -> datetime:
    try:
        latest = request.created_at + timedelta(seconds=rules.deadline_s)
    except OverflowError as error:
        raise Rejected("created_at is too far away", reason_code="invalid_created_at") from error
    if request.deadline is not None and request.deadline > latest:
        raise Rejected(
            f"the deadline must be within {rules.deadline_s:g} s of created_at",
            reason_code="deadline_too_late",
        )
    return request.deadline or latest


def _check_text(request: GenerationRequest, card: ModelCard, rules: AdmissionRules) -> None:
    if request.negative_prompt and card.is_guidance_embedded:
        raise Rejected(
            f"{card.name} is distilled for guidance: it takes no negative prompt",
            reason_code="no_negative_prompt",
        )
    longest = max(len(request.prompt), len(request.negative_prompt))
    if longest > rules.max_prompt_chars:
        raise Rejected(
            f"a prompt of {longest} characters: at most {rules.max_prompt_chars}",
            reason_code="prompt_too_long",
        )


def _check_shape(job: Job, card: ModelCard) -> None:
    if job.model != card.name:
        raise Rejected(
            f"no model {job.model[:128]!r} here: this is {card.name}", reason_code="unknown_model"
        )
    unit = card.size_multiple_px
    if min(job.width_px, job.height_px) < unit or job.width_px % unit or job.height_px % unit:
        raise Rejected(
            f"{job.width_px}x{job.height_px}: both sides must be multiples of {unit}",
            reason_code="invalid_size",
        )
    widest_px, highest_px = card.max_width_px or job.width_px, card.max_height_px or job.height_px
    if job.width_px > widest_px or job.height_px > highest_px:
        raise Rejected(
            f"{job.width_px}x{job.height_px}: {card.name} goes to {widest_px}x{highest_px}",
            reason_code="invalid_size",
        )
    if job.width_px * job.height_px > card.max_frame_px:
        raise Rejected(
            f"{job.width_px}x{job.height_px}: at most {card.max_frame_px} pixels a frame",
            reason_code="invalid_size",
        )
    stride = card.frame_stride
    if not 1 <= job.num_frames <= card.max_num_frames or (job.num_frames - 1) % stride:
        raise Rejected(
            f"{job.num_frames} frames: want 1 more than a multiple of {stride}, "
            f"at most {card.max_num_frames}",
            reason_code="invalid_num_frames",
        )


def _check_sampling(job: Job, card: ModelCard, rules: AdmissionRules) -> None:
    fewest, most = card.min_num_inference_steps, card.max_num_inference_steps
    if not fewest <= job.num_inference_steps <= most:
        raise Rejected(
            f"{job.num_inference_steps} steps: want {fewest} to {most}",
            reason_code="invalid_steps",
        )
    if not (
        math.isfinite(job.guidance_scale) and 0 <= job.guidance_scale <= rules.max_guidance_scale
    ):
        raise Rejected(
            f"a guidance scale of {job.guidance_scale}: want 0 to {rules.max_guidance_scale}",
            reason_code="invalid_guidance",
        )
    if not 1 <= job.fps <= rules.max_fps:
        raise Rejected(f"{job.fps} fps: want 1 to {rules.max_fps}", reason_code="invalid_fps")
    if not 0 <= job.seed <= MAX_SEED:
        raise Rejected(f"a seed of {job.seed}: want 0 to {MAX_SEED}", reason_code="invalid_seed")
