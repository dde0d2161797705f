"""StepCap: it finds the knee of any line, from one row upwards, and stays below what failed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.step_caps import StepCap

SECONDS = st.floats(1e-4, 10.0)


def twice(cap: StepCap, rows: int, seconds: float, peak_bytes: int | None = None) -> None:
    """The first time at a number of rows does not count."""
    for _ in range(2):
        cap.took(rows, seconds, peak_bytes)


def settled(cap: StepCap, fixed_s: float, each_s: float, num_steps: int = 48) -> int:
    for _ in range(num_steps):
        rows = cap.rows
        cap.took(rows, fixed_s + each_s * rows)
    return cap.rows


@given(SECONDS, SECONDS, st.integers(1, 256))
def test_the_knee_of_a_line_is_found_and_never_passed(
    fixed_s: float, each_s: float, most: int
) -> None:
    cap = StepCap(most)
    knee = max(1, math.ceil(9 * fixed_s / each_s - 1e-6))
    # The first doubling is a guess; from two figures on the line is known.
    assert settled(cap, fixed_s, each_s) <= max(2, knee + 1, min(most, 2))
    assert cap.rows >= min(most, knee, 2 * most) - 1


@given(st.lists(st.tuples(st.integers(1, 64), SECONDS), max_size=40), st.integers(1, 64))
def test_whatever_is_measured_the_cap_is_a_number_of_rows(
    steps: list[tuple[int, float]], most: int
) -> None:
    cap = StepCap(most)
    for rows, seconds in steps:
        cap.took(rows, seconds)
        assert 1 <= cap.rows <= most


def test_it_starts_at_two_rows_and_doubles() -> None:
    cap = StepCap(64)
    seen = []
    for _ in range(5):
        seen.append(cap.rows)
        twice(cap, cap.rows, 1.0 + 0.001 * cap.rows)
    assert seen == [2, 4, 8, 16, 32]


def test_rows_that_found_no_memory_are_not_tried_again() -> None:
    cap = StepCap(64)
    twice(cap, 8, 1.0)
    cap.found_no_memory(8)
    assert not cap.has_room(8)
    assert cap.rows == 7
    settled(cap, 1.0, 0.001, num_steps=200)
    assert cap.rows == 7
    cap.found_no_memory(1)
    assert cap.rows == 1, "one job is let in whatever has failed"


def test_what_found_no_memory_is_tried_again_after_a_thousand_steps() -> None:
    cap = StepCap(64)
    cap.found_no_memory(8)
    for _ in range(999):
        cap.took(4, 1.0)
    assert not cap.has_room(8)
    cap.took(4, 1.0)
    assert cap.has_room(8)
    assert not cap.has_room(16), "twice as many, not any number"


def test_a_step_that_was_split_counts_for_forgiveness_and_teaches_nothing() -> None:
    cap = StepCap(64)
    twice(cap, 1, 1.0, peak_bytes=1_000)
    cap.found_no_memory(2)
    learned = cap.figures()
    for _ in range(999):
        cap.succeeded()
    assert cap.figures() == learned
    cap.succeeded()
    assert cap.has_room(2)


def test_memory_is_filled_to_nine_tenths() -> None:
    cap = StepCap(64, memory_bytes=10_000)
    twice(cap, 1, 1.0, peak_bytes=2_000)
    twice(cap, 2, 1.001, peak_bytes=3_000)
    twice(cap, 4, 1.002, peak_bytes=5_000)
    assert cap.rows == 8  # 1,000 + 8 * 1,000


def test_the_first_step_of_a_size_does_not_count() -> None:
    cap = StepCap(64)
    for rows in (2, 4, 8, 16):
        cap.took(rows, 1000.0)  # its kernels are compiled
        cap.took(rows, 1.0 + 0.001 * rows)
    assert cap.rows == 32


def test_one_slow_step_among_quick_ones_changes_nothing() -> None:
    cap = StepCap(8)
    settled(cap, 1.0, 0.001)
    before = cap.rows
    cap.took(before, 50.0)
    assert cap.rows == before


def test_a_line_that_denies_what_was_seen_is_not_believed() -> None:
    cap = StepCap(64)
    for rows, seconds in ((2, 0.020), (4, 0.037), (8, 0.044), (16, 0.094)):
        twice(cap, rows, seconds)
    assert cap.rows >= 8, "eight rows a step were seen to be nearly twice as quick as two"


def test_one_unlucky_figure_is_looked_at_again() -> None:
    cap = StepCap(64)
    twice(cap, 1, 1.0)
    twice(cap, 2, 50.0)  # something else had the machine
    assert cap.rows == 1
    assert settled(cap, 1.0, 0.001, num_steps=1000) > 1


def test_a_cap_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        StepCap(0)
