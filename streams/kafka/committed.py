"""A group's committed offsets, asked patiently: its coordinator may be moving, or not there yet."""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

_PASSING = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError._TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError._TRANSPORT,
}
_ASK_S, _PAUSE_S = 10.0, 0.25


def committed_offsets(
    consumer: Consumer, partitions: list[TopicPartition], limit_s: float
) -> list[TopicPartition]:
    """What the consumer's group has committed; OFFSET_INVALID where it has nothing.

    Blocks for `limit_s` at the most, or a little more.

    Raises:
        KafkaException: no answer in time, or one that waiting does not mend.
    """
    until_s = time.monotonic() + limit_s
    while True:
        try:
            found = consumer.committed(partitions, timeout=min(_ASK_S, limit_s))
            for each in found:
                if each.error is not None:
                    raise KafkaException(each.error)
            return found
        except KafkaException as fault:
            error = fault.args[0]
            if error.code() not in _PASSING or time.monotonic() > until_s:
                raise
        time.sleep(_PAUSE_S)
