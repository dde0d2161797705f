"""Every stage's work on the tiny model, held equal to diffusers' own pipeline."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from schemas.codec import Codec
from schemas.records import (
    CleanedPrompt,
    FramesDecoded,
    GenerationRequest,
    LatentsReady,
    StageTiming,
    VideoDone,
)
from streams.blobs import tensors
from streams.blobs.base import BlobStore, open_store
from streams.core.events import Ending
from streams.core.tiers import DEFAULT_TIERS
from streams.engine import Task
from streams.errors import InvalidRecord, Rejected, SettingsError
from streams.topology import stage
from tests.builders import CREATED_AT as NOW
from tests.builders import a_job
from workers.decoder.work import DecoderWork
from workers.fenced import FencedWork
from workers.finisher.work import FinisherWork
from workers.models.card import family_of, read_card
from workers.prompt.admit import AdmissionRules
from workers.prompt.work import PromptWork
from workers.sampler.work import Conditioned, Denoising, SamplerWork
from workers.stage_work import BatchWork, SteppedWork
from workers.torch_device import DeviceSettings, open_place

pytestmark = pytest.mark.torch

CPU = DeviceSettings(num_threads=1)
RULES = AdmissionRules(DEFAULT_TIERS, "free", None, deadline_s=3600.0)
WISHES = (("a red circle", 3.0), ("a blue square moving up", 5.5), ("x", 1.25), ("", 2.0))


@dataclass
class Stages:
    """The four works, loaded, on one store."""

    prompt: PromptWork
    sampler: SamplerWork
    decoder: DecoderWork
    finisher: FinisherWork
    store: BlobStore


def loaded_stages(model: Path, blobs: Path) -> Stages:
    store = open_store(blobs.as_uri())
    made = Stages(
        PromptWork(model, CPU, store, RULES),
        SamplerWork(model, CPU, store),
        DecoderWork(model, CPU, store, latent_frames_per_chunk=2),
        FinisherWork(store),
        store,
    )
    for work in (made.prompt, made.sampler, made.decoder, made.finisher):
        work.load()
    return made


def pipeline_of(model: Path) -> Any:
    """diffusers' own pipeline on the same weights."""
    pipeline = WanPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def stages(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Loaded once for this module."""
    return loaded_stages(tiny_model, tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Any:
    """What the stages are to equal."""
    return pipeline_of(tiny_model)


def a_wish(number: int, prompt: str = "a red circle", scale: float = 3.0) -> GenerationRequest:
    return GenerationRequest(
        f"job-{number}-{prompt.replace(' ', '_')}-{scale}",
        "tenant",
        prompt,
        NOW,
        seed=number,
        num_frames=9,
        width_px=64,
        height_px=48,
        fps=8,
        num_inference_steps=4,
        guidance_scale=scale,
    )


def expected(oracle: Any, wish: GenerationRequest, output_type: str) -> npt.NDArray[Any]:
    """What the pipeline makes of the same wish."""
    assert wish.seed is not None
    frames = oracle(
        prompt=wish.prompt, negative_prompt=wish.negative_prompt, height=wish.height_px,
        width=wish.width_px, num_frames=wish.num_frames,
        num_inference_steps=wish.num_inference_steps, guidance_scale=wish.guidance_scale,
        max_sequence_length=32, generator=torch.Generator().manual_seed(wish.seed),
        output_type=output_type,
    ).frames[0]  # fmt: skip
    return np.asarray(frames)


def denoised(work: SteppedWork, inputs: Sequence[Any]) -> list[Any]:
    """All steps of jobs that begin and, having equally many, end together."""
    states: list[Any] = [work.open(each) for each in inputs]
    while not isinstance(states[0], Exception) and len(set(work.steps(states[0]))) > 1:
        states = list(work.step(states, is_split=False))
    return [work.result(state) for state in states]


def work_through(work: BatchWork | SteppedWork, records: Sequence[Any]) -> list[Any]:
    """A batch through one stage's work, as the engine drives it."""
    tasks = [Task(record, 2, b"bytes") for record in records]
    assert len({work.batch_key(task) for task in tasks}) == 1
    tasks = [work.begin(task) for task in tasks]
    inputs = [work.fetch(task) for task in tasks]
    results = (
        denoised(work, inputs)
        if isinstance(work, SteppedWork)
        else work.compute(inputs, lambda step, of: None)
    )
    timing = StageTiming(work.stage, NOW, NOW, 0.5, len(tasks), "test")
    return [work.store(task, result, timing) for task, result in zip(tasks, results, strict=True)]


def latents_of(stages: Stages, record: LatentsReady) -> npt.NDArray[Any]:
    data = stages.store.read(record.latents, 1 << 24)
    return tensors.load(data, {"latents": (np.float32, (None,) * 4)})["latents"]


def relative_error(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_a_batch_of_mixed_prompts_and_scales_gives_the_pipelines_own_latents(
    stages: Stages, oracle: Any
) -> None:
    wishes = [a_wish(number, *wish) for number, wish in enumerate(WISHES)]
    sampled = work_through(stages.sampler, work_through(stages.prompt, wishes))
    for wish, record in zip(wishes, sampled, strict=True):
        error = relative_error(latents_of(stages, record), expected(oracle, wish, "latent"))
        assert error <= 1e-5, wish.prompt


def test_a_job_alone_gives_the_pipelines_own_latents_with_and_without_guidance(
    stages: Stages, oracle: Any
) -> None:
    for scale in (1.0, 4.0):
        wish = a_wish(11, "alone", scale)
        (record,) = work_through(stages.sampler, work_through(stages.prompt, [wish]))
        error = relative_error(latents_of(stages, record), expected(oracle, wish, "latent"))
        assert error <= 1e-5


def test_jobs_of_one_shape_share_forwards_whatever_their_steps_and_guidance(
    stages: Stages,
) -> None:
    wishes = [
        a_wish(20), a_wish(21, scale=1.0), replace(a_wish(24), num_inference_steps=5),
        replace(a_wish(22), num_frames=13), replace(a_wish(23), width_px=48),
    ]  # fmt: skip
    cleaned = [work_through(stages.prompt, [wish])[0] for wish in wishes]
    tasks = [Task(record, 2, b"") for record in cleaned]
    sampler = stages.sampler
    keys = [sampler.step_key(sampler.open(sampler.fetch(task))) for task in tasks]
    assert len(set(keys[:3])) == 1
    assert len(set(keys)) == 3
    assert len({sampler.batch_key(task) for task in tasks}) == 3


def test_a_video_has_the_pipelines_own_pixels_before_it_is_compressed(
    stages: Stages, oracle: Any
) -> None:
    wish = a_wish(30, "a green triangle")
    sampled = work_through(stages.sampler, work_through(stages.prompt, [wish]))
    (decoded,) = work_through(stages.decoder, sampled)
    assert isinstance(decoded, FramesDecoded)
    assert [(chunk.first_frame, chunk.num_frames) for chunk in decoded.chunks] == [(0, 5), (5, 4)]
    frames = np.concatenate(
        [
            tensors.load(
                stages.store.read(chunk.blob, 1 << 24),
                {"frames": (np.uint8, (chunk.num_frames, 48, 64, 3))},
            )["frames"]
            for chunk in decoded.chunks
        ]
    )
    want = (expected(oracle, wish, "np") * 255).round()
    assert np.abs(frames.astype(int) - want).max() <= 1


def test_a_request_becomes_an_mp4_of_the_frames_size_and_rate_asked_for(stages: Stages) -> None:
    records: list[Any] = [a_wish(40)]
    for work in (stages.prompt, stages.sampler, stages.decoder, stages.finisher):
        records = work_through(work, records)
    done = records[0]
    assert isinstance(done, VideoDone)
    assert done.status == "completed"
    assert [timing.stage for timing in done.timings] == ["prompt", "sampler", "decoder", "finisher"]
    assert done.cost_gpu_s == 1.5
    assert done.video is not None
    assert done.thumbnail is not None
    with av.open(io.BytesIO(stages.store.read(done.video, 1 << 24)), "r") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 8
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert np.stack(frames).shape == (9, 48, 64, 3)
    with av.open(io.BytesIO(stages.store.read(done.thumbnail, 1 << 20)), "r") as picture:
        (frame,) = picture.decode(video=0)
        assert (frame.width, frame.height) == (64, 48)


def test_the_same_frames_give_the_same_bytes(stages: Stages) -> None:
    wish = a_wish(50)
    decoded = [wish]
    for work in (stages.prompt, stages.sampler, stages.decoder):
        decoded = work_through(work, decoded)
    first, second = (work_through(stages.finisher, decoded)[0] for _ in range(2))
    assert first == second


def test_two_decodes_interleaved_do_not_disturb_each_other(tiny_model: Path) -> None:
    vae = family_of(tiny_model).decoder(tiny_model, open_place(CPU), read_card(tiny_model))
    noise = [torch.randn((16, 3, 4, 4), generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    with torch.inference_mode():
        alone = [list(vae.frames(latents, a_job())) for latents in noise]
        together = list(zip(*(vae.frames(each, a_job()) for each in noise), strict=True))
    for number in (0, 1):
        for one, other in zip(alone[number], together, strict=True):
            np.testing.assert_array_equal(one, other[number])


def test_a_frame_at_a_time_equals_the_vaes_own_decode(tiny_model: Path) -> None:
    vae = family_of(tiny_model).decoder(tiny_model, open_place(CPU), read_card(tiny_model))
    own: Any = AutoencoderKLWan.from_pretrained(
        tiny_model, subfolder="vae", torch_dtype=torch.float32
    )
    latents = torch.randn((16, 4, 4, 6), generator=torch.Generator().manual_seed(3))
    shape = (1, 16, 1, 1, 1)
    mean, std = (
        torch.tensor(x).view(shape) for x in (own.config.latents_mean, own.config.latents_std)
    )
    with torch.inference_mode():
        want = own.decode(latents[None] * std + mean).sample[0].permute(1, 2, 3, 0)
        got = np.concatenate(list(vae.frames(latents, a_job())))
    np.testing.assert_allclose(got, ((want * 0.5 + 0.5).clamp(0, 1) * 255).round(), atol=1)


def test_a_row_of_nan_fails_alone(stages: Stages) -> None:
    rows = []
    for number in range(3):
        (record,) = work_through(stages.prompt, [a_wish(60 + number)])
        row = stages.sampler.fetch(Task(record, 2, b""))
        if number == 1:
            poisoned = np.full_like(row.text["prompt_embeds"], np.nan)
            row = Conditioned(row.record, {"prompt_embeds": poisoned}, row.negative_text)
        rows.append(row)
    states = [stages.sampler.open(row) for row in rows]
    first, bad, last = stages.sampler.step(states, is_split=False)
    assert isinstance(bad, InvalidRecord)
    assert bad.reason_code == "non_finite_latents"
    for state in (first, last):
        assert isinstance(state, Denoising)
        assert state.latents.isfinite().all()


def test_embeddings_of_another_shape_are_refused(stages: Stages) -> None:
    (record,) = work_through(stages.prompt, [a_wish(70)])
    assert isinstance(record, CleanedPrompt)
    short = np.zeros((8, 32), np.float32)
    data = tensors.dump({"prompt_embeds": short, "negative_prompt_embeds": short})
    blob = stages.store.put("tenant/foreign/1/prompt", [data], tensors.MEDIA_TYPE)
    with pytest.raises(InvalidRecord, match="shape"):
        stages.sampler.fetch(Task(replace(record, conditioning=blob), 2, b""))


def test_a_job_of_another_model_version_is_refused(stages: Stages) -> None:
    (record,) = work_through(stages.prompt, [a_wish(71)])
    other = replace(record, job=replace(record.job, model_version="another"))
    for work in (stages.sampler, stages.decoder):
        with pytest.raises(InvalidRecord) as caught:
            work.batch_key(Task(other, 2, b""))
        assert caught.value.reason_code == "model_mismatch"


def test_another_request_under_a_used_job_id_is_a_conflict_and_the_same_one_is_not(
    stages: Stages,
) -> None:
    wish = a_wish(80)
    stages.prompt.begin(Task(wish, 2, b"first"))
    stages.prompt.begin(Task(replace(wish, created_at=NOW.replace(year=2027)), 2, b"again"))
    with pytest.raises(InvalidRecord) as caught:
        stages.prompt.begin(Task(replace(wish, prompt="another"), 2, b"other"))
    assert caught.value.reason_code == "idempotency_conflict"


def test_a_job_keeps_the_partition_of_its_first_delivery(stages: Stages) -> None:
    """As after its tenant has moved to another tier."""
    wish = a_wish(82)
    stages.prompt.begin(Task(wish, 2, b"first"))
    task = stages.prompt.begin(Task(wish, 5, b"first"))
    assert task.partition == 2
    assert stages.prompt.fetch(task).job.partition == 2
    fenced = FencedWork(stages.prompt, stage("prompt"), stages.store, Codec(), lambda: NOW)
    (output,) = fenced.end(Task(wish, 5, b"first"), Ending("failed", "oom", "too large"))
    assert output.partition == Codec().decode(output.value, VideoDone).partition == 2


def test_what_admission_refuses_is_rejected_before_anything_is_computed(stages: Stages) -> None:
    with pytest.raises(Rejected) as caught:
        stages.prompt.batch_key(Task(replace(a_wish(81), width_px=50), 2, b""))
    assert caught.value.reason_code == "invalid_size"


@pytest.mark.parametrize(
    ("prompt", "scale"), [("", 3.0), ("a " * 1000, 3.0), ("красный круг \u202e 紅い丸", 1.0)]
)
def test_odd_prompts_are_encoded_like_any_other(
    stages: Stages, oracle: Any, prompt: str, scale: float
) -> None:
    wish = replace(a_wish(90, scale=scale), prompt=prompt, job_id=f"odd-{len(prompt)}")
    (record,) = work_through(stages.prompt, [wish])
    (latents,) = work_through(stages.sampler, [record])
    want = expected(oracle, replace(wish, prompt=record.prompt), "latent")
    assert relative_error(latents_of(stages, latents), want) <= 1e-5


def test_the_tiny_model_is_the_same_for_the_same_seed_only(
    tiny_model: Path, tmp_path: Path
) -> None:
    from workers.models.tiny import write_tiny_model

    write_tiny_model(tmp_path / "same" / "tiny")
    write_tiny_model(tmp_path / "other" / "tiny", seed=1)
    card = read_card(tiny_model)
    assert read_card(tmp_path / "same" / "tiny") == card
    assert read_card(tmp_path / "other" / "tiny").version != card.version


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_a_one_line_error() -> None:
    with pytest.raises(SettingsError, match="torch sees 0 CUDA devices"):
        open_place(DeviceSettings("cuda:0"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_pipelines_own_latents_too(
    tiny_model: Path, tmp_path: Path, oracle: Any
) -> None:
    store = open_store(tmp_path.as_uri())
    gpu = DeviceSettings("cuda")
    prompt = PromptWork(tiny_model, gpu, store, RULES)
    sampler = SamplerWork(tiny_model, gpu, store)
    prompt.load()
    sampler.load()
    wishes = [a_wish(number, *wish) for number, wish in enumerate(WISHES)]
    for wish, record in zip(
        wishes, work_through(sampler, work_through(prompt, wishes)), strict=True
    ):
        data = store.read(record.latents, 1 << 24)
        got = tensors.load(data, {"latents": (np.float32, (None,) * 4)})["latents"]
        assert relative_error(got, expected(oracle, wish, "latent")) <= 1e-3
