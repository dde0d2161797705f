"""The sampler's work: jobs of one shape are denoised together, one step at a time.

Each request owns its noise, noise schedule, step and guidance scale; one transformer forward serves
all rows, the guidance rows included. A job's state is a value: a step makes a new one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.records import CleanedPrompt, Job, LatentsReady, Record, StageTiming
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.blobs.fences import blob_prefix
from streams.engine import Task
from streams.errors import InvalidRecord, SickHost
from workers.model_check import require_model
from workers.models.card import read_card
from workers.sampler.checkpoint import Checkpoints, dump, identity_of, restore
from workers.sampler.schedules import copy_of_schedule
from workers.torch_device import (
    DeviceSettings,
    device_faults,
    device_kind,
    free_memory,
    memory_bytes,
    open_budget,
    open_device,
)

if TYPE_CHECKING:
    from torch import Tensor

    from workers.memory_budget import MemoryBudget
    from workers.sampler.families.wan import WanFamily

log = logging.getLogger(__name__)

MAX_CONDITIONING_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Conditioned:
    """A job with its text embeddings, each (text_pad_length, text_dim) float32.

    `checkpoint` is what another worker, or another try, has left of it.
    """

    record: CleanedPrompt
    prompt_embeds: npt.NDArray[Any]
    negative_prompt_embeds: npt.NDArray[Any] | None
    checkpoint: bytes | None = None

    @property
    def job(self) -> Job:
        """The job."""
        return self.record.job


@dataclass(frozen=True, slots=True)
class Denoising:
    """A job between two steps.

    `latents` (1, C, T, H, W) float32; `schedule` a scheduler of its own, never stepped in place;
    text embeddings (1, text_pad_length, text_dim), the negative ones with guidance only.
    """

    record: CleanedPrompt
    latents: Tensor
    schedule: Any
    num_done: int
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None

    @property
    def job(self) -> Job:
        """The job."""
        return self.record.job

    @property
    def timestep(self) -> Tensor:
        """Of the next step."""
        timestep: Tensor = self.schedule.timesteps[self.num_done]
        return timestep


class SamplerWork:
    """Implements `SteppedWork` for the sampler."""

    stage = "sampler"

    def __init__(self, model_dir: Path, device: DeviceSettings, store: BlobStore) -> None:
        self._model_dir, self._device_settings, self._store = model_dir, device, store
        self._checkpoints = Checkpoints(store)
        self._card = read_card(model_dir)
        self._family: WanFamily | None = None
        self._device: Any = None
        self._budget: MemoryBudget | None = None

    def load(self) -> None:
        """Load the transformer and the scheduler."""
        self._device, dtype = open_device(self._device_settings)
        self._budget = open_budget(self._device_settings)
        from workers.sampler.families.wan import WanFamily

        self._family = WanFamily(
            self._model_dir, self._device, dtype, self._device_settings.attention
        )

    def identity(self) -> str:
        """The model, and what it runs on."""
        import torch

        kind = device_kind(self._device_settings)
        attention = self._device_settings.attention or "default"
        return f"{self._card.version} {kind} {torch.get_num_threads()} threads {attention}"

    def batch_key(self, task: Task) -> Hashable:
        """One shape: steps, guidance and noise schedule are each job's own."""
        job = task.record.job
        require_model(job, self._card)
        return job.num_frames, job.height_px, job.width_px

    def begin(self, task: Task) -> Task:
        """The task as it came: the job is claimed long since."""
        return task

    def fetch(self, task: Task) -> Conditioned:
        """The job's embeddings, checked."""
        record = task.record
        assert self._family is not None, "loaded before anything is fetched"
        row = (np.float32, (self._card.text_pad_length, self._family.text_dim))
        expected: tensors.Expected = {"prompt_embeds": row}
        if record.job.is_guided:
            expected = {**expected, "negative_prompt_embeds": row}
        data = self._store.read(record.conditioning, MAX_CONDITIONING_BYTES)
        found = tensors.load(data, expected)
        return Conditioned(
            record, found["prompt_embeds"], found.get("negative_prompt_embeds"),
            self._checkpoints.load(record.job),
        )  # fmt: skip

    def open(self, inputs: Conditioned) -> Denoising:
        """The job before its first step."""
        import torch

        family = self._family
        assert family is not None, "loaded before anything begins"
        embeds, negative = (
            None if each is None else torch.from_numpy(each)[None].to(self._device)
            for each in (inputs.prompt_embeds, inputs.negative_prompt_embeds)
        )
        assert embeds is not None
        job = inputs.job
        with device_faults(self._device, 1, _shape(job)):
            latents = family.prepare_latents(job)
        schedule, num_done = family.new_schedule(job.num_inference_steps), 0
        if inputs.checkpoint is not None:
            found = self._restored(inputs, schedule, latents)
            if found is None:  # it may have been half restored
                schedule = family.new_schedule(job.num_inference_steps)
            else:
                latents, num_done = found
        return Denoising(inputs.record, latents, schedule, num_done, embeds, negative)

    def _restored(
        self, inputs: Conditioned, schedule: Any, latents: Tensor
    ) -> tuple[Tensor, int] | None:
        """Where the job goes on; None: at its beginning, and the log says why."""
        assert inputs.checkpoint is not None
        job = inputs.job
        about = {"job_id": job.job_id, "run": job.run}
        try:
            found = restore(
                inputs.checkpoint, identity_of(inputs.record, schedule), schedule, latents
            )
        except InvalidRecord as error:
            log.warning("checkpoint is none: from the start", extra=about | {"error": str(error)})
            return None
        if found is None:
            log.warning("checkpoint of other work: from the start", extra=about)
            return None
        log.info("goes on from its checkpoint", extra=about | {"step": found[1]})
        return found

    def snapshot(self, state: Denoising) -> Callable[[], None]:
        """What stores a checkpoint of this state: on an I/O thread, while steps go on."""
        data = dump(
            identity_of(state.record, state.schedule), state.latents, state.schedule,
            state.num_done,
        )  # fmt: skip

        def save() -> None:
            if data is not None:
                self._checkpoints.save(state.job, data)

        return save

    def width(self, state: Denoising) -> int:
        """Rows of a forward: two with guidance."""
        return 1 if state.negative_prompt_embeds is None else 2

    def step_key(self, state: Denoising) -> Hashable:
        """Jobs of one shape share forwards, at whatever steps of one expert they are."""
        return (*state.latents.shape[1:], self._expert(state))

    def _expert(self, state: Denoising) -> int:
        assert self._family is not None, "loaded before anything begins"
        return self._family.expert(state.timestep)

    def steps(self, state: Denoising) -> tuple[int, int]:
        """How many are done, and of how many: UniPC and Euler take one a timestep."""
        return state.num_done, len(state.schedule.timesteps)

    def step(
        self, states: Sequence[Denoising], is_split: bool
    ) -> Sequence[Denoising | InvalidRecord]:
        """One step of each; InvalidRecord for a row that is not finite any more.

        Raises:
            OutOfMemory, SickHost: as `device_faults` says; the states are as they were.
        """
        import torch

        rows = sum(map(self.width, states))
        shape = _shape(states[0].job)
        with torch.inference_mode(), device_faults(self._device, rows, shape, self._budget):
            predictions = self._predict(states, is_split)
            stepped = [
                _stepped(state, prediction)
                for state, prediction in zip(states, predictions, strict=True)
            ]
            finite = torch.isfinite(torch.cat([each.latents for each in stepped]))
            is_finite = finite.flatten(1).all(1).tolist()
        return [
            state if is_sound else InvalidRecord(
                f"the latents are not finite after step {state.num_done}",
                reason_code="non_finite_latents",
            )
            for state, is_sound in zip(stepped, is_finite, strict=True)
        ]  # fmt: skip

    def _predict(self, states: Sequence[Denoising], is_split: bool) -> list[Tensor]:
        """Each job's prediction, (1, C, T, H, W), guidance applied."""
        import torch

        family = self._family
        assert family is not None
        guided = [each for each in states if each.negative_prompt_embeds is not None]

        def forward(rows: Sequence[Denoising], texts: Sequence[Tensor | None]) -> Tensor:
            embeds = [_required(each) for each in texts]
            return family.predict(
                torch.cat([each.latents for each in rows]),
                torch.stack([each.timestep for each in rows]),
                torch.cat(embeds),
                self._expert(rows[0]),
            )

        prompts = [each.prompt_embeds for each in states]
        negatives = [each.negative_prompt_embeds for each in guided]
        if guided and is_split:
            both = torch.cat([forward(states, prompts), forward(guided, negatives)])
        else:
            both = forward([*states, *guided], [*prompts, *negatives])
        predicted = [both[number : number + 1] for number in range(len(both))]
        unguided = iter(predicted[len(states) :])
        for number, state in enumerate(states):
            if state.negative_prompt_embeds is not None:
                # A Python float: as a tensor of its own it would round in the tensor's dtype.
                base = next(unguided)
                scale = state.job.guidance_scale
                predicted[number] = base + scale * (predicted[number] - base)
        return predicted[: len(states)]

    def forget(self, inputs: Conditioned) -> None:
        """Remove the job's checkpoints: its result is published.

        Raises:
            SickHost: they stay until the sweep.
        """
        self._checkpoints.forget(inputs.job)

    def result(self, state: Denoising) -> npt.NDArray[Any]:
        """The latents, (C, T, H, W) float32."""
        latents: npt.NDArray[Any] = state.latents[0].float().cpu().numpy()
        return latents

    def free_memory(self) -> None:
        """Give back what the allocator keeps."""
        free_memory(self._device)

    def memory_bytes(self) -> int | None:
        """The GPU's memory, or the budget; else None: torch measures no peaks on the CPU."""
        if self._budget is not None:
            return self._budget.total_bytes
        return memory_bytes(self._device)[1] if self._device.type == "cuda" else None

    def peak_bytes(self) -> int | None:
        """Of torch's allocator, or the budget, since the last call."""
        import torch

        if self._budget is not None:
            return self._budget.take_peak_bytes()
        if self._device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return int(peak)

    def probe(self) -> None:
        """One forward of the smallest latents."""
        import torch

        family = self._family
        assert family is not None
        latents = torch.zeros((1, *family.smallest_shape))
        text = torch.zeros((1, self._card.text_pad_length, family.text_dim))
        with torch.inference_mode(), device_faults(self._device, 1, "the smallest latents"):
            timestep = torch.tensor([1.0])
            expert = family.expert(timestep)
            prediction = family.predict(latents.to(self._device), timestep, text, expert)
            if not torch.isfinite(prediction).all():
                raise SickHost("a forward of zeros is not finite", reason_code="device_failed")

    def store(self, task: Task, result: npt.NDArray[Any], timing: StageTiming) -> Record:
        """Store the latents; the LatentsReady that names them."""
        record = task.record
        job = record.job
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, self.stage)
        data = tensors.dump({"latents": result})
        return LatentsReady(
            job=job,
            latents=self._store.put(prefix, [data], tensors.MEDIA_TYPE),
            layout="CTHW",
            is_normalised=True,
            num_latent_frames=result.shape[1],
            timings=(*record.timings, timing),
        )


def _stepped(state: Denoising, prediction: Tensor) -> Denoising:
    """The state after a step; `state` is as it was."""
    schedule = copy_of_schedule(state.schedule)
    latents = schedule.step(prediction, state.timestep, state.latents, return_dict=False)[0]
    return replace(state, latents=latents, schedule=schedule, num_done=state.num_done + 1)


def _shape(job: Job) -> str:
    return f"{job.num_frames}x{job.height_px}x{job.width_px}"


def _required(embeds: Tensor | None) -> Tensor:
    assert embeds is not None, "a guided row has negative embeddings"
    return embeds
