"""RetryPolicy and what crashes lead to, case by case."""

from __future__ import annotations

from collections import Counter

import pytest

from streams.core.events import Fate, Fault
from streams.core.offset_map import NO_CRASHES, Crashes
from streams.core.retry import RetryPolicy, if_it_crashes_now, is_suspect, sentence


def test_the_last_try_is_followed_by_none() -> None:
    policy = RetryPolicy((10,), max_tries=3)
    assert [policy.delay_s("j", 1, each) for each in (1, 2, 3, 4)] == [10, 10, None, None]


def test_a_quarter_of_the_jobs_waits_one_delay_longer() -> None:
    policy = RetryPolicy((10, 60, 600), max_tries=4)
    delays = Counter(policy.delay_s(f"job-{number}", 1, 1) for number in range(1000))
    assert delays.keys() == {10, 60}
    assert 200 < delays[60] < 300


def test_a_job_always_waits_as_long_as_it_would_have() -> None:
    policies = [RetryPolicy(), RetryPolicy()]
    first, second = ([each.delay_s("j", 2, nth) for nth in (1, 2, 3)] for each in policies)
    assert first == second


def test_the_longest_delay_is_the_last() -> None:
    assert RetryPolicy((1, 2, 9)).longest_s == 9


@pytest.mark.parametrize(
    ("crashes", "suspected"),
    [(NO_CRASHES, False), (Crashes(1, 0), False), (Crashes(2, 0), True), (Crashes(3, 1), True)],
)
def test_two_crashes_make_a_suspect(crashes: Crashes, suspected: bool) -> None:
    assert is_suspect(crashes) == suspected


def test_a_crash_alone_sends_to_the_longest_retry_unless_it_did_so_before() -> None:
    fault = sentence(Crashes(3, 1), NO_CRASHES)
    assert (fault and fault.fate, fault and fault.reason_code) == (Fate.LATER, "killed_worker")
    assert sentence(Crashes(3, 1), Crashes(3, 1)) is None


def test_the_third_crash_alone_is_a_dead_letter() -> None:
    assert sentence(Crashes(5, 3), Crashes(4, 2)) == Fault(
        Fate.DEAD_LETTER, "killed_workers", "5 processes died with it, 3 held nothing else"
    )


def test_crashes_in_company_lead_to_nothing_by_themselves() -> None:
    assert sentence(Crashes(7, 0), NO_CRASHES) is None


def test_a_crash_alone_counts_twice_over() -> None:
    assert if_it_crashes_now(Crashes(2, 0), is_alone=True) == Crashes(3, 1)
    assert if_it_crashes_now(Crashes(1, 0), is_alone=False) == Crashes(2, 0)
