"""Avro's schema resolution rules, and data made from a schema: what the schema tests judge by.

Written from the specification, apart from fastavro and from the codec, so that each checks the
others.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import Any

import fastavro
from hypothesis import strategies as st

from schemas import records
from schemas.codec import SCHEMAS, single_object_header

AvroType = Any

_EAST = timezone(timedelta(hours=5, minutes=30))
_FIRST = datetime(1, 1, 2)
_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


def as_avro(value: Any) -> Any:
    """A record as the plain dicts and lists that a foreign client would write."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_avro(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [as_avro(item) for item in value]
    return value


def encode_as(schema_text: str, record: Any) -> bytes:
    """Single-object encoding by fastavro alone, in the given version of the record's schema."""
    schema = json.loads(schema_text)
    out = BytesIO()
    out.write(single_object_header(schema))
    fastavro.schemaless_writer(out, schema, as_avro(record))
    return out.getvalue()


def named_types(schema: AvroType) -> dict[str, AvroType]:
    """Every definition within `schema`, by unqualified name."""
    match schema:
        case list():
            parts = schema
        case {"type": "record", "fields": fields}:
            parts = [field["type"] for field in fields]
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            parts = [inner]
        case _:
            parts = []
    found = {name: t for part in parts for name, t in named_types(part).items()}
    if isinstance(schema, dict) and "name" in schema:
        found[_unqualified(schema["name"])] = schema
    return found


def read_problems(writer: AvroType, reader: AvroType) -> list[str]:
    """Why data of schema `writer` can't always be read as `reader`; empty if it always can."""
    return _Resolution(named_types(writer), named_types(reader)).problems(writer, reader, "")


class _Resolution:
    """One walk over two schemas side by side; `path` says where in a problem's text."""

    def __init__(self, written: dict[str, AvroType], read: dict[str, AvroType]) -> None:
        self.written, self.read = written, read
        self.open: set[tuple[str, str]] = set()  # records being compared: recursion ends here

    def problems(self, writer: AvroType, reader: AvroType, path: str) -> list[str]:
        writer, reader = _resolved(writer, self.written), _resolved(reader, self.read)
        if isinstance(writer, list):
            return [p for branch in writer for p in self.problems(branch, reader, path)]
        if isinstance(reader, list):
            if any(not self.problems(writer, branch, path) for branch in reader):
                return []
            return [f"{path}: no branch of the reader's union takes {_kind(writer)}"]
        if _logical(writer) != _logical(reader):
            return [f"{path}: {_logical(writer)} became {_logical(reader)}"]
        kinds = _kind(writer), _kind(reader)
        if kinds[0] != kinds[1]:
            promotes = kinds[1] in _PROMOTIONS.get(kinds[0], ())
            return [] if promotes else [f"{path}: {kinds[0]} is not {kinds[1]}"]
        match kinds[0]:
            case "array":
                return self.problems(writer["items"], reader["items"], f"{path}[]")
            case "map":
                return self.problems(writer["values"], reader["values"], f"{path}{{}}")
            case "record" | "enum" | "fixed":
                return self.named_problems(kinds[0], writer, reader, path)
        return []

    def named_problems(self, kind: str, writer: Any, reader: Any, path: str) -> list[str]:
        names = _unqualified(writer["name"]), _unqualified(reader["name"])
        if names[0] != names[1] and names[0] not in reader.get("aliases", ()):
            return [f"{path}: {names[0]} is not {names[1]}"]
        if kind == "fixed":
            return [] if writer["size"] == reader["size"] else [f"{path}: sizes differ"]
        if kind == "enum":
            unknown = set(writer["symbols"]) - set(reader["symbols"])
            if unknown and "default" not in reader:
                return [f"{path}: symbols {sorted(unknown)} are unknown, and there is no default"]
            return []
        if names in self.open:
            return []
        self.open.add(names)
        found = [p for field in reader["fields"] for p in self.field_problems(field, writer, path)]
        self.open.discard(names)
        return found

    def field_problems(self, field: Any, writer: Any, path: str) -> list[str]:
        path = f"{path}.{field['name']}"
        known_as = {field["name"], *field.get("aliases", ())}
        for candidate in writer["fields"]:
            if candidate["name"] in known_as:
                return self.problems(candidate["type"], field["type"], path)
        return [] if "default" in field else [f"{path}: not written, and there is no default"]


def records_of(cls: type) -> st.SearchStrategy[Any]:
    """Any record of a class that its `.avsc` allows."""
    text = (SCHEMAS / f"{cls.__name__}.avsc").read_text()
    schema = json.loads(text)
    return values_of(schema, named_types(schema))


def values_of(avro: AvroType, named: dict[str, AvroType]) -> st.SearchStrategy[Any]:
    """Values of an Avro type as our records hold them (dataclasses, tuples, aware datetimes)."""
    match _resolved(avro, named):
        case {"logicalType": "timestamp-micros"}:
            # On the first day of year 1 it is still the year before in UTC, which has no datetime.
            return st.datetimes(_FIRST, timezones=st.just(UTC) | st.just(_EAST))
        case list() as branches:
            return st.one_of([values_of(branch, named) for branch in branches])
        case {"type": "record", "name": name, "fields": fields}:
            parts = {field["name"]: values_of(field["type"], named) for field in fields}
            return st.builds(getattr(records, _unqualified(name)), **parts)
        case {"type": "array", "items": items}:
            return st.lists(values_of(items, named), max_size=3).map(tuple)
        case {"type": "map", "values": values}:
            return st.dictionaries(st.text(max_size=5), values_of(values, named), max_size=3)
        case {"type": "enum", "symbols": symbols}:
            return st.sampled_from(symbols)
    return {
        "null": st.none(),
        "string": st.text(max_size=40),
        "boolean": st.booleans(),
        "int": st.integers(-(2**31), 2**31 - 1),
        "long": st.integers(-(2**63), 2**63 - 1),
        "double": st.floats(allow_nan=False, allow_infinity=False),
    }[avro]


def _resolved(avro: AvroType, named: dict[str, AvroType]) -> AvroType:
    """The definition behind a name; primitives and definitions as they are."""
    return named.get(_unqualified(avro), avro) if isinstance(avro, str) else avro


def _kind(avro: AvroType) -> str:
    return avro if isinstance(avro, str) else str(avro["type"])


def _logical(avro: AvroType) -> str | None:
    return avro.get("logicalType") if isinstance(avro, dict) else None


def _unqualified(name: str) -> str:
    return name.rsplit(".", 1)[-1]
