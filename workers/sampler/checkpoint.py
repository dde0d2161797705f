"""Checkpoints of the denoising loop: what a job has reached outlives the worker that reached it.

A checkpoint is one safetensors file with the latents, all that the job's scheduler remembers, and
what must be the same for it to be of use; another model, prompt, number of steps or scheduler makes
it worthless, and the job starts afresh. Continued alone on the same device, a job gives the same
bits as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.records import BlobRef, CleanedPrompt, Job
from streams.blobs import tensors
from streams.blobs.base import BlobStore, Found
from streams.blobs.fences import Fences, blob_prefix
from streams.errors import BlobCorrupt, BlobMissing, InvalidRecord

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 1 << 30
_FOLDER = "sampler.checkpoint"  # beside the stages' folders; the sweep takes what stays there
_KEY = re.compile(r"sampler\.checkpoint(?:\.([0-9]+)\.([0-9a-f]+))?/[0-9a-f]{64}")  # below the run
_ABOUT = "about"  # JSON, as bytes
_RNG = "rng_state"
_FLAT: tensors.Expected = {_ABOUT: (np.uint8, (None,)), _RNG: (np.float32, (None,))}

#: What a scheduler remembers between two steps: with these every cut is bit-equal, and each is
#: indispensable (UniPC: Zhao et al., arXiv 2302.04867). One that is not here gets no checkpoints.
MEMORY_OF: Mapping[str, tuple[str, ...]] = {
    "FlowMatchEulerDiscreteScheduler": ("_step_index",),
    "UniPCMultistepScheduler": (
        "_step_index",
        "model_outputs",
        "last_sample",
        "lower_order_nums",
        "this_order",
    ),
    "CogVideoXDDIMScheduler": (),
    "CogVideoXDPMScheduler": ("old_pred_original_sample", _RNG),
}


def identity_of(record: CleanedPrompt, schedule: Any) -> dict[str, Any]:
    """What a checkpoint belongs to, as JSON values: equal for equal work only."""
    config = json.dumps(dict(schedule.config), sort_keys=True, default=str)
    return {
        **_asked_of(record),
        "scheduler": type(schedule).__name__,
        "scheduler_config": hashlib.sha256(config.encode()).hexdigest(),
    }


def _asked_of(record: CleanedPrompt) -> dict[str, Any]:
    """Of the identity, what is known before there is a scheduler."""
    job = record.job
    return {
        "model": job.model,
        "model_version": job.model_version,
        "conditioning": record.conditioning.sha256,
        "seed": job.seed,
        "num_inference_steps": job.num_inference_steps,
        "guidance_scale": job.guidance_scale,
        "size": [job.num_frames, job.height_px, job.width_px],
        "fps": job.fps,
    }


def dump(
    identity: Mapping[str, Any], latents: torch.Tensor, schedule: Any, num_done: int
) -> bytes | None:
    """A checkpoint's bytes; None for a scheduler whose memory we do not know."""
    import torch

    names = MEMORY_OF.get(type(schedule).__name__)
    if names is None:
        return None
    arrays, plain, dtypes = {"latents": _array(latents)}, {}, {}
    for name in names:
        value = getattr(schedule, name)
        for part, each in enumerate(value) if isinstance(value, list) else ((None, value),):
            key = name if part is None else f"{name}.{part}"
            if isinstance(each, torch.Tensor):
                arrays[key], dtypes[key] = _array(each), str(each.dtype).removeprefix("torch.")
            else:
                plain[key] = each
    about = {
        "identity": identity, "num_done": num_done, "plain": plain, "dtypes": dtypes,
        "lengths": {n: len(v) for n in names if isinstance(v := getattr(schedule, n), list)},
    }  # fmt: skip
    arrays[_ABOUT] = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    return tensors.dump(arrays)


