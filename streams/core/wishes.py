"""Cancels and new deadlines of runs, kept until they can matter no more."""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

from streams.core.runs import RunOfJob, Wished, whosever


class _Deadline(NamedTuple):
    number: int  # the last wish counts
    deadline_s: float
    until_s: float  # for which it is kept


class Wishes:
    """What clients wish of runs, whether or not a record of the run is here.

    A wish is forgotten `life_s` after it was made, the longest that a run may last: whatever comes
    later of that run is past its deadline anyway.

    >>> wishes, job = Wishes(life_s=60.0), RunOfJob("acme", "job-1", 1)
    >>> wishes.cancel(job, issued_s=0.0)
    >>> wishes.is_cancelled(job), wishes.is_cancelled(job._replace(tenant_id="bolt"))
    (True, False)
    >>> wishes.forget_old(now_s=61.0); wishes.is_cancelled(job)
    False
    """

    def __init__(self, life_s: float) -> None:
        self._life_s = life_s
        self._cancelled: dict[Wished, float] = {}  # until when it is kept
        self._deadlines: dict[Wished, _Deadline] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._cancelled) + len(self._deadlines)

    def cancel(self, wished: Wished, issued_s: float) -> None:
        """The run is no longer wanted."""
        self._cancelled[wished] = issued_s + self._life_s

    def set_deadline(self, wished: Wished, deadline_s: float, issued_s: float) -> None:
        """The run has another deadline, whatever was wished before."""
        until_s = max(issued_s + self._life_s, deadline_s)
        self._deadlines[wished] = _Deadline(next(self._numbers), deadline_s, until_s)

    def is_cancelled(self, run_of_job: RunOfJob) -> bool:
        """Whether the run is no longer wanted."""
        return run_of_job in self._cancelled or whosever(run_of_job) in self._cancelled

    def deadline_s(self, run_of_job: RunOfJob, own_s: float | None) -> float | None:
        """The deadline in force, `own_s` being what the record says."""
        named = self._deadlines.get(run_of_job)
        unnamed = self._deadlines.get(whosever(run_of_job))
        if named is None or (unnamed is not None and unnamed.number > named.number):
            named = unnamed
        return own_s if named is None else named.deadline_s

    def forget_old(self, now_s: float) -> None:
        """Let go of what can matter no more. Costs O(wishes): not for every turn."""
        self._cancelled = {run: until for run, until in self._cancelled.items() if until > now_s}
        self._deadlines = {
            run: kept for run, kept in self._deadlines.items() if kept.until_s > now_s
        }
