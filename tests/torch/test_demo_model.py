"""The demo model through the works of all stages: its videos show what was asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from schemas.records import GenerationRequest, VideoDone
from streams.blobs.base import BlobStore, open_store
from streams.engine import Task
from streams.errors import Rejected
from streams.local import models
from tests.builders import CREATED_AT as NOW
from tests.torch.test_stages import CPU, RULES, Stages, work_through
from workers.decoder.work import DecoderWork
from workers.finisher.work import FinisherWork
from workers.models.card import read_card
from workers.models.demo.captions import new_tokenizer
from workers.models.demo.model import CARD, demo_model_dir
from workers.models.demo.reader import Reading, frames_of, read_frames
from workers.models.demo.transformer import encode_texts
from workers.prompt.work import PromptWork
from workers.sampler.work import SamplerWork

pytestmark = pytest.mark.torch

MAX_MODEL_BYTES = 12_000_000


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    store: BlobStore = open_store(tmp_path_factory.mktemp("blobs").as_uri())
    folder = demo_model_dir()
    made = Stages(
        PromptWork(folder, CPU, store, RULES),
        SamplerWork(folder, CPU, store),
        DecoderWork(folder, CPU, store),
        FinisherWork(store),
        store,
    )
    for work in (made.prompt, made.sampler, made.decoder, made.finisher):
        work.load()
    return made


def a_wish(number: int, prompt: str, **fields: Any) -> GenerationRequest:
    return GenerationRequest(f"demo-{number}", "tenant", prompt, NOW, seed=number, **fields)


def videos_of(stages: Stages, wishes: Sequence[GenerationRequest]) -> list[Any]:
    """The frames of each wish's MP4; all wishes go through each stage as one batch."""
    records: list[Any] = list(wishes)
    for work in (stages.prompt, stages.sampler, stages.decoder, stages.finisher):
        records = work_through(work, records)
    videos = []
    for done in records:
        assert isinstance(done, VideoDone)
        assert done.status == "completed"
        assert done.video is not None
        videos.append(frames_of(io.BytesIO(stages.store.read(done.video, 1 << 24))))
    return videos


def test_the_card_says_how_it_is_used() -> None:
    card = read_card(demo_model_dir())
    assert {name: getattr(card, name) for name in CARD} == CARD
    assert (card.size_multiple_px, card.frame_stride) == (16, 4)


def test_it_is_small_and_holds_safetensors_only() -> None:
    files = [path for path in demo_model_dir().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_MODEL_BYTES
    weights = {path.suffix for path in files if path.stat().st_size > 100_000}
    assert weights == {".safetensors"}


def test_the_local_stack_finds_it_without_importing_it() -> None:
    assert models.demo_model_dir() == demo_model_dir()


def test_it_is_trained_on_text_as_the_pipeline_encodes_it() -> None:
    pipeline: Any = WanPipeline.from_pretrained(
        demo_model_dir(), vae=None, transformer=None, torch_dtype=torch.float32
    )
    texts = ["a red circle moving right", "A Blue SQUARE. It moves xyzzy.", ""]
    with torch.inference_mode():
        served, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=32
        )
        trained = encode_texts({"text_encoder": pipeline.text_encoder}, new_tokenizer(), texts)
    torch.testing.assert_close(trained, served)


def test_a_batch_of_prompts_gives_each_job_what_it_asked_for(stages: Stages) -> None:
    # Prompts, halves of the guidance or latents that changed places would show here.
    asked = [
        ("a red circle moving right", Reading("circle", "red", "right")),
        ("There is a blue square. It moves up.", Reading("square", "blue", "up")),
        ("a yellow triangle moving left", Reading("triangle", "yellow", "left")),
    ]
    videos = videos_of(stages, [a_wish(n, prompt) for n, (prompt, _) in enumerate(asked)])
    assert [read_frames(frames) for frames in videos] == [reading for _, reading in asked]


def test_eight_steps_and_no_negative_prompt_still_obey(stages: Stages) -> None:
    (frames,) = videos_of(stages, [a_wish(10, "a green circle moving down", num_inference_steps=8)])
    assert read_frames(frames) == Reading("circle", "green", "down")


@pytest.mark.parametrize("prompt", ["", "a red circle " * 153, "красный круг \u202e 紅い丸", "\0"])
def test_odd_prompts_give_a_video(stages: Stages, prompt: str) -> None:
    (frames,) = videos_of(stages, [a_wish(20 + len(prompt), prompt, num_inference_steps=4)])
    assert frames.shape == (17, 64, 64, 3)
    assert frames.dtype == np.uint8


def test_a_prompt_beyond_the_limit_is_rejected_with_a_reason(stages: Stages) -> None:
    with pytest.raises(Rejected) as caught:
        stages.prompt.batch_key(Task(a_wish(30, "a" * 2001), 2, b""))
    assert caught.value.reason_code == "prompt_too_long"
