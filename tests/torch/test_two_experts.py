"""Wan 2.2: each of two experts has its part of the noise, and forwards never mix them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.records import GenerationRequest
from streams.engine import Task
from streams.errors import SettingsError
from tests.torch.test_sampler_steps import MIXED, Sampling, renamed
from tests.torch.test_stages import (
    Stages,
    a_wish,
    expected,
    latents_of,
    loaded_stages,
    pipeline_of,
    relative_error,
    work_through,
)
from tests.unit.engine_rig import wait_until
from workers.models.card import read_card
from workers.models.tiny import write_tiny_model
from workers.sampler.families.wan import WanDenoiser

pytestmark = pytest.mark.torch

BOUNDARY = 0.875  # as Wan 2.2's own


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "two-experts"
    write_tiny_model(folder, boundary_ratio=BOUNDARY)
    return folder


@pytest.fixture(scope="module")
def stages(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return loaded_stages(model, tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def oracle(model: Path) -> Any:
    return pipeline_of(model)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_job_alone_gives_the_pipelines_own_latents(
    stages: Stages, oracle: Any, scale: float
) -> None:
    wish = a_wish(1, "a red circle", scale)
    (record,) = work_through(stages.sampler, work_through(stages.prompt, [wish]))
    error = relative_error(latents_of(stages, record), expected(oracle, wish, "latent"))
    assert error <= 1e-5


def test_jobs_on_both_sides_of_the_boundary_are_served_side_by_side(
    stages: Stages, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    boundary = BOUNDARY * 1000
    forwards: list[tuple[int, list[float]]] = []
    predict = WanDenoiser.predict

    def spied(
        self: WanDenoiser, latents: Any, timesteps: Any, text: Any, jobs: Any, expert: int
    ) -> Any:
        forwards.append((expert, timesteps.tolist()))
        return predict(self, latents, timesteps, text, jobs, expert)

    monkeypatch.setattr(WanDenoiser, "predict", spied)
    wishes: list[GenerationRequest] = renamed(MIXED, "experts")
    with Sampling(stages) as sampling:
        for wish in wishes:
            before = sampling.num_steps
            sampling.start([wish])
            wait_until(lambda before=before: sampling.num_steps > before)  # type: ignore[misc]
        sampling.wait_for(len(wishes))
        for number, wish in enumerate(wishes):
            error = relative_error(sampling.latents(number), expected(oracle, wish, "latent"))
            assert error <= 1e-5, wish
    assert {expert for expert, _ in forwards} == {0, 1}
    for expert, timesteps in forwards:
        assert {int(each < boundary) for each in timesteps} == {expert}


def test_a_job_cut_at_any_step_goes_on_to_the_same_bits(stages: Stages) -> None:
    sampler = stages.sampler
    for cut in range(1, 4):
        (record,) = work_through(stages.prompt, [a_wish(100 + cut)])
        task = Task(record, 2, b"")
        state: Any = sampler.open(sampler.fetch(task))
        for step in range(4):
            if step == cut:
                sampler.snapshot(state)()
            (state,) = sampler.step([state], is_split=False)
        resumed: Any = sampler.open(sampler.fetch(task))
        assert sampler.steps(resumed) == (cut, 4)
        for _ in range(cut, 4):
            (resumed,) = sampler.step([resumed], is_split=False)
        assert torch.equal(resumed.latents, state.latents)


def test_a_model_that_lacks_its_second_expert_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "transformer_2")
    with pytest.raises(SettingsError, match="transformer_2"):
        read_card(tmp_path / "half")
