"""What the tests of the Python client share: its time limit, and the pipeline's side of topics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.codec import Codec
from schemas.records import JobEvent, VideoDone
from streams.client import Client

NUM_PARTITIONS = 6
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CODEC = Codec()
T = TypeVar("T")


def run(test: Callable[[], Awaitable[T]], client: Client, limit_s: float = 30.0) -> T:
    """The test's answer, within the limit; the client is closed behind it."""

    async def within_limits() -> T:
        async with asyncio.timeout(limit_s), client:
            return await test()

    return asyncio.run(within_limits())


async def produce(bootstrap: str, topic: str, *records: Any, partition: int | None = None) -> None:
    """As the workers do: keyed by the job."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        for record in records:
            value = record if isinstance(record, bytes) else CODEC.encode(record)
            key = None if isinstance(record, bytes) else record.job_id.encode()
            await producer.send_and_wait(topic, value, key=key, partition=partition)
    finally:
        await producer.stop()


async def records_of(bootstrap: str, topic: str, partition: int) -> list[Any]:
    """Everything that stands in a partition now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        place = TopicPartition(topic, partition)
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        consumer.seek(place, 0)
        found: list[Any] = []
        while await consumer.position(place) < end:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found += records
        return found
    finally:
        await consumer.stop()


async def last_record(bootstrap: str, topic: str, partition: int) -> Any:
    """The newest record of a partition."""
    return (await records_of(bootstrap, topic, partition))[-1]


def a_done(job_id: str, status: Any = "completed", *, run: int = 1, **rest: Any) -> VideoDone:
    """How a run of tenant `acme` ended."""
    return VideoDone(job_id, run, "acme", status, 0, NOON, NOON, **rest)


def an_event(job_id: str, stage: str, kind: str = "started", *, run: int = 1) -> JobEvent:
    """Something happened to a job of tenant `acme`."""
    return JobEvent(job_id, run, "acme", stage, kind, NOON, "w")
