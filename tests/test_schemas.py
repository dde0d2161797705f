"""The contracts: the `.avsc` files against the dataclasses, their own history and golden bytes."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from io import BytesIO
from itertools import product
from typing import Any, Literal, get_args, get_type_hints

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import records
from schemas.codec import (
    RECORD_NAMES,
    SCHEMAS,
    Codec,
    published_versions,
    single_object_header,
)
from tests.avro_rules import (
    as_avro,
    encode_as,
    named_types,
    read_problems,
    records_of,
    values_of,
)
from tests.golden import FOLDER, SAMPLES, golden_bytes

ADD_A_VERSION = (
    "a published schema never changes. To publish a new version of {0}: edit schemas/{0}.avsc and"
    " its dataclass, copy the .avsc to schemas/history/{0}/{1}.avsc, set the new fields in"
    " tests/golden/__init__.py and run `python -m tests.golden`"
)

every_record = pytest.mark.parametrize("name", RECORD_NAMES)
every_version = pytest.mark.parametrize(
    ("name", "version"), [(n, v) for n in RECORD_NAMES for v in published_versions(n)]
)


def current(name: str) -> Any:
    """The current schema as JSON objects."""
    return json.loads((SCHEMAS / f"{name}.avsc").read_text())


def record_class(name: str) -> type:
    """The dataclass of a record or nested record."""
    cls: type = getattr(records, name)
    return cls


def python_type(avro: Any) -> Any:
    """The type a dataclass field must have for an Avro type."""
    match avro:
        case {"logicalType": "timestamp-micros", "type": "long"}:
            return datetime
        case ["null", inner]:
            return python_type(inner) | None
        case {"type": "record", "name": name}:
            return record_class(name)
        case {"type": "enum", "symbols": symbols}:
            return Literal[tuple(symbols)]
        case {"type": "array", "items": items}:
            item: Any = python_type(items)
            return tuple[item, ...]
        case {"type": "map", "values": values}:
            value: Any = python_type(values)
            return Mapping[str, value]
        case "BlobRef" | "Job" | "StageTiming":
            return record_class(avro)
    return {"string": str, "int": int, "long": int, "double": float, "boolean": bool}[avro]


def python_default(field: dataclasses.Field[Any]) -> Any:
    """A dataclass field's default as Avro would write it; MISSING without one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return as_avro(field.default)


# The classes and the files


@every_record
def test_the_dataclasses_say_what_the_avsc_says(name: str) -> None:
    for nested, schema in named_types(current(name)).items():
        if schema["type"] != "record":
            continue
        hints = get_type_hints(record_class(nested))
        fields = dataclasses.fields(record_class(nested))
        expected = [
            (f["name"], python_type(f["type"]), f.get("default", dataclasses.MISSING))
            for f in schema["fields"]
        ]
        assert expected == [(f.name, hints[f.name], python_default(f)) for f in fields]


@every_record
def test_the_dataclasses_are_frozen_and_slotted(name: str) -> None:
    for nested, schema in named_types(current(name)).items():
        if schema["type"] == "record":
            cls: Any = record_class(nested)
            assert cls.__dataclass_params__.frozen
            assert "__slots__" in vars(cls)


def test_every_record_has_an_avsc_and_a_class() -> None:
    classes = {cls.__name__ for cls in get_args(records.Record)} | {"BlobRef"}
    assert classes == set(RECORD_NAMES)
    assert set(RECORD_NAMES) == {path.name for path in (SCHEMAS / "history").iterdir()}


@every_record
def test_an_avsc_is_self_contained_and_documents_every_field(name: str) -> None:
    schema = current(name)
    fastavro.parse_schema(schema, {})  # no other file's names
    assert ("reelstream", name) == (schema["namespace"], schema["name"])
    for nested in named_types(schema).values():
        assert nested is not None
        assert all(field["doc"] for field in nested.get("fields", ()))


def test_a_definition_that_occurs_in_several_files_is_the_same_everywhere() -> None:
    seen: dict[str, Any] = {}
    for name in RECORD_NAMES:
        for nested, schema in named_types(current(name)).items():
            definition = {k: v for k, v in schema.items() if k != "namespace"}
            assert seen.setdefault(nested, definition) == definition, f"{nested} in {name}.avsc"


# History


@every_record
def test_the_current_schema_is_the_newest_published_version(name: str) -> None:
    versions = published_versions(name)
    assert list(versions) == list(range(1, len(versions) + 1))
    newest = versions[len(versions)]
    message = ADD_A_VERSION.format(name, len(versions) + 1)
    assert newest == (SCHEMAS / f"{name}.avsc").read_text(), message


@every_record
def test_every_version_reads_every_other(name: str) -> None:
    """FULL_TRANSITIVE, by the specification's rules."""
    versions = {v: json.loads(text) for v, text in published_versions(name).items()}
    for (w, writer), (r, reader) in product(versions.items(), repeat=2):
        assert read_problems(writer, reader) == [], f"{name}: version {r} cannot read {w}"


@every_record
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_fastavro_reads_made_up_data_of_every_version_as_every_other(
    name: str, data: st.DataObject
) -> None:
    """The same as above, shown by another's implementation."""
    versions = [json.loads(text) for text in published_versions(name).values()]
    for writer, reader in product(versions, repeat=2):
        value = data.draw(values_of(writer, named_types(writer)))
        out = BytesIO()
        fastavro.schemaless_writer(out, writer, as_avro(value))
        out.seek(0)
        fastavro.schemaless_reader(out, writer, reader)


