"""Failures in a row: is it the records, or this host? A probe tells."""

from __future__ import annotations

from enum import Enum, auto


class Verdict(Enum):
    """What a probe has shown of the failures that waited for it."""

    RECORDS = auto()  # the host is well: each failure takes its own fate
    HOST = auto()  # it was sick and is well again: the failures never happened
    UNKNOWN = auto()  # it is sick: wait, and probe again


class Breaker:
    """Trips after `limit` failures in a row of different jobs, and asks for probes until it knows.

    It trips sooner where a job would be given up: a last try that fails with nothing worked since
    an earlier failure. Where jobs are fewer than the limit a sick host would else outlast them all.

    >>> breaker = Breaker(limit=2, first_wait_s=1.0, longest_wait_s=30.0)
    >>> breaker.failed("job-1"), breaker.failed("job-1"), breaker.failed("job-2")
    (False, False, True)
    >>> breaker.must_probe(now_s=0.0), breaker.must_probe(now_s=0.0)
    (True, False)
    >>> breaker.probed(is_ok=False, now_s=0.0), breaker.must_probe(0.5), breaker.must_probe(1.0)
    (<Verdict.UNKNOWN: 3>, False, True)
    >>> breaker.probed(is_ok=True, now_s=2.0), breaker.is_open
    (<Verdict.HOST: 2>, False)
    >>> breaker.failed("job-1"), breaker.failed("job-1", is_last_try=True)
    (False, True)
    """

    def __init__(self, limit: int, first_wait_s: float, longest_wait_s: float) -> None:
        self._limit, self._first_wait_s, self._longest_wait_s = limit, first_wait_s, longest_wait_s
        self._streak: set[str] = set()
        self.is_open = False
        self._is_probing = False
        self._num_bad_probes = 0
        self._next_probe_s = 0.0

    def succeeded(self) -> None:
        """A job was worked: whatever failed before, it was not the host."""
        self._streak.clear()

    def failed(self, job_id: str, is_last_try: bool = False) -> bool:
        """A job failed; whether that opened the breaker."""
        if self.is_open:
            return False
        is_given_up = is_last_try and bool(self._streak)
        self._streak.add(job_id)
        self.is_open = is_given_up or len(self._streak) >= self._limit
        return self.is_open

    def must_probe(self, now_s: float) -> bool:
        """Whether to probe now; True only once for each probe."""
        if not self.is_open or self._is_probing or now_s < self._next_probe_s:
            return False
        self._is_probing = True
        return True

    def probed(self, is_ok: bool, now_s: float) -> Verdict:
        """A probe was answered."""
        self._is_probing = False
        if not is_ok:
            self._num_bad_probes += 1
            wait_s = self._first_wait_s * 2 ** min(self._num_bad_probes - 1, 16)
            self._next_probe_s = now_s + min(wait_s, self._longest_wait_s)
            return Verdict.UNKNOWN
        verdict = Verdict.HOST if self._num_bad_probes else Verdict.RECORDS
        self.is_open, self._num_bad_probes, self._next_probe_s = False, 0, 0.0
        self._streak.clear()
        return verdict
