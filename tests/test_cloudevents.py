"""Event headers: CloudEvents identity and trace context, written and read back."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cloudevents import (
    EventContext,
    Headers,
    TraceParent,
    child_trace,
    event_headers,
    parse_headers,
    parse_trace_parent,
)

AT = datetime(2025, 6, 7, 8, 9, 10, 120, tzinfo=UTC)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def headers(cause: Headers = (), **changes: Any) -> list[tuple[str, bytes]]:
    """The headers of a sampler's record."""
    arguments: dict[str, Any] = {
        "job_id": "job-1",
        "run": 2,
        "stage": "sampler",
        "outcome": "completed",
        "time": AT,
        "deadline": AT + timedelta(hours=1),
        "partition_key": "job-1",
        **changes,
    }
    return event_headers("LatentsReady", cause=cause, **arguments)


def traced(parent: bytes, state: bytes | None = None) -> Headers:
    """A cause with trace headers only."""
    return [("traceparent", parent), ("tracestate", state)]


def test_headers_are_these_in_this_order() -> None:
    cause = [
        ("ce_id", b"job-1.2.prompt.completed"),
        ("traceparent", f"00-{TRACE}-{SPAN}-01".encode()),
    ]
    found = headers(cause)
    span = dict(found)["traceparent"].decode().split("-")[2]
    expected = [
        ("ce_specversion", "1.0"),
        ("ce_id", "job-1.2.sampler.completed"),
        ("ce_source", "/reelstream/sampler"),
        ("ce_type", "reelstream.LatentsReady.v1"),
        ("ce_time", "2025-06-07T08:09:10.000120Z"),
        ("ce_subject", "job-1"),
        ("content-type", "application/avro"),
        ("ce_partitionkey", "job-1"),
        ("ce_correlationid", "job-1"),
        ("ce_causationid", "job-1.2.prompt.completed"),
        ("ce_expirytime", "2025-06-07T09:09:10.000120Z"),
        ("traceparent", f"00-{TRACE}-{span}-01"),
    ]
    assert expected == [(name, value.decode()) for name, value in found]


def test_a_first_event_without_deadline_leaves_out_what_it_does_not_have() -> None:
    names = [name for name, _ in headers(deadline=None)]
    assert "ce_causationid" not in names
    assert "ce_expirytime" not in names
    assert "tracestate" not in names


def test_a_redo_repeats_every_header_and_a_redrive_has_a_new_id_and_span() -> None:
    assert headers() == headers()
    first, redriven = dict(headers()), dict(headers(run=3))
    assert first["ce_id"] != redriven["ce_id"]
    assert first["traceparent"] != redriven["traceparent"]


def test_times_are_written_in_utc_and_need_a_zone() -> None:
    east = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert headers(time=east) == headers()
    with pytest.raises(ValueError, match="time zone"):
        headers(time=AT.replace(tzinfo=None))
    with pytest.raises(ValueError, match="time zone"):
        headers(deadline=AT.replace(tzinfo=None))


# Trace context


def test_a_hop_is_a_child_of_the_incoming_span() -> None:
    hop = parse_headers(headers(traced(f"00-{TRACE}-{SPAN}-00".encode()))).trace_parent
    assert hop is not None
    assert (hop.trace_id, hop.flags) == (TRACE, "00")
    assert hop.span_id != SPAN


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01-more".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode(),
        f"00-{TRACE}-{SPAN}".encode(),
    ],
)
def test_a_malformed_traceparent_begins_the_jobs_own_trace(parent: bytes) -> None:
    assert headers() == headers(traced(parent, b"vendor=1"))
    root = parse_headers(headers()).trace_parent
    assert root is not None
    assert root.trace_id == child_trace(None, "job-1", "any.1.other.event").trace_id
    assert root.trace_id != child_trace(None, "job-2", "any.1.other.event").trace_id


def test_a_later_version_of_traceparent_reads_as_far_as_we_know_it() -> None:
    assert TraceParent(TRACE, SPAN, "01") == parse_trace_parent(f"cc-{TRACE}-{SPAN}-01-what-ever")
    assert TraceParent(TRACE, SPAN, "01") == parse_trace_parent(f"cc-{TRACE}-{SPAN}-01")


@given(st.text(), st.text())
def test_a_derived_traceparent_is_always_valid(correlation_id: str, ce_id: str) -> None:
    root = child_trace(None, correlation_id, ce_id)
    child = child_trace(root, correlation_id, ce_id + "x")
    for hop in (root, child):
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", str(hop))
        assert parse_trace_parent(str(hop)) == hop
    assert child.trace_id == root.trace_id


def test_a_tracestate_is_passed_on_unchanged_if_it_is_one() -> None:
    parent = f"00-{TRACE}-{SPAN}-01".encode()
    assert dict(headers(traced(parent, b"a=1,b=2")))["tracestate"] == b"a=1,b=2"
    for unusable in (b"", b"x" * 513, b"a=\xff", "a=é".encode(), b"a=1\nb=2", None):
        assert "tracestate" not in dict(headers(traced(parent, unusable)))


def test_a_foreign_id_is_carried_on_only_if_it_is_of_a_sane_length() -> None:
    for usable in ("x" * 512, "é" * 512):
        assert dict(headers([("ce_id", usable.encode())]))["ce_causationid"] == usable.encode()
    for length in (513, 130_000):
        cause: Headers = [("ce_id", b"x" * length)]
        assert headers(cause) == headers()
        assert parse_headers(cause).id == "x" * length, "what it says is another matter"


# Reading


def test_headers_read_back_as_they_were_written() -> None:
    context = parse_headers(headers([("ce_id", b"cause")]))
    assert context == EventContext(
        id="job-1.2.sampler.completed",
        source="/reelstream/sampler",
        type="reelstream.LatentsReady.v1",
        subject="job-1",
        time=AT,
        content_type="application/avro",
        partition_key="job-1",
        correlation_id="job-1",
        causation_id="cause",
        expiry_time=AT + timedelta(hours=1),
        trace_parent=context.trace_parent,
    )


def test_of_a_repeated_header_the_last_one_counts() -> None:
    assert parse_headers([("ce_id", b"first"), ("ce_id", b"last")]).id == "last"
    assert parse_headers([("ce_id", b"first"), ("ce_id", None)]).id is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"2025-06-07T08:09:10.00012Z", AT),
        (b"2025-06-07T13:39:10.000120+05:30", AT),
        (b"2025-06-07T08:09:10.000120", None),
        (b"0001-01-01T00:00:00+14:00", None),
        (b"yesterday", None),
        (b"\xff", None),
    ],
)
def test_a_time_is_rfc_3339_or_absent(text: bytes, expected: datetime | None) -> None:
    assert parse_headers([("ce_time", text)]).time == expected


NAMES = st.sampled_from([name for name, _ in headers()] + ["tracestate", "other"])


@given(st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=60))))
def test_no_headers_make_the_reader_or_the_next_hop_fail(found: Headers) -> None:
    assert isinstance(parse_headers(found), EventContext)
    assert parse_headers(headers(found)).subject == "job-1"
