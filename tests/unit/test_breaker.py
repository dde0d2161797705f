"""Breaker, case by case."""

from __future__ import annotations

from streams.core.breaker import Breaker, Verdict


def an_open_breaker() -> Breaker:
    breaker = Breaker(limit=1, first_wait_s=1.0, longest_wait_s=3.0)
    assert breaker.failed("j")
    return breaker


def test_failures_of_one_job_are_one_failure() -> None:
    breaker = Breaker(limit=2, first_wait_s=1.0, longest_wait_s=3.0)
    assert not any(breaker.failed("j") for _ in range(9))
    assert breaker.failed("k")


def test_a_success_ends_the_row() -> None:
    breaker = Breaker(limit=2, first_wait_s=1.0, longest_wait_s=3.0)
    breaker.failed("j")
    breaker.succeeded()
    assert not breaker.failed("k")


def test_a_breaker_opens_once() -> None:
    assert not an_open_breaker().failed("k")


def test_a_closed_breaker_asks_for_no_probe() -> None:
    assert not Breaker(limit=1, first_wait_s=1.0, longest_wait_s=3.0).must_probe(0.0)


def test_a_good_probe_at_once_means_that_it_was_the_records() -> None:
    breaker = an_open_breaker()
    assert breaker.must_probe(0.0)
    assert (breaker.probed(True, 0.0), breaker.is_open) == (Verdict.RECORDS, False)


def test_a_good_probe_after_a_bad_one_means_that_it_was_the_host() -> None:
    breaker = an_open_breaker()
    breaker.must_probe(0.0)
    assert (breaker.probed(False, 0.0), breaker.is_open) == (Verdict.UNKNOWN, True)
    breaker.must_probe(1.0)
    assert (breaker.probed(True, 1.0), breaker.is_open) == (Verdict.HOST, False)


def test_probes_wait_twice_as_long_each_time_up_to_a_bound() -> None:
    breaker, now_s, waits = an_open_breaker(), 0.0, []
    for _ in range(4):
        assert breaker.must_probe(now_s)
        breaker.probed(False, now_s)
        waits.append(next(w for w in (0.5, 1.0, 2.0, 3.0) if breaker.must_probe(now_s + w)))
        breaker.probed(False, now_s)
        now_s += 3.0
    assert waits == [1.0, 3.0, 3.0, 3.0]


def test_after_a_verdict_the_row_begins_anew() -> None:
    breaker = Breaker(limit=2, first_wait_s=1.0, longest_wait_s=3.0)
    assert (breaker.failed("j"), breaker.failed("k")) == (False, True)
    breaker.must_probe(0.0)
    breaker.probed(False, 0.0)
    breaker.must_probe(9.0)
    breaker.probed(True, 9.0)
    assert (breaker.failed("j"), breaker.failed("k"), breaker.must_probe(9.0)) == (
        False,
        True,
        True,
    )
