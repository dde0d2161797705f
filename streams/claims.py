"""Whose job it is, and who began its later runs: the meaning of two fences (DESIGN 4.1).

    <tenant>/<job>/request      `Claim`: the first request under the job id, by the prompt stage
    <tenant>/<job>/runs/<run>   `RunClaim`: the request record that a redrive produces for the run,
                                and whose redrive it was

Both are JSON, bytes in base64. Every record and every VideoDone of the job uses the partition of
`request`, whatever has become of tiers and tenants since.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from schemas.records import GenerationRequest
from streams.blobs.fences import Fences
from streams.core.events import Headers
from streams.errors import FatalError, InvalidRecord

#: Fields of requests that came after the first claims.
_YOUNGER = frozenset({"is_deferrable", "is_step_cached", "allowed_degradations"})


@dataclass(frozen=True, slots=True)
class Claim:
    """The request that holds a job id: its identity, its bytes and its partition."""

    request_sha256: str
    partition: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Author:
    """Who began a run, when and why. `order_id`: as part of which order (streams/audit.py)."""

    by: str
    at: datetime
    why: str | None = None
    order_id: str | None = None


@dataclass(frozen=True, slots=True)
class RunClaim:
    """The record that begins a redriven run, to be produced exactly so.

    `author` None: the claim is older than that field.
    """

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers
    author: Author | None = None


def claim_request(
    fences: Fences, request: GenerationRequest, value: bytes, partition: int
) -> Claim:
    """Claim the job id for a request whose Avro bytes are `value`; the claim that stands.

    Before any other work on the job, at every delivery: the same request claims again and again.

    Raises:
        InvalidRecord: `unclaimed_run`; no redrive began this run (2 or later), or with another
            record. `idempotency_conflict`; another request has the id. Neither may end the job.
        SickHost: the object store is away.
        FatalError: what stands there is no claim.
    """
    tenant, job = request.tenant_id, request.job_id
    if request.run >= 2:
        body = fences.claimed_run(tenant, job, request.run)
        if body is None or read_run_claim(body).value != value:
            raise InvalidRecord(
                f"no redrive began run {request.run} with this record", reason_code="unclaimed_run"
            )
    digest = request_sha256(request)
    claim = {
        "request_sha256": digest,
        "partition": partition,
        "value": base64.b64encode(value).decode(),
    }
    standing = read_claim(fences.claim_request(tenant, job, _json(claim)))
    if standing.request_sha256 != digest:
        raise InvalidRecord(
            "another request was made under this job id", reason_code="idempotency_conflict"
        )
    return standing


def read_claim(body: bytes) -> Claim:
    """What `<tenant>/<job>/request` says.

    Raises:
        FatalError: it is no claim; only we write fences.
    """
    try:
        fields = json.loads(body)
        return Claim(
            request_sha256=str(fields["request_sha256"]),
            partition=int(fields["partition"]),
            value=base64.b64decode(fields["value"], validate=True),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FatalError(f"a request fence holds no claim: {type(error).__name__}") from error


def run_claim_body(claim: RunClaim) -> bytes:
    """What `<tenant>/<job>/runs/<run>` holds; the same claim gives the same bytes."""
    return _json(
        {
            "topic": claim.topic,
            "partition": claim.partition,
            "key": _text(claim.key),
            "value": _text(claim.value),
            "headers": [[name, _text(value)] for name, value in claim.headers],
            "author": None if (author := claim.author) is None else author_fields(author),
        }
    )


def read_run_claim(body: bytes) -> RunClaim:
    """The record of a claimed run.

    Raises:
        FatalError: it is no such claim; only we write fences.
    """
    try:
        fields = json.loads(body)
        value, said = _bytes(fields["value"]), fields.get("author")
        if value is None:
            raise ValueError("no value")
        return RunClaim(
            topic=str(fields["topic"]),
            partition=int(fields["partition"]),
            key=_bytes(fields["key"]),
            value=value,
            headers=tuple((str(name), _bytes(text)) for name, text in fields["headers"]),
            author=None if said is None else read_author(said),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FatalError(f"a run fence holds no record: {type(error).__name__}") from error


def request_sha256(request: GenerationRequest) -> str:
    """What makes two requests the same: every field but the times and the run.

    A field that is younger than claims in a store counts only where it says something.
    """
    fields = {
        name: getattr(request, name)
        for name in GenerationRequest.__slots__
        if name not in ("created_at", "deadline", "run")
        and (name not in _YOUNGER or getattr(request, name))
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class RequestIdentity:
    """What copies of a request share: its content, and the run that it says.

    Equal to that of a copy. Most requests come once, so the content is hashed when first compared.
    """

    __slots__ = ("_request", "_sha256")

    def __init__(self, request: GenerationRequest) -> None:
        self._request, self._sha256 = request, ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestIdentity) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, int]:
        self._sha256 = self._sha256 or request_sha256(self._request)
        return self._sha256, self._request.run


def author_fields(author: Author) -> dict[str, str | None]:
    """An author as JSON has it."""
    at = author.at.isoformat()
    return {"by": author.by, "at": at, "why": author.why, "order_id": author.order_id}


def read_author(fields: dict[str, Any]) -> Author:
    """What `author_fields` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    at = datetime.fromisoformat(fields["at"])
    return Author(fields["by"], at, fields["why"], fields["order_id"])


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True).encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
