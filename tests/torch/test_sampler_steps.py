"""The sampler's jobs in the step engine, on real weights: alone, in company, joining, failing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
)

from schemas.codec import Codec
from schemas.records import GenerationRequest, LatentsReady
from streams.core.events import Emitted, Failed, Fate, Start, Ticket, TopicPartition, Work
from streams.engine import Task
from streams.errors import SettingsError
from streams.topology import stage
from tests.builders import CREATED_AT as NOW
from tests.torch.test_stages import (
    Stages,
    a_wish,
    expected,
    latents_of,
    oracle,
    relative_error,
    stages,
    work_through,
)
from tests.unit.engine_rig import wait_until
from workers.fenced import FencedWork
from workers.sampler.families.wan import WanDenoiser
from workers.sampler.schedules import copy_of_schedule
from workers.sampler.work import Denoising, SamplerWork
from workers.step_engine import StepEngine, StepSettings
from workers.torch_device import DeviceSettings

pytestmark = pytest.mark.torch
__all__ = ["oracle", "stages"]  # fixtures

CODEC = Codec()
SAMPLER = stage("sampler")
MIXED = tuple(
    replace(a_wish(number, prompt, scale), num_inference_steps=steps)
    for number, (prompt, scale, steps) in enumerate(
        [("a red circle", 3.0, 4), ("x", 1.0, 6), ("", 5.5, 2), ("a blue square", 1.0, 4),
         ("a triangle moving up", 2.0, 8)]
    )
)  # fmt: skip


class Sampling:
    """A StepEngine over the sampler's work; jobs are started when the test says so."""

    def __init__(self, stages: Stages, rows_max: int = 32) -> None:
        self._stages = stages
        self.num_steps = 0
        fenced = FencedWork(stages.sampler, SAMPLER, stages.store, CODEC, lambda: NOW)
        self.engine = StepEngine(
            fenced, "worker-1", 4, lambda _: None, lambda _: None, self._stepped,
            StepSettings(rows_max, checkpoint_s=0.0),
        )  # fmt: skip
        self.answers: dict[int, Emitted | Failed] = {}
        self._num_started = 0

    def _stepped(self, rows: int, _seconds: float) -> None:
        self.num_steps += 1

    def __enter__(self) -> Sampling:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()

    def start(self, wishes: Sequence[GenerationRequest]) -> None:
        batch = []
        for wish in wishes:
            (record,) = work_through(self._stages.prompt, [wish])
            task = Task(record, 2, b"", SAMPLER.reads, self._num_started, wish.job_id.encode())
            ticket = Ticket(TopicPartition(SAMPLER.reads, 2), self._num_started, 1)
            batch.append((ticket, Work(wish.job_id, 1, None, None, task)))
            self._num_started += 1
        self.engine.start(Start(tuple(batch)))

    def wait_for(self, num_answers: int) -> None:
        def is_there() -> bool:
            for event in self.engine.completions():
                if isinstance(event, Emitted | Failed):
                    self.answers[event.ticket.offset] = event
            return len(self.answers) >= num_answers

        wait_until(is_there)

    def latents(self, number: int) -> npt.NDArray[Any]:
        answer = self.answers[number]
        assert isinstance(answer, Emitted)
        value = answer.outputs[0].value
        assert value is not None
        return latents_of(self._stages, CODEC.decode(value, LatentsReady))


def renamed(wishes: Sequence[GenerationRequest], name: str) -> list[GenerationRequest]:
    """The same wishes as other jobs: each test fences its own."""
    return [replace(each, job_id=f"{name}-{number}") for number, each in enumerate(wishes)]


def test_jobs_of_mixed_steps_and_guidance_that_join_one_by_one_give_the_pipelines_latents(
    stages: Stages, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = renamed(MIXED, "mixed")
    fetched: list[Task] = []
    fetch, predict = SamplerWork.fetch, WanDenoiser.predict

    def fetching(self: SamplerWork, task: Task) -> Any:
        inputs = fetch(self, task)
        fetched.append(task)
        return inputs

    def waiting(self: WanDenoiser, *arguments: Any) -> Any:
        # Each step waits until another job can join: on a busy machine one ended before the next.
        num_to_come = min(sampling.num_steps + 1, len(wishes))
        wait_until(lambda: len(fetched) >= num_to_come)
        return predict(self, *arguments)

    with Sampling(stages) as sampling:
        monkeypatch.setattr(SamplerWork, "fetch", fetching)
        monkeypatch.setattr(WanDenoiser, "predict", waiting)
        for number, wish in enumerate(wishes, start=1):
            sampling.start([wish])
            wait_until(lambda most=number: sampling.num_steps >= most)  # type: ignore[misc]
        sampling.wait_for(len(wishes))
        for number, wish in enumerate(wishes):
            error = relative_error(sampling.latents(number), expected(oracle, wish, "latent"))
            assert error <= 1e-5, wish
        assert sampling.num_steps < sum(wish.num_inference_steps or 0 for wish in wishes)


def predicting(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[torch.Tensor], torch.Tensor]
) -> list[int]:
    """Rows of every forward from now on; `before` sees, or changes, the latents that go in."""
    predict, rows = WanDenoiser.predict, []

    def spied(self: WanDenoiser, latents: Any, *rest: Any) -> Any:
        rows.append(len(latents))
        return predict(self, before(latents), *rest)

    monkeypatch.setattr(WanDenoiser, "predict", spied)
    return rows


