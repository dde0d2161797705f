"""The finisher's work: chunks of frames to an MP4 and a thumbnail, and the job's completion."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from schemas.records import BlobRef, FramesDecoded, Record, StageTiming, VideoDone
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.blobs.fences import blob_prefix
from streams.engine import Task
from streams.errors import InvalidRecord
from workers.finisher.mux import jpeg_of, mux_mp4
from workers.stage_work import Report

MAX_CHUNK_BYTES = 1024 * 1024 * 1024
GPU_STAGES = ("prompt", "sampler", "decoder")
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Film:
    """A muxed MP4, open for reading, and its thumbnail."""

    video: BinaryIO
    thumbnail: bytes

    def __del__(self) -> None:
        # The file has no name any more; storing it may be tried more than once, so nobody but the
        # last reference knows when it is done with.
        self.video.close()


class FinisherWork:
    """Implements `StageWork` for the finisher; knows no model and imports no torch."""

    stage = "finisher"

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def load(self) -> None:
        """Nothing to load."""

    def batch_key(self, task: Task) -> Hashable:
        """Checks that the chunks make a clip; all clips may go together, one after the other.

        Raises:
            InvalidRecord: `bad_chunks`; there is a gap, an overlap, or not the job's frames.
        """
        record: FramesDecoded = task.record
        next_frame = 0
        for chunk in record.chunks:
            if chunk.first_frame != next_frame or chunk.num_frames < 1:
                raise InvalidRecord(
                    f"chunk at frame {chunk.first_frame}, {next_frame} expected",
                    reason_code="bad_chunks",
                )
            next_frame += chunk.num_frames
        if next_frame != record.job.num_frames:
            raise InvalidRecord(
                f"{next_frame} frames in chunks, the job has {record.job.num_frames}",
                reason_code="bad_chunks",
            )
        return None

    def begin(self, task: Task) -> Task:
        """The task as it came: the job is claimed long since."""
        return task

    def fetch(self, task: Task) -> FramesDecoded:
        """The record: its chunks are read one at a time, while they are encoded."""
        record: FramesDecoded = task.record
        return record

    def compute(self, batch: Sequence[FramesDecoded], report: Report) -> Sequence[Film]:
        """Encode each clip, a chunk in memory at a time."""
        return [self._film(record, report) for record in batch]

    def probe(self) -> None:
        """Mux a black frame."""
        frame = np.zeros((64, 64, 3), np.uint8)
        mux_mp4([frame], 64, 64, 8).close()
        jpeg_of(frame)

    def _film(self, record: FramesDecoded, report: Report) -> Film:
        job, thumbnail = record.job, b""

        def frames() -> Iterator[npt.NDArray[Any]]:
            nonlocal thumbnail
            for number, frame in enumerate(self._frames(record, report)):
                if number == job.num_frames // 2:
                    thumbnail = jpeg_of(frame)
                yield frame

        video = mux_mp4(frames(), job.width_px, job.height_px, job.fps)
        return Film(video, thumbnail)

    def _frames(self, record: FramesDecoded, report: Report) -> Iterator[npt.NDArray[Any]]:
        job = record.job
        for number, chunk in enumerate(record.chunks):
            shape = (chunk.num_frames, job.height_px, job.width_px, 3)
            data = self._store.read(chunk.blob, MAX_CHUNK_BYTES)
            yield from tensors.load(data, {"frames": (np.uint8, shape)})["frames"]
            report(number + 1, len(record.chunks))

    def store(self, task: Task, result: Film, timing: StageTiming) -> Record:
        """Store video and thumbnail; the VideoDone that ends the job."""
        record: FramesDecoded = task.record
        job = record.job
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, self.stage)
        video = self._put_video(prefix, result.video)
        thumbnail = self._store.put(prefix, [result.thumbnail], "image/jpeg")
        timings = (*record.timings, timing)
        return VideoDone(
            job_id=job.job_id,
            run=job.run,
            tenant_id=job.tenant_id,
            status="completed",
            partition=job.partition,
            created_at=job.created_at,
            finished_at=timing.finished_at,
            tier=job.tier,
            ended_by=self.stage,
            video=video,
            thumbnail=thumbnail,
            model=job.model,
            model_version=job.model_version,
            num_frames=job.num_frames,
            width_px=job.width_px,
            height_px=job.height_px,
            fps=job.fps,
            seed=job.seed,
            degradations=(*job.degradations, *record.degradations),
            cost_gpu_s=sum(each.compute_s for each in timings if each.stage in GPU_STAGES),
            timings=timings,
        )

    def _put_video(self, prefix: str, video: BinaryIO) -> BlobRef:
        video.seek(0)  # a store that was away is tried again with the same film
        return self._store.put(prefix, iter(lambda: video.read(_READ_BYTES), b""), "video/mp4")
