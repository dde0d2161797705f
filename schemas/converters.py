"""Functions between our records and fastavro's dicts, generated once per class from its `.avsc`.

Thousands of records a second pass here, so each class gets one straight-line function a direction
(the way `dataclasses` makes `__init__`) in place of a walk over the schema for every record. What
fastavro lets through is refused here: an int beyond 32 bits, NaN and infinity, a naive time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from schemas import records

AvroType = Any
"""A parsed Avro type: a name, a dict with "type", or a list (union)."""

ToAvro = Callable[[Any], dict[str, Any]]
FromAvro = Callable[[dict[str, Any]], Any]

_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1
_PLAIN = ("string", "boolean", "long", "bytes", "null")


class UnfitValue(ValueError):
    """A value that fits the Avro type's shape, yet may not travel; the message names the field."""


def converters(schema: AvroType) -> tuple[ToAvro, FromAvro]:
    """The two functions of a record schema as `fastavro.parse_schema` returns it.

    Both raise UnfitValue, or what Python raises for a wrong type (AttributeError, TypeError,
    OverflowError); neither puts the value into a message of its own.
    """
    source: list[str] = []
    defined: dict[str, AvroType] = {}
    _define(schema, source, defined)
    namespace: dict[str, Any] = {
        "EPOCH": datetime(1970, 1, 1, tzinfo=UTC),
        "MICROSECOND": timedelta(microseconds=1),
        "timedelta": timedelta,
        "finite_map": _finite_map,
        "not_int": _not_int,
        "not_finite": _not_finite,
        **{name: getattr(records, name) for name in defined},
    }
    # Only our own .avsc files reach this, never a schema that came over the wire.
    exec(compile("\n".join(source), "<schemas.converters>", "exec"), namespace)  # noqa: S102
    name = _short(schema["name"])
    return namespace[f"{name}_to_avro"], namespace[f"{name}_from_avro"]


def _define(schema: AvroType, source: list[str], defined: dict[str, AvroType]) -> None:
    """Append the functions of every record in `schema`, the innermost first."""
    match schema:
        case list():
            for branch in schema:
                _define(branch, source, defined)
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            _define(inner, source, defined)
        case {"type": "record", "name": full_name, "fields": fields}:
            for field in fields:
                _define(field["type"], source, defined)
            name = _short(full_name)
            defined[name] = schema
            written = [
                f"{f['name']!r}: {_write(f['type'], 'r.' + f['name'], f['name'])}," for f in fields
            ]
            read = [_read(f["type"], f"d[{f['name']!r}]", f["name"]) + "," for f in fields]
            source += [f"def {name}_to_avro(r):", " return {", *written, " }"]
            source += [f"def {name}_from_avro(d):", f" return {name}(", *read, " )"]


def _write(avro: AvroType, value: str, field: str) -> str:
    """The expression that turns the record's `value` into what fastavro writes."""
    match avro:
        case {"logicalType": "timestamp-micros"}:
            return f"({value} - EPOCH) // MICROSECOND"
        case {"type": "array", "items": items}:
            return f"[{_write(items, 'item', field)} for item in {value}]"
        case {"type": "record", "name": name}:
            return f"{_short(name)}_to_avro({value})"
        case ["null", inner]:
            return f"(None if (some := {value}) is None else {_write(inner, 'some', field)})"
        case str() if "." in avro:  # a record defined further up
            return f"{_short(avro)}_to_avro({value})"
    return _checked(avro, value, field)


def _read(avro: AvroType, value: str, field: str) -> str:
    """The expression that turns what fastavro read as `value` into the record's."""
    match avro:
        case {"logicalType": "timestamp-micros"}:
            return f"EPOCH + timedelta(0, 0, {value})"
        case {"type": "array", "items": items}:
            return f"tuple([{_read(items, 'item', field)} for item in {value}])"
        case {"type": "record", "name": name}:
            return f"{_short(name)}_from_avro({value})"
        case ["null", inner]:
            return f"(None if (some := {value}) is None else {_read(inner, 'some', field)})"
        case str() if "." in avro:
            return f"{_short(avro)}_from_avro({value})"
    return _checked(avro, value, field)


def _checked(avro: AvroType, value: str, field: str) -> str:
    """The expression of a value that is the same on both sides, range-checked where Avro's is."""
    match avro:
        case "int":
            return f"(n if {_INT_MIN} <= (n := {value}) <= {_INT_MAX} else not_int({field!r}))"
        case "double":  # x - x is nan for nan and for both infinities
            return f"(x if (x := {value}) - x == 0.0 else not_finite({field!r}))"
        case {"type": "map", "values": "double"}:
            return f"finite_map({value}, {field!r})"
        case str() if avro in _PLAIN:
            return value
        case {"type": "enum"}:
            return value
        case {"type": str(inner)} if inner in _PLAIN and "logicalType" not in avro:
            return value
    raise NotImplementedError(f"field {field}: no conversion for the Avro type {avro}")


def _finite_map(values: Mapping[str, float], field: str) -> dict[str, float]:
    """A copy of `values`, so that a record never shares a schema's default."""
    return {key: x if x - x == 0.0 else _not_finite(field) for key, x in values.items()}


def _not_int(field: str) -> NoReturn:
    raise UnfitValue(f"field {field} is beyond 32 bits")


def _not_finite(field: str) -> NoReturn:
    raise UnfitValue(f"field {field} is not a finite number")


def _short(full_name: str) -> str:
    return full_name.rsplit(".", 1)[-1]
