"""Headers of every record: CloudEvents 1.0 (Kafka binary mode) and W3C Trace Context.

Pure functions. An event's id is derived from what happened (job, run, stage, outcome), so a redo
repeats the id, which is how a subscriber knows a duplicate, and a redrive (next run) has a new one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

Headers = Sequence[tuple[str, bytes | None]]
"""Record headers as Kafka clients hand them out."""

CONTENT_TYPE = "application/avro"
SPEC_VERSION = "1.0"

_MAX_TRACESTATE_CHARS = 512
_MAX_CAUSE_CHARS = 512  # twice the longest of ours: a longer id may be all that a topic takes
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ROOT_FLAGS = "01"  # sampled: whoever begins no trace of his own still gets one


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A position in a trace: lower-case hex of 32, 16 and 2 digits; no id is all zero."""

    trace_id: str
    span_id: str
    flags: str

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


@dataclass(frozen=True, slots=True)
class EventContext:
    """What a record's headers say; None for whatever is absent or unreadable."""

    id: str | None = None
    source: str | None = None
    type: str | None = None
    subject: str | None = None
    time: datetime | None = None
    content_type: str | None = None
    partition_key: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    expiry_time: datetime | None = None
    trace_parent: TraceParent | None = None
    trace_state: str | None = None


def event_id(job_id: str, run: int, stage: str, outcome: str) -> str:
    """The deterministic `ce_id`; unique per source as neither stage nor outcome holds a dot.

    >>> event_id("48e8a918", 1, "sampler", "completed")
    '48e8a918.1.sampler.completed'
    """
    return f"{job_id}.{run}.{stage}.{outcome}"


def event_headers(
    record_name: str,
    *,
    job_id: str,
    run: int,
    stage: str,
    outcome: str,
    time: datetime,
    deadline: datetime | None,
    cause: Headers,
    partition_key: str,
) -> list[tuple[str, bytes]]:
    """The headers of one record, always in the same order; the same input gives the same headers.

    `cause` is the headers of the record that led to this one (empty at the very beginning): it
    gives the causation id, unless that is unduly long, and the trace. Raises ValueError for a time
    without a time zone.
    """
    ce_id = event_id(job_id, run, stage, outcome)
    parent = parse_headers(cause)
    attributes = {
        "ce_specversion": SPEC_VERSION,
        "ce_id": ce_id,
        "ce_source": f"/reelstream/{stage}",
        "ce_type": f"reelstream.{record_name}.v1",
        "ce_time": _format_time(time),
        "ce_subject": job_id,
        "content-type": CONTENT_TYPE,
        "ce_partitionkey": partition_key,
        "ce_correlationid": job_id,
        "ce_causationid": _usable_cause(parent.id),
        "ce_expirytime": None if deadline is None else _format_time(deadline),
        "traceparent": str(child_trace(parent.trace_parent, job_id, ce_id)),
        "tracestate": parent.trace_state,
    }
    return [(name, text.encode()) for name, text in attributes.items() if text is not None]


def child_trace(parent: TraceParent | None, correlation_id: str, ce_id: str) -> TraceParent:
    """This hop's position: a child of `parent`, or the root of the correlation id's own trace.

    Derived, not random, so a redo of a hop is the same span and all of a job's records share one
    trace even where nobody upstream traces.
    """
    if parent is None:
        trace_id, flags = _derive_hex(correlation_id, num_digits=32), _ROOT_FLAGS
    else:
        trace_id, flags = parent.trace_id, parent.flags
    return TraceParent(trace_id, _derive_hex(trace_id + ce_id, num_digits=16), flags)


def parse_headers(headers: Headers) -> EventContext:
    """What the headers say; never raises, whatever a foreign producer wrote.

    Of a name that occurs twice the last one counts, as Kafka's own `lastHeader` has it: whoever
    forwards a record appends. None, text that is not UTF-8, a time that is not RFC 3339 with a zone
    and a malformed traceparent read as absent; a tracestate without a traceparent means nothing.
    """
    texts: dict[str, str | None] = {name: _decode(value) for name, value in headers}
    trace_parent = parse_trace_parent(texts.get("traceparent"))
    return EventContext(
        id=texts.get("ce_id") or None,
        source=texts.get("ce_source") or None,
        type=texts.get("ce_type") or None,
        subject=texts.get("ce_subject") or None,
        time=_parse_time(texts.get("ce_time")),
        content_type=texts.get("content-type") or None,
        partition_key=texts.get("ce_partitionkey") or None,
        correlation_id=texts.get("ce_correlationid") or None,
        causation_id=texts.get("ce_causationid") or None,
        expiry_time=_parse_time(texts.get("ce_expirytime")),
        trace_parent=trace_parent,
        trace_state=_usable_trace_state(texts.get("tracestate")) if trace_parent else None,
    )


def parse_trace_parent(text: str | None) -> TraceParent | None:
    """A W3C traceparent, of version 00 or a later one's prefix; None if it is not valid.

    >>> parse_trace_parent("00-" + "0" * 32 + "-00f067aa0ba902b7-01") is None  # all-zero trace id
    True
    """
    match = _TRACEPARENT.fullmatch(text or "")
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if set(trace_id) == {"0"} or set(span_id) == {"0"}:
        return None
    return TraceParent(trace_id, span_id, flags)


def _derive_hex(text: str, *, num_digits: int) -> str:
    """The first digits of SHA-256 over `text`; never all zero, which Trace Context forbids."""
    digits = hashlib.sha256(text.encode()).hexdigest()[:num_digits]
    return digits if set(digits) != {"0"} else digits[:-1] + "1"


def _format_time(time: datetime) -> str:
    if time.tzinfo is None:
        raise ValueError("an event's time needs a time zone")
    in_utc = time.astimezone(UTC).isoformat(timespec="microseconds")
    return in_utc.removesuffix("+00:00") + "Z"


def _parse_time(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text or "")
        return None if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _decode(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _usable_cause(ce_id: str | None) -> str | None:
    """The id as it came, if it is not so long that what repeats it might fit nowhere."""
    return None if ce_id is None or len(ce_id) > _MAX_CAUSE_CHARS else ce_id


def _usable_trace_state(text: str | None) -> str | None:
    """The tracestate as it came, if it is within the size that everyone must pass on."""
    if text and len(text) <= _MAX_TRACESTATE_CHARS and text.isascii() and text.isprintable():
        return text
    return None
