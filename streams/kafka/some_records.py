"""Some records from an offset on, read once by a member of no group."""

from __future__ import annotations

import logging

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from streams.core.events import TopicPartition
from streams.engine import Task
from streams.kafka.config import ClientConfig
from streams.kafka.consumer import task_of

log = logging.getLogger(__name__)

_PATIENCE_S = 10.0


class NotReadable(Exception):
    """librdkafka cannot read what is there, or nothing is."""


def some_records(
    bootstrap: str, extra: ClientConfig, place: TopicPartition, offset: int, limit: int
) -> list[Task]:
    """At most `limit` records; none where no broker answers. Blocks, 10 s at most.

    Raises:
        NotReadable: says why.
    """
    config = {
        "bootstrap.servers": bootstrap,
        "group.id": "reel-client",  # librdkafka wants a name; nobody ever joins it
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "check.crcs": True,
        "logger": logging.getLogger("rdkafka"),
    }
    consumer = Consumer(config | extra)
    try:
        consumer.assign([KafkaPartition(place.topic, place.partition, offset)])
        found: list[Task] = []
        wait_s = _PATIENCE_S
        while len(found) < limit and (message := consumer.poll(wait_s)) is not None:
            if (error := message.error()) is None:
                found.append(task_of(message))
                wait_s = 0.0
            elif message.topic() is None:
                log.debug("%s", error)  # of the group that it is not in
            elif found:
                break  # these first; the rest is asked for again
            else:
                raise NotReadable(f"{place.topic}[{place.partition}]: {error.str()}")
        return found
    finally:
        consumer.close()
