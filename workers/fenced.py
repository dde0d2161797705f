"""One record's way through a stage, with its fences: what makes a redelivery harmless (DESIGN 4.1).

Blocking calls on the object store, made on the engine's I/O threads; no Kafka, no threads of its
own. In order: a misplaced request is forwarded; the stage's `begin`; an ended run re-emits its
outcome; a stage that has its result re-emits that; only then is there work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from schemas.cloudevents import event_headers
from schemas.codec import Codec, UndecodableRecord, UnencodableRecord
from schemas.records import (
    GenerationRequest,
    JobEvent,
    Record,
    StageTiming,
    VideoDone,
)
from streams.blobs.base import DEAD_LETTERS, PROBES, BlobStore
from streams.blobs.fences import Fences
from streams.blobs.named import blobs_of
from streams.core.events import Ending, Headers, Output
from streams.engine import Task
from streams.errors import FatalError, InvalidRecord, Rejected, SickHost
from streams.letters import DLT_PREFIX, ORIGINAL_MEDIA_TYPE, pack_original
from streams.outcomes import outcome_output, read_outcome, video_done
from streams.topology import JOB_EVENTS, Stage, worker_stages
from workers.stage_work import StageWork

log = logging.getLogger(__name__)

#: They end runs by records of theirs.
_RECORD_STAGES = frozenset(each.name for each in worker_stages())

Measured = Callable[[Task, float], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record whose inputs are here. Its result, once made, will be this edition."""

    task: Task
    inputs: Any
    edition: int


