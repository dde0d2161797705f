"""Bytes <-> records: Avro single-object encoding, or Confluent's wire format with a registry.

    C3 01 + 8 bytes, little-endian CRC-64-AVRO of the writer's schema + Avro     no registry
    00    + 4 bytes, big-endian id of the writer's schema + Avro                 Confluent

A reader takes both, told apart by the first bytes. A fingerprint names a version in `history/`; an
id is looked up by `SchemaIds`. Either way the bytes are resolved against the reader's own schema,
so records of older and newer versions read alike.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import (
    SchemaParseException,
    UnknownType,
    fingerprint,
    to_parsing_canonical_form,
)

from schemas.converters import AvroType, FromAvro, ToAvro, UnfitValue, converters
from schemas.records import BlobRef, Record

SCHEMAS = Path(__file__).parent
RECORD_NAMES = tuple(sorted(path.stem for path in SCHEMAS.glob("*.avsc")))
"""Every record that has an `.avsc`, in alphabetical order."""

MAX_ENCODED_BYTES = 64 * 1024
"""Nothing larger is written: big things travel as blobs."""
MAX_DECODED_BYTES = 2 * MAX_ENCODED_BYTES
"""Nothing larger is read, which bounds what a hostile record can cost."""

_SINGLE_OBJECT = b"\xc3\x01"
_CONFLUENT = b"\x00"
_MAX_SCHEMA_NODES, _MAX_SCHEMA_DEPTH = 10_000, 32

T = TypeVar("T", bound=Record | BlobRef)


class UndecodableRecord(ValueError):
    """These bytes are not a record of the expected type, and never will be.

    The message is one short cause without any of the bytes.
    """


class UnencodableRecord(ValueError):
    """This record cannot be written; the message names the cause and never quotes a value."""


class SchemaIds(Protocol):
    """A schema registry. Both methods answer from a cache after the first time."""

    def id_of(self, name: str, schema: str) -> int:
        """The id of `schema` (JSON) under the record's full name; registers it if need be."""

    def schema_of(self, schema_id: int) -> str:
        """The schema (JSON) of an id. Raises KeyError if the registry does not know it."""


@dataclass(frozen=True, slots=True)
class _RecordType:
    """What is known of one record class, computed once."""

    name: str  # full name, such as reelstream.VideoDone
    text: str  # its .avsc
    schema: AvroType  # parsed, without logical types: the converters do times
    header: bytes  # single-object header of the current version
    older: dict[bytes, AvroType]  # header -> schema of every other published version
    to_avro: ToAvro
    from_avro: FromAvro


