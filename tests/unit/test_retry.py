"""RetryPolicy and the sentences of crashes, case by case."""

from __future__ import annotations

import pytest

from streams.core.events import Fate
from streams.core.offset_map import NO_CRASHES, Crashes
from streams.core.retry import RetryPolicy, if_it_crashes_now, is_suspect, sentence


def test_the_last_try_has_no_delay() -> None:
    policy = RetryPolicy((10, 60), max_tries=3)
    assert [policy.delay_s("j", 1, each) is None for each in (1, 2, 3, 4)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_a_quarter_of_the_jobs_waits_one_delay_longer() -> None:
    policy = RetryPolicy((10, 60, 600), max_tries=4)
    delays = [policy.delay_s(f"job-{number}", 1, 1) for number in range(1_000)]
    assert set(delays) == {10, 60}
    assert 200 < delays.count(60) < 300


def test_the_last_delay_serves_all_tries_that_follow() -> None:
    policy = RetryPolicy((10,), max_tries=9)
    assert {policy.delay_s("j", 1, each) for each in range(1, 9)} == {10}
    assert policy.longest_s == 10


@pytest.mark.parametrize(("num", "is_one"), [(0, False), (1, False), (2, True), (3, True)])
def test_two_crashes_make_a_suspect(num: int, is_one: bool) -> None:
    assert is_suspect(Crashes(num)) == is_one


@pytest.mark.parametrize(
    ("crashes", "before", "fate"),
    [
        (NO_CRASHES, NO_CRASHES, None),
        (Crashes(2), NO_CRASHES, None),
        (Crashes(3, 1), NO_CRASHES, Fate.LATER),
        (Crashes(3, 1), Crashes(3, 1), None),
        (Crashes(4, 2), Crashes(3, 1), Fate.LATER),
        (Crashes(5, 3), Crashes(4, 2), Fate.DEAD_LETTER),
        (Crashes(5, 3), Crashes(5, 3), Fate.DEAD_LETTER),
    ],
)
def test_crashes_alone_lead_to_a_later_try_and_the_third_to_a_dead_letter(
    crashes: Crashes, before: Crashes, fate: Fate | None
) -> None:
    fault = sentence(crashes, before)
    assert (None if fault is None else fault.fate) == fate


def test_only_a_crash_alone_counts_as_one() -> None:
    assert if_it_crashes_now(Crashes(2, 0), is_alone=False) == Crashes(3, 0)
    assert if_it_crashes_now(Crashes(2, 0), is_alone=True) == Crashes(3, 1)
