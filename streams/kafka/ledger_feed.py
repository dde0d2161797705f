"""What the log tells of every run, partition by partition: a reader of no group.

`videos.done`, `prompts.cleaned` and `requests.deferred` of a partition number are read together,
from the longest that a run may last ago. Owned by the loop's thread; no call waits for long: while
brokers are away a partition is simply not read yet, and its requests wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from streams.core.shares import Follow, JobSeen, LedgerRead
from streams.engine import Task
from streams.errors import FatalError, SickHost
from streams.kafka.cluster import error_of
from streams.kafka.config import ClientConfig
from streams.kafka.consumer import task_of
from streams.runner import Dispatch

log = logging.getLogger(__name__)

_ANSWER_S = 1.0
_PAUSE_S = 1.0
_BURST_S = 0.01  # of one turn: what else the loop serves has its own
_ADVICE = "run `reel topics apply`"
_FATAL_CODES = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}


class KafkaLedgerFeed:
    """Implements `streams.runner.Feed`."""

    def __init__(
        self,
        config: ClientConfig,
        topics: Sequence[str],
        seen: Callable[[Task], JobSeen | None],
        longest_run_s: float,
        now_s: Callable[[], float],
    ) -> None:
        """`seen` tells what a record says; None: nothing that concerns a run."""
        self._topics, self._seen = topics, seen
        self._longest_run_s, self._now_s = longest_run_s, now_s
        self._consumer = Consumer(config | {"error_cb": _on_error})
        self._wanted: set[int] = set()  # not assigned yet
        self._assigned: set[int] = set()
        self._behind: set[tuple[str, int]] = set()
        self._again_s, self._is_stale = 0.0, False

    def follow(self, command: Follow) -> None:
        """Read these from now on, and no longer those."""
        gone = [number for number in command.gone if number in self._assigned]
        if gone:
            self._consumer.incremental_unassign(self._of(gone))
        self._assigned.difference_update(gone)
        self._behind = {each for each in self._behind if each[1] not in command.gone}
        self._wanted.difference_update(command.gone)
        self._wanted.update(command.new)

    def poll(self, dispatch: Dispatch) -> None:
        """Hand on what is there.

        Raises:
            FatalError: a topic is gone, or this principal may not read it.
        """
        if self._wanted and self._now_s() >= self._again_s:
            self._begin()
        until_s = time.monotonic() + _BURST_S
        while time.monotonic() < until_s:
            message = self._consumer.poll(0)
            if message is None:
                return
            if message.error() is not None:
                self._on_message_error(message, dispatch)
                continue
            task = task_of(message)
            try:
                event = self._seen(task)
            except SickHost as error:  # the schema registry is away: read it again then
                log.warning("ledger record not decoded yet", extra={"error": str(error)})
                self._consumer.seek(KafkaPartition(task.topic, task.partition, task.offset))
                return
            if event is not None and event.partition in self._assigned:
                dispatch(event)

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def _of(self, numbers: Sequence[int]) -> list[KafkaPartition]:
        return [KafkaPartition(topic, each) for each in numbers for topic in self._topics]

    def _begin(self) -> None:
        numbers = sorted(self._wanted)
        try:
            if self._is_stale:  # of partitions that came just now it does not know by itself
                self._consumer.list_topics(timeout=_ANSWER_S)
            partitions = self._starts(self._of(numbers))
            self._consumer.incremental_assign(partitions)
        except KafkaException as fault:
            error = error_of(fault)
            if error.code() in _FATAL_CODES:
                raise FatalError(f"the ledger's topics: {error.str()}: {_ADVICE}") from fault
            self._again_s, self._is_stale = self._now_s() + _PAUSE_S, True
            log.warning("ledger not read yet", extra={"error": error.str(), "code": error.name()})
            return
        self._is_stale = False
        self._wanted.clear()
        self._assigned.update(numbers)
        self._behind.update((each.topic, each.partition) for each in partitions)

    def _starts(self, partitions: list[KafkaPartition]) -> list[KafkaPartition]:
        """Where records of the longest run begin.

        The ends first: what is appended between the two questions is then read, not skipped.
        """
        ends = self._offsets(partitions, OFFSET_END)
        since_ms = max(0, int(1000 * (self._now_s() - self._longest_run_s)))
        starts = self._offsets(partitions, since_ms)
        return [
            KafkaPartition(
                each.topic, each.partition, end.offset if start.offset < 0 else start.offset
            )
            for each, end, start in zip(partitions, ends, starts, strict=True)
        ]

    def _offsets(self, partitions: list[KafkaPartition], at_ms: int) -> list[KafkaPartition]:
        asked = [KafkaPartition(each.topic, each.partition, at_ms) for each in partitions]
        found = self._consumer.offsets_for_times(asked, timeout=_ANSWER_S)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return found

    def _on_message_error(self, message: Message, dispatch: Dispatch) -> None:
        error, topic, partition = message.error(), message.topic() or "", message.partition() or 0
        assert error is not None
        if error.code() == KafkaError._PARTITION_EOF:
            if (topic, partition) in self._behind:
                self._behind.discard((topic, partition))
                if not any((each, partition) in self._behind for each in self._topics):
                    dispatch(LedgerRead(partition))
        elif error.fatal() or error.code() in _FATAL_CODES:
            raise FatalError(f"topic {topic}: {error.str()}: {_ADVICE}")
        else:
            log.warning("ledger", extra={"topic": topic, "error": error.str()})


def _on_error(error: KafkaError) -> None:
    if error.code() == KafkaError._ALL_BROKERS_DOWN or not error.retriable():
        log.warning("kafka", extra={"error": error.str()})