class Codec:
    """Writes and reads records; without `schema_ids` it needs nothing but this package.

    Thread-safe. Encoding gives the same bytes for the same record and schema version.
    """

    def __init__(self, schema_ids: SchemaIds | None = None) -> None:
        self._schema_ids = schema_ids
        self._headers: dict[str, bytes] = {}  # record name -> Confluent header
        self._writers: dict[int, AvroType] = {}  # registry id -> writer's schema

    def encode(self, record: Record | BlobRef) -> bytes:
        """The record's bytes.

        Raises UnencodableRecord for a value that its schema cannot hold (a naive time, NaN, an int
        beyond 32 bits, a lone surrogate) and for more than MAX_ENCODED_BYTES. What `schema_ids`
        raises passes through.
        """
        kind = _record_type(type(record))
        header = kind.header if self._schema_ids is None else self._confluent_header(kind)
        out = BytesIO()
        out.write(header)
        try:
            fastavro.schemaless_writer(out, kind.schema, kind.to_avro(record))
        except (AttributeError, OverflowError, TypeError, ValueError) as fault:
            # from None: fastavro and UnicodeEncodeError quote the value, which may be a prompt
            raise UnencodableRecord(f"{kind.name}: {_unencodable(fault)}") from None
        data = out.getvalue()
        if len(data) > MAX_ENCODED_BYTES:
            raise UnencodableRecord(
                f"{kind.name}: {len(data)} bytes, more than {MAX_ENCODED_BYTES}"
            )
        return data

    def decode(self, data: bytes | None, expected: type[T]) -> T:
        """The record in `data`, which must be one of type `expected` and nothing else.

        Times are aware UTC datetimes, arrays tuples, maps dicts. Raises UndecodableRecord for
        everything else (None, a tombstone, included). What `schema_ids` raises passes through,
        KeyError excepted.
        """
        kind = _record_type(expected)
        if not data:
            raise UndecodableRecord("no value (a tombstone)" if data is None else "empty value")
        if len(data) > MAX_DECODED_BYTES:
            raise UndecodableRecord(f"{len(data)} bytes, more than {MAX_DECODED_BYTES}")
        if data.startswith(kind.header):  # by far the most usual
            return cast(T, _read(BytesIO(data), len(kind.header), kind, kind.schema, None))
        writer, start = self._writer(data, kind)
        if writer is kind.schema:
            return cast(T, _read(BytesIO(data), start, kind, writer, None))
        return cast(T, _read(_ExactBytes(data), start, kind, writer, kind.schema))

    def _confluent_header(self, kind: _RecordType) -> bytes:
        header = self._headers.get(kind.name)
        if header is None:
            assert self._schema_ids is not None
            schema_id = self._schema_ids.id_of(kind.name, kind.text)
            header = self._headers[kind.name] = _CONFLUENT + schema_id.to_bytes(4, "big")
        return header

    def _writer(self, data: bytes, kind: _RecordType) -> tuple[AvroType, int]:
        """The writer's schema and where the Avro bytes begin."""
        if data.startswith(_SINGLE_OBJECT) and len(data) >= 10:
            header = data[:10]
            if header in kind.older:
                return kind.older[header], 10
            name = _names_by_header().get(header)
            if name is None:
                raise UndecodableRecord("written with a schema that is not in schemas/history")
            raise UndecodableRecord(f"is a {name}, not a {kind.name}")
        if data.startswith(_CONFLUENT) and len(data) >= 5:
            return self._registered_writer(int.from_bytes(data[1:5], "big"), kind), 5
        raise UndecodableRecord(
            "begins with neither the single-object marker nor a schema registry's id"
        )

    def _registered_writer(self, schema_id: int, kind: _RecordType) -> AvroType:
        writer = self._writers.get(schema_id)
        if writer is None:
            if self._schema_ids is None:
                raise UndecodableRecord(
                    "Confluent wire format, but no schema registry is set"
                    " (REEL_SCHEMA_REGISTRY_URL)"
                )
            try:
                writer = _parse_foreign(self._schema_ids.schema_of(schema_id))
            except KeyError:
                raise UndecodableRecord(f"no schema {schema_id} in the registry") from None
            if writer == kind.schema:
                writer = kind.schema  # so that reading needs no resolution
            self._writers[schema_id] = writer
        # Avro matches records by their unqualified names.
        if writer["name"].rsplit(".", 1)[-1] != kind.name.rsplit(".", 1)[-1]:
            raise UndecodableRecord(f"is a {writer['name']}, not a {kind.name}")
        return writer


def single_object_header(schema: AvroType) -> bytes:
    """The ten bytes before every record that is written with `schema` without a registry."""
    crc = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return _SINGLE_OBJECT + bytes.fromhex(crc)  # the hex digits are little-endian already


def published_versions(name: str) -> dict[int, str]:
    """Every published schema (JSON) of a record, by version number, oldest first."""
    paths = (SCHEMAS / "history" / name).glob("*.avsc")
    return {int(path.stem): path.read_text() for path in sorted(paths, key=lambda p: int(p.stem))}


_record_types: dict[type, _RecordType] = {}


def _record_type(cls: type) -> _RecordType:
    kind = _record_types.get(cls)
    if kind is None:
        kind = _record_types[cls] = _load_record_type(cls)
    return kind


def _load_record_type(cls: type) -> _RecordType:
    if cls.__name__ not in RECORD_NAMES:
        raise TypeError(f"{cls.__name__} is not a record: it has no .avsc")
    text = (SCHEMAS / f"{cls.__name__}.avsc").read_text()
    parsed = fastavro.parse_schema(json.loads(text))
    assert isinstance(parsed, dict)
    header = single_object_header(parsed)
    older = {
        single_object_header(version): _without_times(version)
        for version in map(json.loads, published_versions(cls.__name__).values())
    }
    older.pop(header, None)
    to_avro, from_avro = converters(parsed)
    schema = _without_times(json.loads(text))
    return _RecordType(parsed["name"], text, schema, header, older, to_avro, from_avro)


@functools.cache
def _names_by_header() -> dict[bytes, str]:
    """Which record a single-object header belongs to, over all published versions."""
    return {
        single_object_header(schema): f"{schema['namespace']}.{name}"
        for name in RECORD_NAMES
        for schema in map(json.loads, published_versions(name).values())
    }


