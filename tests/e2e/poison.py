"""Everything bad that can be put on a topic, and what becomes of it: the README's table, tried out.

Each row puts one record on one topic of a running pipeline. Where `reason_code` is that of a dead
letter, the letter holds the original bytes; where the job has an id, `status` is how it ends.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from schemas.codec import Codec
from schemas.records import BlobRef, GenerationRequest, Job
from streams.blobs import tensors
from streams.blobs.base import BlobStore
from streams.core.events import Headers
from tests.builders import a_cleaned_prompt, a_job, a_latents_ready, a_request

CODEC = Codec()


@dataclass(frozen=True, slots=True)
class Bench:
    """What a row may need to make its record: a job that the pipeline's model would take."""

    job: Job
    store: BlobStore

    def request(self, **changes: Any) -> GenerationRequest:
        """A request for that job, made now: the expirer ends what is overdue."""
        job, now = self.job, datetime.now(UTC)
        request = a_request(
            job_id=job.job_id, tier=job.tier, tenant_id=job.tenant_id, created_at=now,
            deadline=now + timedelta(hours=1),
        )  # fmt: skip
        return replace(request, **changes)

    def cleaned(self, conditioning: BlobRef) -> bytes:
        """A cleaned prompt with these embeddings."""
        return CODEC.encode(a_cleaned_prompt(job=self.job, conditioning=conditioning))

    def put(self, data: bytes) -> BlobRef:
        """A blob of that job."""
        job = self.job
        return self.store.put(f"{job.tenant_id}/{job.job_id}/1/prompt", [data], "x/y")


@dataclass(frozen=True, slots=True)
class Row:
    """One bad thing. `status` None: there is no job that could end."""

    what: str
    topic: str
    make: Callable[[Bench], bytes | None]
    fate: str
    reason_code: str | None
    status: str | None
    headers: Headers = ()


def _asking(**changes: Any) -> Callable[[Bench], bytes]:
    return lambda bench: CODEC.encode(bench.request(**changes))


def _embeddings() -> bytes:
    return tensors.dump({"prompt_embeds": np.zeros((32, 32), np.float32)})


def _lost(bench: Bench) -> bytes:
    ref = bench.put(_embeddings())
    missing = "0" * 64
    return bench.cleaned(replace(ref, uri=ref.uri.replace(ref.sha256, missing), sha256=missing))


def _corrupt(bench: Bench) -> bytes:
    ref = bench.put(b"other bytes, of a right size")
    said = hashlib.sha256(b"these bytes").hexdigest()
    return bench.cleaned(replace(ref, sha256=said))


def _oversize(bench: Bench) -> bytes:
    return bench.cleaned(replace(bench.put(_embeddings()), size_bytes=1 << 40))


def _foreign(bench: Bench) -> bytes:
    return bench.cleaned(replace(bench.put(_embeddings()), uri="file:///etc/hostname"))


def _climbing(bench: Bench) -> bytes:
    ref = bench.put(_embeddings())
    return bench.cleaned(replace(ref, uri=f"{bench.store.root_uri}/../../etc/hostname"))


def _pickled(bench: Bench) -> bytes:
    return bench.cleaned(bench.put(pickle.dumps(Path("/"))))


def _of_the_next_stage(bench: Bench) -> bytes:
    return CODEC.encode(a_latents_ready(job=bench.job))


def _truncated(bench: Bench) -> bytes:
    return CODEC.encode(bench.request())[:-7]


def _newer(bench: Bench) -> bytes:
    """A writer's schema that this version has never seen: without a registry nobody can tell."""
    fingerprint = hashlib.sha256(b"next year").digest()[:8]
    return b"\xc3\x01" + fingerprint + CODEC.encode(bench.request())[10:]


def _not_a_number(bench: Bench) -> bytes:
    """Our own codec writes no NaN; another's may."""
    value = CODEC.encode(bench.request(guidance_scale=6.5))
    assert struct.pack("<d", 6.5) in value
    return value.replace(struct.pack("<d", 6.5), struct.pack("<d", math.nan))


DEAD, REJECTED, WORKED = "dead letter", "rejected", "worked as if it were not there"

