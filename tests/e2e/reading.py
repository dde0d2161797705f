"""Topics as an outsider reads them: every partition from its start, no group."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition


class Tail:
    """All records of some topics, those to come included; a context manager."""

    def __init__(self, bootstrap: str, topics: Sequence[str], *, min_bytes: int = 1) -> None:
        """Less than `min_bytes` of new records are told half a second after the first of them."""
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "an-outsider",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.min.bytes": min_bytes,
            }
        )
        known = self._consumer.list_topics(timeout=30.0).topics
        self._consumer.assign(
            [
                TopicPartition(topic, number, OFFSET_BEGINNING)
                for topic in topics
                for number in known[topic].partitions
            ]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._consumer.close()

    def read(self, timeout_s: float = 0.1) -> list[Message]:
        """What has come since, perhaps after a wait."""
        found = []
        while (message := self._consumer.poll(timeout_s)) is not None:
            assert message.error() is None, message.error()
            found.append(message)
            timeout_s = 0.0
        return found
