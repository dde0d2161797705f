"""Dead letters that others wrote of our records: where those came from, and as they were before.

Spring Kafka (DeadLetterPublishingRecoverer) and Kafka Connect (sink connectors with
`errors.deadletterqueue.context.headers.enable`) copy key, value and headers of the original and add
headers of their own. Spring's numbers are big-endian, 4 bytes for a partition and 8 for an offset;
Connect's are text. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from streams.client.connection import ClientError
from streams.core.events import Headers
from streams.letters import DLT_PREFIX, PARKED_PREFIX, RETRY_PREFIX
from streams.topology import STAGES, Stage

SPRINGS, CONNECTS = "kafka_dlt-", "__connect.errors."

_ADDED = (
    SPRINGS, CONNECTS, DLT_PREFIX, RETRY_PREFIX, PARKED_PREFIX,
    "kafka_original-", "kafka_exception-", "retry_topic-", "springDeserializerException",
)  # fmt: skip
_RETRIED = re.compile(r"(.+)\.retry\.[0-9]+s")
_NUMBER = re.compile(rb"[0-9]{1,19}")
_MAX_PARTITION, _MAX_OFFSET = (1 << 31) - 1, (1 << 63) - 1


class BadHeaders(ClientError):
    """A dead letter does not say, or not in a way to be understood, where it came from."""


@dataclass(frozen=True, slots=True)
class CameFrom:
    """The record that was dead-lettered: one of `stage.reads`, or a retry of one."""

    stage: Stage
    topic: str
    partition: int
    offset: int


def came_from(headers: Iterable[tuple[str, bytes | None]]) -> CameFrom:
    """Where Spring or Connect took the record from.

    Of a header that is there several times the first counts: Spring appends, each time that a
    letter of a letter is written. What both have said must agree.

    Raises:
        BadHeaders: something is missing or malformed, or the topic is none of a stage's.

    >>> came_from([("kafka_dlt-original-topic", b"frames.decoded"),
    ...     ("kafka_dlt-original-partition", bytes([0, 0, 0, 3])),
    ...     ("kafka_dlt-original-offset", bytes([0, 0, 0, 0, 0, 0, 1, 0]))]).offset
    256
    """
    said: dict[str, bytes | None] = {}
    for name, value in headers:
        said.setdefault(name, value)
    has_springs = any(name.startswith(f"{SPRINGS}original-") for name in said)
    has_connects = any(name.startswith(CONNECTS) for name in said)
    if not (has_springs or has_connects):
        raise BadHeaders(
            f"no header says where it came from: want {SPRINGS}original-topic, or"
            f" {CONNECTS}topic (errors.deadletterqueue.context.headers.enable=true)"
        )
    found = []
    if has_springs:
        names = [f"{SPRINGS}original-{part}" for part in ("topic", "partition", "offset")]
        partition, offset = _binary(said, names[1], 4), _binary(said, names[2], 8)
        found.append(CameFrom(*_topic(said, names[0]), partition, offset))
    if has_connects:
        names = [CONNECTS + part for part in ("topic", "partition", "offset")]
        partition = _decimal(said, names[1], _MAX_PARTITION)
        offset = _decimal(said, names[2], _MAX_OFFSET)
        found.append(CameFrom(*_topic(said, names[0]), partition, offset))
    if found[0] != found[-1]:
        one, other = (f"{each.topic}/{each.partition}/{each.offset}" for each in found)
        raise BadHeaders(f"Spring says that it came from {one}, Connect from {other}")
    return found[0]


def stage_that_reads(topic: str) -> Stage | None:
    """The stage whose topic that is, or a retry topic of; None: it is another's topic."""
    retried = _RETRIED.fullmatch(topic)
    own = topic if retried is None else retried[1]
    return next((stage for stage in STAGES if stage.reads == own), None)


def as_before(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """The headers of the original: without those that were added because it could not be worked."""
    return tuple(header for header in headers if not header[0].startswith(_ADDED))


def _topic(said: dict[str, bytes | None], name: str) -> tuple[Stage, str]:
    try:
        topic = _said(said, name).decode()
    except UnicodeDecodeError:
        raise BadHeaders(f"{name}: want UTF-8") from None
    if (stage := stage_that_reads(topic)) is None:
        raise BadHeaders(f"{name}: {topic[:80]!r} is no topic that a stage reads")
    return stage, topic


def _binary(said: dict[str, bytes | None], name: str, num_bytes: int) -> int:
    value = _said(said, name)
    if len(value) != num_bytes:
        raise BadHeaders(f"{name}: want {num_bytes} bytes, got {len(value)}")
    number = int.from_bytes(value, "big", signed=True)
    if number < 0:
        raise BadHeaders(f"{name}: {number} is below 0")
    return number


def _decimal(said: dict[str, bytes | None], name: str, most: int) -> int:
    value = _said(said, name)
    if not _NUMBER.fullmatch(value) or int(value) > most:
        raise BadHeaders(f"{name}: want digits up to {most}, got {value[:30]!r}")
    return int(value)


def _said(said: dict[str, bytes | None], name: str) -> bytes:
    value = said.get(name)
    if value is None:
        raise BadHeaders(f"{name} is missing")
    return value
