"""The offset map's text: what goes in comes out, or less of it; any text is read or refused."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import example, given, settings

from streams.core.offset_map import (
    MAX_CHARS,
    MAX_SPAN,
    Crashes,
    OffsetMap,
    decode_offset_map,
    encode_offset_map,
)

OFFSETS = st.integers(0, 2**62)
COUNTS = st.builds(Crashes, st.integers(0, 300), st.integers(0, 300))
DISTANCES = st.sets(st.integers(0, 300) | st.integers(0, 30_000), max_size=60)


@st.composite
def maps(draw: st.DrawFn, distances: st.SearchStrategy[set[int]] = DISTANCES) -> OffsetMap:
    offset = draw(OFFSETS)
    crashes = {offset + each: draw(COUNTS) for each in draw(distances)}
    return OffsetMap(offset, sum(1 << each for each in draw(distances)), crashes)


@given(maps(st.sets(st.integers(0, 2000), max_size=60)))
def test_a_map_that_fits_comes_back_as_it_was(known: OffsetMap) -> None:
    assert decode_offset_map(known.offset, encode_offset_map(known)) == known


@given(maps())
def test_what_comes_back_was_there_and_the_nearest_stays(known: OffsetMap) -> None:
    told = decode_offset_map(known.offset, encode_offset_map(known))
    assert told.finished() == known.finished()[: len(told.finished())]
    assert set(told.crashes.items()) <= set(known.crashes.items())


@given(
    st.integers(0, 2**MAX_SPAN * 2**100),
    st.integers(0, 3000),
    st.integers(1, 2**40),
    st.integers(0, 2**20),
)
@example(2**MAX_SPAN - 1, 3000, 1, 3)
@settings(deadline=None)
def test_a_text_is_never_too_long(bits: int, num_counts: int, apart: int, num: int) -> None:
    crashes = {each * apart: Crashes(num, num) for each in range(num_counts)}
    text = encode_offset_map(OffsetMap(0, bits, crashes))
    assert len(text) <= MAX_CHARS
    told = decode_offset_map(0, text)
    assert told.finished_bits & ~bits == 0
    assert told.crashes.items() <= crashes.items()
    assert told.crashes == crashes or not told.finished_bits, "bits go first"


@given(OFFSETS, st.text(max_size=60) | st.text("1AQgE-_=+/\0", max_size=40).map("1{}".format))
@example(0, "\ud800")
def test_any_text_is_a_map_or_a_value_error(offset: int, text: str) -> None:
    try:
        known = decode_offset_map(offset, text)
    except ValueError:
        return
    assert known.offset == offset
    assert all(each >= offset for each in (*known.finished(), *known.crashes))
    assert len(encode_offset_map(known)) <= MAX_CHARS


@given(maps(), st.data())
def test_a_text_that_lost_its_end_is_a_map_or_a_value_error(
    known: OffsetMap, data: st.DataObject
) -> None:
    text = encode_offset_map(known)
    cut = text[: data.draw(st.integers(0, len(text)))]
    try:
        told = decode_offset_map(known.offset, cut)
    except ValueError:
        return
    whole = decode_offset_map(known.offset, text)  # what is far away is left out of it
    assert told.finished_bits in (whole.finished_bits, 0)
