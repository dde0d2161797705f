"""Records that a stage writes about one that it could not work: copies for later, dead letters.

Both carry the original's key, bytes and headers untouched, in the same partition; what we add are
headers with a prefix of their own, so that a copy of a copy is still the original:

    reel-retry-*   on `<topic>.retry.<delay>`: which try this is, its crashes, where it came from
    reel-dlt-*     on `<topic>.dlt`: why it is here, and the evidence
    reel-parked-*  on `requests.deferred`: over which quota it is
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.records import GenerationRequest, JobEvent
from streams.core.events import DeadLetter, Headers, Output, Park, Retry
from streams.core.offset_map import NO_CRASHES, Crashes
from streams.engine import Task
from streams.topology import RECORD_MAX_BYTES, REQUESTS_DEFERRED, Stage, retry_topic

RETRY_PREFIX = "reel-retry-"
DLT_PREFIX = "reel-dlt-"
PARKED_PREFIX = "reel-parked-"
MAX_MESSAGE_CHARS = 1000
ORIGINAL_MEDIA_TYPE = "application/vnd.reelstream.original+json"

Announcement = Callable[[Task, JobEvent, str], Output | None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record lay before it was ever retried, and its counters."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    try_number: int = 1
    crashes: Crashes = NO_CRASHES
    num_diverted: int = 0


def origin_of(task: Task) -> Origin:
    """What the retry headers of a record say; of one that was never retried, the record itself.

    Only we write retry topics: elsewhere such headers are a stranger's, and say nothing. One that
    is no number counts as none.
    """
    if not _is_retried(task):
        return Origin(task.topic, task.partition, task.offset, task.timestamp_ms)
    said = texts(task.headers, RETRY_PREFIX)
    partition = _number(said.get("origin-partition"), task.partition)
    return Origin(
        said.get("origin-topic", task.topic),
        partition if partition < 1 << 31 else task.partition,
        _number(said.get("origin-offset"), task.offset),
        _number(said.get("origin-timestamp-ms"), task.timestamp_ms),
        max(1, _number(said.get("try"), 1)),
        Crashes(_number(said.get("crashes"), 0), _number(said.get("crashes-alone"), 0)),
        _number(said.get("diverted"), 0),
    )


def texts(headers: Headers, prefix: str) -> dict[str, str]:
    """The headers of a prefix, without it, as text; of a repeated one the last."""
    return {
        name.removeprefix(prefix): value.decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(prefix) and value is not None
    }


def retry_letter(stage: Stage, task: Task, command: Retry) -> Output:
    """The copy that is due `delay_s` after it was appended."""
    origin, work = origin_of(task), command.work
    added = {
        "try": str(work.try_number),
        "crashes": str(work.crashes.num),
        "crashes-alone": str(work.crashes.num_alone),
        "reason": command.fault.reason_code,
        "origin-topic": origin.topic,
        "origin-partition": str(origin.partition),  # a misplaced request is forwarded later
        "origin-offset": str(origin.offset),
        "origin-timestamp-ms": str(origin.timestamp_ms),
        "diverted": str(work.num_diverted),
    }
    return Output(
        retry_topic(stage.reads, command.delay_s),
        task.partition,
        task.key,
        task.value,
        (*_original(task), *_encoded(RETRY_PREFIX, added)),
    )


def parked_letter(task: Task, command: Park) -> Output:
    """The copy of a request that waits for room in its tenant's quota; `reel-parked-why` tells."""
    added = _encoded(PARKED_PREFIX, {"why": command.over})
    headers = (*_original(task), *added)
    return Output(REQUESTS_DEFERRED, task.partition, task.key, task.value, headers)


