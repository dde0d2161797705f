"""Tensor blobs: what was dumped comes back, and nothing else is let in."""

from __future__ import annotations

import json
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from streams.blobs.tensors import Expected, dump, load
from streams.errors import InvalidRecord

LATENTS: Expected = {"latents": (np.float32, (16, None, 8, 8))}


def a_file(header: object, body: bytes = b"", *, header_bytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + body


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def assert_bad(data: bytes, expected: Expected, match: str | None = None) -> None:
    with pytest.raises(InvalidRecord, match=match) as refused:
        load(data, expected)
    assert refused.value.reason_code == "bad_tensor"


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_what_is_dumped_comes_back(dtype: str) -> None:
    tensors = {
        "a": np.arange(24).reshape(2, 3, 4).astype(dtype),
        "scalar": np.array(1, dtype),
        "empty": np.zeros((0, 5), dtype),
    }
    found = load(
        dump(tensors),
        {"a": (dtype, (2, None, 4)), "scalar": (dtype, ()), "empty": (dtype, (None, 5))},
    )
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_no_tensor_at_all_comes_back() -> None:
    assert load(dump({}), {}) == {}


def test_a_view_is_written_as_it_reads() -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = load(dump({"t": grid.T, "s": grid[:, ::2]}), {"t": ("f4", (4, 3)), "s": ("f4", (3, 2))})
    np.testing.assert_array_equal(found["t"], grid.T)
    np.testing.assert_array_equal(found["s"], grid[:, ::2])


def test_equal_tensors_give_equal_bytes() -> None:
    """A stage done again must find its own blob."""
    a, b = np.ones((3, 4), np.float32), np.ones((4, 3), np.float32)
    assert dump({"a": a, "b": b}) == dump({"b": np.asfortranarray(b), "a": b.T})


def test_a_pickle_is_refused_and_not_run() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("it ran",))

    assert_bad(pickle.dumps(Bomb()), LATENTS)
    assert_bad(pickle.dumps(np.zeros((16, 1, 8, 8), np.float32)), LATENTS)


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({}, id="none"),
        pytest.param({"other": np.zeros((16, 2, 8, 8), np.float32)}, id="another name"),
        pytest.param(
            {"latents": np.zeros((16, 2, 8, 8), np.float32), "more": np.zeros(1)}, id="one more"
        ),
        pytest.param({"latents": np.zeros((16, 2, 8, 8), np.float16)}, id="another type"),
        pytest.param({"latents": np.zeros((16, 2, 8, 9), np.float32)}, id="another shape"),
        pytest.param({"latents": np.zeros((16, 8, 8), np.float32)}, id="fewer axes"),
        pytest.param({"latents": np.zeros((1, 16, 2, 8, 8), np.float32)}, id="more axes"),
    ],
)
def test_anything_but_what_is_expected_is_refused(tensors: dict[str, Any]) -> None:
    assert_bad(dump(tensors), LATENTS, "expected")


def test_metadata_is_no_tensor() -> None:
    data = save({"a": np.ones(2, np.float32)}, metadata={"made": "elsewhere"})
    assert load(data, {"a": (np.float32, (2,))})["a"].tolist() == [1.0, 1.0]


ONE: Expected = {"a": (np.float32, (None,))}
TWO: Expected = {"a": (np.float32, (None,)), "b": (np.float32, (None,))}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", ONE, id="nothing"),
        pytest.param(b"\x80", ONE, id="one byte"),
        pytest.param(a_file(b"", header_bytes=1 << 63), ONE, id="a header of 8 EiB"),
        pytest.param(a_file(b"{}", header_bytes=3), ONE, id="a header beyond the end"),
        pytest.param(a_file(b" " * (1 << 17)), ONE, id="a header too large"),
        pytest.param(a_file(b"[" * 60000), ONE, id="a header too deep"),
        pytest.param(a_file(b"\xff\xfe"), ONE, id="no text"),
        pytest.param(a_file([]), ONE, id="a list"),
        pytest.param(a_file({"a": 7}), ONE, id="no entry"),
        pytest.param(a_file({"a": entry("F32", [2], 0, 8)}), ONE, id="truncated"),
        pytest.param(a_file({"a": entry("F32", [2], 0, 8)}, bytes(9)), ONE, id="a byte more"),
        pytest.param(a_file({"a": entry("F32", [2], 1, 9)}, bytes(9)), ONE, id="a gap"),
        pytest.param(a_file({"a": entry("F32", [1 << 60], 0, 8)}, bytes(8)), ONE, id="huge"),
        pytest.param(a_file({"a": entry("F32", [-2], 0, -8)}, bytes(8)), ONE, id="negative"),
        pytest.param(a_file({"a": entry("F32", [2.0], 0, 8)}, bytes(8)), ONE, id="a float"),
        pytest.param(a_file({"a": entry("F32", [True], 0, 4)}, bytes(4)), ONE, id="a bool"),
        pytest.param(a_file({"a": entry("BF16", [2], 0, 4)}, bytes(4)), ONE, id="unknown type"),
        pytest.param(
            a_file(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{}}', bytes(4)),
            ONE,
            id="a name twice",
        ),
        pytest.param(
            a_file({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, bytes(8)),
            TWO,
            id="two tensors on the same bytes",
        ),
        pytest.param(
            a_file({"__metadata__": 7, "a": entry("F32", [2], 0, 8)}, bytes(8)),
            ONE,
            id="metadata that is none",
        ),
    ],
)
def test_a_malformed_file_is_refused(data: bytes, expected: Expected) -> None:
    assert_bad(data, expected)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_damage_never_raises_anything_else(noise: bytes, at: int) -> None:
    whole = dump({"a": np.arange(20, dtype=np.float32)})
    for data in (noise, whole[:at], whole[:at] + noise + whole[at + len(noise) :]):
        try:
            found = load(data, ONE)
        except InvalidRecord as error:
            assert error.reason_code == "bad_tensor"  # noqa: PT017 - both ends are right
        else:
            assert found["a"].dtype == np.float32
