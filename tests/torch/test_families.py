"""The contract of model families: each equals diffusers' own pipeline, alone and in any company."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from schemas.records import FramesDecoded, GenerationRequest
from streams.blobs import tensors
from streams.engine import Task
from streams.errors import InvalidRecord, Rejected, SettingsError
from tests.torch.test_sampler_steps import Sampling, renamed
from tests.torch.test_stages import (
    Stages,
    a_wish,
    latents_of,
    loaded_stages,
    relative_error,
    work_through,
)
from tests.torch.tiny_families import NAMES, TEXT_PAD_LENGTH, write_model
from tests.unit.engine_rig import wait_until
from workers.models.card import CARD_FILE, ModelCard, family_of, read_card
from workers.models.preview import fit, write_preview_map
from workers.sampler.families.base import Geometry
from workers.sampler.previews import PREVIEW_FILE, read_preview_map
from workers.sampler.schedules import clean_estimate
from workers.sampler.work import SamplerWork
from workers.torch_device import DeviceSettings

pytestmark = pytest.mark.torch

FP32 = 1e-5  # DESIGN 6: relative to the largest value
BF16 = 3e-2


class Model:
    """A tiny model: its stages, and diffusers' own pipeline on the same weights."""

    def __init__(self, name: str, folder: Path, **said: float) -> None:
        """`said`: more keys of its card."""
        self.name, self.folder = name, folder / name
        write_model(name, self.folder)
        card = self.folder / CARD_FILE
        card.write_text(json.dumps(json.loads(card.read_text()) | said))
        self.card: ModelCard = read_card(self.folder)
        self.geometry: Geometry = family_of(self.folder).geometry(self.folder)
        self.stages: Stages = loaded_stages(self.folder, folder / "blobs")
        self.oracle = self.pipeline(torch.float32)

    def pipeline(self, dtype: torch.dtype) -> Any:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(self.folder, torch_dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def wish(
        self, number: int, prompt: str = "a red circle", scale: float = 3.0, steps: int = 4
    ) -> GenerationRequest:
        wish = a_wish(number, prompt, scale)
        return replace(
            wish, height_px=64, num_inference_steps=steps,
            negative_prompt="" if self.card.is_guidance_embedded else "a blue square",
            job_id=f"{self.name}-{wish.job_id}",
        )  # fmt: skip

    def arguments(self, wish: GenerationRequest) -> dict[str, Any]:
        """What the pipeline takes for such a wish, beside prompt, guidance and seed."""
        extra: dict[str, Any] = {}
        if self.name.startswith("ltx"):
            extra = {"frame_rate": wish.fps, **self.card.parameters}
        if self.name.startswith("cogvideox"):
            extra = {"use_dynamic_cfg": bool(self.card.parameters["dynamic_guidance"])}
        return {
            "height": wish.height_px, "width": wish.width_px, "num_frames": wish.num_frames,
            "num_inference_steps": wish.num_inference_steps,
            "max_sequence_length": TEXT_PAD_LENGTH, **extra,
        }  # fmt: skip

    def guidance(self, scale: float) -> dict[str, float]:
        if self.name == "hunyuan-video-negative":
            return {"true_cfg_scale": scale}
        if self.name == "hunyuan-video-fixed":
            return {"guidance_scale": 6.0, "true_cfg_scale": scale}
        return {"guidance_scale": scale}

    def expected(
        self, wish: GenerationRequest, output_type: str, pipeline: Any = None
    ) -> npt.NDArray[Any]:
        """What the pipeline makes of the wish; latents as (C, T, H, W)."""
        assert wish.seed is not None
        assert wish.guidance_scale is not None
        frames = (pipeline or self.oracle)(
            prompt=wish.prompt, negative_prompt=wish.negative_prompt,
            generator=torch.Generator().manual_seed(wish.seed), output_type=output_type,
            **self.guidance(wish.guidance_scale), **self.arguments(wish),
        ).frames[0]  # fmt: skip
        if output_type == "latent":
            return self._latents(frames.float().numpy(), wish)
        return np.asarray(frames)

    def _latents(self, found: npt.NDArray[Any], wish: GenerationRequest) -> npt.NDArray[Any]:
        (record,) = work_through(self.stages.prompt, [wish])
        shape = self.geometry.latent_shape(record.job)
        if self.name.startswith("ltx"):
            return found.T.reshape(shape)
        if self.name.startswith("cogvideox"):
            return np.swapaxes(found[len(found) - shape[1] :], 0, 1)
        return found

    def states(self, wishes: Sequence[GenerationRequest]) -> list[Any]:
        sampler = self.stages.sampler
        records = [work_through(self.stages.prompt, [wish])[0] for wish in wishes]
        return [sampler.open(sampler.fetch(Task(record, 2, b""))) for record in records]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_job_alone_gives_the_pipelines_own_latents(model: Model, scale: float) -> None:
    wish = model.wish(1, "a red circle", scale)
    (record,) = work_through(model.stages.sampler, work_through(model.stages.prompt, [wish]))
    error = relative_error(latents_of(model.stages, record), model.expected(wish, "latent"))
    assert error <= FP32


def test_prompts_and_guidance_change_what_a_job_gives(model: Model) -> None:
    first, second, third = (
        model.expected(model.wish(1, prompt, scale), "latent")
        for prompt, scale in (("a red circle", 4.0), ("blue", 4.0), ("a red circle", 2.0))
    )
    assert relative_error(second, first) > 1e-3
    assert relative_error(third, first) > 1e-3


def test_jobs_of_mixed_steps_and_guidance_that_join_one_by_one_give_the_pipelines_latents(
    model: Model,
) -> None:
    wishes = renamed(
        [model.wish(10, "a red circle", 3.0, 4), model.wish(11, "x", 1.0, 6),
         model.wish(12, "", 5.5, 2), model.wish(13, "a triangle moving up", 2.0, 8)],
        f"{model.name}-mixed",
    )  # fmt: skip
    with Sampling(model.stages) as sampling:
        for wish in wishes:
            sampling.start([wish])
            wait_until(lambda before=sampling.num_steps: sampling.num_steps > before)  # type: ignore[misc]
        sampling.wait_for(len(wishes))
        for number, wish in enumerate(wishes):
            error = relative_error(sampling.latents(number), model.expected(wish, "latent"))
            assert error <= FP32, wish


def test_a_video_has_the_pipelines_own_pixels(model: Model) -> None:
    wish = model.wish(30, "a green triangle")
    stages = model.stages
    sampled = work_through(stages.sampler, work_through(stages.prompt, [wish]))
    (decoded,) = work_through(stages.decoder, sampled)
    assert isinstance(decoded, FramesDecoded)
    frames = np.concatenate(
        [
            tensors.load(
                stages.store.read(chunk.blob, 1 << 24),
                {"frames": (np.uint8, (chunk.num_frames, 64, 64, 3))},
            )["frames"]
            for chunk in decoded.chunks
        ]
    )
    assert len(frames) == 9
    want = (model.expected(wish, "np") * 255).round()
    assert np.abs(frames.astype(int) - want).max() <= 1


def test_cut_after_any_step_a_job_goes_on_to_the_same_bits(model: Model) -> None:
    sampler = model.stages.sampler
    steps = 5
    for cut in range(1, steps):
        (record,) = work_through(model.stages.prompt, [model.wish(100 + cut, steps=steps)])
        task = Task(record, 2, b"")
        state: Any = sampler.open(sampler.fetch(task))
        for step in range(steps):
            if step == cut:
                sampler.snapshot(state)()
            (state,) = sampler.step([state], is_split=False)
        resumed: Any = sampler.open(sampler.fetch(task))
        assert sampler.steps(resumed) == (cut, steps)
        for _ in range(cut, steps):
            (resumed,) = sampler.step([resumed], is_split=False)
        assert torch.equal(resumed.latents, state.latents)


def test_a_step_leaves_the_state_as_it_was(model: Model) -> None:
    (state,) = model.states([model.wish(60)])
    for _ in range(4):
        (once,) = model.stages.sampler.step([state], is_split=False)
        (again,) = model.stages.sampler.step([state], is_split=False)
        assert torch.equal(once.latents, again.latents)  # type: ignore[union-attr]
        state = once


def test_guidance_in_a_forward_of_its_own_gives_the_same_step(model: Model) -> None:
    sampler = model.stages.sampler
    states = model.states([model.wish(70), model.wish(71, scale=1.0), model.wish(72, scale=7.5)])
    fused, split = (sampler.step(states, is_split=is_split) for is_split in (False, True))
    for one, other in zip(fused, split, strict=True):
        assert relative_error(other.latents.numpy(), one.latents.numpy()) <= FP32  # type: ignore[union-attr]


def test_a_row_of_nan_fails_alone(model: Model) -> None:
    states = model.states([model.wish(80 + number) for number in range(3)])
    states[1] = replace(states[1], latents=torch.full_like(states[1].latents, torch.nan))
    first, bad, last = model.stages.sampler.step(states, is_split=False)
    assert isinstance(bad, InvalidRecord)
    assert first.latents.isfinite().all()  # type: ignore[union-attr]
    assert last.latents.isfinite().all()  # type: ignore[union-attr]


def test_jobs_share_forwards_by_shape_and_constants(model: Model) -> None:
    wishes = [
        model.wish(40), model.wish(41, scale=1.0, steps=7), replace(model.wish(42), num_frames=17),
        replace(model.wish(43), height_px=32, width_px=128), replace(model.wish(44), fps=25),
    ]  # fmt: skip
    keys = [model.stages.sampler.step_key(state) for state in model.states(wishes)]
    assert keys[0] == keys[1]
    assert len({*keys[1:4]}) == 3
    assert (keys[4] == keys[0]) is not model.name.startswith("ltx"), "its frame rate counts"


def test_encodings_of_another_prompts_shape_are_refused(model: Model) -> None:
    (record,) = work_through(model.stages.prompt, [model.wish(90)])
    data = tensors.dump({"prompt_embeds": np.zeros((8, 32), np.float32)})
    blob = model.stages.store.put("tenant/foreign/1/prompt", [data], tensors.MEDIA_TYPE)
    with pytest.raises(InvalidRecord, match="tensor blob"):
        model.stages.sampler.fetch(Task(replace(record, conditioning=blob), 2, b""))


def test_each_stage_can_be_probed(model: Model) -> None:
    for work in (model.stages.prompt, model.stages.sampler, model.stages.decoder):
        work.probe()


def test_in_bfloat16_company_changes_no_more_than_diffusers_own(model: Model) -> None:
    """One step of a job alone and beside three others: DESIGN 6's tolerance."""
    sampler = SamplerWork(model.folder, DeviceSettings(dtype="bfloat16"), model.stages.store)
    sampler.load()
    wishes = [model.wish(50 + number, scale=float(number + 1)) for number in range(4)]
    records = [work_through(model.stages.prompt, [wish])[0] for wish in wishes]
    states: list[Any] = [sampler.open(sampler.fetch(Task(record, 2, b""))) for record in records]
    alone: Any = [sampler.step([state], is_split=False)[0] for state in states]
    company: Any = sampler.step(states, is_split=False)
    for one, other in zip(alone, company, strict=True):
        assert relative_error(other.latents.numpy(), one.latents.numpy()) <= BF16


def test_a_key_that_is_no_parameter_of_the_family_is_refused(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for path in model.folder.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / CARD_FILE).unlink()
    (folder / CARD_FILE).write_text('{"warp_factor": 9}')
    with pytest.raises(SettingsError, match="warp_factor"):
        read_card(folder)


def test_fewer_steps_than_a_family_can_take_are_rejected(model: Model) -> None:
    fewest = model.card.min_num_inference_steps
    (record,) = work_through(model.stages.prompt, [model.wish(95, steps=fewest)])
    work_through(model.stages.sampler, [record])
    with pytest.raises(Rejected):
        model.stages.prompt.batch_key(Task(model.wish(96, steps=fewest - 1), 2, b""))


def test_a_model_distilled_for_guidance_refuses_a_negative_prompt(model: Model) -> None:
    task = Task(replace(model.wish(97), negative_prompt="blurry"), 2, b"")
    if not model.card.is_guidance_embedded:
        model.stages.prompt.batch_key(task)
        return
    with pytest.raises(Rejected) as caught:
        model.stages.prompt.batch_key(task)
    assert caught.value.reason_code == "no_negative_prompt"


def test_after_the_last_step_the_estimate_without_noise_is_the_result(
    model: Model, previewing: SamplerWork
) -> None:
    state: Any = model.states([model.wish(110, steps=4)])[0]
    for _ in range(previewing.steps(state)[1]):
        (state,) = previewing.step([state], is_split=False)
    before, prediction = state.last
    clean = clean_estimate(state.schedule, state.num_done, prediction, before)
    assert relative_error(clean.numpy(), state.latents.numpy()) <= 1e-4


def test_a_fitted_map_shows_what_is_being_made(model: Model, previewing: SamplerWork) -> None:
    state: Any = model.states([model.wish(111)])[0]
    assert previewing.preview(state) is None, "no step has been taken"
    (state,) = previewing.step([state], is_split=False)
    store = previewing.preview(state)
    assert store is not None
    preview = store()
    assert preview.media_type == "image/png"
    with Image.open(io.BytesIO(model.stages.store.read(preview, 1 << 20))) as picture:
        assert picture.size == (64 // model.geometry.scale_px, 64 // model.geometry.scale_px)
    assert model.stages.sampler.preview(state) is None, "its folder had no map when it was loaded"


@pytest.fixture(scope="module")
def previewing(model: Model) -> SamplerWork:
    """A sampler whose model has a preview map; the map is no part of what the model makes."""
    version = read_card(model.folder).version
    fitted, explained = fit(model.folder, DeviceSettings(num_threads=1))
    assert explained > 0.1, "a random VAE keeps some of the colours"
    path = write_preview_map(model.folder, fitted)
    assert read_card(model.folder).version == version
    sampler = SamplerWork(model.folder, DeviceSettings(num_threads=1), model.stages.store)
    sampler.load()
    path.unlink()
    return sampler


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"factors": [[1, 2, 3]], "bias": [0, 0, 0]}', '{"factors": 1, "bias": "x"}'],
)
def test_a_preview_map_of_another_model_is_refused(model: Model, tmp_path: Path, text: str) -> None:
    (tmp_path / PREVIEW_FILE).write_text(text)
    with pytest.raises(SettingsError, match=PREVIEW_FILE):
        read_preview_map(tmp_path, model.geometry.num_channels)


def test_a_size_is_rejected_only_where_the_pipeline_fails_too(model: Model) -> None:
    wish = replace(model.wish(98, steps=2), height_px=128, width_px=192)
    task = Task(wish, 2, b"")
    try:
        model.expected(wish, "latent")
    except RuntimeError:
        with pytest.raises(Rejected) as caught:
            model.stages.prompt.batch_key(task)
        assert caught.value.reason_code == "invalid_size"
    else:
        model.stages.prompt.batch_key(task)
