"""The decoder's work: latents to frames, stored in chunks while the next are being decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.records import BlobRef, FrameChunk, FramesDecoded, Job, Record, StageTiming
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.blobs.fences import blob_prefix
from streams.engine import Task
from streams.errors import InvalidRecord, OutOfMemory
from workers.models.card import family_of, smallest_job
from workers.models.held import read_models
from workers.sampler.families.base import LatentDecoder
from workers.stage_work import Report
from workers.torch_device import (
    DeviceSettings,
    device_faults,
    free_memory,
    open_budget,
    open_place,
)

if TYPE_CHECKING:
    from workers.memory_budget import MemoryBudget

MAX_LATENTS_BYTES = 1024 * 1024 * 1024
VAE_TILED = "vae_tiled"
MAX_UPLOADS = 2  # chunks in memory besides the one being decoded


@dataclass(frozen=True, slots=True)
class Latents:
    """A job with its latents, (C, T, H, W) float32, normalised."""

    job: Job
    latents: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A clip's chunks, in order, and what was done to it that nobody asked for."""

    chunks: tuple[FrameChunk, ...]
    degradations: tuple[str, ...] = ()


class DecoderWork:
    """Implements `StageWork` for the decoder."""

    stage = "decoder"

    def __init__(
        self,
        model_dir: Path,
        device: DeviceSettings,
        store: BlobStore,
        distilled_dir: Path | None = None,
        latent_frames_per_chunk: int = 4,
    ) -> None:
        self._model_dir, self._device_settings, self._store = model_dir, device, store
        self._models = read_models(model_dir, distilled_dir)
        self._card = self._models.card  # its VAE decodes for both
        self._latent_frames_per_chunk = latent_frames_per_chunk
        self._family = family_of(model_dir)
        self._geometry = self._family.geometry(model_dir)
        self._vae: LatentDecoder | None = None
        self._device: Any = None
        self._budget: MemoryBudget | None = None

    def load(self) -> None:
        """Load the VAE."""
        place = open_place(self._device_settings)
        self._device = place.device
        self._budget = open_budget(self._device_settings)
        self._vae = self._family.decoder(self._model_dir, place, self._card)

    def batch_key(self, task: Task) -> Hashable:
        """One shape; rows of a batch are decoded one after the other."""
        job = task.record.job
        self._models.of(job)
        return job.num_frames, job.height_px, job.width_px

    def begin(self, task: Task) -> Task:
        """The task as it came: the job is claimed long since."""
        return task

    def fetch(self, task: Task) -> Latents:
        """The job's latents, checked."""
        record = task.record
        job = record.job
        if record.layout != "CTHW" or not record.is_normalised:
            raise InvalidRecord(
                f"latents laid out as {record.layout[:16]}, normalised: {record.is_normalised}",
                reason_code="unknown_layout",
            )
        shape = self._geometry.latent_shape(job)
        data = self._store.read(record.latents, MAX_LATENTS_BYTES)
        return Latents(job, tensors.load(data, {"latents": (np.float32, shape)})["latents"])

    def compute(self, batch: Sequence[Latents], report: Report) -> Sequence[Any]:
        """Decode and store; each result is a `Decoded`.

        Chunks are uploaded here, beside the decoding, so that no clip is held whole: an upload
        that fails raises its own error. A row that finds no memory is decoded again: with the cache
        freed, then, if its frames are large, in tiles; after that it is its own failure, for it was
        alone on the device.
        """
        import torch

        total = sum(row.latents.shape[1] for row in batch)
        done = 0
        results: list[Any] = []
        with torch.inference_mode(), ThreadPoolExecutor(1, "chunks") as uploads:
            for row in batch:
                told = partial(_report_from, report, done, total)
                results.append(self._by_the_ladder(row, uploads, told))
                done += row.latents.shape[1]
        return results

    def _by_the_ladder(
        self, row: Latents, uploads: ThreadPoolExecutor, told: Callable[[int], None]
    ) -> Decoded | OutOfMemory:
        assert self._vae is not None
        has_tiles = self._vae.has_tiles(row.job)
        as_usual = has_tiles and self._device_settings.is_vae_tiled
        result = self._decode_or_no_memory(row, uploads, told, as_usual)
        for is_tiled in dict.fromkeys((as_usual, has_tiles)):
            if isinstance(result, Decoded):
                break
            free_memory(self._device)
            result = self._decode_or_no_memory(row, uploads, told, is_tiled)
        return result

    def _decode_or_no_memory(
        self,
        row: Latents,
        uploads: ThreadPoolExecutor,
        told: Callable[[int], None],
        is_tiled: bool,
    ) -> Decoded | OutOfMemory:
        """The chunks, or the error without its traceback, which keeps a decode's tensors."""
        try:
            chunks = self._decode(row, uploads, told, is_tiled)
        except OutOfMemory as error:
            return OutOfMemory(str(error), error.evidence)
        return Decoded(chunks, (VAE_TILED,) if is_tiled else ())

    def _decode(
        self,
        row: Latents,
        uploads: ThreadPoolExecutor,
        told: Callable[[int], None],
        is_tiled: bool,
    ) -> tuple[FrameChunk, ...]:
        job = row.job
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, self.stage)
        under_way: deque[tuple[Future[BlobRef], int, int]] = deque()
        chunks: list[FrameChunk] = []

        def settle() -> None:
            future, first_frame, num_frames = under_way.popleft()
            chunks.append(FrameChunk(future.result(), first_frame, num_frames))

        first_frame = 0
        for frames in self._windows(row, told, is_tiled):
            if len(under_way) == MAX_UPLOADS:
                settle()
            under_way.append((uploads.submit(self._put, prefix, frames), first_frame, len(frames)))
            first_frame += len(frames)
        while under_way:
            settle()
        return tuple(chunks)

    def _windows(
        self, row: Latents, told: Callable[[int], None], is_tiled: bool
    ) -> Iterator[npt.NDArray[Any]]:
        """Frames in windows of so many latent frames."""
        import torch

        assert self._vae is not None
        window: list[npt.NDArray[Any]] = []
        num_decoded = 0
        decoded = self._vae.frames(torch.from_numpy(row.latents), row.job, is_tiled=is_tiled)
        shape = "x".join(map(str, row.latents.shape))
        while True:
            with device_faults(self._device, 1, f"latents {shape}", self._budget):
                frames = next(decoded, None)
            if frames is None:
                break
            window.append(frames)
            num_decoded += 1
            told(num_decoded)
            if len(window) == self._latent_frames_per_chunk:
                yield np.concatenate(window)
                window = []
        if window:
            yield np.concatenate(window)

    def probe(self) -> None:
        """Decode the smallest latents."""
        import torch

        assert self._vae is not None
        job = smallest_job(self._card)
        latents = torch.zeros(self._geometry.latent_shape(job))
        with torch.inference_mode(), device_faults(self._device, 1, "the smallest latents"):
            for _ in self._vae.frames(latents, job):
                pass

    def _put(self, prefix: str, frames: npt.NDArray[Any]) -> BlobRef:
        return self._store.put(prefix, [tensors.dump({"frames": frames})], tensors.MEDIA_TYPE)

    def store(self, task: Task, result: Decoded, timing: StageTiming) -> Record:
        """The FramesDecoded that names the chunks, which are stored already."""
        record = task.record
        return FramesDecoded(
            record.job, result.chunks, result.degradations, (*record.timings, timing)
        )


def _report_from(report: Report, num_before: int, num_steps: int, number: int) -> None:
    report(num_before + number, num_steps)