def test_a_device_without_room_gives_the_same_videos(
    stages: Stages, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return latents

    rows = predicting(monkeypatch, scarce)
    wishes = renamed(MIXED[:3], "scarce")
    with Sampling(stages) as sampling:
        sampling.start(wishes)
        sampling.wait_for(3)
        for number, wish in enumerate(wishes):
            error = relative_error(sampling.latents(number), expected(oracle, wish, "latent"))
            assert error <= 1e-5
    assert max(rows) > 1, "the ladder was climbed"
    assert rows[-1] == 1


def test_one_poisoned_row_of_eight_fails_and_seven_complete_in_as_many_steps(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = renamed([replace(a_wish(50 + n), num_inference_steps=6) for n in range(8)], "poison")
    marked = stages.sampler.open(
        stages.sampler.fetch(Task(work_through(stages.prompt, [wishes[3]])[0], 2, b""))
    ).latents
    seen = 0

    def poison(latents: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        rows = [torch.equal(each[None], marked) for each in latents]
        if any(rows):
            seen += 1
            latents = latents.clone()
            latents[rows] = torch.nan
        return latents

    predicting(monkeypatch, poison)
    with Sampling(stages, rows_max=16) as sampling:
        sampling.start(wishes)
        sampling.wait_for(8)
        failed = {
            number: each for number, each in sampling.answers.items() if isinstance(each, Failed)
        }
        assert failed.keys() == {3}
        fault = failed[3].fault
        assert (fault.fate, fault.reason_code) == (Fate.DEAD_LETTER, "non_finite_latents")
        assert all(np.isfinite(sampling.latents(n)).all() for n in range(8) if n != 3)
    assert seen == 1, "no forward is done again for it"


@pytest.mark.parametrize("name", ["UniPC", "FlowMatchEuler"])
def test_a_step_leaves_the_state_as_it_was(stages: Stages, name: str) -> None:
    sampler = stages.sampler
    (record,) = work_through(stages.prompt, [replace(a_wish(60), num_inference_steps=5)])
    state: Any = sampler.open(sampler.fetch(Task(record, 2, b"")))
    if name == "FlowMatchEuler":
        euler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
        euler.set_timesteps(5)
        euler.set_begin_index(0)
        state = replace(state, schedule=euler)
    for _ in range(5):
        (once,) = sampler.step([state], is_split=False)
        (again,) = sampler.step([state], is_split=False)
        assert isinstance(once, Denoising)
        assert isinstance(again, Denoising)
        assert torch.equal(once.latents, again.latents)
        state = once
    assert sampler.steps(state) == (5, 5)


def test_a_schedules_copy_shares_no_list_with_it(stages: Stages) -> None:
    (record,) = work_through(stages.prompt, [a_wish(61)])
    state = stages.sampler.open(stages.sampler.fetch(Task(record, 2, b"")))
    own = copy_of_schedule(state.schedule)
    lists = [name for name, value in vars(own).items() if isinstance(value, list)]
    assert lists, "UniPC keeps its last predictions in one"
    assert all(getattr(own, name) is not getattr(state.schedule, name) for name in lists)


def test_guidance_in_a_forward_of_its_own_gives_the_same_step(stages: Stages) -> None:
    sampler = stages.sampler
    states = []
    for wish in (a_wish(70), a_wish(71, scale=1.0), a_wish(72, scale=7.5)):
        (record,) = work_through(stages.prompt, [wish])
        states.append(sampler.open(sampler.fetch(Task(record, 2, b""))))
    for fused, split in zip(
        sampler.step(states, is_split=False), sampler.step(states, is_split=True), strict=True
    ):
        assert isinstance(fused, Denoising)
        assert isinstance(split, Denoising)
        error = relative_error(split.latents.numpy(), fused.latents.numpy())
        assert error <= 1e-5


@pytest.fixture
def own_attention() -> Iterator[None]:
    """diffusers keeps the last backend for models to come."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.mark.usefixtures("own_attention")
def test_a_deployment_chooses_how_the_transformer_attends(
    stages: Stages, oracle: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    attend = _AttentionBackendRegistry._backends[AttentionBackendName._NATIVE_MATH]

    def spied(*args: Any, **kwargs: Any) -> Any:
        used.append("math")
        return attend(*args, **kwargs)

    monkeypatch.setitem(
        _AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_MATH, spied
    )
    sampler = SamplerWork(tiny_model, DeviceSettings(attention="_native_math"), stages.store)
    sampler.load()
    wish = replace(a_wish(300), job_id="attention")
    (record,) = work_through(sampler, work_through(stages.prompt, [wish]))
    error = relative_error(latents_of(stages, record), expected(oracle, wish, "latent"))
    assert error <= 1e-5
    assert used


@pytest.mark.usefixtures("own_attention")
@pytest.mark.parametrize("name", ["telepathy", "flash", "flash_hub"])
def test_attention_that_is_not_there_ends_the_start(
    stages: Stages, tiny_model: Path, name: str
) -> None:
    sampler = SamplerWork(tiny_model, DeviceSettings(attention=name), stages.store)
    with pytest.raises(SettingsError, match=f"REEL_ATTENTION={name}"):
        sampler.load()
