"""Jobs that ask for step caching: what they get is diffusers' own, and nobody else's changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from schemas.records import CleanedPrompt, GenerationRequest
from streams.engine import Task
from tests.torch.test_deployment import FAMILIES
from tests.torch.test_families import FP32, Model
from tests.torch.test_sampler_steps import Sampling
from tests.torch.test_stages import relative_error, work_through
from tests.unit.engine_rig import wait_until
from workers.sampler.step_cache import StepCache
from workers.sampler.work import SamplerWork
from workers.torch_device import DeviceSettings

pytestmark = pytest.mark.torch

THRESHOLD = 0.3  # of so tiny a model: every other step or so is skipped


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("cached")
    return Model(request.param, folder, step_cache_threshold=THRESHOLD)


def cached(wish: GenerationRequest) -> GenerationRequest:
    return replace(wish, is_step_cached=True, job_id=f"{wish.job_id}-cached")


def test_a_step_cached_job_gives_the_latents_of_diffusers_own_cache(model: Model) -> None:
    """Where diffusers puts both rows of guidance into one forward, without guidance only."""
    is_fused = model.name.startswith(("ltx", "cogvideox"))
    wish = model.wish(300, scale=1.0 if is_fused else 3.0, steps=8)
    oracle = model.pipeline(torch.float32)
    oracle.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=THRESHOLD))
    want = model.expected(wish, "latent", oracle)
    plain = model.expected(wish, "latent")
    assert relative_error(plain, want) > 10 * FP32, "steps were skipped, else nothing was tested"
    with Sampling(model.stages) as sampling:
        sampling.start([cached(wish)])
        sampling.wait_for(1)
        assert relative_error(sampling.latents(0), want) <= FP32


def test_in_company_each_has_its_own_memory_and_others_have_none(model: Model) -> None:
    wishes = [
        cached(model.wish(310, steps=6)), model.wish(311, steps=6),
        cached(model.wish(312, "blue", 2.0, 8)), model.wish(313, steps=4),
    ]  # fmt: skip
    alone = []
    for wish in wishes:
        with Sampling(model.stages) as sampling:
            sampling.start([replace(wish, job_id=f"{wish.job_id}-alone")])
            sampling.wait_for(1)
            alone.append(sampling.latents(0))
    with Sampling(model.stages) as sampling:
        for wish in wishes:
            sampling.start([wish])
            wait_until(lambda before=sampling.num_steps: sampling.num_steps > before)  # type: ignore[misc]
        sampling.wait_for(len(wishes))
        for number, latents in enumerate(alone):
            assert relative_error(sampling.latents(number), latents) <= FP32


def test_the_weights_are_shared(model: Model) -> None:
    denoiser = model.stages.sampler._denoisers[model.card.version]
    with StepCache(denoiser, THRESHOLD).denoiser() as twin:
        for one, other in zip(denoiser._experts, twin._experts, strict=True):
            assert one is not other
            for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
                assert ours is theirs
            assert not one.is_cache_enabled
            assert other.is_cache_enabled


def test_a_forward_that_fails_leaves_no_memory(model: Model) -> None:
    cache = StepCache(model.stages.sampler._denoisers[model.card.version], THRESHOLD)
    with cache.denoiser() as before, cache.denoiser() as same:
        assert before is same
    with pytest.raises(ZeroDivisionError), cache.denoiser():
        raise ZeroDivisionError
    with cache.denoiser() as after:
        assert after is not before


def test_offloaded_weights_are_not_cached_and_the_job_is_exact(model: Model) -> None:
    sampler = SamplerWork(model.folder, DeviceSettings(offload="leaf"), model.stages.store)
    sampler.load()
    (record,) = work_through(model.stages.prompt, [cached(model.wish(320))])
    assert isinstance(record, CleanedPrompt)
    assert record.is_step_cached
    state: Any = sampler.open(sampler.fetch(Task(record, 2, b"")))
    assert not sampler.is_alone(state)
    plain: Any = model.stages.sampler.open(
        model.stages.sampler.fetch(Task(replace(record, is_step_cached=False), 2, b""))
    )
    (one,), (other,) = (
        sampler.step([state], is_split=False), model.stages.sampler.step([plain], is_split=False)
    )  # fmt: skip
    assert np.array_equal(one.latents, other.latents)  # type: ignore[union-attr]


def test_beside_compiled_forwards_a_step_cached_job_gives_the_same(model: Model) -> None:
    """Its own modules are not compiled: hooks decide at every step what is computed."""
    torch._dynamo.reset()
    compiled = SamplerWork(
        model.folder, DeviceSettings(compile_backend="eager"), model.stages.store
    )
    compiled.load()
    records = work_through(model.stages.prompt, [cached(model.wish(330, steps=4)), model.wish(331)])
    found = []
    for sampler in (compiled, model.stages.sampler):
        states: list[Any] = [sampler.open(sampler.fetch(Task(each, 2, b""))) for each in records]
        for _ in range(3):
            states = [sampler.step([each], is_split=False)[0] for each in states]
        found.append([each.latents.numpy() for each in states])
    torch._dynamo.reset()
    for one, other in zip(*found, strict=True):
        assert relative_error(one, other) <= FP32
