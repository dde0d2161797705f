"""A distilled model beside a model: one worker holds both, and each job gets its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from schemas.records import CleanedPrompt, FramesDecoded, GenerationRequest, StageTiming
from streams.blobs import tensors
from streams.blobs.base import open_store
from streams.engine import Task
from streams.errors import InvalidRecord, SettingsError
from tests.builders import CREATED_AT as NOW
from tests.torch.test_stages import (
    CPU,
    RULES,
    Stages,
    a_wish,
    expected,
    latents_of,
    pipeline_of,
    relative_error,
    work_through,
)
from workers.decoder.work import DecoderWork
from workers.finisher.work import FinisherWork
from workers.models.card import CARD_FILE
from workers.models.held import read_models
from workers.models.tiny import CARD, write_tiny_model
from workers.prompt.work import PromptWork
from workers.sampler.work import SamplerWork

pytestmark = pytest.mark.torch

MOVED = ("distilled_model",)


def write_distilled(model: Path, folder: Path, **changes: Any) -> Path:
    """A model of another transformer, whose text encoder and VAE are those of `model`."""
    write_tiny_model(folder, seed=99)
    for component in ("text_encoder", "tokenizer", "vae"):
        shutil.rmtree(folder / component)
        shutil.copytree(model / component, folder / component)
    card = {**CARD, "name": "fast", "num_inference_steps": 3, "guidance_scale": 1.0, **changes}
    (folder / CARD_FILE).write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def distilled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_distilled(tiny_model, tmp_path_factory.mktemp("distilled") / "fast")


@pytest.fixture(scope="module")
def stages(tiny_model: Path, distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Each holds both models."""
    store = open_store(tmp_path_factory.mktemp("blobs").as_uri())
    made = Stages(
        PromptWork(tiny_model, CPU, store, RULES, distilled),
        SamplerWork(tiny_model, CPU, store, distilled),
        DecoderWork(tiny_model, CPU, store, distilled),
        FinisherWork(store),
        store,
    )
    for work in (made.prompt, made.sampler, made.decoder):
        work.load()
        work.probe()
    return made


def cleaned(
    stages: Stages, wish: GenerationRequest, degradations: tuple[str, ...] = ()
) -> CleanedPrompt:
    """As the prompt stage hands on a request that was let in so."""
    task = stages.prompt.begin(Task(wish, 2, b"bytes", degradations=degradations))
    (result,) = stages.prompt.compute([stages.prompt.fetch(task)], lambda step, of: None)
    record = stages.prompt.store(task, result, StageTiming("prompt", NOW, NOW, 0.5, 1, "test"))
    assert isinstance(record, CleanedPrompt)
    return record


def sampled(stages: Stages, record: CleanedPrompt) -> Any:
    (found,) = work_through(stages.sampler, [record])
    return found


def test_a_job_that_was_moved_is_what_the_distilled_models_pipeline_makes(
    stages: Stages, tiny_model: Path, distilled: Path
) -> None:
    wish = a_wish(1, scale=4.0)
    whole, moved = (cleaned(stages, wish, each) for each in ((), MOVED))
    assert (moved.job.model, moved.job.degradations) == ("fast", MOVED)
    as_moved = replace(wish, num_inference_steps=3, guidance_scale=1.0)
    for record, model, asked in ((whole, tiny_model, wish), (moved, distilled, as_moved)):
        want = expected(pipeline_of(model), asked, "latent")
        assert relative_error(latents_of(stages, sampled(stages, record)), want) <= 1e-5
    (decoded,) = work_through(stages.decoder, [sampled(stages, moved)])
    want = (expected(pipeline_of(distilled), as_moved, "np") * 255).round()
    assert np.abs(frames_of(stages, decoded).astype(int) - want).max() <= 1


def frames_of(stages: Stages, record: FramesDecoded) -> npt.NDArray[Any]:
    return np.concatenate(
        [
            tensors.load(
                stages.store.read(chunk.blob, 1 << 24),
                {"frames": (np.uint8, (chunk.num_frames, None, None, 3))},
            )["frames"]
            for chunk in record.chunks
        ]
    )


def test_jobs_of_two_models_never_share_a_forward(stages: Stages) -> None:
    records = [cleaned(stages, a_wish(2)), cleaned(stages, a_wish(3), MOVED)]
    sampler = stages.sampler
    tasks = [Task(record, 2, b"") for record in records]
    assert len({sampler.batch_key(task) for task in tasks}) == 2
    states = [sampler.open(sampler.fetch(task)) for task in tasks]
    assert len({sampler.step_key(state) for state in states}) == 2


def test_a_request_may_name_the_distilled_model_itself(stages: Stages) -> None:
    record = cleaned(stages, replace(a_wish(4), model="fast"))
    assert (record.job.model, record.job.degradations) == ("fast", ())
    assert stages.sampler.batch_key(Task(record, 2, b"")) is not None


def test_a_worker_without_it_refuses_its_jobs(stages: Stages, tiny_model: Path) -> None:
    record = cleaned(stages, a_wish(5), MOVED)
    alone = SamplerWork(tiny_model, CPU, stages.store)
    with pytest.raises(InvalidRecord) as caught:
        alone.batch_key(Task(record, 2, b""))
    assert caught.value.reason_code == "model_mismatch"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tiny"}, "both named tiny"),
        ({"text_pad_length": 16}, "other latents or prompts"),
    ],
)
def test_models_that_do_not_go_together_are_refused_at_start(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        read_models(tiny_model, write_distilled(tiny_model, tmp_path / "fast", **changes))


def test_the_same_model_twice_or_one_in_the_other_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "same").symlink_to(tiny_model)
    with pytest.raises(SettingsError, match="one lies in the other"):
        read_models(tiny_model, tmp_path / "same")
    whole = tmp_path / "whole"
    write_tiny_model(whole)
    with pytest.raises(SettingsError, match="one lies in the other"):
        read_models(whole, write_distilled(tiny_model, whole / "fast"))


@pytest.mark.parametrize("component", ["tokenizer", "vae"])
def test_components_are_compared_by_what_they_compute(
    tiny_model: Path, distilled: Path, tmp_path: Path, component: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(distilled, other)
    name = "config.json" if component == "vae" else "tokenizer_config.json"
    config = other / component / name
    said = json.loads(config.read_bytes())
    if component == "vae":
        config.write_text(json.dumps(said | {"_diffusers_version": "another"}))
        assert read_models(tiny_model, other).distilled is not None
        said["latents_mean"] = [0.5, *said["latents_mean"][1:]]
    config.write_text(json.dumps(said | {"unheard_of": 1}))
    with pytest.raises(SettingsError, match=f"another {component}"):
        read_models(tiny_model, other)


def test_a_model_with_another_text_encoder_is_none_to_fall_back_on(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "other", seed=7)
    card = {**CARD, "name": "other"}
    (tmp_path / "other" / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(SettingsError, match="another text_encoder"):
        read_models(tiny_model, tmp_path / "other")
