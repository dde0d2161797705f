"""`videos.done` for a consumer group: at least once, in the group's own time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
)

from schemas.codec import Codec
from schemas.records import VideoDone
from streams.client.connection import ClientError, Connection
from streams.client.consumer import Consumer
from streams.client.log_reader import decode_or_skip, poll_gently, stop_quietly
from streams.topology import VIDEOS_DONE

COMMIT_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)


async def subscribe(
    connection: Connection, codec: Codec, group: str, *, from_beginning: bool
) -> AsyncGenerator[VideoDone, None]:
    """Every ending, shared among the members of `group`.

    A record is taken when the next one is asked for; only what is taken is committed, within
    COMMIT_INTERVAL_S and at the end. Raises ClientError where records were deleted unread.
    """
    await connection.num_partitions([VIDEOS_DONE])
    consumer = group_consumer(connection, group)
    taken = Taken(consumer)
    try:
        with connection.faults():
            consumer.subscribe([VIDEOS_DONE])
            await consumer.start()
        while True:
            with connection.faults():
                await taken.commit()
                batches = await next_batches(consumer, group, from_beginning)
            for partition, records in batches.items():
                for record in records:
                    done = decode_or_skip(codec, record, VideoDone)
                    if done is not None:
                        yield done
                    with connection.faults():
                        await taken.take(partition, record.offset)
    finally:
        await taken.commit()
        await stop_quietly(consumer)


def group_consumer(connection: Connection, group: str) -> Any:
    """A member of `group`, to be subscribed and started; it commits what it is told to."""
    return Consumer(
        connection,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",  # never a silent skip
        isolation_level="read_committed",
        partition_assignment_strategy=[RangePartitionAssignor],
    )


class Taken:
    """What the subscriber has taken and the group does not know yet."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._offsets: dict[TopicPartition, int] = {}
        self._committed_s = 0.0

    def note(self, partition: TopicPartition, offset: int) -> None:
        """It was taken; the next `commit` says so."""
        self._offsets[partition] = offset + 1

    async def take(self, partition: TopicPartition, offset: int) -> None:
        """It was taken; the group is told at the latest with what comes COMMIT_INTERVAL_S later."""
        self.note(partition, offset)
        if asyncio.get_running_loop().time() >= self._committed_s + COMMIT_INTERVAL_S:
            await self.commit()

    async def commit(self) -> None:
        """Tell the group, of the partitions that are still ours."""
        owned = self._consumer.assignment() & self._offsets.keys()
        self._offsets = {each: self._offsets[each] for each in owned}
        offsets = dict(self._offsets)
        self._committed_s = asyncio.get_running_loop().time()
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError, RebalanceInProgressError) as fault:
            # The partitions moved: their next owner meets these records again.
            _log.info("not committed: %s", fault)
        # Not before: who is cancelled while it waits commits again when it stops.
        for partition, offset in offsets.items():
            if self._offsets.get(partition) == offset:
                del self._offsets[partition]


async def next_batches(
    consumer: Any, group: str, from_beginning: bool
) -> dict[TopicPartition, list[Any]]:
    """The next records by partition; perhaps none. Raises ClientError where some are gone."""
    try:
        return await poll_gently(consumer, COMMIT_INTERVAL_S, max_records=100)
    except NoOffsetForPartitionError as fault:
        await _begin(consumer, fault.args[0], group, from_beginning)
    except OffsetOutOfRangeError as fault:
        raise _records_are_gone(group) from fault
    return {}


async def _begin(consumer: Any, partition: Any, group: str, from_beginning: bool) -> None:
    """Place a partition in which the group has not committed yet: at 0, if its log begins there."""
    try:
        if not from_beginning:
            await consumer.seek_to_end(partition)
            return
        beginnings = await consumer.beginning_offsets([partition])
        if beginnings[partition] > 0:
            raise _records_are_gone(group)
        consumer.seek(partition, 0)
    except IllegalStateError as fault:
        _log.debug("moved while it was placed: %s", fault)


def _records_are_gone(group: str) -> ClientError:
    return ClientError(
        f"group {group}: records of {VIDEOS_DONE} were deleted before it read them;"
        " `reel topics apply --from-start subscriber` goes on with what is left"
    )
