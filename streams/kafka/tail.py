"""Whole topics from a moment on, read by a member of no group: nothing is committed.

At first only the `first` topics are delivered, to their ends, then all: so that a reader who wants
to know what has ended need not remember all that has begun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from streams.engine import Task
from streams.errors import FatalError, SickHost
from streams.kafka.cluster import ANSWER_S, PAUSE_S, error_of, will_pass
from streams.kafka.config import ClientConfig
from streams.kafka.consumer import task_of

log = logging.getLogger(__name__)

_BURST = 1000
_LEADERS_S = 30.0


class KafkaTail:
    """Records of some topics since `since_s`, without end. Owned by one thread."""

    def __init__(
        self, config: ClientConfig, first: Sequence[str], then: Sequence[str], since_s: float
    ) -> None:
        """Begin to read where records of `since_s` (epoch seconds, by their timestamps) begin.

        Raises:
            SickHost: no broker answers.
            FatalError: a topic does not exist.
        """
        self._consumer = Consumer(config | {"error_cb": _on_error})
        try:
            partitions = [each for topic in (*first, *then) for each in self._partitions(topic)]
            self._assign(partitions, since_s)
        except BaseException:
            self._consumer.close()
            raise
        self._waiting = [each for each in partitions if each.topic in then]
        self._behind = {(each.topic, each.partition) for each in partitions}
        self._first = set(first)
        if self._waiting and self._first:
            self._consumer.pause(self._waiting)

    @property
    def is_caught_up(self) -> bool:
        """Whether the end of every partition was reached once."""
        return not self._behind

    def poll(self, timeout_s: float) -> Iterator[Task]:
        """Wait for a record at most `timeout_s`, then tell what else is there, up to a burst.

        Raises:
            FatalError: a topic is gone, or this principal may not read it.
        """
        for _ in range(_BURST):
            message = self._consumer.poll(timeout_s)
            timeout_s = 0
            if message is None:
                return
            if message.error() is None:
                yield task_of(message)
            else:
                self._on_message_error(message)

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def _partitions(self, topic: str) -> list[KafkaPartition]:
        try:
            found = self._consumer.list_topics(topic, timeout=ANSWER_S).topics[topic]
        except KafkaException as fault:
            raise SickHost(f"no answer from Kafka: {error_of(fault).str()}") from fault
        if found.error is not None:
            raise FatalError(f"topic {topic}: {found.error.str()}: run `reel topics apply`")
        return [KafkaPartition(topic, number) for number in sorted(found.partitions)]

    def _assign(self, partitions: list[KafkaPartition], since_s: float) -> None:
        # The ends first: what is appended between the two questions is then read, not skipped.
        ends = [self._end(each) for each in partitions]
        asked = [
            KafkaPartition(each.topic, each.partition, max(0, int(1000 * since_s)))
            for each in partitions
        ]
        try:
            starts = self._consumer.offsets_for_times(asked, timeout=ANSWER_S)
        except KafkaException as fault:
            raise SickHost(f"no offsets from Kafka: {error_of(fault).str()}") from fault
        for each, end, start in zip(partitions, ends, starts, strict=True):
            assert (start.topic, start.partition) == (each.topic, each.partition)
            if start.error is not None:
                raise SickHost(f"no offset of {each.topic}[{each.partition}]: {start.error.str()}")
            each.offset = end if start.offset < 0 else start.offset  # -1: all of it is older
        self._consumer.assign(partitions)

    def _end(self, partition: KafkaPartition) -> int:
        """The log's end; a leader that was chosen just now may need a moment."""
        give_up_s = time.monotonic() + _LEADERS_S
        while True:
            try:
                bounds = self._consumer.get_watermark_offsets(partition, timeout=ANSWER_S)
            except KafkaException as fault:
                if not will_pass(error_of(fault)) or time.monotonic() > give_up_s:
                    text = f"no end of {partition.topic}[{partition.partition}]"
                    raise SickHost(f"{text}: {error_of(fault).str()}") from fault
                time.sleep(PAUSE_S)
                continue
            if bounds is None:
                raise SickHost(f"no end of {partition.topic}[{partition.partition}] in time")
            return bounds[1]

    def _on_message_error(self, message: Message) -> None:
        error, topic, partition = message.error(), message.topic() or "", message.partition() or 0
        assert error is not None
        if error.code() == KafkaError._PARTITION_EOF:
            self._behind.discard((topic, partition))
            if self._waiting and not any(each in self._first for each, _ in self._behind):
                self._consumer.resume(self._waiting)
                self._waiting = []
        elif error.fatal() or error.code() in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
        ):
            raise FatalError(f"topic {topic}: {error.str()}")
        else:
            log.warning("reading", extra={"topic": topic, "error": error.str()})


def _on_error(error: KafkaError) -> None:
    if error.code() == KafkaError._ALL_BROKERS_DOWN or not error.retriable():
        log.warning("kafka", extra={"error": error.str()})
