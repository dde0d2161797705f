"""The sampler's work: jobs of one shape are denoised together, one step at a time.

Each request owns its noise, noise schedule, step and guidance scale; one transformer forward serves
all rows, the guidance rows included. A job's state is a value: a step makes a new one. What differs
between model families is their adapters' (workers/sampler/families).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.records import BlobRef, CleanedPrompt, Job, LatentsReady, Record, StageTiming
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.blobs.fences import blob_prefix
from streams.engine import Task
from streams.errors import InvalidRecord, SickHost
from workers.models.card import family_of, smallest_job
from workers.models.held import read_models
from workers.sampler.checkpoint import Checkpoints, dump, identity_of, restore
from workers.sampler.families.base import NEGATIVE
from workers.sampler.previews import (
    MEDIA_TYPE,
    PREVIEWS,
    PreviewMap,
    png_of,
    read_preview_map,
)
from workers.sampler.schedules import begin_draws, clean_estimate, stepped
from workers.sampler.step_cache import StepCache
from workers.torch_device import (
    DeviceSettings,
    device_faults,
    device_kind,
    free_memory,
    memory_bytes,
    num_compiled_graphs,
    on_device,
    open_budget,
    open_place,
)

if TYPE_CHECKING:
    from torch import Tensor

    from workers.memory_budget import MemoryBudget
    from workers.sampler.families.base import Denoiser, Text

log = logging.getLogger(__name__)

MAX_CONDITIONING_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Conditioned:
    """A job with its prompts' encodings, as its family's `text_layout` says.

    `checkpoint` is what another worker, or another try, has left of it.
    """

    record: CleanedPrompt
    text: Mapping[str, npt.NDArray[Any]]
    negative_text: Mapping[str, npt.NDArray[Any]] | None
    checkpoint: bytes | None = None

    @property
    def job(self) -> Job:
        """The job."""
        return self.record.job


@dataclass(frozen=True, slots=True)
class Denoising:
    """A job between two steps.

    `latents` (1, ...) float32; `schedule` a scheduler of its own, never stepped in place; prompts'
    encodings (1, ...) each, the negative ones with guidance only.
    """

    record: CleanedPrompt
    latents: Tensor
    schedule: Any
    num_done: int
    text: Text
    negative_text: Text | None
    step_cache: StepCache | None = None
    last: tuple[Tensor, Tensor] | None = None  # for previews: latents before the last step here,
    #                                            and its prediction

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

    def __init__(
        self,
        model_dir: Path,
        device: DeviceSettings,
        store: BlobStore,
        distilled_dir: Path | None = None,
    ) -> None:
        self._model_dir, self._device_settings, self._store = model_dir, device, store
        self._checkpoints = Checkpoints(store)
        self._models = read_models(model_dir, distilled_dir)
        self._denoisers: dict[str, Denoiser] = {}  # by model version
        self._preview_map: PreviewMap | None = None
        self._device: Any = None
        self._budget: MemoryBudget | None = None

    def load(self) -> None:
        """Load transformer and scheduler of each model."""
        place = open_place(self._device_settings)
        self._device = place.device
        self._budget = open_budget(self._device_settings)
        family = family_of(self._model_dir)
        for folder, card in self._models:
            self._denoisers[card.version] = family.denoiser(folder, place, card)
        num_channels = family.geometry(self._model_dir).num_channels
        self._preview_map = read_preview_map(self._model_dir, num_channels)

    def identity(self) -> str:
        """The models, and what they run on."""
        import torch

        kind = device_kind(self._device_settings)
        settings = self._device_settings
        ways = settings.attention, settings.compile_backend, settings.offload
        told = " ".join(each or "default" for each in ways)
        versions = " ".join(card.version for _, card in self._models)
        return f"{versions} {kind} {torch.get_num_threads()} threads {told}"

    def batch_key(self, task: Task) -> Hashable:
        """One model, one shape: steps, guidance and noise schedule are each job's own."""
        job = task.record.job
        self._models.of(job)
        return job.model_version, job.num_frames, job.height_px, job.width_px

    def begin(self, task: Task) -> Task:
        """The task as it came: the job is claimed long since."""
        return task

    def fetch(self, task: Task) -> Conditioned:
        """The job's prompts, encoded, checked."""
        record = task.record
        layout = self._denoiser_of(record.job).text_layout()
        expected = dict(layout)
        if self._models.of(record.job).is_guided(record.job):
            expected |= {f"{NEGATIVE}{name}": each for name, each in layout.items()}
        found = tensors.load(
            self._store.read(record.conditioning, MAX_CONDITIONING_BYTES), expected
        )
        negative = {
            name: found.pop(key) for name in layout if (key := f"{NEGATIVE}{name}") in found
        }
        return Conditioned(record, found, negative or None, self._checkpoints.load(record))

    def _denoiser_of(self, job: Job) -> Denoiser:
        return self._denoisers[job.model_version]

    def open(self, inputs: Conditioned) -> Denoising:
        """The job before its first step."""
        job, negative = inputs.job, None
        with device_faults(self._device, 1, _shape(job)):
            text = on_device(inputs.text, self._device)
            if inputs.negative_text is not None:
                negative = on_device(inputs.negative_text, self._device)
            latents = self._denoiser_of(job).prepare_latents(job)
            schedule, num_done = self._new_schedule(job, latents), 0
            if inputs.checkpoint is not None:
                found = self._restored(inputs, schedule, latents)
                if found is None:  # it may have been half restored
                    schedule = self._new_schedule(job, latents)
                else:
                    latents, num_done = found
        return Denoising(
            inputs.record, latents, schedule, num_done, text, negative,
            self._new_step_cache(inputs.record),
        )  # fmt: skip

    def _new_step_cache(self, record: CleanedPrompt) -> StepCache | None:
        """None: not asked for, or hooks that move weights are in the way; then it is exact."""
        if not record.is_step_cached or self._device_settings.offload is not None:
            return None
        job = record.job
        return StepCache(self._denoiser_of(job), self._models.of(job).step_cache_threshold)

    def _new_schedule(self, job: Job, latents: Tensor) -> Any:
        schedule = self._denoiser_of(job).new_schedule(job)
        begin_draws(schedule, job.seed, latents.numel())
        return schedule

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
        """What stores a checkpoint of this state: on an I/O thread, while steps go on.

        It keeps nothing else of the state: until a slow store has it, steps need the memory.
        """
        record, num_done = state.record, state.num_done
        identity = identity_of(record, state.schedule)
        data = dump(identity, state.latents, state.schedule, num_done)

        def save() -> None:
            if data is not None:
                self._checkpoints.save(record, num_done, data)

        return save

    def preview(self, state: Denoising) -> Callable[[], BlobRef] | None:
        """What stores a picture of the middle frame; None where the model has no preview map."""
        import torch

        if self._preview_map is None or state.last is None:
            return None
        before, prediction = state.last
        with torch.inference_mode(), device_faults(self._device, 1, _shape(state.job)):
            clean = clean_estimate(state.schedule, state.num_done, prediction, before)
            frames = self._denoiser_of(state.job).final_latents(clean, state.job)
            picture = self._preview_map.picture(frames[:, frames.shape[1] // 2])
        job = state.job
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, PREVIEWS)
        return lambda: self._store.put(prefix, [png_of(picture)], MEDIA_TYPE)

    def width(self, state: Denoising) -> int:
        """Rows of a forward: two with guidance."""
        return 1 if state.negative_text is None else 2

    def step_key(self, state: Denoising) -> Hashable:
        """Jobs of one model and shape share forwards, at whatever steps of one expert they are."""
        job = state.job
        family, is_cached = self._denoiser_of(job), self.is_alone(state)
        with device_faults(self._device, 1, _shape(job)):  # its timestep lies there
            expert = family.expert(state.timestep)
        return job.model_version, _shape(job), family.constants(job), expert, is_cached

    def is_alone(self, state: Denoising) -> bool:
        """A step cache remembers one job's forwards."""
        return state.step_cache is not None

    def steps(self, state: Denoising) -> tuple[int, int]:
        """How many are done, and of how many: each scheduler takes one a timestep."""
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
            cache = states[0].step_cache
            if cache is None:
                family = self._denoiser_of(states[0].job)
                predictions = self._predict(family, states, is_split)
            else:
                with cache.denoiser() as denoiser:
                    predictions = self._predict(denoiser, states, is_split=True)
            after = [
                _stepped(state, prediction, is_kept=self._preview_map is not None)
                for state, prediction in zip(states, predictions, strict=True)
            ]
            finite = torch.isfinite(torch.cat([each.latents for each in after]))
            is_finite = finite.flatten(1).all(1).tolist()
        return [
            state if is_sound else InvalidRecord(
                f"the latents are not finite after step {state.num_done}",
                reason_code="non_finite_latents",
            )
            for state, is_sound in zip(after, is_finite, strict=True)
        ]  # fmt: skip

    def _predict(
        self, family: Denoiser, states: Sequence[Denoising], is_split: bool
    ) -> list[Tensor]:
        """Each job's prediction, (1, ...), guidance applied."""
        import torch

        guided = [each for each in states if each.negative_text is not None]

        def forward(rows: Sequence[Denoising], texts: Sequence[Text]) -> Tensor:
            prediction = family.forward(
                torch.cat([each.latents for each in rows]),
                torch.stack([each.timestep for each in rows]),
                {name: torch.cat([each[name] for each in texts]) for name in texts[0]},
                [each.job for each in rows],
                family.expert(rows[0].timestep),
            )
            return prediction.float()  # guidance and the scheduler would round again

        prompts = [each.text for each in states]
        negatives = [each.negative_text for each in guided if each.negative_text is not None]
        if is_split:
            with family.cache_context("cond"):
                both = forward(states, prompts)
            if guided:
                with family.cache_context("uncond"):
                    both = torch.cat([both, forward(guided, negatives)])
        else:
            both = forward([*states, *guided], [*prompts, *negatives])
        predicted = [both[number : number + 1] for number in range(len(both))]
        unguided = iter(predicted[len(states) :])
        for number, state in enumerate(states):
            if state.negative_text is not None:
                base = next(unguided)
                scale = family.guidance_scale(state.job, state.timestep)
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
        with device_faults(self._device, 1, _shape(state.job)):
            final = self._denoiser_of(state.job).final_latents(state.latents, state.job)
            latents: npt.NDArray[Any] = final.float().cpu().contiguous().numpy()
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

    def num_compiled_graphs(self) -> int:
        """How often a forward of another shape had to be compiled, so far."""
        if self._device_settings.compile_backend is None:
            return 0  # asking imports what compiles
        return num_compiled_graphs()

    def probe(self) -> None:
        """One forward of the smallest job, by each model."""
        for _, card in self._models:
            self._probe(self._denoisers[card.version], smallest_job(card))

    def _probe(self, family: Denoiser, job: Job) -> None:
        import torch

        ones = {
            name: np.ones([size or 1 for size in shape], dtype)
            for name, (dtype, shape) in family.text_layout().items()
        }
        with torch.inference_mode(), device_faults(self._device, 1, "the smallest latents"):
            text = on_device(ones, self._device)
            latents = family.prepare_latents(job)
            timesteps = family.new_schedule(job).timesteps[:1]
            prediction = family.forward(
                latents, timesteps, text, [job], family.expert(timesteps[0])
            )
            if not torch.isfinite(prediction).all():
                raise SickHost("a forward of noise is not finite", reason_code="device_failed")

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


def _stepped(state: Denoising, prediction: Tensor, *, is_kept: bool) -> Denoising:
    """The state after a step, with what led to it if that is to be kept; `state` is as it was."""
    schedule, latents = stepped(state.schedule, state.num_done, prediction, state.latents)
    return replace(
        state, latents=latents, schedule=schedule, num_done=state.num_done + 1,
        last=(state.latents, prediction) if is_kept else None,
    )  # fmt: skip


def _shape(job: Job) -> str:
    return f"{job.num_frames}x{job.height_px}x{job.width_px}"