ROWS = (
    Row("no bytes (a tombstone)", "requests", lambda _: None, DEAD, "undecodable", None),
    Row("empty bytes", "requests", lambda _: b"", DEAD, "undecodable", None),
    Row("random bytes", "requests", lambda _: bytes(range(256)), DEAD, "undecodable", None),
    Row("truncated Avro", "requests", _truncated, DEAD, "undecodable", None),
    Row("an unknown schema, or a newer one without a registry", "requests", _newer, DEAD,
        "undecodable", None),
    Row("another stage's record", "prompts.cleaned", _of_the_next_stage, DEAD, "undecodable",
        None),
    Row("a job id that climbs (`../x`)", "requests",
        lambda bench: CODEC.encode(replace(bench.request(), job_id="../x")), DEAD,
        "invalid_job_id", None),
    Row("a tenant that climbs (`..`)", "requests",
        lambda bench: CODEC.encode(replace(bench.request(), tenant_id="..")), DEAD,
        "invalid_tenant_id", None),
    Row("run 0", "requests", _asking(run=0), DEAD, "invalid_run", None),
    Row("a run that no redrive has claimed", "requests", _asking(run=7), DEAD, "unclaimed_run",
        None),
    Row("size 0", "requests", _asking(width_px=0), REJECTED, "invalid_size", "rejected"),
    Row("a billion frames", "requests", _asking(num_frames=10**9), REJECTED,
        "invalid_num_frames", "rejected"),
    Row("a negative seed", "requests", _asking(seed=-1), REJECTED, "invalid_seed", "rejected"),
    Row("guidance NaN", "requests", _not_a_number, DEAD, "undecodable", None),
    Row("a prompt of 3,000 characters", "requests", _asking(prompt="x" * 3000), REJECTED,
        "prompt_too_long", "rejected"),
    Row("an unknown tier", "requests",
        lambda bench: CODEC.encode(replace(bench.request(), tier="gold")), REJECTED,
        "unknown_tier", "rejected"),
    Row("an unknown model", "requests", _asking(model="sora"), REJECTED, "unknown_model",
        "rejected"),
    Row("wrong CloudEvents headers", "requests", _asking(), WORKED, None, "completed",
        (("ce_id", b"\xff"), ("ce_type", b"com.example.other"), ("ce_time", b"yesterday"),
         ("traceparent", b"zz"))),
    Row("a header of 100 kB", "requests", _asking(), WORKED, None, "completed",
        (("big", b"x" * 100_000),)),
    Row("a missing blob", "prompts.cleaned", _lost, "later, then dead letter", "input_lost",
        "failed"),
    Row("a corrupt blob", "prompts.cleaned", _corrupt, "later, then dead letter",
        "input_corrupt", "failed"),
    Row("an oversize blob", "prompts.cleaned", _oversize, DEAD, "blob_too_large", "failed"),
    Row("a foreign blob", "prompts.cleaned", _foreign, DEAD, "bad_blob_ref", "failed"),
    Row("a blob key that climbs out of its folder", "prompts.cleaned", _climbing, DEAD,
        "bad_blob_key", "failed"),
    Row("pickle posing as safetensors", "prompts.cleaned", _pickled, DEAD, "bad_tensor",
        "failed"),
)  # fmt: skip

#: What cannot be one record on a topic of a pipeline with open doors, and where it is tested.
ELSEWHERE = (
    ("a header of 1 MB", "refused by the broker", "`MSG_SIZE_TOO_LARGE` at the producer"),
    ("another request under a used idempotency key", DEAD, "`idempotency_conflict`"),
    ("an unknown tenant, where the table is closed", REJECTED, "`unknown_tenant`"),
)


def readme_table() -> str:
    """The rows as the README shows them."""
    lines = ["| What is on the topic | Fate | Reason code |", "|---|---|---|"]
    for row in ROWS:
        code = f"`{row.reason_code}`" if row.reason_code else ""
        lines.append(f"| {row.what} | {row.fate} | {code} |")
    lines += [f"| {what} | {fate} | {code} |" for what, fate, code in ELSEWHERE]
    return "\n".join(lines)


def a_bench(name: str, partition: int, card: Any, store: BlobStore) -> Bench:
    """A bench with a job of its own."""
    job = a_job(
        job_id=f"poison-{name}", partition=partition, model=card.name, model_version=card.version
    )
    return Bench(job, store)
