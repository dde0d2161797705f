"""Which endings on the log are news: each effective outcome once, over duplicates and redrives."""

from __future__ import annotations


class EffectiveEndings:
    """Tells a job's new effective outcome from repeats and from runs that a later one replaced.

    An ending is news if no ending of the same or a later run of the job is remembered. Memory is
    bounded by age: what was last met before `forget`'s time is dropped, and its repeat is news.

    >>> endings = EffectiveEndings()
    >>> endings.meet(("acme", "job-1"), run=1, at_s=10.0)
    True
    >>> endings.meet(("acme", "job-1"), run=1, at_s=11.0)      # a duplicate
    False
    >>> endings.meet(("acme", "job-1"), run=2, at_s=12.0)      # redriven: its effective outcome now
    True
    >>> endings.meet(("acme", "job-1"), run=1, at_s=13.0)      # superseded
    False
    >>> endings.forget(before_s=14.0)
    >>> len(endings)
    0
    """

    def __init__(self) -> None:
        # Least recently met first, so that forgetting looks at nothing that stays.
        self._latest: dict[tuple[str, str], tuple[int, float]] = {}
        self._newest_s = float("-inf")

    def meet(self, job: tuple[str, str], run: int, at_s: float) -> bool:
        """Take note of an ending of (tenant, job); whether it is news.

        `at_s` is when it was met; one before the last counts as the last.
        """
        self._newest_s = max(self._newest_s, at_s)
        known, _ = self._latest.pop(job, (0, 0.0))
        self._latest[job] = (max(known, run), self._newest_s)
        return run > known

    def forget(self, before_s: float) -> None:
        """Drop the jobs that were last met before `before_s`."""
        while self._latest:
            job, (_, at_s) = next(iter(self._latest.items()))
            if at_s >= before_s:
                return
            del self._latest[job]

    def __len__(self) -> int:
        return len(self._latest)
