"""Records in: librdkafka's consumer as a `Source`. Owned by the loop's thread.

Where reading begins (DESIGN 2, retention): at the group's committed offset; without one, at 0 if
the log still begins there. An offset that the log no longer holds is never skipped in silence:
the partition stands still, and says so, until `reel topics apply --from-start`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from operator import methodcaller
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
)
from confluent_kafka import (
    TopicPartition as KafkaPartition,
)

from streams.core.events import (
    Assigned,
    CommitPoint,
    Committed,
    Event,
    Headers,
    Lost,
    Revoked,
    StartOffset,
    TopicPartition,
)
from streams.core.lanes import Lanes
from streams.core.offset_map import OffsetMap, decode_offset_map
from streams.engine import Task
from streams.errors import FatalError, SickHost
from streams.kafka.committed import committed_offsets
from streams.kafka.config import ClientConfig
from streams.runner import Dispatch

log = logging.getLogger(__name__)

_LOOKUP_S = 60.0
_READ = 1024  # records read ahead in one turn; so long are they handed on,
_BURST_S = 0.01  # before completions, without which nothing goes on, have their say
_RECORD_BYTES = 100  # about what a record takes beside its value
_FATAL_CODES = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError.UNSUPPORTED_ASSIGNOR,
    KafkaError._AUTHENTICATION,
    KafkaError._UNSUPPORTED_FEATURE,
}


# Not `message.headers()`: the client sets an exception and returns a list all the same, which
# Python does not notice at a call that it has specialised: the next one, whatever it is, raises.
_read_headers = methodcaller("headers")


class KafkaSource:
    """One member of a stage's group."""

    def __init__(
        self,
        config: ClientConfig,
        topics: list[str],
        intake: Callable[[Task], Event],
        stalled: Callable[[TopicPartition, str], None],
    ) -> None:
        """Join the group. `stalled` is told of a partition that cannot be read, and why."""
        self._is_incremental = config["group.protocol"] == "consumer"
        self._intake, self._stalled = intake, stalled
        self._answered: list[Committed] = []
        self._dispatch: Dispatch = _not_polling
        self._is_leaving = False
        # As much again as librdkafka may hold, which drops what it holds of what is paused.
        self._ahead: Lanes[TopicPartition, Message] = Lanes(
            1024 * int(config["queued.max.messages.kbytes"])
        )
        self._consumer = Consumer(
            config | {"on_commit": self._on_commit, "error_cb": self._on_error}
        )
        self._consumer.subscribe(
            topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def poll(self, timeout_s: float, dispatch: Dispatch) -> None:
        """Wait for a record at most `timeout_s`, then hand on what is here, for a moment.

        Partitions take turns, one record each: what one of them is flooded with is not before what
        comes in another.
        """
        self._dispatch = dispatch
        self._read(0.0 if self._ahead.is_ready else timeout_s)
        until_s = time.monotonic() + _BURST_S
        while (taken := self._ahead.take()) is not None:
            key, message = taken
            try:
                event = self._intake(task_of(message))
            except SickHost as error:  # the schema registry is away: it is the next one again
                log.warning("record not decoded yet", extra={"error": str(error)})
                self._ahead.put_back(key, message, _num_bytes(message))
                break
            dispatch(event)
            if time.monotonic() >= until_s:
                break
        if drained := self._ahead.drained():
            self._consumer.resume([KafkaPartition(*each) for each in drained])
        answered, self._answered = self._answered, []
        for committed in answered:
            dispatch(committed)

    def _read(self, timeout_s: float) -> None:
        for _ in range(_READ):
            message = self._consumer.poll(timeout_s)
            timeout_s = 0
            if message is None:
                return
            if message.error() is not None:
                self._on_message_error(message)
            elif self._ahead.add(key := _key(message), message, _num_bytes(message)):
                self._consumer.pause([KafkaPartition(*key)])

    def commit(self, points: Mapping[TopicPartition, CommitPoint], must_finish: bool) -> None:
        """Commit. A commit that fails costs work done twice, never a record: it is logged."""
        kafka_offsets = [
            KafkaPartition(each.topic, each.partition, point.offset, point.metadata)
            for each, point in points.items()
        ]
        try:
            if must_finish:
                self._consumer.commit(offsets=kafka_offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=kafka_offsets, asynchronous=True)
        except KafkaException as error:
            log.warning("commit failed", extra={"error": str(error), "must_finish": must_finish})
            if not must_finish:
                self._answered.append(Committed(is_ok=False))

    def pause(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Hand on nothing more of these; what was read ahead of them stays here."""
        self._ahead.hold(partitions)

    def resume(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Hand on again, from the record after the last."""
        self._ahead.release(partitions)

    def close(self) -> None:
        """Leave the group, so that others need not wait for a session timeout."""
        self._dispatch, self._is_leaving = _not_polling, True
        self._consumer.close()

    # ---- callbacks, all inside poll() or close(), on the owner's thread

    def _on_assign(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        if self._is_leaving:
            # Given while we leave: offsets would be asked for of a member that is gone, in vain and
            # for as long as we wait; librdkafka wants an answer all the same.
            consumer.unassign()
            return
        starts = self._start_offsets(consumer, partitions)
        self._ahead.forget(starts)  # held by nobody yet, whatever they were when they were ours
        for partition in partitions:
            key = TopicPartition(partition.topic, partition.partition)
            partition.offset = starts[key].known.offset
        if self._is_incremental:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)
        self._dispatch(Assigned(starts))

    def _start_offsets(
        self, consumer: Consumer, partitions: list[KafkaPartition]
    ) -> dict[TopicPartition, StartOffset]:
        if not partitions:
            return {}
        try:
            found = committed_offsets(consumer, partitions, _LOOKUP_S)
        except KafkaException as error:
            raise FatalError(f"committed offsets cannot be read: {error}") from error
        return {TopicPartition(each.topic, each.partition): _start_offset(each) for each in found}

    def _on_revoke(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self._dispatch(Revoked(_keys(partitions)))
        self._unassign(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self._dispatch(Lost(_keys(partitions)))
        self._unassign(consumer, partitions)

    def _unassign(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self._ahead.forget(_keys(partitions))
        # librdkafka remembers what was paused beyond the assignment: a partition that comes back
        # would never be read.
        consumer.resume(partitions)
        if self._is_incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _on_commit(self, error: KafkaError | None, partitions: list[KafkaPartition]) -> None:
        is_ok = error is None and all(each.error is None for each in partitions)
        if not is_ok:
            log.warning("commit refused", extra={"error": str(error)})
        self._answered.append(Committed(is_ok))

    def _on_message_error(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            topic, partition = message.topic(), message.partition()
            assert topic is not None
            assert partition is not None
            self._stalled(TopicPartition(topic, partition), error.str())
        elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise FatalError(f"{error.str()}: run `reel topics apply` first")
        elif error.fatal() or error.code() in _FATAL_CODES:
            raise FatalError(f"consumer: {error.str()}")
        else:
            log.warning("consumer", extra={"error": error.str()})

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN or not error.retriable():
            log.warning("kafka", extra={"error": error.str()})


def _not_polling(event: Event) -> None:
    """Closing tells of revoked partitions once more; the state has let go of them already."""
    log.debug("event outside of poll", extra={"event": type(event).__name__})


def _start_offset(found: KafkaPartition) -> StartOffset:
    if found.offset == OFFSET_INVALID:
        return StartOffset(OffsetMap(0), is_committed=False)
    try:
        known = decode_offset_map(found.offset, found.metadata or "")
    except ValueError as error:  # written by a newer version: what it finished is worked again
        log.warning(
            "offset map ignored",
            extra={"topic": found.topic, "partition": found.partition, "error": str(error)},
        )
        return StartOffset(OffsetMap(found.offset), is_committed=True, is_map_ignored=True)
    return StartOffset(known, is_committed=True)


def _keys(partitions: list[KafkaPartition]) -> tuple[TopicPartition, ...]:
    return tuple(TopicPartition(each.topic, each.partition) for each in partitions)


def _key(message: Message) -> TopicPartition:
    topic, partition = message.topic(), message.partition()
    assert topic is not None
    assert partition is not None
    return TopicPartition(topic, partition)


def _num_bytes(message: Message) -> int:
    return _RECORD_BYTES + len(message)


def task_of(message: Message) -> Task:
    """A message without an error as a task that is not decoded yet.

    Headers of which a name is no UTF-8 count as none.
    """
    (topic, partition), offset = _key(message), message.offset()
    assert offset is not None
    key: Any = message.key()
    value: Any = message.value()
    headers = _headers(message)
    return Task(None, partition, value, topic, offset, key, headers, message.timestamp()[1])


def _headers(message: Message) -> Headers:
    try:
        found: Any = _read_headers(message) or ()
    except (SystemError, UnicodeDecodeError):  # by the client's version
        # Asked again, the message would give a list that is not whole, and not safe to touch.
        message.set_headers([])
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        log.warning("headers not readable of %s[%s]@%s", topic, partition, offset)
        return ()
    return tuple(found)
