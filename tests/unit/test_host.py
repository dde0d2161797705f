"""Host, case by case."""

from __future__ import annotations

from streams.core.breaker import Breaker, Verdict
from streams.core.host import Host


def a_host() -> Host:
    return Host(Breaker(limit=1, first_wait_s=1.0, longest_wait_s=4.0), leave_after_s=10.0)


def test_a_well_host_goes_on() -> None:
    host = a_host()
    assert (host.is_holding, host.must_leave(99.0)) == (False, None)


def test_the_two_breakers_are_told_apart() -> None:
    host = a_host()
    assert host.breakers == {"engine": False, "jobs": False}
    host.fell_sick("store_away", is_local=False, now_s=0.0)
    assert host.breakers == {"engine": True, "jobs": False}
    host.recovered()
    host.breaker.failed("job-1")
    assert host.breakers == {"engine": False, "jobs": True}


def test_a_store_that_is_away_for_all_is_no_reason_to_leave() -> None:
    host = a_host()
    host.fell_sick("store_away", is_local=False, now_s=0.0)
    assert (host.is_holding, host.must_leave(99.0)) == (True, None)


def test_time_counts_from_the_first_complaint() -> None:
    host = a_host()
    host.fell_sick("disk_full", is_local=True, now_s=0.0)
    host.fell_sick("device_lost", is_local=True, now_s=9.0)
    assert host.must_leave(10.0) == "disk_full"


def test_a_complaint_that_concerns_all_ends_the_count() -> None:
    host = a_host()
    host.fell_sick("disk_full", is_local=True, now_s=0.0)
    host.fell_sick("store_away", is_local=False, now_s=9.0)
    assert host.must_leave(99.0) is None


def test_an_open_breaker_holds_and_its_bad_probes_are_a_reason_to_leave() -> None:
    host = a_host()
    host.breaker.failed("j")
    assert (host.is_holding, host.must_leave(99.0)) == (True, None)
    assert host.probed(False, is_local=True, now_s=1.0) is Verdict.UNKNOWN
    assert (host.must_leave(10.9), host.must_leave(11.0)) == (None, "probe_failed")
    assert host.probed(True, is_local=True, now_s=12.0) is Verdict.HOST
    assert (host.is_holding, host.must_leave(99.0)) == (False, None)


def test_a_good_probe_does_not_heal_an_engine_that_says_it_is_sick() -> None:
    host = a_host()
    host.breaker.failed("j")
    host.fell_sick("device_lost", is_local=True, now_s=0.0)
    host.probed(True, is_local=True, now_s=1.0)
    assert (host.is_holding, host.must_leave(10.0)) == (True, "device_lost")


def test_an_engine_that_recovers_does_not_close_the_breaker() -> None:
    host = a_host()
    host.breaker.failed("j")
    host.fell_sick("device_lost", is_local=True, now_s=0.0)
    host.recovered()
    assert (host.is_holding, host.must_leave(99.0)) == (True, None)


def test_an_engine_that_was_sick_for_a_moment_does_not_hide_probes_that_fail() -> None:
    host = a_host()
    host.breaker.failed("j")
    host.probed(False, is_local=True, now_s=1.0)
    host.fell_sick("device_lost", is_local=True, now_s=2.0)
    host.recovered()
    assert (host.must_leave(10.9), host.must_leave(11.0)) == (None, "probe_failed")
