"""Tensor blobs: one safetensors file with named tensors, and nothing else is ever read.

A reader says which names, types and shapes it expects. The file's header is held against that
before anything is allocated, so a foreign file costs no memory and runs no code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from streams.errors import InvalidRecord

MEDIA_TYPE: Final = "application/vnd.safetensors"

MAX_HEADER_BYTES: Final = 1 << 16

Shape = tuple[int | None, ...]
Expected = Mapping[str, tuple[npt.DTypeLike, Shape]]

# numpy has no bfloat16: such tensors travel as float32, which holds every bfloat16 exactly.
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


def dump(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """One safetensors file; equal tensors give equal bytes, whatever their strides or order."""
    for name, tensor in tensors.items():
        assert tensor.dtype in _DTYPES.values(), f"{name}: {tensor.dtype} does not travel"
    # The library writes a view's memory as it lies, and would mix up a transposed one.
    dense = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    return safetensors.numpy.save(dense)


def load(data: bytes, expected: Expected) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file: exactly the expected names, types and shapes.

    Args:
        data: the whole file.
        expected: (dtype, shape) by name; a None in a shape takes any length, also 0.

    Raises:
        InvalidRecord: `bad_tensor`; the file is anything else.
    """
    header = _header_of(data)
    if header.keys() != expected.keys():
        raise _bad(f"holds {_names(header)}, {_names(expected)} expected")
    for name, (dtype, shape) in expected.items():
        _check_entry(name, header[name], np.dtype(dtype), shape)
    # Type, shape and offsets agree per tensor; together they must cover the rest without overlap.
    body_bytes = len(data) - 8 - int.from_bytes(data[:8], "little")
    spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    edges = [(0, 0), *spans, (body_bytes, body_bytes)]
    if any(left[1] != right[0] for left, right in pairwise(edges)):
        raise _bad(f"its tensors do not cover its {body_bytes} bytes")
    try:
        return safetensors.numpy.load(data)
    except SafetensorError as error:
        raise _bad(str(error)) from error


def names(data: bytes) -> frozenset[str]:
    """What the tensors of a safetensors file are called.

    Raises:
        InvalidRecord: `bad_tensor`; it is none.
    """
    return frozenset(_header_of(data))


def _header_of(data: bytes) -> dict[str, Any]:
    """The header's entries by tensor name; what they hold is not checked yet."""
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        raise _bad("no safetensors header")
    try:
        header = json.loads(data[8 : 8 + header_bytes], object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise _bad("its header is not JSON") from error
    if not isinstance(header, dict):
        raise _bad("its header is no object")
    header.pop("__metadata__", None)
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _check_entry(name: str, entry: object, dtype: np.dtype[Any], shape: Shape) -> None:
    match entry:
        case {"dtype": str(kind), "shape": list(found), "data_offsets": [begin, end]}:
            pass
        case _:
            raise _bad(f"{name!r} has no type, shape and offsets")
    if not all(type(number) is int and number >= 0 for number in (*found, begin, end)):
        raise _bad(f"{name!r} has a length or offset that is no natural number")
    if kind not in _DTYPES or _DTYPES[kind] != dtype:
        raise _bad(f"{name!r} is {kind[:16]}, {dtype} expected")
    if len(found) != len(shape) or any(
        want is not None and have != want for have, want in zip(found, shape, strict=True)
    ):
        raise _bad(f"{name!r} has the shape {found[:16]}, {shape} expected")
    if end - begin != math.prod(found) * dtype.itemsize:
        raise _bad(f"{name!r} spans {end - begin} bytes, not what its shape needs")


def _names(tensors: Mapping[str, object]) -> str:
    return ", ".join(sorted(tensors))[:200] or "nothing"


def _bad(why: str) -> InvalidRecord:
    return InvalidRecord(f"tensor blob: {why}", reason_code="bad_tensor")
