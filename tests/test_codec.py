"""The codec: both wire formats, older and newer writers, and everything that is not a record."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import tracemalloc
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import codec
from schemas.codec import (
    MAX_DECODED_BYTES,
    RECORD_NAMES,
    SCHEMAS,
    Codec,
    UndecodableRecord,
    UnencodableRecord,
    published_versions,
)
from schemas.records import (
    FramesDecoded,
    GenerationRequest,
    Job,
    LatentsReady,
    StageControl,
    VideoDone,
)
from tests.avro_rules import as_avro, encode_as
from tests.golden import SAMPLES, golden_bytes

DONE: Any = SAMPLES["VideoDone"]
STAGE_CONTROL = SAMPLES["StageControl"]
PRIVATE = "a-private-prompt"


class FakeRegistry:
    """Ids in memory; counts how often it is asked."""

    def __init__(self, schemas: dict[int, str] | None = None) -> None:
        self.schemas = dict(schemas or {})
        self.num_calls = 0

    def id_of(self, name: str, schema: str) -> int:
        self.num_calls += 1
        self.schemas[300] = schema
        return 300

    def schema_of(self, schema_id: int) -> str:
        self.num_calls += 1
        return self.schemas[schema_id]


def video_done_schema() -> Any:
    """VideoDone's schema, to be changed at will."""
    return json.loads((SCHEMAS / "VideoDone.avsc").read_text())


def confluent(schema_id: int, schema: Any, datum: Any) -> bytes:
    """What a foreign producer with a registry writes."""
    out = BytesIO()
    out.write(b"\0" + schema_id.to_bytes(4, "big"))
    fastavro.schemaless_writer(out, schema, datum)
    return out.getvalue()


def decode_foreign(schema: Any, datum: Any, expected: type[Any] = VideoDone) -> Any:
    """`datum` written with a registered `schema`, read by our codec."""
    reader = Codec(FakeRegistry({7: json.dumps(schema)}))
    return reader.decode(confluent(7, schema, datum), expected)


def cause_of(data: bytes | None, expected: type[Any] = VideoDone) -> str:
    """Why these bytes are refused."""
    with pytest.raises(UndecodableRecord) as refused:
        Codec().decode(data, expected)
    return str(refused.value)


# Two wire formats


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_confluent_wire_format_comes_back_and_asks_the_registry_once(name: str) -> None:
    registry, record = FakeRegistry(), SAMPLES[name]
    writer = Codec(registry)
    encoded = [writer.encode(record) for _ in range(3)]
    assert {b"\0\0\0\x01\x2c" + Codec().encode(record)[10:]} == set(encoded)
    assert registry.num_calls == 1

    reader = Codec(registry)
    assert [record] * 3 == [reader.decode(data, type(record)) for data in encoded]
    assert registry.num_calls == 2


def test_a_reader_with_a_registry_still_takes_single_object_encoding() -> None:
    assert Codec(FakeRegistry()).decode(Codec().encode(DONE), VideoDone) == DONE


def test_confluent_wire_format_without_a_registry_says_what_is_missing() -> None:
    assert "REEL_SCHEMA_REGISTRY_URL" in cause_of(Codec(FakeRegistry()).encode(DONE))


def test_decoded_values_have_the_dataclass_types() -> None:
    done = Codec().decode(Codec().encode(DONE), VideoDone)
    assert done.created_at.tzinfo is UTC
    assert isinstance(done.timings, tuple)
    latents = Codec().decode(golden_bytes("LatentsReady", 1), LatentsReady)
    assert isinstance(latents.decode_parameters, dict)


# Other versions


def test_a_newer_writers_fields_are_skipped_and_its_unknown_status_reads_as_failed() -> None:
    newer = video_done_schema()
    newer["fields"][3]["type"]["symbols"].append("paused")
    newer["fields"].insert(0, {"name": "first", "type": "string", "default": ""})
    newer["fields"].append({"name": "last", "type": {"type": "array", "items": "string"}})
    datum = {**as_avro(DONE), "first": "x", "last": ["y", "z"], "status": "paused"}
    assert decode_foreign(newer, datum) == dataclasses.replace(DONE, status="failed")


