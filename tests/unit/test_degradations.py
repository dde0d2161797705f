"""What a job is made where it would miss its deadline, as its request allows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.codec import Codec
from schemas.records import GenerationRequest, Job
from streams.core.tiers import partition_of_job
from streams.engine import Task
from streams.errors import Rejected
from streams.settings import Settings
from streams.topology import REQUESTS
from tests.builders import a_job, a_request
from workers.models.card import ModelCard
from workers.prompt.admit import degraded
from workers.prompt.shares import LADDER, RequestShares

CARD = ModelCard("whole", "1", num_inference_steps=50, guidance_scale=5.0)
FAST = ModelCard("fast", "2", num_inference_steps=4, guidance_scale=1.0)
JOB = a_job(
    model="whole", model_version="1", num_inference_steps=20, guidance_scale=5.0, width_px=80,
    height_px=64,
)  # fmt: skip


def test_a_job_keeps_what_nobody_lets_go_of() -> None:
    assert degraded(JOB, (), CARD, FAST) is JOB
    fewer = degraded(JOB, ("fewer_steps",), CARD, FAST)
    assert fewer == replace(JOB, num_inference_steps=10, degradations=("fewer_steps",))
    smaller = degraded(JOB, ("smaller",), CARD, FAST)
    assert smaller == replace(JOB, width_px=32, height_px=32, degradations=("smaller",))


def test_the_distilled_model_takes_its_own_steps_and_guidance() -> None:
    moved = degraded(JOB, ("distilled_model",), CARD, FAST)
    assert moved == replace(
        JOB, model="fast", model_version="2", num_inference_steps=4, guidance_scale=1.0,
        degradations=("distilled_model",),
    )  # fmt: skip
    quick = replace(JOB, num_inference_steps=3)
    assert degraded(quick, ("distilled_model",), CARD, FAST).num_inference_steps == 3
    with pytest.raises(Rejected, match="no faster"):
        degraded(replace(quick, guidance_scale=1.0), ("distilled_model",), CARD, FAST)
    both = degraded(JOB, ("distilled_model", "smaller"), CARD, FAST)
    assert (both.model, both.width_px, both.num_inference_steps) == ("fast", 32, 4)


def test_without_a_distilled_model_and_for_its_own_jobs_there_is_none_to_move_to() -> None:
    for job, card, distilled in ((JOB, CARD, None), (replace(JOB, model_version="2"), FAST, FAST)):
        with pytest.raises(Rejected) as caught:
            degraded(job, ("distilled_model",), card, distilled)
        assert caught.value.reason_code == "no_distilled_model"


def rungs_of(allowed: tuple[str, ...], distilled: ModelCard | None) -> list[tuple[str, ...]]:
    def job_of(task: Task) -> Job:
        return degraded(JOB, task.degradations, CARD, distilled)

    request: GenerationRequest = a_request(allowed_degradations=allowed)
    place = partition_of_job(request.tier or "", request.tenant_id, request.job_id, 24)
    shares = RequestShares(Settings(deadline_margin=1.0), Codec(), job_of)
    share = shares(Task(request, place, b"", REQUESTS))
    assert share is not None
    assert all(rung.bulk != share.bulk for rung in share.rungs)
    return [rung.degradations for rung in share.rungs]


def test_only_what_is_allowed_and_there_is_tried() -> None:
    every = ("fewer_steps", "distilled_model", "smaller")
    assert rungs_of(every, FAST) == list(LADDER)
    assert rungs_of(("distilled_model",), FAST) == [("distilled_model",)]
    assert rungs_of(("fewer_steps", "smaller"), FAST) == [
        ("fewer_steps",), ("smaller",), ("fewer_steps", "smaller"),
    ]  # fmt: skip
    assert rungs_of(("distilled_model",), None) == []
