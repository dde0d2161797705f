"""Breaker and Host beside a model that remembers the row of failures and every complaint."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.core.breaker import Breaker, Verdict
from streams.core.host import Host

FIRST_WAIT_S, LONGEST_WAIT_S, LEAVE_AFTER_S = 1.0, 5.0, 20.0


class HostMachine(RuleBasedStateMachine):
    """Jobs fail and succeed, the engine falls sick and recovers, probes are asked and answered."""

    @initialize(limit=st.integers(1, 3))
    def begin(self, limit: int) -> None:
        self.limit, self.now_s = limit, 0.0
        breaker = Breaker(limit, FIRST_WAIT_S, LONGEST_WAIT_S)
        self.host = Host(breaker, LEAVE_AFTER_S)
        self.row: list[str] = []  # failures since the last success or verdict
        self.is_open = self.is_sick = self.is_probing = False
        self.bad_probes: list[float] = []
        # About this host alone: of whom, why, since when; the oldest first.
        self.complaints: list[tuple[str, str, float]] = []

    @rule(elapsed_s=st.sampled_from([0.5, 1.0, 4.0, 21.0]))
    def wait(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s

    @rule(job_id=st.sampled_from("jkl"), is_last_try=st.booleans())
    def a_job_fails(self, job_id: str, is_last_try: bool) -> None:
        was_open = self.is_open
        if not was_open:
            self.row.append(job_id)
            is_given_up = is_last_try and len(self.row) > 1
            self.is_open = is_given_up or len(set(self.row)) >= self.limit
        assert self.host.breaker.failed(job_id, is_last_try) == (self.is_open and not was_open)

    @rule()
    def a_job_succeeds(self) -> None:
        self.row.clear()
        self.host.breaker.succeeded()

    @rule(is_local=st.booleans())
    def the_engine_falls_sick(self, is_local: bool) -> None:
        self.is_sick = True
        self.host.fell_sick("sick", is_local, self.now_s)
        self.complain("engine", "sick", is_local)

    @rule()
    def the_engine_recovers(self) -> None:
        self.is_sick = False
        self.withdraw("engine")
        self.host.recovered()

    def complain(self, whose: str, reason: str, is_local: bool) -> None:
        if not is_local:
            self.complaints = []
        elif all(each[0] != whose for each in self.complaints):
            self.complaints.append((whose, reason, self.now_s))

    def withdraw(self, whose: str) -> None:
        self.complaints = [each for each in self.complaints if each[0] != whose]

    @rule()
    def time_to_probe(self) -> None:
        is_due = True
        if self.bad_probes:
            waits = [FIRST_WAIT_S * 2**n for n in range(len(self.bad_probes))]
            is_due = self.now_s >= self.bad_probes[-1] + min(waits[-1], LONGEST_WAIT_S)
        expected = self.is_open and not self.is_probing and is_due
        assert self.host.breaker.must_probe(self.now_s) == expected
        self.is_probing = self.is_probing or expected

    @rule(is_ok=st.booleans(), is_local=st.booleans())
    def a_probe_is_answered(self, is_ok: bool, is_local: bool) -> None:
        if not self.is_probing:
            return
        self.is_probing = False
        verdict = self.host.probed(is_ok, is_local, self.now_s)
        if not is_ok:
            assert verdict is Verdict.UNKNOWN
            self.bad_probes.append(self.now_s)
            self.complain("probe", "probe_failed", is_local)
            return
        assert verdict is (Verdict.HOST if self.bad_probes else Verdict.RECORDS)
        self.is_open, self.bad_probes = False, []
        self.row.clear()
        self.withdraw("probe")

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "host"):
            return
        assert self.host.breaker.is_open == self.is_open
        assert self.host.is_holding == (self.is_open or self.is_sick)
        expected = None
        if self.complaints and self.now_s - self.complaints[0][2] >= LEAVE_AFTER_S:
            expected = self.complaints[0][1]
        assert self.host.must_leave(self.now_s) == expected


TestHost = HostMachine.TestCase
TestHost.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
