"""Jobs that a real sampler takes, from a prompt stage without torch."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from schemas.records import Job
from streams.blobs import tensors
from workers.models.card import ModelCard, read_card, smallest_job
from workers.models.tiny import TEXT_PAD_LENGTH

NUM_STEPS = 25
_TEXT_DIM = 32  # of the tiny model


@cache
def _card(model: Path) -> ModelCard:
    return read_card(model)


def as_real(job: Job, model: Path) -> Job:
    """The same job, for that model: small, and of many steps."""
    card = _card(model)
    small = smallest_job(card)
    return replace(
        job, model=card.name, model_version=card.version, num_frames=small.num_frames,
        width_px=small.width_px, height_px=small.height_px, fps=small.fps,
        num_inference_steps=NUM_STEPS, guidance_scale=small.guidance_scale,
    )  # fmt: skip


def conditioning(chance: random.Random) -> bytes:
    """Prompt embeddings of the tiny model's shape, as the prompt stage stores them."""
    noise = np.random.default_rng(chance.getrandbits(32))
    shape = TEXT_PAD_LENGTH, _TEXT_DIM
    return tensors.dump({"prompt_embeds": noise.standard_normal(shape).astype(np.float32)})
