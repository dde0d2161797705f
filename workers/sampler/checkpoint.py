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
from collections.abc import Mapping
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
    job = record.job
    config = json.dumps(dict(schedule.config), sort_keys=True, default=str)
    return {
        "model": job.model,
        "model_version": job.model_version,
        "conditioning": record.conditioning.sha256,
        "seed": job.seed,
        "num_inference_steps": job.num_inference_steps,
        "guidance_scale": job.guidance_scale,
        "size": [job.num_frames, job.height_px, job.width_px],
        "fps": job.fps,
        "scheduler": type(schedule).__name__,
        "scheduler_config": hashlib.sha256(config.encode()).hexdigest(),
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


class Checkpoints:
    """The checkpoints of all jobs in a store; blocking, safe to use from several threads."""

    def __init__(self, store: BlobStore) -> None:
        self._store, self._fences = store, Fences(store)

    def save(self, job: Job, data: bytes) -> None:
        """Put the job's newest checkpoint; older ones go.

        One of a run that has ended meanwhile is not put: nobody would ever read or remove it.

        Raises:
            SickHost: it is lost, which costs work and nothing else.
        """
        if self._fences.outcome(job.tenant_id, job.job_id, job.run) is not None:
            return
        prefix = _prefix(job)
        kept = self._store.put(prefix, [data], tensors.MEDIA_TYPE)
        self._remove(prefix, but=kept.sha256)

    def load(self, job: Job) -> bytes | None:
        """The newest sound checkpoint of the job's run; None where there is none.

        Raises:
            SickHost: the store does not answer.
        """
        found = sorted(self._found(_prefix(job)), key=lambda each: each.modified_at, reverse=True)
        for each in found:  # two, where a worker died between a put and the removal
            sha256 = each.key.rpartition("/")[2]
            ref = BlobRef(
                f"{self._store.root_uri}/{each.key}", sha256, each.size_bytes, tensors.MEDIA_TYPE
            )
            try:
                return self._store.read(ref, MAX_CHECKPOINT_BYTES)
            except (BlobCorrupt, BlobMissing, InvalidRecord) as error:
                log.warning("checkpoint ignored", extra={"key": each.key, "error": str(error)})
        return None

    def forget(self, job: Job) -> None:
        """Remove the job's checkpoints: its latents are stored.

        Raises:
            SickHost: they stay until the sweep.
        """
        self._remove(_prefix(job), but="")

    def _remove(self, prefix: str, but: str) -> None:
        for each in self._found(prefix):
            if each.key != f"{prefix}/{but}":
                self._store.remove(each.key)

    def _found(self, prefix: str) -> list[Found]:
        return list(self._store.walk(prefix))


def _prefix(job: Job) -> str:
    return blob_prefix(job.tenant_id, job.job_id, job.run, _FOLDER)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().float().cpu().numpy()
    return array
