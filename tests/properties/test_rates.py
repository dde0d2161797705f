"""RateLimit beside what a token bucket promises."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.core.rates import RateLimit

COMING = st.lists(
    st.tuples(st.sampled_from("xy"), st.sampled_from([0.0, 0.5, 7.0, 61.0])), max_size=60
)


@given(COMING, st.sampled_from([0.5, 1.0, 6.0, 60.0]))
def test_no_stretch_of_time_takes_more_than_its_rate_and_a_burst(
    coming: list[tuple[str, float]], per_minute: float
) -> None:
    limit, now_s = RateLimit(), 0.0
    taken: dict[str, list[float]] = {"x": [], "y": []}
    for number, (payer, elapsed_s) in enumerate(coming):
        now_s += elapsed_s
        if limit.wait_s(payer, number, per_minute, now_s) == 0.0:
            taken[payer].append(now_s)
    burst = max(1.0, per_minute)
    for times in taken.values():
        for first, begin_s in enumerate(times):
            for last in range(first, len(times)):
                most = burst + (times[last] - begin_s) * per_minute / 60
                assert last - first + 1 <= most + 1e-6


@given(COMING, st.sampled_from([0.5, 1.0, 6.0, 60.0]))
def test_whoever_waits_as_told_is_taken_and_not_a_moment_sooner(
    coming: list[tuple[str, float]], per_minute: float
) -> None:
    limit, now_s = RateLimit(), 0.0
    for number, (payer, elapsed_s) in enumerate(coming):
        now_s += elapsed_s
        wait_s = limit.wait_s(payer, number, per_minute, now_s)
        if wait_s:
            too_soon_s = now_s + 0.9 * wait_s
            assert limit.wait_s(payer, number, per_minute, too_soon_s) > 0.0
            now_s += wait_s
            assert limit.wait_s(payer, number, per_minute, now_s) == 0.0


@given(COMING)
def test_a_tenant_takes_nothing_from_another(coming: list[tuple[str, float]]) -> None:
    together, alone, now_s = RateLimit(), RateLimit(), 0.0
    for number, (payer, elapsed_s) in enumerate(coming):
        now_s += elapsed_s
        wait_s = together.wait_s(payer, number, 6.0, now_s)
        if payer == "x":
            assert wait_s == alone.wait_s("x", number, 6.0, now_s)


@given(st.floats(0.0, 59.0))
def test_asked_again_about_one_that_was_taken_it_says_so_again(elapsed_s: float) -> None:
    limit = RateLimit()
    assert limit.wait_s("x", "job", 1.0, 0.0) == 0.0
    assert limit.wait_s("x", "job", 1.0, elapsed_s) == 0.0
    assert limit.wait_s("x", "other", 1.0, elapsed_s) == pytest.approx(60.0 - elapsed_s)


def test_who_asked_long_ago_is_forgotten() -> None:
    limit = RateLimit()
    for number in range(10_000):
        assert limit.wait_s(number, number, 60.0, float(number)) == 0.0
    assert len(limit) < 500
