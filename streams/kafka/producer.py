"""Records out: librdkafka's producer as a `Sink`. Owned by the loop's thread."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.core.events import Acknowledged, Event, NotAcknowledged, Output, Ticket
from streams.errors import FatalError
from streams.kafka.config import ClientConfig
from streams.runner import Dispatch

log = logging.getLogger(__name__)

DeliveryCallback = Callable[[KafkaError | None, Message | None], None]

_CLOSE_S = 10.0
_PERMANENT = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD}


class _Pending:
    """Counts the answers to one ticket's records."""

    __slots__ = ("_answers", "_fault", "_left", "_ticket")

    def __init__(self, ticket: Ticket, num_records: int, answers: deque[Event]) -> None:
        self._ticket, self._left, self._answers = ticket, num_records, answers
        self._fault: KafkaError | None = None

    def settle(self, error: KafkaError | None, _message: Message | None = None) -> None:
        """One record was answered; the last answer settles the ticket."""
        self._left -= 1
        self._fault = self._fault or error
        if self._left == 0:
            self._answers.append(_answer(self._ticket, self._fault))


class KafkaSink:
    """Produces and reports. What the brokers refuse for good is `NotAcknowledged(is_permanent)`."""

    def __init__(self, config: ClientConfig) -> None:
        self._producer = Producer(config)
        self._answers: deque[Event] = deque()

    def produce(self, ticket: Ticket, outputs: tuple[Output, ...]) -> None:
        """Send all; one answer follows, after the last."""
        if not outputs:
            self._answers.append(Acknowledged(ticket))
            return
        pending = _Pending(ticket, len(outputs), self._answers)
        for output in outputs:
            try:
                self._send(output, pending.settle)
            except KafkaException as error:  # refused at once: no callback will follow
                pending.settle(error.args[0])

    def announce(self, output: Output) -> None:
        """Send; a failure is logged and forgotten."""
        try:
            self._send(output, _log_failure)
        except KafkaException as error:
            log.warning("announcement not sent", extra={"error": str(error)})

    def _send(self, output: Output, callback: DeliveryCallback) -> None:
        while True:
            try:
                self._producer.produce(
                    output.topic,
                    output.value,
                    output.key,
                    output.partition,
                    callback,
                    headers=list(output.headers),
                    # 0 is librdkafka's word for "now"
                    timestamp=output.timestamp_ms or 0,
                )
                return
            except BufferError:  # the brokers are slow or away: wait here, the window bounds us
                self._producer.poll(0.1)

    def poll(self, dispatch: Dispatch) -> None:
        """Serve the client and hand on what was answered."""
        self._producer.poll(0)
        for _ in range(len(self._answers)):  # what is refused at once waits for the next turn
            dispatch(self._answers.popleft())

    def close(self) -> None:
        """Flush for a bounded time; what is left was never acknowledged, so never committed."""
        self._producer.flush(_CLOSE_S)


def _answer(ticket: Ticket, fault: KafkaError | None) -> Event:
    if fault is None:
        return Acknowledged(ticket)
    if fault.fatal():
        raise FatalError(f"producer: {fault.str()}")
    log.warning("not acknowledged", extra={"ticket": ticket, "error": fault.str()})
    return NotAcknowledged(ticket, fault.str(), fault.code() in _PERMANENT)


def _log_failure(error: KafkaError | None, message: Message | None) -> None:
    if error is not None and message is not None:
        log.warning("announcement lost", extra={"topic": message.topic(), "error": error.str()})
