"""The prompt stage's work: claim the request, admit it, encode its prompts.

Prompts are encoded by `WanPipeline.encode_prompt` itself, so that what the sampler gets equals
what diffusers' own pipeline would have computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.records import CleanedPrompt, Job, Record, StageTiming
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences, blob_prefix
from streams.claims import claim_request
from streams.engine import Task
from workers.models.card import read_card
from workers.prompt.admit import AdmissionRules, admit, clean_prompt
from workers.stage_work import Report
from workers.torch_device import DeviceSettings, device_faults, open_device

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Wish:
    """An admitted request with its prompts cleaned."""

    job: Job
    prompt: str
    negative_prompt: str


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Embeddings, each (text_pad_length, dim) float32; no negative one without guidance."""

    wish: _Wish
    prompt_embeds: Array
    negative_prompt_embeds: Array | None


class PromptWork:
    """Implements `StageWork` for the prompt stage."""

    stage = "prompt"

    def __init__(
        self, model_dir: Path, device: DeviceSettings, store: BlobStore, rules: AdmissionRules
    ) -> None:
        self._model_dir, self._device_settings, self._rules = model_dir, device, rules
        self._store, self._fences = store, Fences(store)
        self._card = read_card(model_dir)
        self._pipeline: Any = None
        self._device: Any = None

    def load(self) -> None:
        """Load tokenizer and text encoder, and nothing else of the model."""
        self._device, dtype = open_device(self._device_settings)
        from diffusers import WanPipeline

        # The scheduler is a small JSON file; the pipeline does not construct without one.
        self._pipeline = WanPipeline.from_pretrained(
            self._model_dir, vae=None, transformer=None, transformer_2=None, torch_dtype=dtype,
            local_files_only=True,
        ).to(self._device)  # fmt: skip

    def batch_key(self, task: Task) -> Hashable:
        """All admitted prompts go together: they are padded to one length."""
        self._admit(task)
        return None

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
            self._admit(task), clean_prompt(request.prompt), clean_prompt(request.negative_prompt)
        )

    def compute(self, batch: Sequence[_Wish], report: Report) -> Sequence[_Encoded]:
        """Encode all prompts, and the negative ones of guided jobs, in one batch each."""
        prompts = self._encode([wish.prompt for wish in batch])
        guided = [wish for wish in batch if wish.job.is_guided]
        negatives = iter(self._encode([wish.negative_prompt for wish in guided]))
        report(1, 1)
        return [
            _Encoded(wish, prompt, next(negatives) if wish.job.is_guided else None)
            for wish, prompt in zip(batch, prompts, strict=True)
        ]

    def probe(self) -> None:
        """Encode a prompt."""
        self._encode(["a red circle moving right"])

    def store(self, task: Task, result: _Encoded, timing: StageTiming) -> Record:
        """Store the embeddings; the CleanedPrompt that names them."""
        wish, job = result.wish, result.wish.job
        named = {"prompt_embeds": result.prompt_embeds}
        if result.negative_prompt_embeds is not None:
            named["negative_prompt_embeds"] = result.negative_prompt_embeds
        prefix = blob_prefix(job.tenant_id, job.job_id, job.run, self.stage)
        blob = self._store.put(prefix, [tensors.dump(named)], tensors.MEDIA_TYPE)
        return CleanedPrompt(
            job=job,
            prompt=wish.prompt,
            negative_prompt=wish.negative_prompt,
            safety_verdict="unchecked",
            conditioning=blob,
            text_pad_length=self._card.text_pad_length,
            timings=(timing,),
        )

    def _admit(self, task: Task) -> Job:
        return admit(task.record, task.partition, self._card, self._rules)

    def _encode(self, prompts: list[str]) -> list[Array]:
        import torch

        if not prompts:
            return []
        shape = f"{self._card.text_pad_length} tokens"
        with torch.inference_mode(), device_faults(self._device, len(prompts), shape):
            embeds, _ = self._pipeline.encode_prompt(
                prompts,
                do_classifier_free_guidance=False,
                max_sequence_length=self._card.text_pad_length,
                device=self._device,
            )
        return list(embeds.float().cpu().numpy().astype(np.float32, copy=False))