def restore(
    data: bytes, identity: Mapping[str, Any], schedule: Any, like: torch.Tensor
) -> tuple[torch.Tensor, int] | None:
    """Latents and steps done, `schedule` brought to where it was; None: it is another work's.

    `like` says shape, type and device of the latents.
    A random generator's state is the one memory that is not shaped like them.

    Raises:
        InvalidRecord: these bytes are no checkpoint.
    """
    import torch

    shape = tuple(like.shape)
    found = tensors.load(
        data,
        {name: _FLAT.get(name, (np.float32, shape)) for name in tensors.names(data)},
    )
    if _ABOUT not in found or "latents" not in found:
        raise InvalidRecord("a checkpoint without latents", reason_code="bad_tensor")
    about = json.loads(found[_ABOUT].tobytes())
    if about["identity"] != dict(identity):
        return None

    def value_of(key: str) -> Any:
        if key in about["plain"]:
            return about["plain"][key]
        dtype = getattr(torch, about["dtypes"][key])
        return torch.from_numpy(found[key]).to(like.device, dtype)

    for name in MEMORY_OF[type(schedule).__name__]:
        length = about["lengths"].get(name)
        parts = None if length is None else [value_of(f"{name}.{part}") for part in range(length)]
        setattr(schedule, name, value_of(name) if parts is None else parts)
    latents = torch.from_numpy(found["latents"]).to(like.device, like.dtype)
    return latents, int(about["num_done"])


@dataclass(frozen=True, slots=True)
class _Kept:
    """A checkpoint in the store, as its key describes it.

    `<run>/sampler.checkpoint.<steps done>.<of which work>/<sha256>`. One of an earlier version says
    neither: no steps, and `work` is "".
    """

    found: Found
    num_done: int
    work: str


class Checkpoints:
    """The checkpoints of all jobs in a store; blocking, safe to use from several threads."""

    def __init__(self, store: BlobStore) -> None:
        self._store, self._fences = store, Fences(store)

    def save(self, record: CleanedPrompt, num_done: int, data: bytes) -> None:
        """Put a checkpoint; those of the run that hold no more steps, or other work, go.

        What holds more stays: another worker has the job by now, and is further. One of a run that
        has ended meanwhile is not put: nobody would ever read or remove it.

        Raises:
            SickHost: it is lost, which costs work and nothing else.
        """
        job = record.job
        if self._fences.outcome(job.tenant_id, job.job_id, job.run) is not None:
            return
        work = _work_of(record)
        prefix = f"{_prefix(job)}.{num_done:06}.{work}"
        sha256 = self._store.put(prefix, [data], tensors.MEDIA_TYPE).sha256
        for each in self._kept(job):
            is_behind = each.work != work or each.num_done <= num_done
            if is_behind and each.found.key != f"{prefix}/{sha256}":
                self._store.remove(each.found.key)

    def load(self, record: CleanedPrompt) -> bytes | None:
        """The furthest sound checkpoint of this work in the job's run; None where there is none.

        Raises:
            SickHost: the store does not answer.
        """
        work = _work_of(record)
        kept = [each for each in self._kept(record.job) if each.work in (work, "")]
        kept.sort(key=lambda each: (each.num_done, each.found.modified_at), reverse=True)
        for found in (each.found for each in kept):
            sha256 = found.key.rpartition("/")[2]
            ref = BlobRef(
                f"{self._store.root_uri}/{found.key}", sha256, found.size_bytes, tensors.MEDIA_TYPE
            )
            try:
                return self._store.read(ref, MAX_CHECKPOINT_BYTES)
            except (BlobCorrupt, BlobMissing, InvalidRecord) as error:
                log.warning("checkpoint ignored", extra={"key": found.key, "error": str(error)})
        return None

    def forget(self, job: Job) -> None:
        """Remove the job's checkpoints: its latents are stored.

        Raises:
            SickHost: they stay until the sweep.
        """
        for each in self._kept(job):
            self._store.remove(each.found.key)

    def _kept(self, job: Job) -> list[_Kept]:
        """All of the run: two, where a worker died between a put and the removal, or is late."""
        run = _prefix(job).rpartition("/")[0]
        return [
            _Kept(found, int(said[1] or 0), said[2] or "")
            for found in self._store.walk(run)
            if (said := _KEY.fullmatch(found.key.removeprefix(f"{run}/"))) is not None
        ]


def _prefix(job: Job) -> str:
    return blob_prefix(job.tenant_id, job.job_id, job.run, _FOLDER)


def _work_of(record: CleanedPrompt) -> str:
    """Short, to tell the work of one run from what it was before it was degraded, say."""
    asked = json.dumps(_asked_of(record), sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().float().cpu().numpy()
    return array
