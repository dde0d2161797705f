"""Real forwards on a device with little memory: caps stay below it, and the ladder is climbed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streams.core.events import Emitted, Failed, Fate
from streams.engine import Task
from streams.errors import OutOfMemory, SickHost
from tests.torch.test_sampler_steps import Sampling, renamed
from tests.torch.test_stages import (
    Stages,
    a_wish,
    expected,
    oracle,
    relative_error,
    stages,
    work_through,
)
from workers.decoder.work import DecoderWork
from workers.sampler.families.wan import WanDenoiser
from workers.sampler.work import SamplerWork
from workers.torch_device import DeviceSettings

pytestmark = pytest.mark.torch
__all__ = ["oracle", "stages"]  # fixtures

GUIDED = [replace(a_wish(200 + number), num_inference_steps=6) for number in range(6)]


def with_budget(stages: Stages, model: Path, budget_bytes: int) -> Stages:
    sampler = SamplerWork(
        model, DeviceSettings(num_threads=1, budget_bytes=budget_bytes), stages.store
    )
    sampler.load()
    return replace(stages, sampler=sampler)


def peak_bytes(stages: Stages, model: Path, *, is_split: bool) -> int:
    """Of one guided job's step."""
    roomy = with_budget(stages, model, 1 << 40).sampler
    (record,) = work_through(stages.prompt, renamed(GUIDED[:1], f"peak-{is_split}"))
    state: Any = roomy.open(roomy.fetch(Task(record, 2, b"")))
    roomy.step([state], is_split=is_split)
    peak = roomy.peak_bytes()
    assert peak is not None
    return peak


def test_caps_learn_real_peaks_and_no_forward_ever_fails(
    stages: Stages, oracle: Any, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    budget = 4 * peak_bytes(stages, tiny_model, is_split=False)
    scarce = with_budget(stages, tiny_model, budget)
    wishes = renamed(GUIDED, "peaks")
    with Sampling(scarce) as sampling:
        sampling.start(wishes)
        sampling.wait_for(len(wishes))
        for number, wish in enumerate(wishes):
            error = relative_error(sampling.latents(number), expected(oracle, wish, "latent"))
            assert error <= 1e-5
        assert sampling.num_steps > 6, "six jobs at a time would not have fitted"
    assert "work failed" not in caplog.text


def test_guidance_takes_a_forward_of_its_own_where_both_rows_do_not_fit(
    stages: Stages, oracle: Any, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = peak_bytes(stages, tiny_model, is_split=False)
    split = peak_bytes(stages, tiny_model, is_split=True)
    assert split < whole
    scarce = with_budget(stages, tiny_model, (whole + split) // 2)
    (wish,) = renamed(GUIDED[:1], "split")
    with Sampling(scarce) as sampling:
        sampling.start([wish])
        sampling.wait_for(1)
        assert relative_error(sampling.latents(0), expected(oracle, wish, "latent")) <= 1e-5
    assert caplog.text.count("work failed") == 2, "whole, and again with the cache freed"


@pytest.fixture
def rare_collections() -> Iterator[None]:
    """What only a collection frees stays, as in a large process, where the next is far away."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_what_only_a_collection_frees_costs_no_job(
    stages: Stages,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    rare_collections: None,
) -> None:
    budget = 2 * peak_bytes(stages, tiny_model, is_split=False)
    scarce = with_budget(stages, tiny_model, budget)
    predict = WanDenoiser.predict

    def leaves_a_cycle(self: WanDenoiser, *args: Any, **words: Any) -> Any:
        kept: list[Any] = [torch.zeros(budget // 3, dtype=torch.uint8)]
        kept.append(kept)
        return predict(self, *args, **words)

    monkeypatch.setattr(WanDenoiser, "predict", leaves_a_cycle)
    with Sampling(scarce) as sampling:
        sampling.start(renamed(GUIDED[:1], "cycles"))
        sampling.wait_for(1)
        assert isinstance(sampling.answers[0], Emitted)


def test_what_fits_in_no_way_is_a_dead_letter_with_evidence(
    stages: Stages, tiny_model: Path
) -> None:
    scarce = with_budget(stages, tiny_model, peak_bytes(stages, tiny_model, is_split=True) // 2)
    with Sampling(scarce) as sampling:
        sampling.start(renamed(GUIDED[:2], "none"))
        sampling.wait_for(2)
        for answer in sampling.answers.values():
            assert isinstance(answer, Failed)
            assert (answer.fault.fate, answer.fault.reason_code) == (
                Fate.DEAD_LETTER,
                "out_of_memory",
            )
            assert dict(answer.fault.evidence)["shape"] == "9x48x64"


@pytest.mark.parametrize("method", ["prepare_latents", "new_schedule", "expert", "final_latents"])
def test_a_device_that_fails_between_two_steps_is_a_sick_host(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def lost(self: WanDenoiser, *args: Any) -> Any:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    sampler = stages.sampler
    (record,) = work_through(stages.prompt, renamed(GUIDED[:1], f"lost-{method}"))
    inputs = sampler.fetch(Task(record, 2, b""))
    monkeypatch.setattr(WanDenoiser, method, lost)
    with pytest.raises(SickHost, match="ECC error"):  # noqa: PT012 - whichever asks for it
        state = sampler.open(inputs)
        sampler.step_key(state)
        sampler.result(state)


def test_a_budget_counts_what_is_held_and_not_what_was(tiny_model: Path) -> None:
    from workers.memory_budget import MemoryBudget

    budget = MemoryBudget(1000)
    with budget:
        for _ in range(5):
            kept = torch.zeros(100)  # 400 bytes
            view = kept[:50]
            assert view.sum() == 0
            del kept, view
        held = [torch.zeros(100), torch.zeros(100)]
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.zeros(100)
    assert len(held) == 2
    assert 800 <= budget.take_peak_bytes() <= 1000


def test_a_clip_that_cannot_be_decoded_fails_alone(
    stages: Stages, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[torch.device] = []
    monkeypatch.setattr("workers.decoder.work.free_memory", freed.append)
    small, large = renamed([GUIDED[0], replace(GUIDED[1], width_px=128, height_px=128)], "clips")
    sampled = [
        record
        for wish in (small, large)
        for record in work_through(stages.sampler, work_through(stages.prompt, [wish]))
    ]
    roomy = DecoderWork(
        tiny_model, DeviceSettings(num_threads=1, budget_bytes=1 << 40), stages.store
    )
    roomy.load()
    tasks = [Task(record, 2, b"") for record in sampled]
    clips = [roomy.fetch(task) for task in tasks]
    roomy.compute(clips[:1], lambda step, num_steps: None)
    assert roomy._budget is not None
    budget_bytes = 2 * roomy._budget.take_peak_bytes()

    scarce = DecoderWork(
        tiny_model, DeviceSettings(num_threads=1, budget_bytes=budget_bytes), stages.store
    )
    scarce.load()
    told: list[tuple[int, int]] = []
    good, bad = scarce.compute(clips, lambda step, num_steps: told.append((step, num_steps)))
    assert [chunk.first_frame for chunk in good.chunks] == [0]
    assert good.degradations == ()
    assert isinstance(bad, OutOfMemory)
    assert len(freed) == 1, "it was decoded once more"
    assert told[:3] == [(1, 6), (2, 6), (3, 6)]
