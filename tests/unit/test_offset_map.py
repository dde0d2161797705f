"""The text that is committed beside an offset, case by case and at random."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.offset_map import (
    BACK_PRESSURE_SPAN,
    MAX_CHARS,
    MAX_SPAN,
    Crashes,
    OffsetMap,
    decode_offset_map,
    encode_offset_map,
)

counts = st.builds(Crashes, st.integers(0, 1 << 40), st.integers(0, 1 << 40))


def passed_on(known: OffsetMap) -> OffsetMap:
    """What the next owner knows."""
    text = encode_offset_map(known)
    assert len(text) <= MAX_CHARS
    return decode_offset_map(known.offset, text)


@given(
    offset=st.integers(0, 1 << 62),
    bits=st.integers(0, 1 << 2000),
    crashes=st.dictionaries(st.integers(0, 10_000), counts, max_size=20),
)
def test_the_next_owner_knows_what_was_committed(
    offset: int, bits: int, crashes: dict[int, Crashes]
) -> None:
    known = OffsetMap(offset, bits, {offset + at: each for at, each in crashes.items()})
    assert passed_on(known) == known


def test_nothing_to_say_is_the_empty_text() -> None:
    assert encode_offset_map(OffsetMap(7)) == ""
    assert decode_offset_map(7, "") == OffsetMap(7)


def test_the_longest_span_fits() -> None:
    known = OffsetMap(0, (1 << MAX_SPAN) - 2)
    assert passed_on(known) == known


def test_a_partition_is_closed_when_three_quarters_of_the_text_are_used() -> None:
    text = encode_offset_map(OffsetMap(0, 1 << (BACK_PRESSURE_SPAN - 1)))
    assert 0.7 * MAX_CHARS < len(text) <= 0.75 * MAX_CHARS


def test_what_lies_beyond_the_longest_span_is_left_out() -> None:
    known = OffsetMap(0, 0b10 | 1 << MAX_SPAN)
    assert passed_on(known) == OffsetMap(0, 0b10)


def test_finished_records_are_left_out_before_crash_counts_and_the_furthest_first() -> None:
    crashes = {at: Crashes(1) for at in range(600)}
    kept = passed_on(OffsetMap(0, (1 << MAX_SPAN) - 2, crashes))
    assert kept.crashes == crashes
    finished = kept.finished()
    assert finished == list(range(1, len(finished) + 1))
    assert 0 < len(finished) < MAX_SPAN - 1


def test_of_crash_counts_that_do_not_fit_the_nearest_are_kept() -> None:
    crashes = {at: Crashes(1) for at in range(3_000)}
    kept = passed_on(OffsetMap(0, 0b10, crashes))
    assert kept.finished() == []
    assert list(kept.crashes) == list(range(len(kept.crashes)))
    assert 500 < len(kept.crashes) < 3_000


def test_a_nul_at_the_end_is_no_part_of_the_text() -> None:
    known = OffsetMap(0, 0b10)
    assert decode_offset_map(0, encode_offset_map(known) + "\0") == known


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2AQY", "offset map of version '2'"),
        ("1A", "offset map is no base64"),
        ("1é", "offset map is no base64"),
        ("1", "offset map ends too early"),
        ("1BQY", "offset map ends too early"),
        ("1AAM", "offset map ends too early"),
        ("1" + "_" * 20, "offset map holds a number that is too large"),
    ],
)
def test_a_text_that_is_no_map_is_told_by_a_value_error(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode_offset_map(0, text)


@given(st.text() | st.text("AZaz09-_=", max_size=60).map("1".__add__))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(ValueError):
        decode_offset_map(0, text)
