"""Cancels and new deadlines of runs, kept until they can matter no more."""

from __future__ import annotations

from streams.core.shares import RunOfJob


class Wishes:
    """What clients wish of runs, whether or not a record of the run is here.

    A wish is forgotten `life_s` after it was made, the longest that a run may last: whatever comes
    later of that run is past its deadline anyway.

    >>> wishes = Wishes(life_s=60.0)
    >>> wishes.cancel(("job-1", 1), issued_s=0.0)
    >>> wishes.is_cancelled(("job-1", 1)), wishes.is_cancelled(("job-1", 2))
    (True, False)
    >>> wishes.forget_old(now_s=61.0); wishes.is_cancelled(("job-1", 1))
    False
    """

    def __init__(self, life_s: float) -> None:
        self._life_s = life_s
        self._cancelled: dict[RunOfJob, float] = {}  # until when it is kept
        self._deadlines_s: dict[RunOfJob, tuple[float, float]] = {}  # deadline, until when

    def __len__(self) -> int:
        return len(self._cancelled) + len(self._deadlines_s)

    def cancel(self, run_of_job: RunOfJob, issued_s: float) -> None:
        """The run is no longer wanted."""
        self._cancelled[run_of_job] = issued_s + self._life_s

    def set_deadline(self, run_of_job: RunOfJob, deadline_s: float, issued_s: float) -> None:
        """The run has another deadline."""
        until_s = max(issued_s + self._life_s, deadline_s)
        self._deadlines_s[run_of_job] = deadline_s, until_s

    def is_cancelled(self, run_of_job: RunOfJob) -> bool:
        """Whether the run is no longer wanted."""
        return run_of_job in self._cancelled

    def deadline_s(self, run_of_job: RunOfJob, own_s: float | None) -> float | None:
        """The deadline in force, `own_s` being what the record says."""
        changed = self._deadlines_s.get(run_of_job)
        return own_s if changed is None else changed[0]

    def forget_old(self, now_s: float) -> None:
        """Let go of what can matter no more. Costs O(wishes): not for every turn."""
        self._cancelled = {run: until for run, until in self._cancelled.items() if until > now_s}
        self._deadlines_s = {
            run: kept for run, kept in self._deadlines_s.items() if kept[1] > now_s
        }
