"""The prompt stage's work: claim the request, admit it, encode its prompts.

Prompts are encoded by the `encode_prompt` of the family's own pipeline, so that what the sampler
gets equals what diffusers would have computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from schemas.records import CleanedPrompt, Job, Record, StageTiming
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences, blob_prefix
from streams.claims import claim_request
from streams.engine import Task
from workers.models.card import family_of
from workers.models.held import read_models
from workers.prompt.admit import AdmissionRules, admit, clean_prompt, degraded
from workers.sampler.families.base import NEGATIVE, Encoder
from workers.stage_work import Report
from workers.torch_device import DeviceSettings, device_faults, open_place

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Wish:
    """An admitted request with its prompts cleaned."""

    job: Job
    prompt: str
    negative_prompt: str


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A prompt's encodings by name; no negative ones without guidance."""

    wish: _Wish
    text: Mapping[str, Array]
    negative_text: Mapping[str, Array]


class PromptWork:
    """Implements `StageWork` for the prompt stage."""

    stage = "prompt"

    def __init__(
        self,
        model_dir: Path,
        device: DeviceSettings,
        store: BlobStore,
        rules: AdmissionRules,
        distilled_dir: Path | None = None,
    ) -> None:
        self._model_dir, self._device_settings, self._rules = model_dir, device, rules
        self._store, self._fences = store, Fences(store)
        self._models = read_models(model_dir, distilled_dir)
        self._card = self._models.card  # encodes prompts for both
        self._encoder: Encoder | None = None
        self._device: Any = None

    def load(self) -> None:
        """Load tokenizers and text encoders, and nothing else of the model."""
        place = open_place(self._device_settings)
        self._device = place.device
        self._encoder = family_of(self._model_dir).encoder(self._model_dir, place, self._card)

    def batch_key(self, task: Task) -> Hashable:
        """All admitted prompts go together: they are padded to one length."""
        self.job(task)
        return None

    def job(self, task: Task) -> Job:
        """The job that a request would be; Rejected says why it is none."""
        card = self._models.named(task.record.model)
        job = admit(task.record, task.partition, card, self._rules)
        return degraded(job, task.degradations, card, self._models.distilled)

    def begin(self, task: Task) -> Task:
        """Claim the job id for this request; the task in the claim's partition (DESIGN 4.1).

        Raises:
            InvalidRecord: `idempotency_conflict` or `unclaimed_run` (`claim_request`).
        """
        claim = claim_request(self._fences, task.record, task.value or b"", task.partition)
        return replace(task, partition=claim.partition)

    def fetch(self, task: Task) -> _Wish:
        """The admitted request; Rejected says why it is none."""
        request = task.record
        return _Wish(
            self.job(task), clean_prompt(request.prompt), clean_prompt(request.negative_prompt)
        )

    def compute(self, batch: Sequence[_Wish], report: Report) -> Sequence[_Encoded]:
        """Encode all prompts, and the negative ones of guided jobs, in one batch each."""
        prompts = self._encode([wish.prompt for wish in batch])
        guided = [wish for wish in batch if self._is_guided(wish.job)]
        negatives = iter(self._encode([wish.negative_prompt for wish in guided]))
        report(1, 1)
        return [
            _Encoded(wish, prompt, next(negatives) if self._is_guided(wish.job) else {})
            for wish, prompt in zip(batch, prompts, strict=True)
        ]

    def _is_guided(self, job: Job) -> bool:
        return self._models.of(job).is_guided(job)

    def probe(self) -> None:
        """Encode a prompt."""
        self._encode(["a red circle moving right"])

    def store(self, task: Task, result: _Encoded, timing: StageTiming) -> Record:
        """Store the embeddings; the CleanedPrompt that names them."""
        wish, job = result.wish, result.wish.job
        negative = {f"{NEGATIVE}{name}": each for name, each in result.negative_text.items()}
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, self.stage)
        blob = self._store.put(
            prefix, [tensors.dump({**result.text, **negative})], tensors.MEDIA_TYPE
        )
        return CleanedPrompt(
            job=job,
            prompt=wish.prompt,
            negative_prompt=wish.negative_prompt,
            safety_verdict="unchecked",
            conditioning=blob,
            text_pad_length=self._card.text_pad_length,
            is_step_cached=task.record.is_step_cached,
            timings=(timing,),
        )

    def _encode(self, prompts: list[str]) -> list[Mapping[str, Array]]:
        import torch

        if not prompts:
            return []
        assert self._encoder is not None, "loaded before anything is computed"
        shape = f"{self._card.text_pad_length} tokens"
        with torch.inference_mode(), device_faults(self._device, len(prompts), shape):
            text = {
                # numpy has no bfloat16; masks stay what they are
                name: (each.float() if each.is_floating_point() else each).cpu().numpy()
                for name, each in self._encoder.encode(prompts).items()
            }
        return [
            {name: each[number] for name, each in text.items()} for number in range(len(prompts))
        ]