def test_a_record_cut_within_a_skipped_field_is_refused() -> None:
    """fastavro skips past the end without a word."""
    newer = video_done_schema()
    newer["fields"].append({"name": "last", "type": "string", "default": ""})
    data = confluent(7, newer, {**as_avro(DONE), "last": "abcdef"})
    reader = Codec(FakeRegistry({7: json.dumps(newer)}))
    assert reader.decode(data, VideoDone) == DONE
    with pytest.raises(UndecodableRecord, match="ends early"):
        reader.decode(data[:-1], VideoDone)


def test_an_older_writers_missing_fields_take_their_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = video_done_schema()
    older["fields"] = [f for f in older["fields"] if f["name"] not in ("timings", "cost_gpu_s")]
    copied = shutil.copytree(SCHEMAS, tmp_path / "schemas")
    (copied / "history" / "VideoDone" / "2.avsc").write_text(json.dumps(older))
    monkeypatch.setattr(codec, "SCHEMAS", copied)
    monkeypatch.setattr(codec, "_record_types", {})
    expected = dataclasses.replace(DONE, timings=(), cost_gpu_s=0.0)
    assert expected == Codec().decode(encode_as(json.dumps(older), DONE), VideoDone)


def test_a_foreign_namespace_and_narrower_numbers_resolve_as_avro_says() -> None:
    foreign = video_done_schema()
    foreign["namespace"] = "com.example"
    foreign["fields"][-2]["type"] = "float"
    foreign["fields"][5]["type"] = "long"  # a time without its logical type
    datum = {**as_avro(DONE), "created_at": 1_749_283_750_123_456}
    assert decode_foreign(foreign, datum) == DONE


def test_a_time_in_milliseconds_is_refused_not_misread() -> None:
    foreign = video_done_schema()
    foreign["fields"][5]["type"]["logicalType"] = "timestamp-millis"
    with pytest.raises(UndecodableRecord, match="wrong type"):
        decode_foreign(foreign, as_avro(DONE))


NOTHING = {"type": "record", "name": "Nothing", "fields": []}
LAUGHS: Any = {"name": "f0", "type": NOTHING}
for depth in range(1, 20):  # each level holds two of the one below, all of no bytes
    level = {
        "type": "record",
        "name": f"L{depth}",
        "fields": [LAUGHS, {"name": "twice", "type": LAUGHS["type"]["name"]}],
    }
    LAUGHS = {"name": f"f{depth}", "type": level}

HOSTILE_SCHEMAS = {
    "recursive": {"name": "evil", "type": ["null", "VideoDone"]},
    "zero-size": {"name": "evil", "type": {"type": "array", "items": "null"}},
    "empty records": {"name": "evil", "type": {"type": "array", "items": NOTHING}},
    "laughs": LAUGHS,
}


@pytest.mark.parametrize("evil", HOSTILE_SCHEMAS)
def test_a_registered_schema_that_claims_endless_work_is_refused(evil: str) -> None:
    schema = video_done_schema()
    schema["fields"].append(copy.deepcopy(HOSTILE_SCHEMAS[evil]))
    reader = Codec(FakeRegistry({7: json.dumps(schema)}))
    data = b"\0\0\0\0\x07" + Codec().encode(DONE)[10:] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"
    with pytest.raises(UndecodableRecord, match="registry's schema"):
        reader.decode(data, VideoDone)


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", '"string"', "[]", "7", "{}"),
        '{"type":"record","name":"VideoDone","fields":[{"name":"job","type":"elsewhere.Job"}]}',
        '{"type":' * 3000 + '"string"' + "}" * 3000,
    ],
)
def test_a_registered_schema_that_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(UndecodableRecord, match="registry's schema"):
        Codec(FakeRegistry({7: text})).decode(b"\0\0\0\0\x07abc", VideoDone)


