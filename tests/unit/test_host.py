"""Host, case by case."""

from __future__ import annotations

from streams.core.breaker import Breaker, Verdict
from streams.core.host import Host


def a_host() -> Host:
    """One failure opens the breaker; sick for a minute, it leaves."""
    return Host(Breaker(limit=1, first_wait_s=1.0, longest_wait_s=5.0), leave_after_s=60.0)


def test_a_host_holds_while_its_engine_or_its_breaker_says_so() -> None:
    host = a_host()
    assert not host.is_holding
    host.breaker.failed("a")
    host.fell_sick("device_lost", is_local=True, now_s=0.0)
    assert host.probed(is_ok=True, is_local=True, now_s=0.0) is Verdict.RECORDS
    assert host.is_holding
    host.recovered()
    assert not host.is_holding


def test_the_first_reason_counts_and_from_when_it_was_given() -> None:
    host = a_host()
    host.fell_sick("device_lost", is_local=True, now_s=0.0)
    host.fell_sick("disk_full", is_local=True, now_s=50.0)
    assert (host.must_leave(59.9), host.must_leave(60.0)) == (None, "device_lost")


def test_nobody_leaves_because_of_what_every_worker_lacks() -> None:
    host = a_host()
    host.fell_sick("device_lost", is_local=True, now_s=0.0)
    host.fell_sick("store_away", is_local=False, now_s=1.0)
    assert (host.is_holding, host.must_leave(999.0)) == (True, None)


def test_probes_that_fail_are_a_reason_until_one_is_good() -> None:
    host = a_host()
    host.breaker.failed("a")
    host.probed(is_ok=False, is_local=True, now_s=0.0)
    assert host.must_leave(60.0) == "probe_failed"
    assert host.probed(is_ok=True, is_local=True, now_s=61.0) is Verdict.HOST
    assert host.must_leave(999.0) is None


def test_a_good_probe_does_not_overrule_a_sick_engine() -> None:
    host = a_host()
    host.breaker.failed("a")
    host.fell_sick("device_lost", is_local=True, now_s=0.0)
    host.probed(is_ok=True, is_local=True, now_s=1.0)
    assert host.must_leave(60.0) == "device_lost"
