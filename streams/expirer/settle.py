"""What becomes of a run that is due: its ending, from the fences alone, and the record of it.

Blocking calls on the object store, no Kafka. Everything may be done again, by several at once: the
first outcome stands, and all tell of that one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas.codec import Codec, UndecodableRecord
from schemas.records import (
    CleanedPrompt,
    FramesDecoded,
    GenerationRequest,
    JobControl,
    LatentsReady,
)
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.claims import Author, Claim, claim_request, read_claim, read_run_claim
from streams.core.events import Headers, Output
from streams.core.expiry import Due
from streams.core.flights import CANCELLED, EXPIRED
from streams.core.runs import RunOfJob
from streams.errors import FatalError, InvalidRecord, Rejected
from streams.outcomes import outcome_output, video_done
from streams.redrive import NothingToDo, complete_redrive
from streams.topology import VIDEOS_DONE, worker_stages

log = logging.getLogger(__name__)

EXPIRER = "expirer"
"""`VideoDone.ended_by`, and so part of the event id."""

StageRecord = CleanedPrompt | LatentsReady | FramesDecoded


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a request's record. `value` None: the prompt stage has claimed it since."""

    value: bytes | None
    partition: int
    cause: Headers


@dataclass(frozen=True, slots=True)
class Tell:
    """These records are to be produced. `is_ending`: they say how the run ended."""

    outputs: tuple[Output, ...]
    is_ending: bool


@dataclass(frozen=True, slots=True)
class NotYet:
    """The request that holds the job has a later deadline, in seconds since the epoch."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing is to be done for this run, now or later."""

    reason: str


Verdict = Tell | NotYet | Nothing


class Settler:
    """Settles what is due; thread-safe."""

    def __init__(
        self,
        store: BlobStore,
        codec: Codec,
        home_partition: Callable[[GenerationRequest], int],
        now: Callable[[], datetime],
        longest_deadline_s: float,
        grace_s: float,
    ) -> None:
        """`home_partition` raises Rejected for a request that belongs nowhere."""
        self._fences, self._codec, self._home_partition = Fences(store), codec, home_partition
        self._now, self._grace_s = now, grace_s
        self._longest_deadline_s = longest_deadline_s

    def settle(self, due: Due) -> Verdict:
        """What is to be told now. Ends the run, or begins it if that was wished.

        Raises:
            SickHost: the object store is away.
            PipelineError, UndecodableRecord, UnencodableRecord: this run cannot be settled now.
        """
        if due.kind == "redrive":
            return self._redrive(due.key, due.payload)
        assert isinstance(due.payload, Seen)
        seen, (tenant, job, run) = due.payload, due.key
        if (outcome := self._fences.outcome(tenant, job, run)) is None:
            request = self._standing_request(due.key, seen)
            if request is None:
                return Nothing("no request of this run holds the job")
            record, partition = request
            if due.kind == "expired" and not due.is_moved:
                deadline_s = deadline_of(record, self._longest_deadline_s)
                if deadline_s + self._grace_s > self._now().timestamp():
                    return NotYet(deadline_s)
            outcome = self._end(due, self._furthest(due.key) or record, partition)
        return Tell((outcome_output(self._codec, outcome, EXPIRER, seen.cause),), is_ending=True)

    def _end(self, due: Due, record: GenerationRequest | StageRecord, partition: int) -> bytes:
        done = video_done(
            record,
            EXPIRED if due.kind == "expired" else CANCELLED,
            partition=partition,
            ended_by=EXPIRER,
            finished_at=self._now(),
        )
        return self._fences.end(*due.key, self._codec.encode(done))

    def _standing_request(self, key: RunOfJob, seen: Seen) -> tuple[GenerationRequest, int] | None:
        """The request that the run stands for, claimed if nobody has yet; its job's partition."""
        tenant, job, run = key
        claim = self._claim(tenant, job, seen if run == 1 else None)
        if claim is None:
            return None
        value = claim.value
        if run > 1:
            body = self._fences.claimed_run(tenant, job, run)
            if body is None:  # no redrive began it
                return None
            value = read_run_claim(body).value
        request = self._codec.decode(value, GenerationRequest)
        return None if request.run != run else (request, claim.partition)

    def _claim(self, tenant: str, job: str, seen: Seen | None) -> Claim | None:
        if (body := self._fences.request(tenant, job)) is not None:
            return read_claim(body)
        if seen is None or seen.value is None:
            return None
        request = self._codec.decode(seen.value, GenerationRequest)
        try:
            partition = self._home_partition(request)
        except Rejected:
            partition = seen.partition
        try:
            return claim_request(self._fences, request, seen.value, partition)
        except InvalidRecord:  # another was faster, with another request: it holds the job now
            body = self._fences.request(tenant, job)
            return None if body is None else read_claim(body)

    def _furthest(self, key: RunOfJob) -> StageRecord | None:
        """What the furthest stage has made: it knows what the run has cost."""
        for stage in reversed(worker_stages()):
            if stage.writes == VIDEOS_DONE or stage.writes_record is None:
                continue  # what ends a run has no result
            if (found := self._fences.result(*key, stage.name)) is None:
                continue
            try:
                record: object = self._codec.decode(found[1], stage.writes_record)
            except UndecodableRecord as error:
                raise FatalError(f"a result of stage {stage.name}: {error}") from error
            assert isinstance(record, StageRecord)
            return record
        return None

    def _redrive(self, key: RunOfJob, wish: object) -> Verdict:
        assert isinstance(wish, JobControl)
        why = f"wished at {wish.issued_at.isoformat(timespec='seconds')}; begun by the {EXPIRER}"
        found = complete_redrive(
            self._fences,
            self._codec,
            *key,
            author=Author(wish.issued_by, self._now(), why),
            deadline_s=self._longest_deadline_s,
        )
        if isinstance(found, NothingToDo):
            return Nothing(found.reason)
        output = Output(found.topic, found.partition, found.key, found.value, found.headers)
        return Tell((output,), is_ending=False)


def deadline_of(request: GenerationRequest, longest_s: float) -> float:
    """When a request's run is overdue, in seconds since the epoch; never later than allowed."""
    latest_s = request.created_at.timestamp() + longest_s
    return latest_s if request.deadline is None else min(request.deadline.timestamp(), latest_s)


def utc(now_s: float) -> datetime:
    """Seconds since the epoch as an aware time."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=now_s)
