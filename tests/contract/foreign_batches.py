"""Batches that other clients may put on a topic and ours never would."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

Headers = Sequence[tuple[str, bytes]]


class Unreadable(str):
    """A header's name that is no UTF-8 on the wire."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"bad-\xff"


async def write_batches(
    bootstrap: str,
    topic: str,
    partition: int,
    batches: Sequence[Sequence[tuple[bytes | None, bytes, Headers]]],
) -> None:
    """Each a batch of its own: keys, values and headers. No client's producer is in between."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        await client._wait_on_metadata(topic)
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        for records in batches:
            batch = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, 1 << 20)
            for number, (key, value, headers) in enumerate(records):
                batch.append(number, int(1000 * time.time()), key, value, list(headers))
            built = [(topic, [(partition, bytes(batch.build()))])]
            answer: Any = await client.send(leader, ProduceRequest(None, -1, 10_000, built))
            assert answer.topics[0][1][0][1] == 0, "an error code"
    finally:
        await client.close()
