"""The offset map's text, case by case."""

from __future__ import annotations

import base64

import pytest

from streams.core.offset_map import (
    MAX_CHARS,
    MAX_SPAN,
    Crashes,
    OffsetMap,
    decode_offset_map,
    encode_offset_map,
)


def text_of(*body: int) -> str:
    return "1" + base64.urlsafe_b64encode(bytes(body)).rstrip(b"=").decode()


def test_nothing_to_say_is_the_empty_text() -> None:
    assert encode_offset_map(OffsetMap(7)) == ""
    assert decode_offset_map(7, "") == OffsetMap(7)


def test_version_1_is_written_down_byte_by_byte() -> None:
    known = OffsetMap(1000, 0b1_0000_0010, {1000: Crashes(1, 0), 1300: Crashes(200, 3)})
    text = text_of(2, 0b10, 0b1, 0, 1, 0, 0xAC, 0x02, 0xC8, 0x01, 3)
    assert encode_offset_map(known) == text
    assert decode_offset_map(1000, text) == known


def test_the_nul_that_a_client_appends_is_no_part_of_it() -> None:
    assert decode_offset_map(5, encode_offset_map(OffsetMap(5, 0b10)) + "\0") == OffsetMap(5, 0b10)
    assert decode_offset_map(5, "\0") == OffsetMap(5)


def test_offsets_too_far_away_are_left_out() -> None:
    known = OffsetMap(0, 0b10 | 1 << MAX_SPAN - 1 | 1 << MAX_SPAN)
    text = encode_offset_map(known)
    assert len(text) <= MAX_CHARS
    assert decode_offset_map(0, text).finished() == [1, MAX_SPAN - 1]


def test_where_space_is_short_counts_stay_and_the_furthest_bits_go() -> None:
    crashes = {at: Crashes(2, 1) for at in range(0, 400, 2)}
    text = encode_offset_map(OffsetMap(0, (1 << MAX_SPAN) - 1, crashes))
    told = decode_offset_map(0, text)
    assert len(text) <= MAX_CHARS
    assert told.crashes == crashes
    assert told.finished() == list(range(MAX_SPAN // 2))


def test_where_counts_alone_are_too_many_the_furthest_go() -> None:
    crashes = {at: Crashes(2, 1) for at in range(2000)}
    text = encode_offset_map(OffsetMap(0, 0b10, crashes))
    assert len(text) <= MAX_CHARS
    assert decode_offset_map(0, text) == OffsetMap(0, 0, dict(list(crashes.items())[:1000]))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("2AQIA", "version '2'"),
        ("1A", "no base64"),
        ("1AQ*A", "no base64"),
        ("1AQé", "no base64"),
        ("1", "ends too early"),
        (text_of(5, 1), "ends too early"),
        (text_of(0, 1), "ends too early"),
        (text_of(0, 1, 0x80), "ends too early"),
        (text_of(*[0xFF] * 11, 1), "too large"),
    ],
)
def test_what_is_no_map_says_so(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode_offset_map(0, text)
