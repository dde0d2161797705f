"""Each effective outcome once: `videos.done` without its duplicates and superseded runs.

What a job has ended with is remembered per partition. A member that gets a partition reads back
what lies before its first record there, so a restart or a rebalance forgets nothing that is younger
than `lookback_s`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import suppress

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition

from schemas.codec import Codec
from schemas.records import VideoDone
from streams.blobs.fences import Fences
from streams.client.connection import BrokerUnreachable, Connection
from streams.client.log_reader import (
    STALL_S,
    decode_or_skip,
    open_consumer,
    open_log,
    poll_gently,
    stop_quietly,
)
from streams.client.subscription import Taken, group_consumer, next_batches
from streams.core.effective import EffectiveEndings
from streams.errors import InvalidRecord, SickHost
from streams.topology import VIDEOS_DONE

LOOKBACK_S = 7 * 86_400.0
"""How far back duplicates are known: REEL_RETENTION_S, as long as it is not set."""

HOLD_S = 5.0
"""A rebalance waits so long for the outcome that is held to be taken."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_log = logging.getLogger(__name__)

_FINAL = ("completed", "cancelled", "rejected")


class Judge:
    """Whether an ending is to be handed on. Asks of the object store are made on threads."""

    def __init__(
        self,
        fences: Fences | None,
        lookback_s: float,
        clock: Callable[[], float] = time.time,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Without `fences` only a later run that was seen supersedes an earlier one."""
        self._fences, self._lookback_s = fences, lookback_s
        self._clock, self._rest = clock, rest
        self._endings = EffectiveEndings()

    def note(self, done: VideoDone, at_s: float | None = None) -> None:
        """This ending was handed on, or passed over, by whomever; now if not at another time."""
        now_s = self._clock()
        self._endings.note(_job(done), done.run, now_s if at_s is None else min(at_s, now_s))
        self._endings.forget(now_s - self._lookback_s)

    async def is_effective_news(self, done: VideoDone) -> bool:
        """Whether this is the job's effective outcome, and not noted yet.

        While the object store, which knows of redrives, is away, this waits and says so in the log.
        """
        if not self._endings.is_news(_job(done), done.run):
            return False
        if self._fences is None or done.status in _FINAL:
            return True
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                later = await asyncio.to_thread(
                    self._fences.claimed_run, done.tenant_id, done.job_id, done.run + 1
                )
            except InvalidRecord:  # no worker of ours wrote it: such a job has no fences
                return True
            except SickHost as fault:
                _log.warning("the object store does not answer, %s is kept: %s", done.job_id, fault)
                await self._rest(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            else:
                return later is None


def _job(done: VideoDone) -> tuple[str, str]:
    return done.tenant_id, done.job_id


async def outcomes_of_all(
    connection: Connection,
    codec: Codec,
    fences: Fences | None,
    *,
    from_beginning: bool,
    lookback_s: float,
) -> AsyncGenerator[VideoDone, None]:
    """Every effective outcome, to this reader alone, of which nothing is kept."""
    judge = Judge(fences, lookback_s)
    async with open_log(connection, codec, [VIDEOS_DONE], from_beginning=from_beginning) as log:
        while True:
            for record in await log.poll(1.0):
                if isinstance(record, VideoDone):
                    is_news = await judge.is_effective_news(record)
                    judge.note(record)
                    if is_news:
                        yield record


async def outcomes_of_group(
    connection: Connection,
    codec: Codec,
    fences: Fences | None,
    group: str,
    *,
    from_beginning: bool,
    lookback_s: float,
) -> AsyncGenerator[VideoDone, None]:
    """Every effective outcome, shared among the members of `group`; see `Client.outcomes`."""
    await connection.num_partitions([VIDEOS_DONE])
    consumer = group_consumer(connection, group)
    taken = Taken(consumer)
    members = _Membership(connection, codec, fences, lookback_s, taken)
    try:
        with connection.faults():
            consumer.subscribe([VIDEOS_DONE], listener=members)
            await consumer.start()
        while True:
            with connection.faults():
                await taken.commit()
                batches = await next_batches(consumer, group, from_beginning)
            async for record, done in members.news_of(batches):
                members.settled.clear()
                yield done
                # At once, and not in a while: what the group does not know is handed on again.
                taken.note(TopicPartition(record.topic, record.partition), record.offset)
                members.settled.set()
                with connection.faults():
                    await taken.commit()
    finally:
        await taken.commit()
        await stop_quietly(consumer)


class _Membership(ConsumerRebalanceListener):  # type: ignore[misc]
    """What this member remembers of the partitions that it has."""

    def __init__(
        self,
        connection: Connection,
        codec: Codec,
        fences: Fences | None,
        lookback_s: float,
        taken: Taken,
    ) -> None:
        self._connection, self._codec, self._taken = connection, codec, taken
        self._fences, self._lookback_s = fences, lookback_s
        self._judges: dict[TopicPartition, Judge] = {}
        self._known_to: dict[TopicPartition, int] = {}  # offset up to which its judge knows all
        self._epoch = 0
        self.settled = asyncio.Event()  # nothing is handed on and not taken yet
        self.settled.set()

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """The last moment in which our commits count."""
        self._epoch += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(HOLD_S):
                await self.settled.wait()
        await self._taken.commit()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Forget what others have now; what stays ours is only ever added to."""
        self._judges = {each: self._judges[each] for each in assigned if each in self._judges}
        self._known_to = {each: self._known_to[each] for each in self._judges}

    async def news_of(
        self, batches: dict[TopicPartition, list[ConsumerRecord]]
    ) -> AsyncGenerator[tuple[ConsumerRecord, VideoDone], None]:
        """The effective outcomes among the records; it ends early where a rebalance began."""
        epoch = self._epoch
        for partition, records in batches.items():
            judge = await self._judge(partition, records[0].offset)
            for record in records:
                if epoch != self._epoch:
                    return  # their next owner may be another; if not, they come again
                done = decode_or_skip(self._codec, record, VideoDone)
                is_news = done is not None and await judge.is_effective_news(done)
                if epoch != self._epoch:
                    return
                self._known_to[partition] = record.offset + 1
                if done is not None:
                    judge.note(done)
                if done is not None and is_news:
                    yield record, done
                else:
                    self._taken.note(partition, record.offset)

    async def _judge(self, partition: TopicPartition, offset: int) -> Judge:
        """The partition's judge, who knows all before `offset`."""
        judge = self._judges.get(partition)
        if judge is None:
            judge = Judge(self._fences, self._lookback_s)
        known_to = self._known_to.get(partition)
        if known_to is None or known_to < offset:
            await self._read_back(judge, partition, known_to, offset)
        self._judges[partition] = judge
        self._known_to[partition] = max(offset, known_to or 0)
        return judge

    async def _read_back(
        self, judge: Judge, partition: TopicPartition, start: int | None, end: int
    ) -> None:
        """Let `judge` remember what was handed on before `end`, by whomever."""
        async with open_consumer(self._connection) as consumer:
            with self._connection.faults():
                consumer.assign([partition])
                if start is None:
                    since_ms = int((time.time() - self._lookback_s) * 1000)
                    found = await consumer.offsets_for_times({partition: max(0, since_ms)})
                    start = end if found[partition] is None else found[partition].offset
                consumer.seek(partition, start)
            stalled_s = 0.0
            while True:
                with self._connection.faults():
                    if start >= end or await consumer.position(partition) >= end:
                        return
                    batches = await poll_gently(consumer, 0.1)
                stalled_s = 0.0 if batches else stalled_s + 0.1
                if stalled_s >= STALL_S:
                    raise BrokerUnreachable(
                        f"Kafka at {self._connection.bootstrap} gives no records,"
                        f" for {STALL_S:.0f} s"
                    )
                for record in batches.get(partition, ()):
                    if record.offset < end:
                        done = decode_or_skip(self._codec, record, VideoDone)
                        if done is not None:
                            judge.note(done, record.timestamp / 1000)
