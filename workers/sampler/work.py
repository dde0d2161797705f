"""The sampler's work: micro-batches of jobs of one shape, denoised together step by step.

Each request owns its noise, noise schedule and guidance scale; one transformer forward per step
serves all rows, the guidance rows included.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.records import Job, LatentsReady, Record, StageTiming
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.blobs.fences import blob_prefix
from streams.engine import Task
from streams.errors import InvalidRecord, SickHost
from workers.model_check import require_model
from workers.models.card import read_card
from workers.stage_work import Report
from workers.torch_device import DeviceSettings, device_faults, open_device

if TYPE_CHECKING:
    from torch import Tensor

    from workers.sampler.families.wan import WanFamily

MAX_CONDITIONING_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Conditioned:
    """A job with its text embeddings, each (text_pad_length, text_dim) float32."""

    job: Job
    prompt_embeds: npt.NDArray[Any]
    negative_prompt_embeds: npt.NDArray[Any] | None


class SamplerWork:
    """Implements `StageWork` for the sampler."""

    stage = "sampler"

    def __init__(self, model_dir: Path, device: DeviceSettings, store: BlobStore) -> None:
        self._model_dir, self._device_settings, self._store = model_dir, device, store
        self._card = read_card(model_dir)
        self._family: WanFamily | None = None
        self._device: Any = None

    def load(self) -> None:
        """Load the transformer and the scheduler."""
        self._device, dtype = open_device(self._device_settings)
        from workers.sampler.families.wan import WanFamily

        self._family = WanFamily(self._model_dir, self._device, dtype)

    def batch_key(self, task: Task) -> Hashable:
        """One shape, one number of steps, guided or not."""
        job = task.record.job
        require_model(job, self._card)
        return (
            job.num_frames, job.height_px, job.width_px, job.num_inference_steps, job.is_guided
        )  # fmt: skip

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
        return Conditioned(record.job, found["prompt_embeds"], found.get("negative_prompt_embeds"))

    def compute(self, batch: Sequence[Conditioned], report: Report) -> Sequence[Any]:
        """Denoise: each result is (C, T, H, W) float32, or InvalidRecord for a row of NaN."""
        import torch

        job = batch[0].job
        rows = len(batch) * (2 if job.is_guided else 1)
        shape = f"{job.num_frames}x{job.height_px}x{job.width_px}"
        with torch.inference_mode(), device_faults(self._device, rows, shape):
            return [_finite(row) for row in self._denoise(batch, report)]

    def _denoise(self, batch: Sequence[Conditioned], report: Report) -> list[Tensor]:
        import torch

        family = self._family
        assert family is not None
        # 1. Per-request state
        latents = [family.prepare_latents(row.job) for row in batch]
        schedules = [family.new_schedule(row.job.num_inference_steps) for row in batch]
        # 2. Rows of the forward: the prompts', then, with guidance, the negative prompts'
        texts = [row.prompt_embeds for row in batch]
        is_guided = batch[0].job.is_guided
        if is_guided:
            texts += [_required(row.negative_prompt_embeds) for row in batch]
        text_embeds = torch.from_numpy(np.stack(texts))
        # 3. Denoising loop
        num_steps = len(schedules[0].timesteps)
        for step_index in range(num_steps):
            timesteps = [schedule.timesteps[step_index] for schedule in schedules]
            copies = 2 if is_guided else 1
            predictions = family.predict(
                torch.cat(latents * copies), torch.stack(timesteps * copies), text_embeds
            )
            for number, row in enumerate(batch):
                prediction = predictions[number : number + 1]
                if is_guided:
                    unguided = predictions[len(batch) + number : len(batch) + number + 1]
                    prediction = unguided + row.job.guidance_scale * (prediction - unguided)
                latents[number] = schedules[number].step(
                    prediction, timesteps[number], latents[number], return_dict=False
                )[0]
            report(step_index + 1, num_steps)
        return [each[0] for each in latents]

    def probe(self) -> None:
        """One forward of the smallest latents."""
        import torch

        family = self._family
        assert family is not None
        latents = torch.zeros((1, *family.smallest_shape))
        text = torch.zeros((1, self._card.text_pad_length, family.text_dim))
        with torch.inference_mode(), device_faults(self._device, 1, "the smallest latents"):
            prediction = family.predict(latents.to(self._device), torch.tensor([1.0]), text)
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


def _finite(latents: Tensor) -> npt.NDArray[Any] | InvalidRecord:
    import torch

    if not torch.isfinite(latents).all():
        return InvalidRecord("the latents are not finite", reason_code="non_finite_latents")
    return latents.float().cpu().numpy()


def _required(embeds: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    assert embeds is not None, "a guided row has negative embeddings"
    return embeds
