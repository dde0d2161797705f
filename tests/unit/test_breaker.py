"""Breaker, case by case."""

from __future__ import annotations

from streams.core.breaker import Breaker, Verdict


def a_breaker() -> Breaker:
    """Two jobs in a row open it; probes wait 1, 2, 4, at most 5 s."""
    return Breaker(limit=2, first_wait_s=1.0, longest_wait_s=5.0)


def an_open_breaker() -> Breaker:
    breaker = a_breaker()
    assert [breaker.failed("a"), breaker.failed("b")] == [False, True]
    return breaker


def test_one_job_that_fails_again_and_again_opens_nothing() -> None:
    breaker = a_breaker()
    assert [breaker.failed("a") for _ in range(9)] == [False] * 9


def test_a_success_starts_the_count_anew() -> None:
    breaker = a_breaker()
    breaker.failed("a")
    breaker.succeeded()
    assert not breaker.failed("b")


def test_it_opens_once() -> None:
    assert not an_open_breaker().failed("c")


def test_a_closed_breaker_asks_for_no_probe() -> None:
    assert not a_breaker().must_probe(0.0)


def test_one_probe_at_a_time() -> None:
    breaker = an_open_breaker()
    assert [breaker.must_probe(0.0), breaker.must_probe(9.0)] == [True, False]


def test_probes_that_fail_wait_twice_as_long_each_time_up_to_the_longest() -> None:
    breaker, now_s, waits = an_open_breaker(), 0, []
    assert breaker.must_probe(0.0)
    for _ in range(5):
        assert breaker.probed(False, now_s) is Verdict.UNKNOWN
        waits.append(next(each for each in range(99) if breaker.must_probe(now_s + each)))
        now_s += waits[-1]
    assert waits == [1, 2, 4, 5, 5]


def test_a_good_probe_at_once_blames_the_records() -> None:
    breaker = an_open_breaker()
    breaker.must_probe(0.0)
    assert breaker.probed(True, 0.0) is Verdict.RECORDS
    assert not breaker.is_open


def test_a_good_probe_after_a_bad_one_blames_the_host_and_all_starts_anew() -> None:
    breaker = an_open_breaker()
    breaker.probed(False, 0.0)
    assert breaker.probed(True, 1.0) is Verdict.HOST
    assert [breaker.failed("c"), breaker.failed("d"), breaker.must_probe(1.0)] == [
        False, True, True,
    ]  # fmt: skip
