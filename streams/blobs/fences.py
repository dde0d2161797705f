"""Fences: the conditional creates that make one outcome out of at-least-once delivery.

    <tenant>/<job>/request                          whose job this is: written first of all
    <tenant>/<job>/runs/<run>                       that a redrive began this run (2, 3, ...)
    <tenant>/<job>/<run>/outcome                    how the run ended: at most one
    <tenant>/<job>/<run>/<stage>/result.<edition>   what the stage made: at most one per edition
    <tenant>/<job>/<run>/<stage>/<sha256>           the stage's blobs (streams/blobs/base.py)

Every write returns the bytes that stand there afterwards. A loser goes on with the winner's bytes
as if they were its own, so a winner may die anywhere. A writer may lose to itself (a redelivery,
a lost answer): equal bytes are a win. What the bytes mean is the caller's matter.
"""

from __future__ import annotations

from streams.blobs.base import BlobStore, check_segment
from streams.errors import InvalidRecord


def blob_prefix(tenant: str, job: str, run: int, stage: str) -> str:
    """The prefix of the blobs that a stage makes in a run of a job.

    >>> blob_prefix("acme", "order-7", 1, "sampler")
    'acme/order-7/1/sampler'

    Raises:
        InvalidRecord: one of them cannot be part of a key (`check_segment`), or run is below 1.
    """
    return f"{_run(tenant, job, run)}/{check_segment(stage)}"


class Fences:
    """The fences of all jobs in one store. Errors are those of the store's `create` and `load`."""

    def __init__(self, store: BlobStore) -> None:
        """Fences in `store`, which the caller owns."""
        self._store = store

    def claim_request(self, tenant: str, job: str, body: bytes) -> bytes:
        """Claim a job id for a request; return the request that holds it.

        Written by the prompt stage before any other work on the job. A loser whose request is
        another one (times and trace left out) is dead-lettered as `idempotency_conflict`, without
        an outcome: the job is not its own. One whose request is the same goes on.
        """
        return self._store.create(f"{_job(tenant, job)}/request", body)

    def request(self, tenant: str, job: str) -> bytes | None:
        """The request that holds the job id, None where none does. A redrive starts from it."""
        return self._store.load(f"{_job(tenant, job)}/request")

    def claim_run(self, tenant: str, job: str, run: int, body: bytes) -> bytes:
        """Claim run 2 or a later one for a redrive; return the claim that stands.

        `body` holds the request record to produce. Written only after run - 1 failed or expired,
        and only in order, so that claimed runs have no gaps. A loser produces the winner's record.
        """
        return self._store.create(_claimed(tenant, job, run), body)

    def claimed_run(self, tenant: str, job: str, run: int) -> bytes | None:
        """The claim of run 2 or a later one, None while nobody has claimed it."""
        return self._store.load(_claimed(tenant, job, run))

    def latest_run(self, tenant: str, job: str) -> int:
        """The highest claimed run, 1 if none is: its outcome is the effective one."""
        run = 1
        while self.claimed_run(tenant, job, run + 1) is not None:
            run += 1
        return run

    def outcome(self, tenant: str, job: str, run: int) -> bytes | None:
        """How the run ended, None while it has not. Asked by every stage at every delivery.

        A delivery of an ended run does no work: it emits these bytes again and finishes.
        """
        return self._store.load(f"{_run(tenant, job, run)}/outcome")

    def end(self, tenant: str, job: str, run: int, body: bytes) -> bytes:
        """End a run with the bytes of its VideoDone; return those it has ended with.

        Written by whoever ends the run (any stage, cancel, expiry), after its dead letter, if any,
        is acknowledged. Winner or loser: emit the returned bytes, then finish the offset.
        """
        return self._store.create(f"{_run(tenant, job, run)}/outcome", body)

    def result(self, tenant: str, job: str, run: int, stage: str) -> tuple[int, bytes] | None:
        """The newest (edition, pointer) of a stage's result, None where it has none.

        Asked by the owning stage at a redelivery: it verifies the blobs and emits them again, or,
        where they are lost or corrupt, publishes the next edition.
        """
        newest = None
        edition = 1
        while (body := self._store.load(_result(tenant, job, run, stage, edition))) is not None:
            newest = (edition, body)
            edition += 1
        return newest

    def publish_result(
        self, tenant: str, job: str, run: int, stage: str, edition: int, body: bytes
    ) -> bytes:
        """Publish the pointer to a stage's blobs, which are stored already; return what stands.

        Written by the owning stage only: edition 1, or the one after `result`'s (editions have no
        gaps, or `result` would not find them). A loser emits the winner's pointer and drops its
        own work, so a zombie never makes a second result.
        """
        return self._store.create(_result(tenant, job, run, stage, edition), body)


def _job(tenant: str, job: str) -> str:
    return f"{check_segment(tenant)}/{check_segment(job)}"


def _run(tenant: str, job: str, run: int) -> str:
    if run < 1:  # a record says it, so it may be anything
        raise InvalidRecord(f"run {run}: runs count from 1", reason_code="bad_blob_key")
    return f"{_job(tenant, job)}/{run}"


def _claimed(tenant: str, job: str, run: int) -> str:
    if run < 2:
        raise InvalidRecord(f"run {run}: only runs from 2 are claimed", reason_code="bad_blob_key")
    return f"{_job(tenant, job)}/runs/{run}"


def _result(tenant: str, job: str, run: int, stage: str, edition: int) -> str:
    assert edition >= 1, "editions count from 1"
    return f"{blob_prefix(tenant, job, run, stage)}/result.{edition}"
