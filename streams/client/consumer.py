"""The client's consumer: aiokafka, and librdkafka for what aiokafka cannot read.

aiokafka reads a batch whole or not at all: none in which a header's name is no UTF-8, and none that
is compressed by lz4, snappy or zstd. Whoever may write to a topic can put such there, and whoever
reads it would be stuck before it for as long as the topic retains it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

from streams.client.connection import Connection
from streams.core import events as ev
from streams.engine import Task

_MOST_RECORDS = 500  # of those that librdkafka reads at a time
_LOOK_S = 0.01
_UNREADABLE = (UnicodeDecodeError, UnsupportedCodecError, CorruptRecordException)
_log = logging.getLogger(__name__)


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """An aiokafka consumer that is stuck before no record."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        super().__init__(**connection.options(), **options)
        self._connection = connection

    async def getmany(
        self, *, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """The next records of one partition; perhaps none, after `timeout_ms`.

        Asked for more than one, aiokafka loses what some have given where the next cannot be read.
        """
        end_s = time.monotonic() + timeout_ms / 1000
        while True:
            places = list(self.assignment())
            if not places:
                await super().getmany()  # raises what the group is refused for
            random.shuffle(places)  # who comes first may always have something
            for place in places:
                if records := await self._records(place, max_records):
                    return {place: records}
            if time.monotonic() >= end_s:
                return {}
            await asyncio.sleep(_LOOK_S)

    async def _records(self, place: TopicPartition, limit: int | None) -> list[ConsumerRecord]:
        records: list[ConsumerRecord]
        try:
            fetched = await super().getmany(place, max_records=limit)
            records = fetched.get(place, [])
        except _UNREADABLE as fault:
            offset = await self.position(place)
            _log.info("%s[%d]@%d is read by librdkafka: %s", *place, offset, fault)
            limit = min(limit or _MOST_RECORDS, _MOST_RECORDS)
            records = await asyncio.to_thread(_read, self._connection, place, offset, limit)
            if not records or not await self._is_at(place, offset):
                return []
            self.seek(place, records[-1].offset + 1)
        return records

    async def _is_at(self, place: TopicPartition, offset: int) -> bool:
        """Whether this is the next to be read, still: partitions move.

        One that has come back, and was not fetched from yet, may never have a position.
        """
        if place not in self.assignment() or self.highwater(place) is None:
            return False
        return bool(await self.position(place) == offset)


def _read(
    connection: Connection, place: TopicPartition, offset: int, limit: int
) -> list[ConsumerRecord]:
    """Some records from there on, by librdkafka; none where no broker answers. Blocking.

    Raises:
        CorruptRecordException: it cannot read them either.
    """
    # Seldom needed, and the command line would wait for it.
    from streams.kafka.some_records import NotReadable, some_records

    at, extra = ev.TopicPartition(*place), dict(connection.extra)
    try:
        found = some_records(connection.bootstrap, extra, at, offset, limit)
    except NotReadable as error:
        raise CorruptRecordException(str(error)) from error
    return [_record(task) for task in found]


def _record(task: Task) -> ConsumerRecord:
    """As aiokafka would have read it; without headers where the name of one is not readable."""
    return ConsumerRecord(
        topic=task.topic,
        partition=task.partition,
        offset=task.offset,
        timestamp=task.timestamp_ms,
        timestamp_type=0,  # nobody asks whose clock it was
        key=task.key,
        value=task.value,
        checksum=None,
        serialized_key_size=-1 if task.key is None else len(task.key),
        serialized_value_size=-1 if task.value is None else len(task.value),
        headers=task.headers,
    )