def dead_letter(
    stage: Stage, task: Task, command: DeadLetter, worker: str, versions: str
) -> Output:
    """The dead letter of a record, with the original's timestamp.

    `reel-dlt-` headers, all text: stage, topic, partition, offset, timestamp-ms (of the original),
    run, try, crashes, crashes-alone, fault-class, reason-code, message (which never holds prompt
    text), worker, versions, evidence-NAME; and where the original is too large for the topic, the
    BlobRef of it as blob-uri, blob-sha256, blob-size-bytes, blob-media-type: then there is no
    value, there are no headers of the original here, nor its key if that alone is larger than any
    record of ours; `pack_original` says what the blob holds.
    `kafka_dlt-original-*` are Spring's, for tools that know those: integers in network order.
    """
    origin, work, fault = origin_of(task), command.work, command.fault
    added = {
        "stage": stage.name,
        "topic": origin.topic,
        "partition": str(origin.partition),
        "offset": str(origin.offset),
        "timestamp-ms": str(origin.timestamp_ms),
        "run": str(work.run),
        "try": str(work.try_number),
        "crashes": str(work.crashes.num),
        "crashes-alone": str(work.crashes.num_alone),
        "fault-class": fault.fate.value,
        "reason-code": fault.reason_code,
        "message": fault.message[:MAX_MESSAGE_CHARS],
        "worker": worker,
        "versions": versions,
        **{f"evidence-{name}": text[:MAX_MESSAGE_CHARS] for name, text in fault.evidence},
    }
    spring: Headers = (
        ("kafka_dlt-original-topic", origin.topic.encode()),
        ("kafka_dlt-original-partition", origin.partition.to_bytes(4, "big", signed=True)),
        ("kafka_dlt-original-offset", origin.offset.to_bytes(8, "big", signed=True)),
        ("kafka_dlt-original-timestamp", origin.timestamp_ms.to_bytes(8, "big", signed=True)),
    )
    key, value, original = task.key, task.value, _original(task)
    if command.blob:
        value, original = None, ()
        # Compressed, a record with any key may come, and we compress nothing.
        key = None if key is not None and len(key) > RECORD_MAX_BYTES else key
    return Output(
        stage.dead_letters,
        task.partition,
        key,
        value,
        (*original, *spring, *_encoded(DLT_PREFIX, added), *command.blob),
        timestamp_ms=max(0, origin.timestamp_ms),
    )


class StageLetters:
    """The letters of one worker of one stage; implements `streams.runner.Letters`."""

    def __init__(
        self, stage: Stage, worker: str, versions: str, announcement: Announcement
    ) -> None:
        self._stage, self._worker, self._versions = stage, worker, versions
        self._announcement = announcement

    def retry(self, command: Retry) -> Output:
        """The copy to be tried later."""
        return retry_letter(self._stage, _task(command), command)

    def dead(self, command: DeadLetter) -> Output:
        """The dead letter."""
        return dead_letter(self._stage, _task(command), command, self._worker, self._versions)

    def parked(self, command: Park) -> Output:
        """The copy that waits for room."""
        return parked_letter(_task(command), command)

    def retried(self, command: Retry) -> Output | None:
        """The hint that a job is to be tried again; None where it cannot be written now."""
        task, work = _task(command), command.work
        record = task.record
        job = record if isinstance(record, GenerationRequest) else record.job
        event = JobEvent(
            job_id=job.job_id,
            run=job.run,
            tenant_id=job.tenant_id,
            stage=self._stage.name,
            kind="retried",
            at=datetime.now(UTC),
            worker=self._worker,
            try_number=work.try_number,
            detail=f"{command.fault.reason_code}, again in {command.delay_s} s",
        )
        counters = f"{work.try_number}-{work.crashes.num}-{work.num_diverted}"
        return self._announcement(task, event, f"retried-{counters}")


def pack_original(task: Task) -> bytes:
    """A whole record as JSON: value and headers in base64, null where there is none."""
    return json.dumps(
        {
            "topic": task.topic,
            "partition": task.partition,
            "offset": task.offset,
            "timestamp_ms": task.timestamp_ms,
            "key": _base64(task.key),
            "value": _base64(task.value),
            "headers": [[name, _base64(value)] for name, value in task.headers],
        }
    ).encode()


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _task(command: Retry | DeadLetter | Park) -> Task:
    assert isinstance(command.work.payload, Task)
    return command.work.payload


def _is_retried(task: Task) -> bool:
    return ".retry." in task.topic


def _original(task: Task) -> Headers:
    """The headers as the record had them before it was ever retried or parked."""
    if _is_retried(task):
        ours: tuple[str, ...] = (RETRY_PREFIX, PARKED_PREFIX)
    elif task.topic == REQUESTS_DEFERRED:
        ours = (PARKED_PREFIX,)
    else:
        return task.headers
    return tuple(each for each in task.headers if not each[0].startswith(ours))


def _encoded(prefix: str, named: Mapping[str, str]) -> Headers:
    return tuple((prefix + name, text.encode()) for name, text in named.items())


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else otherwise
