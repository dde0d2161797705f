"""A Kafka record becomes a `Delivered` event: decoded, its batch key known, or its fate settled."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable
from typing import Any

from schemas.codec import Codec, UndecodableRecord
from schemas.records import GenerationRequest, Job
from streams.blobs.base import OUR_FOLDERS
from streams.claims import RequestIdentity
from streams.core.events import Delivered, Fate, Fault, TopicPartition, Work
from streams.core.fair_queue import NOBODY, Charge
from streams.core.shares import Share
from streams.engine import Task
from streams.errors import InvalidRecord, Rejected
from streams.letters import origin_of
from streams.topology import Stage, retry_topic

ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Intake:
    """Turns delivered tasks into events; never raises for what a record holds.

    `batch_key` is the stage's: InvalidRecord settles the record as a dead letter; Rejected leaves
    it to the engine, which claims the request before it refuses it.
    """

    def __init__(
        self,
        stage: Stage,
        codec: Codec,
        batch_key: Callable[[Task], Hashable],
        retry_delays_s: Collection[int] = (),
        charge: Callable[[Task], Charge] = lambda _: NOBODY,
        share: Callable[[Task], Share | None] | None = None,
    ) -> None:
        """`retry_delays_s`: there is a retry topic for each. `charge` tells who pays, and how much.

        That is the record's own tenant, by whom wishes and quotas know its job. Without it all
        records are one payer's, and cost nothing. `share` tells what a request asks of its tenant's
        quota.
        """
        self._delays_s = {retry_topic(stage.reads, each): each for each in retry_delays_s}
        self._record_type: type[Any] = stage.reads_record
        self._codec = codec
        self._batch_key = batch_key
        self._charge, self._share = charge, share

    def __call__(self, raw: Task) -> Delivered:
        """The event of one record. `raw.record` is not looked at."""
        partition = TopicPartition(raw.topic, raw.partition)
        try:
            record = self._codec.decode(raw.value or b"", self._record_type)
        except UndecodableRecord as error:
            fault = Fault(Fate.DEAD_LETTER, "undecodable", str(error), ends_job=False)
            return Delivered(partition, raw.offset, Work(None, 1, None, None, raw), fault)
        task = Task(
            record, raw.partition, raw.value, raw.topic, raw.offset, raw.key, raw.headers,
            raw.timestamp_ms,
        )  # fmt: skip
        job = record if isinstance(record, GenerationRequest) else record.job
        deadline_s = None if job.deadline is None else job.deadline.timestamp()
        if (bad := _identity_fault(job)) is not None:
            return Delivered(partition, raw.offset, Work(None, 1, None, None, task), bad)
        try:
            key, verdict = self._batch_key(task), None
        except Rejected:
            key, verdict = None, None
        except InvalidRecord as error:
            key, verdict = None, Fault(Fate.DEAD_LETTER, error.reason_code, str(error))
        origin, delay_s = origin_of(raw), self._delays_s.get(raw.topic)
        work = Work(
            job.job_id,
            job.run,
            key,
            deadline_s,
            task,
            origin.try_number,
            origin.crashes,
            None if delay_s is None else raw.timestamp_ms / 1000 + delay_s,
            delay_s,
            # Its run too, which nothing has proved yet: anybody may write a request of run 7. Until
            # the claim of that run is seen, by the engine, it must not stand for run 1; the later
            # topics are written by us alone, for each tenant that has a job of that id.
            RequestIdentity(record) if isinstance(record, GenerationRequest) else job.tenant_id,
            self._charge(task),
            None if verdict or self._share is None else self._share(task),
            num_diverted=origin.num_diverted,
        )
        return Delivered(partition, raw.offset, work, verdict)


def _identity_fault(job: GenerationRequest | Job) -> Fault | None:
    """Why nothing can be written for such a job: its names and its run name fences and blobs."""
    for name, value in (("tenant_id", job.tenant_id), ("job_id", job.job_id)):
        if not ID.fullmatch(value):
            text = f"{name}: want 1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot"
            return Fault(Fate.DEAD_LETTER, f"invalid_{name}", text, ends_job=False)
    if job.tenant_id in OUR_FOLDERS:
        text = f"tenant_id: {job.tenant_id} is a folder of our own in the object store"
        return Fault(Fate.DEAD_LETTER, "invalid_tenant_id", text, ends_job=False)
    if job.run < 1:
        return Fault(Fate.DEAD_LETTER, "invalid_run", "runs count from 1", ends_job=False)
    return None