# The checker itself, by planted changes of VideoDone


def field_of(schema: Any, name: str) -> Any:
    """A field, within the schema so that it can be changed."""
    return next(field for field in schema["fields"] if field["name"] == name)


def add(schema: Any, **field: Any) -> None:
    """A new field at the end."""
    schema["fields"].append(field)


INCOMPATIBLE: dict[str, Callable[[Any], None]] = {
    "field added without default": lambda s: add(s, name="extra", type="string"),
    "field without default removed": lambda s: s["fields"].remove(field_of(s, "tenant_id")),
    "field renamed": lambda s: field_of(s, "tenant_id").update(name="tenant"),
    "type changed": lambda s: field_of(s, "tenant_id").update(type="int"),
    "int widened to long": lambda s: field_of(s, "partition").update(type="long"),
    "made nullable": lambda s: field_of(s, "tenant_id").update(type=["null", "string"]),
    "null removed": lambda s: field_of(s, "tier").update(type="string", default=""),
    "unit of a time changed": lambda s: field_of(s, "created_at").update(
        type={"type": "long", "logicalType": "timestamp-millis"}
    ),
    "record renamed": lambda s: s.update(name="VideoEnded"),
    "symbol added, no default to read it as": lambda s: field_of(s, "status")["type"][
        "symbols"
    ].append("paused"),
    "nested field added without default": lambda s: add(
        field_of(s, "timings")["type"]["items"], name="extra", type="int"
    ),
    "nested type changed": lambda s: field_of(field_of(s, "video")["type"][1], "sha256").update(
        type="long"
    ),
}

COMPATIBLE: dict[str, Callable[[Any], None]] = {
    "nothing": lambda _s: None,
    "doc changed": lambda s: s.update(doc="other words"),
    "field added with default": lambda s: add(s, name="extra", type="string", default=""),
    "field with default removed": lambda s: s["fields"].remove(field_of(s, "cost_gpu_s")),
    "order of fields changed": lambda s: s["fields"].reverse(),
    "nested field added with default": lambda s: add(
        field_of(s, "timings")["type"]["items"], name="extra", type=["null", "int"], default=None
    ),
}


def without_enum_default() -> Any:
    """VideoDone whose readers have nothing to read an unknown status as."""
    schema = current("VideoDone")
    del field_of(schema, "status")["type"]["default"]
    return schema


@pytest.mark.parametrize("change", INCOMPATIBLE)
def test_the_checker_finds_an_incompatible_change(change: str) -> None:
    old = without_enum_default()
    new = copy.deepcopy(old)
    INCOMPATIBLE[change](new)
    assert read_problems(old, new) + read_problems(new, old) != []


@pytest.mark.parametrize("change", COMPATIBLE)
def test_the_checker_passes_a_compatible_change(change: str) -> None:
    old = current("VideoDone")
    new = copy.deepcopy(old)
    if change == "order of fields changed":  # a named type must still be defined before its use
        field_of(new, "video")["type"], field_of(new, "thumbnail")["type"] = (
            field_of(new, "thumbnail")["type"],
            field_of(new, "video")["type"],
        )
    COMPATIBLE[change](new)
    assert read_problems(old, new) + read_problems(new, old) == []


def test_an_added_symbol_is_compatible_where_readers_have_a_default() -> None:
    old, new = current("VideoDone"), current("VideoDone")
    field_of(new, "status")["type"]["symbols"].append("paused")
    assert read_problems(old, new) + read_problems(new, old) == []


def test_the_checker_ends_on_recursive_schemas() -> None:
    node = {
        "type": "record",
        "name": "Node",
        "fields": [{"name": "next", "type": ["null", "Node"], "default": None}],
    }
    assert read_problems(node, node) == []


# Golden bytes


@every_version
def test_golden_bytes_still_read_as_they_were_written(name: str, version: int) -> None:
    data, text = golden_bytes(name, version), published_versions(name)[version]
    sample = SAMPLES[name]
    record = Codec().decode(data, type(sample))
    for field in json.loads(text)["fields"]:
        assert getattr(sample, field["name"]) == getattr(record, field["name"])


@every_version
def test_a_sample_still_writes_as_its_golden_bytes(name: str, version: int) -> None:
    data, text = golden_bytes(name, version), published_versions(name)[version]
    assert data == encode_as(text, SAMPLES[name])
    if text == (SCHEMAS / f"{name}.avsc").read_text():
        assert data == Codec().encode(SAMPLES[name])


def test_every_golden_file_belongs_to_a_published_version() -> None:
    published = {f"{name}.{v}.hex" for name in RECORD_NAMES for v in published_versions(name)}
    assert published == {path.name for path in FOLDER.glob("*.hex")}


@every_record
def test_a_sample_sets_every_field(name: str) -> None:
    """A field left at its default would not be held by the golden bytes."""
    for field in dataclasses.fields(SAMPLES[name]):
        assert getattr(SAMPLES[name], field.name) != python_default(field)


def test_the_fingerprint_is_avros_own() -> None:
    """A vector of the Avro project: the schema "int" has 0x7275d51a3f395c8f."""
    assert bytes.fromhex("c301 8f5c393f1ad57572") == single_object_header("int")


@every_record
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_record_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    record = data.draw(records_of(record_class(name)))
    encoded = Codec().encode(record)
    assert record == Codec().decode(encoded, type(record))
    assert encoded == encode_as((SCHEMAS / f"{name}.avsc").read_text(), record)