class FencedWork:
    """A stage's work between its fences; every method may be called again for the same record."""

    def __init__(
        self,
        work: StageWork,
        stage: Stage,
        store: BlobStore,
        codec: Codec,
        now: Callable[[], datetime],
        place: Callable[[GenerationRequest], int] | None = None,
        measured: Measured = lambda _task, _seconds: None,
    ) -> None:
        """`place` tells the partition that a request belongs to; for the prompt stage only.

        `measured` is told of each record that was worked, once its result stands, and what all of
        its work takes, in seconds; on I/O threads.
        """
        self.work, self.stage = work, stage
        self._store, self._fences, self._codec = store, Fences(store), codec
        self._now, self._place, self._measured = now, place, measured

    def prepare(self, task: Task) -> Prepared | tuple[Output, ...]:
        """The inputs of the record, or what settles it without work.

        Raises:
            InvalidRecord, SickHost: as their fates say.
        """
        try:
            if self._place is not None:
                partition = self._place(task.record)
                if partition != task.partition:
                    # Any partitioner may have written it; its own partition's owner works it.
                    return (Output(task.topic, partition, task.key, task.value, task.headers),)
            task = self.work.begin(task)
            tenant, job, run = _identity(task.record)
            if (outcome := self._fences.outcome(tenant, job, run)) is not None:
                return self._told_again(task, outcome)
            edition = 1
            if (found := self._fences.result(tenant, job, run, self.stage.name)) is not None:
                record = self._decode(found[1], self.stage.writes_record)
                if all(self._store.verify(ref) for ref in blobs_of(record)):
                    return (self._next_output(task, record, found[1]),)
                edition = found[0] + 1
            self.work.batch_key(task)  # what the intake knew as Rejected is raised here again
            return Prepared(task, self.work.fetch(task), edition)
        except Rejected as error:
            return self._refuse(task, error)

    def complete(
        self, prepared: Prepared, result: Any, timing: StageTiming, part: float = 1.0
    ) -> tuple[Output, ...]:
        """Store a result, fence it, and tell the next stage of the one that stands.

        `part` of the work is what the timing is of: another worker may have begun it.
        """
        task = prepared.task
        try:
            if isinstance(result, Rejected):  # compute may refuse a row as late as this
                raise result
            record = self.work.store(task, result, timing)
        except Rejected as error:
            return self._refuse(task, error)
        tenant, job, run = _identity(task.record)
        try:
            body = self._codec.encode(record)
        except UnencodableRecord as error:
            raise InvalidRecord(str(error), reason_code="record_too_large") from error
        if isinstance(record, VideoDone):
            body = self._fences.end(tenant, job, run, body)
            self._measured(task, timing.compute_s / part)
            return (self._outcome_output(task, body),)
        winner = self._fences.publish_result(
            tenant, job, run, self.stage.name, prepared.edition, body
        )
        self._measured(task, timing.compute_s / part)
        if winner != body:  # another try of ours was first
            record = self._decode(winner, type(record))
        return (self._next_output(task, record, winner),)

    def end(self, task: Task, ending: Ending) -> tuple[Output, ...]:
        """Give the run an outcome other than completed; tells the one that stands.

        Raises:
            InvalidRecord: the request is another's (`idempotency_conflict`), or its run nobody's
                (`unclaimed_run`).
        """
        if isinstance(task.record, GenerationRequest):
            task = self.work.begin(replace(task, partition=self._partition(task)))
        done = video_done(
            task.record, ending, partition=task.partition, ended_by=self.stage.name,
            finished_at=self._now(),
        )  # fmt: skip
        tenant, job, run = _identity(task.record)
        winner = self._fences.end(tenant, job, run, self._codec.encode(done))
        return (self._outcome_output(task, winner),)

    def probe(self) -> None:
        """Put something into the store, get it back, and work a job that is known to be good."""
        probe = self._store.put(f"{PROBES}/{self.stage.name}", [os.urandom(64)], "text/plain")
        self._store.read(probe, max_bytes=64)
        self.work.probe()

    def offload(self, task: Task) -> Headers:
        """Store an original that fits no topic; the dead letter's headers that say where it is."""
        prefix = f"{DEAD_LETTERS}/{self.stage.name}/{task.partition}"
        ref = self._store.put(prefix, [pack_original(task)], ORIGINAL_MEDIA_TYPE)
        return tuple(
            (f"{DLT_PREFIX}blob-{name}", text.encode())
            for name, text in (
                ("uri", ref.uri),
                ("sha256", ref.sha256),
                ("size-bytes", str(ref.size_bytes)),
                ("media-type", ref.media_type),
            )
        )

    def announce(self, task: Task, event: JobEvent, word: str) -> Output | None:
        """The record of a job event; `word` tells it from the run's other events.

        None while the schema registry is away: what is for onlookers alone holds up no work.
        """
        try:
            value = self._codec.encode(event)
        except SickHost as error:
            log.warning("announcement not encoded", extra={"kind": event.kind, "error": str(error)})
            return None
        headers = event_headers(
            "JobEvent", job_id=event.job_id, run=event.run, stage=self.stage.name, outcome=word,
            time=event.at, deadline=None, cause=task.headers, partition_key=event.job_id,
        )  # fmt: skip
        key = event.job_id.encode()
        return Output(JOB_EVENTS, task.partition, key, value, tuple(headers))

    def _refuse(self, task: Task, error: Rejected) -> tuple[Output, ...]:
        ending = Ending("rejected", error.reason_code, str(error), error.retry_at_s)
        return self.end(task, ending)

    def _partition(self, task: Task) -> int:
        """The job's own partition; where its tenant or tier is unknown, that of its delivery."""
        if self._place is None:
            return task.partition
        try:
            return self._place(task.record)
        except Rejected:
            return task.partition

    def _next_output(self, task: Task, record: Record, body: bytes) -> Output:
        job, timings = record.job, record.timings  # type: ignore[union-attr]
        headers = event_headers(
            type(record).__name__, job_id=job.job_id, run=job.run, stage=self.stage.name,
            outcome="done", time=timings[-1].finished_at, deadline=job.deadline,
            cause=task.headers, partition_key=job.job_id,
        )  # fmt: skip
        assert self.stage.writes is not None, "only worker stages produce"
        return Output(self.stage.writes, job.partition, job.job_id.encode(), body, tuple(headers))

    def _told_again(self, task: Task, body: bytes) -> tuple[Output, ...]:
        """The VideoDone of a run that has ended: who ended it may have died before it was told.

        What another stage has ended, that stage tells: the record by which it did is not finished
        before the VideoDone is acknowledged. A request that comes again is always answered; whoever
        sent it may have begun to listen just now.
        """
        ended_by = read_outcome(self._codec, body).ended_by
        is_told_there = ended_by != self.stage.name and ended_by in _RECORD_STAGES
        if is_told_there and not isinstance(task.record, GenerationRequest):
            return ()
        return (self._outcome_output(task, body),)

    def _outcome_output(self, task: Task, body: bytes) -> Output:
        return outcome_output(self._codec, body, self.stage.name, task.headers)

    def _decode(self, body: bytes, record_type: Any) -> Any:
        try:
            return self._codec.decode(body, record_type)
        except UndecodableRecord as error:  # only we write fences: this is no record's fault
            raise FatalError(f"a fence holds what is no {record_type.__name__}: {error}") from error


def _identity(record: Any) -> tuple[str, str, int]:
    job = record if isinstance(record, GenerationRequest) else record.job
    return job.tenant_id, job.job_id, job.run
