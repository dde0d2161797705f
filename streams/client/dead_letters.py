"""Dead letters as a reader meets them: where they lie, what their headers say, whose they are.

Headers of three origins are understood: ours (`reel-dlt-*`, text), Spring Kafka's and Kafka
Connect's (streams/client/foreign_letters.py).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from schemas.codec import Codec, UndecodableRecord
from schemas.records import BlobRef, GenerationRequest, VideoDone
from streams.blobs.base import BlobStore, check_segment
from streams.client.connection import BrokerUnreachable, Connection, WrongRequest
from streams.client.foreign_letters import (
    CONNECTS,
    SPRINGS,
    BadHeaders,
    came_from,
    stage_that_reads,
)
from streams.client.log_reader import STALL_S, open_consumer, poll_gently
from streams.errors import InvalidRecord
from streams.letters import DLT_PREFIX, ORIGINAL_MEDIA_TYPE
from streams.topology import Stage, worker_stages

OURS = DLT_PREFIX

MAX_ORIGINAL_BYTES = 16 << 20
"""An original that was moved to a blob is read up to this size."""

NOT_ITS_OWN = ("idempotency_conflict", "unclaimed_run")
"""Reason codes of letters whose job is another record's, so that they end and redrive nothing."""

_ADDRESS = re.compile(r"([A-Za-z0-9._-]{1,249})/([0-9]{1,9})/([0-9]{1,18})")
_SPRINGS_NUMBERS = ("original-partition", "original-offset", "original-timestamp")
_SAME: Mapping[str, tuple[str, ...]] = {
    "reason-code": ("exception-cause-fqcn", "exception-fqcn", "exception.class.name"),
    "message": ("exception-message", "exception.message"),
    "topic": ("original-topic",),
    "partition": ("original-partition",),
    "offset": ("original-offset",),
    "timestamp-ms": ("original-timestamp",),
}
_POLL_RECORDS = 100
_OF_TOPIC = {stage.dead_letters: stage for stage in worker_stages()}
_THEIRS = (SPRINGS, CONNECTS)


@dataclass(frozen=True, slots=True)
class JobName:
    """Which run of whose job."""

    tenant_id: str
    job_id: str
    run: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of a dead-letter topic, a stage's or a foreign application's, as it lies there.

    The timestamp of ours is the original's.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def address(self) -> str:
        """Its name for people and for `parse_address`: stage or topic, partition, offset."""
        stage = _OF_TOPIC.get(self.topic)
        return f"{stage.name if stage else self.topic}/{self.partition}/{self.offset}"

    @property
    def stage(self) -> Stage | None:
        """Whose input it was; None where that is not said, or was no stage's."""
        if (own := _OF_TOPIC.get(self.topic)) is not None:
            return own
        if not self.is_foreign:
            return stage_that_reads(self.findings.get("topic", ""))
        try:
            return came_from(self.headers).stage
        except BadHeaders:
            return None

    @property
    def is_foreign(self) -> bool:
        """Whether no stage of ours wrote it, so that it need not have ended a run."""
        names = [name for name, _ in self.headers]
        if any(name.startswith(OURS) for name in names):
            return False
        return self.topic not in _OF_TOPIC or any(each.startswith(_THEIRS) for each in names)

    @property
    def findings(self) -> dict[str, str]:
        """What was found out about it, under the names of our own headers, whoever wrote them."""
        return read_findings(self.headers)

    @property
    def blob(self) -> BlobRef | None:
        """Where its original value lies, if it was too large for the topic."""
        found = self.findings
        try:
            return BlobRef(
                uri=found["blob-uri"],
                sha256=found["blob-sha256"],
                size_bytes=int(found["blob-size-bytes"]),
                media_type=found.get("blob-media-type", "application/octet-stream"),
            )
        except (KeyError, ValueError):
            return None


def read_findings(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """The dead-letter headers as text; what Spring or Connect said under our name for it, if any.

    Never raises, whatever a foreign producer wrote.

    >>> read_findings([("kafka_dlt-original-offset", bytes([0, 0, 0, 0, 0, 0, 0, 7]))])["offset"]
    '7'
    """
    ours: dict[str, str] = {}
    theirs: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(OURS):
            ours[name.removeprefix(OURS)] = as_text(value)
        elif name.startswith(SPRINGS):
            short = name.removeprefix(SPRINGS)
            text = _number(value) if short in _SPRINGS_NUMBERS else as_text(value)
            # Spring appends: the first origin is the true one, the last exception the latest.
            theirs[short] = theirs.get(short, text) if short.startswith("original-") else text
        elif name.startswith(CONNECTS):
            theirs[name.removeprefix(CONNECTS)] = as_text(value)
    for name, sources in _SAME.items():
        said = [theirs.pop(source) for source in sources if source in theirs]
        if said:
            theirs.setdefault(name, said[0])
    return theirs | ours


def as_text(value: bytes | None) -> str:
    """A header's value in one printable line: text if it is UTF-8, else hex digits.

    >>> as_text(b"caf\\xc3\\xa9"), as_text(b"\\xff\\x00"), as_text(None), as_text(b"a\\nb")
    ('café', '0xff00', '', 'a b')
    """
    if value is None:
        return ""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "0x" + value.hex()
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split()) if printable != text else text


