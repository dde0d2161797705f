"""The client's records on their way out: one producer for all, started when first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from streams.client.connection import BrokerUnreachable, Connection, WrongRequest
from streams.client.log_reader import stop_quietly

ACKNOWLEDGED_S = 60.0
"""So long a record is waited for: some tries, and a partition that changes its leader."""


class Outbox:
    """Puts records on the log. Not thread-safe; calls at once share the producer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._producer: Any = None
        self._starting = asyncio.Lock()

    async def put(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> None:
        """Put a record on the log exactly so; returns once it is acknowledged.

        Raises:
            BrokerUnreachable: nobody answers, or not in time; then it says that the record may be
                on the log all the same.
            WrongRequest: it is too large.
        """
        with self._connection.faults():
            producer = await self._started()
            try:
                async with asyncio.timeout(ACKNOWLEDGED_S):
                    await producer.send_and_wait(
                        topic, value, key=key, partition=partition, headers=headers
                    )
            except MessageSizeTooLargeError as fault:
                raise WrongRequest(f"{len(value)} bytes are too many for {topic}") from fault
            except (TimeoutError, KafkaTimeoutError) as fault:
                # By itself it would try for ever, and send the record when nobody expects it.
                if self._producer is producer:
                    self._producer = None
                await _stop(producer, 0.0)
                raise BrokerUnreachable(
                    f"Kafka at {self._connection.bootstrap} did not acknowledge a record for"
                    f" {topic} in time: whether it is on the log is unknown"
                ) from fault

    async def close(self) -> None:
        """Stop the producer; what was acknowledged stays so."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer, ACKNOWLEDGED_S)

    async def _started(self) -> Any:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **self._connection.options(), acks="all", enable_idempotence=True
                )
                try:
                    await producer.start()
                except BaseException:
                    await stop_quietly(producer)
                    raise
                self._producer = producer
            return self._producer


async def _stop(producer: Any, patience_s: float) -> None:
    """Stop; what is not acknowledged within `patience_s` is given up, by all who wait for it."""
    stopping = asyncio.create_task(stop_quietly(producer))
    done, _ = await asyncio.wait([stopping], timeout=patience_s)
    if not done:
        # It waits for ever for what no broker takes; nothing public makes it give that up.
        await producer._sender.close()
        producer._message_accumulator.fail_all(KafkaTimeoutError())
    await stopping
