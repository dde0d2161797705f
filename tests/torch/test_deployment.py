"""What a deployment may choose: each way of computing gives what the plain one does, or says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from schemas.records import FramesDecoded
from streams.blobs import tensors
from streams.engine import Task
from streams.errors import SettingsError
from tests.torch.test_families import FP32, Model
from tests.torch.test_stages import relative_error, work_through
from workers.decoder.work import VAE_TILED, Decoded, DecoderWork
from workers.sampler.work import SamplerWork
from workers.torch_device import DeviceSettings

pytestmark = pytest.mark.torch

#: One of each way to call a transformer; larger than a tile of their VAEs.
FAMILIES = ("wan", "ltx-conditioned", "cogvideox-ddim", "hunyuan-video-negative")
LARGE_PX = 576


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp("deployment"))


@pytest.fixture
def compiler() -> Iterator[None]:
    """Graphs are counted in a process of many tests: begin at none, and leave none."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def sampler_with(model: Model, **settings: Any) -> SamplerWork:
    sampler = SamplerWork(model.folder, DeviceSettings(**settings), model.stages.store)
    sampler.load()
    return sampler


def a_step(sampler: SamplerWork, states: list[Any]) -> list[npt.NDArray[Any]]:
    return [each.latents.numpy() for each in sampler.step(states, is_split=False)]  # type: ignore[union-attr]


def test_a_compiled_transformer_gives_the_same_step_with_few_graphs(
    model: Model, compiler: None
) -> None:
    """`eager` traces as any backend does, and needs no C compiler."""
    del compiler
    compiled = sampler_with(model, compile_backend="eager")
    scales = (1.0,) * 3 if model.card.is_guidance_embedded else (1.0, 3.0, 1.0)
    states = model.states([model.wish(200 + number, scale=s) for number, s in enumerate(scales)])
    assert compiled.num_compiled_graphs() == 0
    for number_of_states in (1, 3):
        some = states[:number_of_states]
        for one, other in zip(
            a_step(compiled, some), a_step(model.stages.sampler, some), strict=True
        ):
            assert relative_error(one, other) <= FP32
    num_graphs = compiled.num_compiled_graphs()
    assert num_graphs > 0
    for rows in (states[:1], states, [*states[:2], states[0], states[2]][: len(states)]):
        a_step(compiled, rows)
    assert compiled.num_compiled_graphs() == num_graphs, "one and four rows were compiled already"


@pytest.mark.parametrize("offload", ["block", "leaf"])
def test_an_offloaded_transformer_gives_the_same_bits(model: Model, offload: str) -> None:
    sampler = sampler_with(model, offload=offload)
    states = model.states([model.wish(210), model.wish(211, scale=1.0)])
    for one, other in zip(
        a_step(sampler, states), a_step(model.stages.sampler, states), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"compile_backend": "warp"}, "REEL_COMPILE=warp"),
        ({"offload": "warp"}, "REEL_OFFLOAD=warp"),
        ({"compile_backend": "eager", "offload": "leaf"}, "do not go together"),
    ],
)
def test_what_a_deployment_cannot_have_is_a_one_line_error(
    model: Model, settings: dict[str, str], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        sampler_with(model, **settings)


def test_other_settings_are_another_identity(model: Model) -> None:
    """What was learned of steps under one of them is not believed under another."""
    settings: list[dict[str, Any]] = [{}, {"compile_backend": "eager"}, {"offload": "leaf"}]
    works = [
        SamplerWork(model.folder, DeviceSettings(**each), model.stages.store) for each in settings
    ]
    assert len({work.identity() for work in works}) == len(works)


class Clip:
    """Latents of frames that are larger than a tile, and their pixels by diffusers' own decode."""

    def __init__(self, model: Model, number: int) -> None:
        wish = model.wish(number, steps=2)
        wish = replace(
            wish, height_px=LARGE_PX, width_px=64, prompt=wish.prompt, job_id=f"{wish.job_id}-large"
        )
        (self.record,) = work_through(
            model.stages.sampler, work_through(model.stages.prompt, [wish])
        )
        self.wish = wish


def decoder_with(model: Model, **settings: Any) -> DecoderWork:
    decoder = DecoderWork(model.folder, DeviceSettings(**settings), model.stages.store)
    decoder.load()
    return decoder


def frames_of(model: Model, decoded: Decoded, clip: Clip) -> npt.NDArray[Any]:
    shape = (None, clip.wish.height_px, clip.wish.width_px, 3)
    return np.concatenate(
        [
            tensors.load(
                model.stages.store.read(chunk.blob, 1 << 26), {"frames": (np.uint8, shape)}
            )["frames"]
            for chunk in decoded.chunks
        ]
    )


def test_large_frames_in_tiles_have_the_pixels_of_diffusers_own_tiling(model: Model) -> None:
    clip = Clip(model, 220)
    (record,) = work_through(decoder_with(model, is_vae_tiled=True), [clip.record])
    assert isinstance(record, FramesDecoded)
    assert record.degradations == (VAE_TILED,)
    oracle = model.pipeline(torch.float32)
    oracle.vae.enable_tiling()
    want = (model.expected(clip.wish, "np", oracle) * 255).round()
    got = frames_of(model, Decoded(record.chunks), clip)
    assert np.abs(got.astype(int) - want).max() <= 1
    whole = (model.expected(clip.wish, "np") * 255).round()
    assert np.abs(whole - want).max() > 1, "tiles make a difference, else nothing was tested"


def test_small_frames_are_never_tiled(model: Model) -> None:
    (sampled,) = work_through(
        model.stages.sampler, work_through(model.stages.prompt, [model.wish(221)])
    )
    (record,) = work_through(decoder_with(model, is_vae_tiled=True), [sampled])
    assert record.degradations == ()


@pytest.mark.parametrize("model", [each for each in FAMILIES if "ltx" not in each], indirect=True)
def test_a_clip_without_memory_is_decoded_in_tiles(model: Model) -> None:
    """Not of so tiny an LTX: pasting its tiles together takes more than decoding them."""
    clip = Clip(model, 222)
    task = Task(clip.record, 2, b"")

    def peak_bytes(is_tiled: bool) -> int:
        roomy = decoder_with(model, is_vae_tiled=is_tiled, budget_bytes=1 << 40)
        roomy.compute([roomy.fetch(task)], lambda step, num_steps: None)
        assert roomy._budget is not None
        return roomy._budget.take_peak_bytes()

    whole, tiled = peak_bytes(False), peak_bytes(True)
    assert tiled < whole
    scarce = decoder_with(model, budget_bytes=(whole + tiled) // 2)
    (decoded,) = scarce.compute([scarce.fetch(task)], lambda step, num_steps: None)
    assert decoded.degradations == (VAE_TILED,)
    assert len(frames_of(model, decoded, clip)) == clip.wish.num_frames
