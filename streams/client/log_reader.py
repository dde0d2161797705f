"""Reading whole topics without a group: every partition, nothing committed, nothing owned."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from schemas.codec import Codec, UndecodableRecord
from schemas.records import GenerationRequest, JobEvent, VideoDone
from streams.client.connection import BrokerUnreachable, Connection
from streams.client.consumer import Consumer
from streams.topology import JOB_EVENTS, REQUESTS, VIDEOS_DONE

STALL_S = 30.0
"""A snapshot that gets no further for so long is given up."""

JobRecord = GenerationRequest | JobEvent | VideoDone
_RECORD_TYPES: Mapping[str, type[JobRecord]] = {
    REQUESTS: GenerationRequest,
    JOB_EVENTS: JobEvent,
    VIDEOS_DONE: VideoDone,
}
_LOOK_MS, _REST_S = 20, 0.1
_log = logging.getLogger(__name__)

T = TypeVar("T", bound=JobRecord)


class LogReader:
    """A group-less consumer, assigned to every partition of its topics. Made by `open_log`."""

    def __init__(self, consumer: Any, connection: Connection, codec: Codec) -> None:
        self._consumer = consumer
        self._connection = connection
        self._codec = codec

    async def poll(self, timeout_s: float, key: bytes | None = None) -> list[JobRecord]:
        """The next records, in order within each partition; empty after `timeout_s` without any.

        With a `key`, records under another key are passed over undecoded.
        """
        with self._connection.faults():
            batches = await poll_gently(self._consumer, timeout_s)
        found = []
        for partition, records in batches.items():
            # A foreign producer may key its requests as it likes; the other topics are ours.
            wanted = None if partition.topic == REQUESTS else key
            for record in records:
                if wanted is None or record.key is None or record.key == wanted:
                    decoded = decode_or_skip(self._codec, record, _RECORD_TYPES[partition.topic])
                    if decoded is not None:
                        found.append(decoded)
        return found

    async def ends(self) -> dict[TopicPartition, int]:
        """For each partition that is not empty, the offset behind its last record, now."""
        with self._connection.faults():
            ends = await self._consumer.end_offsets(self._consumer.assignment())
        return {partition: end for partition, end in ends.items() if end > 0}

    async def has_reached(self, ends: dict[TopicPartition, int]) -> bool:
        """Whether all before `ends` was polled. What is reached is dropped from `ends`."""
        with self._connection.faults():
            for partition, end in list(ends.items()):
                if await self._consumer.position(partition) >= end:
                    del ends[partition]
        return not ends

    async def snapshot(self, key: bytes | None = None) -> list[JobRecord]:
        """All that stands in the topics now. Raises BrokerUnreachable if it gets no further."""
        ends = await self.ends()
        found: list[JobRecord] = []
        stalled_s = 0.0
        while not await self.has_reached(ends):
            left = dict(ends)
            records = await self.poll(0.1, key)
            found += records
            reached = await self.has_reached(ends)
            stalled_s = 0.0 if records or reached or ends != left else stalled_s + 0.1
            if stalled_s >= STALL_S:
                raise BrokerUnreachable(
                    f"Kafka at {self._connection.bootstrap} gives no records, for {STALL_S:.0f} s"
                )
        return found


@asynccontextmanager
async def open_log(
    connection: Connection, codec: Codec, topics: Sequence[str], *, from_beginning: bool = True
) -> AsyncIterator[LogReader]:
    """A reader of all partitions of `topics`, from their beginning or from their end."""
    counts = await connection.num_partitions(topics)
    async with open_consumer(connection) as consumer:
        with connection.faults():
            consumer.assign(
                [TopicPartition(topic, p) for topic, n in counts.items() for p in range(n)]
            )
            if not from_beginning:
                await consumer.seek_to_end()
        yield LogReader(consumer, connection, codec)


@asynccontextmanager
async def open_consumer(connection: Connection) -> AsyncIterator[Any]:
    """A started consumer, member of no group, to be assigned; what nobody sought begins at 0."""
    consumer = Consumer(
        connection,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    try:
        with connection.faults():
            await consumer.start()
        yield consumer
    finally:
        await stop_quietly(consumer)


def decode_or_skip(codec: Codec, record: ConsumerRecord, expected: type[T]) -> T | None:
    """The record, or None and a log line where it cannot be read: readers own no dead letters."""
    try:
        return codec.decode(record.value, expected)
    except UndecodableRecord as fault:
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        _log.warning("skipped %s: %s", where, fault)
        return None


async def poll_gently(
    consumer: Any, timeout_s: float, max_records: int | None = None
) -> dict[TopicPartition, list[ConsumerRecord]]:
    """The next records by partition; empty after `timeout_s` without any.

    The embedded broker answers a fetch at once even where it has nothing, and a client that asks
    again at once keeps a core busy. So between two looks all partitions rest for a moment.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        batches: dict[TopicPartition, list[ConsumerRecord]] = await consumer.getmany(
            timeout_ms=_LOOK_MS, max_records=max_records
        )
        if batches or time.monotonic() >= end_s:
            return batches
        resting = consumer.assignment()
        consumer.pause(*resting)
        await asyncio.sleep(_REST_S)
        consumer.resume(*(resting & consumer.assignment()))


async def stop_quietly(client: Any) -> None:
    """Stop an aiokafka client; a broker that is gone by now is no news."""
    try:
        await client.stop()
    except KafkaError as fault:
        _log.debug("while stopping: %s", fault)