def _without_times(schema: AvroType, named: dict[str, AvroType] | None = None) -> AvroType:
    """The schema (JSON objects) parsed, its timestamp-micros as plain longs: the converters do
    times, faster. Other logical types stay, and what they yield is refused by the converters.
    """

    def strip(node: AvroType) -> AvroType:
        match node:
            case list():
                return [strip(branch) for branch in node]
            case {"logicalType": "timestamp-micros"}:
                return node["type"]
            case dict():
                nested = ("type", "items", "values", "fields")
                return {key: strip(v) if key in nested else v for key, v in node.items()}
        return node

    return fastavro.parse_schema(strip(schema), named)


def _parse_foreign(text: str) -> AvroType:
    """A registry's schema, parsed; UndecodableRecord unless it is a record that is safe to read.

    Anyone who may produce may often register, too. Recursion would overflow fastavro's C stack, and
    array items or nested records of no bytes would let a few bytes claim endless work.
    """
    named: dict[str, AvroType] = {}
    try:
        writer = _without_times(json.loads(text), named)
    except (SchemaParseException, UnknownType, LookupError, TypeError, ValueError, RecursionError):
        raise UndecodableRecord("the registry's schema is not a self-contained Avro one") from None
    if not isinstance(writer, dict) or writer["type"] != "record":
        raise UndecodableRecord("the registry's schema is not a record")
    _least_bytes(writer, named, iter(range(_MAX_SCHEMA_NODES)), 0)
    return writer


def _least_bytes(
    node: AvroType, named: dict[str, AvroType], budget: Iterator[int], depth: int
) -> int:
    """The fewest bytes a value of this type takes; UndecodableRecord for an unsafe schema."""
    if depth > _MAX_SCHEMA_DEPTH or next(budget, None) is None:
        raise UndecodableRecord("the registry's schema is recursive or too large")
    least = functools.partial(_least_bytes, named=named, budget=budget, depth=depth + 1)
    match node:
        case "null":
            return 0
        case list():
            return 1 + min(map(least, node), default=0)
        case {"type": "record" | "error", "fields": fields}:
            return sum(least(field["type"]) for field in fields)
        case {"type": "array", "items": items}:
            if least(items) == 0:
                raise UndecodableRecord("the registry's schema has array items of no bytes")
        case {"type": "map", "values": values}:
            least(values)
        case {"type": "fixed", "size": int(size)}:
            return size
        case {"type": "null"}:
            return 0
        case str() if node in named:
            return least(named[node])
    return 1


class _ExactBytes(BytesIO):
    """A stream that never reads less than asked: fastavro skips fields without looking."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if len(data) != size:
            raise EOFError
        return data


def _read(
    stream: BytesIO, start: int, kind: _RecordType, writer: AvroType, reader: AvroType
) -> object:
    """The record that begins at `start` and ends with the stream."""
    stream.seek(start)
    try:
        datum = fastavro.schemaless_reader(stream, writer, reader)
        num_left = stream.getbuffer().nbytes - stream.tell()
        if num_left:
            raise UnfitValue(f"{num_left} bytes left over")
        return kind.from_avro(cast(dict[str, Any], datum))
    except _READ_FAULTS as fault:
        # from None: UnicodeDecodeError carries the bytes
        raise UndecodableRecord(f"{kind.name}: {_undecodable(fault)}") from None


_READ_FAULTS = (
    AttributeError,
    EOFError,
    LookupError,
    OverflowError,
    SchemaResolutionError,
    TypeError,
    ValueError,
)


def _undecodable(fault: Exception) -> str:
    match fault:
        case UnfitValue():
            return str(fault)
        case UnicodeDecodeError():
            return "a string is not UTF-8"
        case EOFError():
            return "ends early"
        case LookupError():
            return "ends early, or names a symbol or union branch that does not exist"
        case OverflowError():
            return "a time is out of range"
        case SchemaResolutionError():
            return "the writer's schema does not resolve against the reader's"
    return "a value of the wrong type"


def _unencodable(fault: Exception) -> str:
    match fault:
        case UnfitValue():
            return str(fault)
        case UnicodeEncodeError():
            return "a string that is not Unicode text (a lone surrogate)"
        case OverflowError():
            return "a number beyond 64 bits"
    return "a value of the wrong type, or a time without a time zone"