def test_an_id_that_the_registry_does_not_know_is_refused() -> None:
    with pytest.raises(UndecodableRecord, match="no schema 9 in the registry"):
        Codec(FakeRegistry()).decode(b"\0\0\0\0\x09abc", VideoDone)


# What is not a record


@pytest.mark.parametrize("name", RECORD_NAMES)
def test_every_record_cut_short_or_run_on_is_refused(name: str) -> None:
    data, cls = golden_bytes(name, 1), type(SAMPLES[name])
    for end in range(len(data)):
        cause_of(data[:end], cls)
    assert "1 bytes left over" in cause_of(data + b"\0", cls)


def test_what_is_not_a_value_is_refused() -> None:
    assert "tombstone" in cause_of(None)
    assert "empty" in cause_of(b"")
    assert "marker" in cause_of(b"{}")
    assert "more than" in cause_of(bytes(MAX_DECODED_BYTES + 1))


def test_another_record_is_refused_by_its_name() -> None:
    message = "is a reelstream.StageControl, not a reelstream.VideoDone"
    assert message == cause_of(Codec().encode(STAGE_CONTROL))
    registry = FakeRegistry()
    data = Codec(registry).encode(STAGE_CONTROL)
    with pytest.raises(UndecodableRecord, match=r"is a reelstream\.StageControl"):
        Codec(registry).decode(data, VideoDone)


def test_an_unknown_fingerprint_is_refused() -> None:
    assert "not in schemas/history" in cause_of(b"\xc3\x01" + bytes(8) + b"abc")


def with_datum(name: str, **changes: Any) -> bytes:
    """The golden record of a kind with some fields changed, written by fastavro unchecked."""
    datum = {**as_avro(SAMPLES[name]), **changes}
    out = BytesIO()
    out.write(golden_bytes(name, 1)[:10])
    fastavro.schemaless_writer(out, json.loads(published_versions(name)[1]), datum)
    return out.getvalue()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    assert "cost_gpu_s is not a finite" in cause_of(with_datum("VideoDone", cost_gpu_s=number))
    cause = cause_of(with_datum("LatentsReady", decode_parameters={"x": number}), LatentsReady)
    assert "decode_parameters is not a finite" in cause
    with pytest.raises(UnencodableRecord, match="cost_gpu_s"):
        Codec().encode(dataclasses.replace(DONE, cost_gpu_s=number))


def test_an_int_beyond_32_bits_is_refused_both_ways() -> None:
    assert "field run is beyond 32 bits" in cause_of(with_datum("VideoDone", run=2**31))
    with pytest.raises(UnencodableRecord, match="field run is beyond"):
        Codec().encode(dataclasses.replace(DONE, run=-(2**31) - 1))


def test_a_time_beyond_the_calendar_is_refused() -> None:
    assert "time is out of range" in cause_of(with_datum("VideoDone", created_at=2**62))


def test_text_that_is_not_utf8_is_refused_without_quoting_it() -> None:
    data = with_datum("VideoDone", reason=PRIVATE).replace(b"private", b"privat\xff")
    assert cause_of(data) == "reelstream.VideoDone: a string is not UTF-8"


@pytest.mark.parametrize(
    "wrong",
    [
        {"created_at": datetime(2025, 1, 1)},  # no time zone
        {"prompt": f"{PRIVATE} \ud800"},
        {"prompt": None},
        {"seed": 2**63},
        {"num_frames": PRIVATE},
        {"prompt": PRIVATE * 5000},
    ],
)
def test_a_record_that_cannot_be_written_is_refused_without_quoting_it(wrong: Any) -> None:
    request: Any = SAMPLES["GenerationRequest"]
    with pytest.raises(UnencodableRecord) as refused:
        Codec().encode(dataclasses.replace(request, **wrong))
    assert "private" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_only_records_travel() -> None:
    timings: Any = DONE.timings
    with pytest.raises(TypeError, match="not a record"):
        Codec().encode(timings)
    with pytest.raises(TypeError, match="not a record"):
        Codec().decode(b"", Job)  # type: ignore[type-var]


