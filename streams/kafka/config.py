"""librdkafka settings of every client, from our own."""

from __future__ import annotations

import logging
from typing import Any

from streams.settings import Settings
from streams.topology import RECORD_MAX_BYTES

ClientConfig = dict[str, Any]

#: A worker's fetch waits at a broker so long for a record. What comes is answered at once; what is
#: paid is that partitions that are added, or resumed, meanwhile wait for the answer before theirs.
#: A tenth of a second cost three idle brokers twice the CPU (README, Decision 65).
FETCH_WAIT_MS = 500

_PATIENT_BYTES = 64 * 1024


def _shared(settings: Settings, client_id: str) -> ClientConfig:
    return {
        "bootstrap.servers": settings.bootstrap,
        "client.id": client_id,
        "logger": logging.getLogger("rdkafka"),  # served by poll, so on the owner's thread
    }


def consumer_config(settings: Settings, group: str, client_id: str) -> ClientConfig:
    """A stage's consumer: nothing is committed or reset behind our back, assignor `range`.

    KIP-848 refuses the timeouts and assignors of the classic protocol, so they are set for
    `classic` only.
    """
    config = _shared(settings, client_id) | {
        "group.id": group,
        "group.protocol": settings.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "max.poll.interval.ms": settings.max_poll_interval_ms,
        "queued.min.messages": 2 * settings.window,
        "queued.max.messages.kbytes": settings.prefetch_kb,
        # Above, a partition whose queue was full is fetched again after this; librdkafka's own
        # second is an age for a worker that has emptied so short a queue in a moment.
        "fetch.queue.backoff.ms": 20,
        "fetch.message.max.bytes": 256 * 1024,
        "fetch.wait.max.ms": FETCH_WAIT_MS,
    }
    if settings.group_protocol == "consumer":
        config["group.remote.assignor"] = "range"
    else:
        config |= {
            "partition.assignment.strategy": "range",
            "session.timeout.ms": settings.session_timeout_ms,
            "heartbeat.interval.ms": settings.heartbeat_ms,
        }
    return config | settings.kafka_extra


def controls_config(settings: Settings, client_id: str) -> ClientConfig:
    """A reader of whole topics: assigned by hand, member of no group, commits nothing."""
    return (
        _shared(settings, client_id)
        | {
            "group.id": f"{client_id}.controls",  # librdkafka wants a name; nobody ever joins it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "queued.min.messages": 100,
            "queued.max.messages.kbytes": 256,
            "fetch.message.max.bytes": 256 * 1024,
        }
        | settings.kafka_extra
    )


def tail_config(settings: Settings, client_id: str) -> ClientConfig:
    """A reader of large topics: as `controls_config`, with room to catch up fast."""
    roomy = {
        "isolation.level": "read_committed",
        # A broker answers a connection's requests in turn: librdkafka's half a second of waiting
        # for records would hold up the questions and fetches of partitions added meanwhile.
        "fetch.wait.max.ms": settings.poll_ms,
        "queued.min.messages": 5_000,
        "queued.max.messages.kbytes": 8 * 1024,
        "fetch.message.max.bytes": 1024 * 1024,
    }
    return controls_config(settings, client_id) | roomy | settings.kafka_extra


def patient_tail_config(settings: Settings, client_id: str) -> ClientConfig:
    """A tail whose partitions stay the same, and for whom half a second is nothing.

    Brokers answer it when much has come, or twice a second: not at each record of every topic.
    """
    patient = {"fetch.wait.max.ms": FETCH_WAIT_MS, "fetch.min.bytes": _PATIENT_BYTES}
    return tail_config(settings, client_id) | patient | settings.kafka_extra


def producer_config(settings: Settings, client_id: str) -> ClientConfig:
    """A producer whose acknowledgement means: on every in-sync replica, once, in order."""
    return (
        _shared(settings, client_id)
        | {
            "enable.idempotence": True,
            "acks": "all",
            # Of two under way the first may be refused and the second taken, by a leader that
            # knows nothing of us (KAFKA-15591); the first, sent again, is told as delivered then,
            # and lost.
            "max.in.flight.requests.per.connection": 1,
            "linger.ms": 2,
            # A broker refuses for good a batch that is larger than its topic's records may be, and
            # all that is in it; librdkafka would fill a megabyte where brokers are slow.
            "batch.size": RECORD_MAX_BYTES,
            "delivery.timeout.ms": settings.delivery_timeout_ms,
            "message.max.bytes": 256 * 1024,
            "queue.buffering.max.kbytes": 16 * 1024,
            "compression.type": "none",  # records are small, and no reader then needs a codec
        }
        | settings.kafka_extra
    )
