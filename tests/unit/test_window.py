"""Window, case by case."""

from __future__ import annotations

import pytest

from streams.core.window import Window


def test_a_partition_becomes_full_at_the_high_threshold_and_says_so_once() -> None:
    window: Window[str] = Window(high=2, low=0)
    assert [window.enter("p0") for _ in range(3)] == [False, True, False]
    assert window.is_full("p0")


def test_a_full_partition_stays_full_until_it_has_fallen_to_the_low_threshold() -> None:
    window: Window[str] = Window(high=4, low=1)
    for _ in range(4):
        window.enter("p0")
    assert [window.leave("p0") for _ in range(3)] == [False, False, True]
    assert not window.is_full("p0")


def test_a_partition_that_was_never_full_is_not_resumed() -> None:
    window: Window[str] = Window(high=4, low=1)
    window.enter("p0")
    assert not window.leave("p0")


def test_partitions_do_not_fill_each_other() -> None:
    window: Window[str] = Window(high=2, low=0)
    window.enter("p0")
    assert not window.enter("p1")
    assert (len(window), window.is_full("p0"), window.is_full("p1")) == (2, False, False)


def test_a_forgotten_partition_begins_empty() -> None:
    window: Window[str] = Window(high=2, low=0)
    window.enter("p0")
    window.enter("p0")
    window.forget("p0")
    assert (len(window), window.is_full("p0"), window.enter("p0")) == (0, False, False)


def test_a_partition_that_nothing_is_known_of_can_be_forgotten() -> None:
    window: Window[str] = Window(high=2, low=0)
    window.forget("p0")
    assert len(window) == 0


def test_more_cannot_leave_than_has_entered() -> None:
    window: Window[str] = Window(high=2, low=0)
    with pytest.raises(AssertionError, match="holds nothing of"):
        window.leave("p0")


def test_a_tenant_that_crowds_a_partition_is_looked_past_up_to_a_bound() -> None:
    window: Window[str] = Window(high=4, low=2, per_tenant=2, most=7)
    assert [window.enter("p0", "noisy") for _ in range(6)] == [False] * 6
    assert window.enter("p0", "quiet"), "seven are held"
    assert [window.leave("p0", "noisy") for _ in range(2)] == [False, False]
    assert not window.leave("p0", "quiet") or not window.is_full("p0")


def test_tenants_that_do_not_crowd_fill_the_window_together() -> None:
    window: Window[str] = Window(high=3, low=0, per_tenant=2, most=9)
    assert [window.enter("p0", each) for each in "abc"] == [False, False, True]


@pytest.mark.parametrize(("per_tenant", "most"), [(0, 4), (1, 1)])
def test_bounds_that_make_no_look_ahead_are_refused(per_tenant: int, most: int) -> None:
    with pytest.raises(ValueError, match="per_tenant >= 1"):
        Window(2, 0, per_tenant, most)


@pytest.mark.parametrize(("high", "low"), [(0, 0), (2, 2), (2, 3), (2, -1)])
def test_thresholds_that_make_no_window_are_refused(high: int, low: int) -> None:
    with pytest.raises(ValueError, match="0 <= low < high"):
        Window(high, low)
