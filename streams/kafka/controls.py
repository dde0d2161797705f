"""What operators and clients wish, read by every worker: a second consumer, member of no group.

Both control topics are read from their start; `is_caught_up` turns true when everything that was
there when reading began has been handed on, and a worker is not ready before.
"""

from __future__ import annotations

import logging

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
)
from confluent_kafka import (
    TopicPartition as KafkaPartition,
)

from schemas.codec import Codec, UndecodableRecord
from schemas.records import JobControl, StageControl
from streams.core.events import Event, JobCancelled, JobDeadline, StagePaused
from streams.errors import FatalError, SickHost
from streams.kafka.config import ClientConfig
from streams.runner import Dispatch
from streams.topology import JOB_CONTROL, STAGE_CONTROL

log = logging.getLogger(__name__)

_METADATA_S = 10.0


class KafkaControls:
    """Control records of one stage as events."""

    def __init__(self, config: ClientConfig, stage_name: str, codec: Codec) -> None:
        """Begin reading.

        Raises:
            SickHost: no broker answers.
            FatalError: the control topics do not exist.
        """
        self._stage_name, self._codec = stage_name, codec
        self._consumer = Consumer(config)
        partitions: list[KafkaPartition] = []
        for topic in (JOB_CONTROL, STAGE_CONTROL):
            try:
                metadata = self._consumer.list_topics(topic, timeout=_METADATA_S).topics[topic]
            except KafkaException as error:
                raise SickHost(f"no answer from Kafka: {error.args[0].str()}") from error
            if metadata.error is not None:
                raise FatalError(f"topic {topic}: {metadata.error.str()}: run `reel topics apply`")
            partitions += [
                KafkaPartition(topic, number, OFFSET_BEGINNING) for number in metadata.partitions
            ]
        self._behind = {(each.topic, each.partition) for each in partitions}
        self._consumer.assign(partitions)
        self._unread: Message | None = None  # what could not be decoded yet

    @property
    def is_caught_up(self) -> bool:
        """Whether the end of every control partition was reached once."""
        return not self._behind

    def poll(self, dispatch: Dispatch) -> None:
        """Hand on what is there; waits for nothing but the schema registry's answers."""
        while (message := self._next()) is not None:
            error = message.error()
            if error is None:
                try:
                    event = self._event(message)
                except SickHost as away:  # the schema registry is away: it is the next one again
                    log.warning("control record not decoded yet", extra={"error": str(away)})
                    self._unread = message
                    return
                if event is not None:
                    dispatch(event)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._behind.discard((message.topic() or "", message.partition() or 0))
            else:
                log.warning("controls", extra={"error": error.str()})

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def _next(self) -> Message | None:
        message, self._unread = self._unread, None
        return self._consumer.poll(0) if message is None else message

    def _event(self, message: Message) -> Event | None:
        value = message.value()
        if value is None:
            return None  # a tombstone: the wish is old, and what it did stands
        try:
            if message.topic() == STAGE_CONTROL:
                stage = self._codec.decode(value, StageControl)
                return StagePaused(stage.state == "paused") if self._is_ours(stage) else None
            job = self._codec.decode(value, JobControl)
        except UndecodableRecord as error:
            log.warning(
                "control record not understood",
                extra={
                    "topic": message.topic(), "offset": message.offset(), "error": str(error)
                },
            )  # fmt: skip
            return None
        issued_s = job.issued_at.timestamp()
        if job.kind == "cancel":
            return JobCancelled(job.job_id, job.run, issued_s, job.tenant_id)
        if job.kind == "deadline" and job.deadline is not None:
            until_s = job.deadline.timestamp()
            return JobDeadline(job.job_id, job.run, until_s, issued_s, job.tenant_id)
        return None

    def _is_ours(self, control: StageControl) -> bool:
        return control.stage == self._stage_name