def parse_address(text: str) -> tuple[str, int, int]:
    """Topic, partition and offset of a dead letter; a stage's name stands for its topic.

    Raises:
        WrongRequest: it is no such address.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise WrongRequest(
            f"{text!r} is no dead letter: want STAGE/PARTITION/OFFSET, such as sampler/3/17, or"
            " TOPIC/PARTITION/OFFSET"
        )
    topics = {stage.name: topic for topic, stage in _OF_TOPIC.items()}
    return topics.get(match[1], match[1]), int(match[2]), int(match[3])


def original_record(letter: DeadLetter, codec: Codec, store: BlobStore | None) -> Any:
    """The record that was dead-lettered, from its blob if it was moved there. Blocking.

    Raises:
        UndecodableRecord: it is no record of its stage's topic, as many a dead letter is not.
        InvalidRecord, BlobMissing, BlobCorrupt, SickHost: its blob cannot be had.
    """
    if (stage := letter.stage) is None:
        raise UndecodableRecord("it is not said from which stage's topic it came")
    value = letter.value
    if not value and store is not None and (blob := letter.blob) is not None:
        value = _unpack(store.read(blob, MAX_ORIGINAL_BYTES), blob.media_type)
    return codec.decode(value, stage.reads_record)


def job_of(letter: DeadLetter, codec: Codec, store: BlobStore | None) -> JobName | None:
    """Whose letter it is; None where no job can be named or the job is another record's. Blocking.

    Raises:
        SickHost: the object store is away.
    """
    if letter.findings.get("reason-code") in NOT_ITS_OWN:
        return None
    try:
        record = original_record(letter, codec, store)
        job = record if isinstance(record, GenerationRequest | VideoDone) else record.job
        name = JobName(check_segment(job.tenant_id), check_segment(job.job_id), job.run)
    except (UndecodableRecord, InvalidRecord):
        return None
    return name if name.run >= 1 else None


async def read_dead_letters(
    connection: Connection, topics: Iterable[str], since_ms: int | None = None
) -> AsyncGenerator[DeadLetter, None]:
    """Every dead letter that lay in these topics when reading began, one at a time.

    In order within a partition; with `since_ms` only those whose timestamp is not before it.
    Raises BrokerUnreachable if it gets no further, ClientError for a topic that is missing.
    """
    counts = await connection.num_partitions(topics)
    places = [TopicPartition(topic, p) for topic, count in counts.items() for p in range(count)]
    async with open_consumer(connection) as consumer:
        with connection.faults():
            begins = await consumer.beginning_offsets(places)
            left = await consumer.end_offsets(places)
            if since_ms is not None:
                found = await consumer.offsets_for_times(dict.fromkeys(places, max(0, since_ms)))
                begins |= {place: at.offset for place, at in found.items() if at is not None}
                left = {place: end for place, end in left.items() if found[place] is not None}
            left = {place: end for place, end in left.items() if begins[place] < end}
            # One assignment, and every position said at once: aiokafka may wait for ever for one
            # that it looks up itself while the assignment changes.
            consumer.assign(list(left))
            for place in left:
                consumer.seek(place, begins[place])
        stalled_s = 0.0
        while await _drop_reached(connection, consumer, left):
            with connection.faults():
                batches = await poll_gently(consumer, 0.1, _POLL_RECORDS)
            stalled_s = 0.0 if batches else stalled_s + 0.1
            if stalled_s >= STALL_S:
                raise BrokerUnreachable(
                    f"Kafka at {connection.bootstrap} gives no records, for {STALL_S:.0f} s"
                )
            for place, records in batches.items():
                for record in records:
                    is_recent = since_ms is None or record.timestamp >= since_ms
                    if is_recent and record.offset < left.get(place, 0):
                        yield _letter(record)


async def read_dead_letter(
    connection: Connection, topic: str, partition: int, offset: int
) -> DeadLetter | None:
    """The dead letter at that place; None where there is none (any more)."""
    counts = await connection.num_partitions([topic])
    if partition >= counts[topic]:
        return None
    place = TopicPartition(topic, partition)
    async with open_consumer(connection) as consumer:
        with connection.faults():
            consumer.assign([place])
            begin = (await consumer.beginning_offsets([place]))[place]
            end = (await consumer.end_offsets([place]))[place]
            if not begin <= offset < end:
                return None
            consumer.seek(place, offset)
            batches = await poll_gently(consumer, STALL_S, 1)
    record = next(iter(batches.get(place, ())), None)
    return None if record is None or record.offset != offset else _letter(record)


async def _drop_reached(
    connection: Connection, consumer: Any, left: dict[TopicPartition, int]
) -> bool:
    """Whether anything is left once the partitions that were read to their end are dropped."""
    with connection.faults():
        for place, end in list(left.items()):
            if await consumer.position(place) >= end:
                del left[place]
    return bool(left)


def _letter(record: ConsumerRecord) -> DeadLetter:
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )


def _unpack(body: bytes, media_type: str) -> bytes | None:
    """The value of an original as `streams.letters.pack_original` packs it.

    Raises:
        UndecodableRecord: it is packed otherwise.
    """
    if media_type != ORIGINAL_MEDIA_TYPE:
        raise UndecodableRecord(f"its blob is no {ORIGINAL_MEDIA_TYPE}")
    try:
        text = json.loads(body)["value"]
        return None if text is None else base64.b64decode(text, validate=True)
    except (KeyError, TypeError, ValueError) as fault:
        raise UndecodableRecord("its blob holds no packed record") from fault


def _number(value: bytes | None) -> str:
    """A big-endian number of 4 or 8 bytes, as Java's ByteBuffer writes it; else as text."""
    if value is not None and len(value) in (4, 8):
        return str(int.from_bytes(value, "big", signed=True))
    return as_text(value)