# Hostile bytes


def varint(number: int) -> bytes:
    """Avro's zig-zag encoding of a 64-bit integer."""
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])


@pytest.mark.parametrize("claimed", [2**62, 2**63 - 1, 2**31, -1, -(2**63), -(2**40)])
def test_an_absurd_length_is_refused_without_being_allocated(claimed: int) -> None:
    headers = {name: golden_bytes(name, 1)[:10] for name in RECORD_NAMES}
    job = golden_bytes("FramesDecoded", 1)[10:].split(b"s3://")[0][:-3]
    cases: list[tuple[type[Any], bytes]] = [
        (StageControl, headers["StageControl"] + varint(claimed) + b"abc"),
        (GenerationRequest, headers["GenerationRequest"] + varint(claimed)),
        (FramesDecoded, headers["FramesDecoded"] + job + varint(claimed) + b"\0" * 50),
    ]
    tracemalloc.start()
    for cls, data in cases:
        cause_of(data, cls)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_the_largest_hostile_record_costs_little() -> None:
    """As many of the smallest items as fit, and then one that breaks off."""
    start = golden_bytes("VideoDone", 1)[: -len(golden_timings())]
    num_items = (MAX_DECODED_BYTES - len(start) - 20) // 13
    item = b"\0" * 3 + b"\0" * 8 + b"\0" * 2  # no names, epoch, no seconds, no worker
    data = start + varint(num_items) + item * num_items
    for value in (data, data + b"\0"):
        tracemalloc.start()
        try:
            assert num_items == len(Codec().decode(value, VideoDone).timings)
        except UndecodableRecord:
            assert value == data
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 50e6


def golden_timings() -> bytes:
    """The last field of the golden VideoDone: one block of one timing, and the end."""
    out = BytesIO()
    schema = video_done_schema()["fields"][-1]["type"]
    fastavro.schemaless_writer(out, schema, as_avro(DONE)["timings"])
    return out.getvalue()


def decode_or_refuse(data: bytes, cls: type[Any]) -> None:
    """Bytes are a record or UndecodableRecord; a record that was read can be written."""
    try:
        record = Codec().decode(data, cls)
    except UndecodableRecord as refused:
        fault: UndecodableRecord | None = refused
    else:
        fault = None
        assert record == Codec().decode(Codec().encode(record), cls)
    assert fault is None or (fault.__cause__ is None and len(str(fault)) < 120)


ANY_RECORD = st.sampled_from(RECORD_NAMES)


@settings(max_examples=200, deadline=None)
@given(name=ANY_RECORD, tail=st.binary(max_size=300), prefix=st.sampled_from(["", "id", "own"]))
def test_random_bytes_are_a_record_or_refused(name: str, tail: bytes, prefix: str) -> None:
    start = {"": b"", "id": b"\0\0\0\0\x01", "own": golden_bytes(name, 1)[:10]}[prefix]
    decode_or_refuse(start + tail, type(SAMPLES[name]))


@settings(max_examples=400, deadline=None)
@given(name=ANY_RECORD, data=st.data())
def test_mutated_bytes_are_a_record_or_refused(name: str, data: st.DataObject) -> None:
    mutated = bytearray(golden_bytes(name, 1))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        width = data.draw(st.integers(0, 3))
        new = data.draw(st.binary(max_size=3) | st.integers(-(2**63), 2**63 - 1).map(varint))
        mutated[at : at + width] = new
    decode_or_refuse(bytes(mutated), type(SAMPLES[name]))
