"""Which endings on the log are news: each effective outcome once, over duplicates and redrives."""

from __future__ import annotations


class EffectiveEndings:
    """Tells a job's new effective outcome from repeats and from runs that a later one replaced.

    An ending is news if no ending of the same or a later run of the job is remembered. Memory is
    bounded by age: what was last noted before `forget`'s time is dropped, and its repeat is news.

    >>> endings, job = EffectiveEndings(), ("acme", "job-1")
    >>> endings.is_news(job, run=1)
    True
    >>> endings.note(job, run=1, at_s=10.0)
    >>> endings.is_news(job, run=1), endings.is_news(job, run=2)    # a duplicate; a redriven run
    (False, True)
    >>> endings.note(job, run=2, at_s=12.0)
    >>> endings.is_news(job, run=1)                                 # superseded
    False
    >>> endings.forget(before_s=14.0)
    >>> len(endings)
    0
    """

    def __init__(self) -> None:
        # Least recently noted first, so that forgetting looks at nothing that stays.
        self._latest: dict[tuple[str, str], tuple[int, float]] = {}
        self._newest_s = float("-inf")

    def is_news(self, job: tuple[str, str], run: int) -> bool:
        """Whether this ending of (tenant, job) is a new effective outcome."""
        return run > self._latest.get(job, (0, 0.0))[0]

    def note(self, job: tuple[str, str], run: int, at_s: float) -> None:
        """Remember an ending, met at `at_s`; a time before the last one's counts as the last."""
        self._newest_s = max(self._newest_s, at_s)
        known, _ = self._latest.pop(job, (0, 0.0))
        self._latest[job] = (max(known, run), self._newest_s)

    def meet(self, job: tuple[str, str], run: int, at_s: float) -> bool:
        """`note` it; whether it was news."""
        was_news = self.is_news(job, run)
        self.note(job, run, at_s)
        return was_news

    def forget(self, before_s: float) -> None:
        """Drop the jobs that were last noted before `before_s`."""
        while self._latest:
            job, (_, at_s) = next(iter(self._latest.items()))
            if at_s >= before_s:
                return
            del self._latest[job]

    def __len__(self) -> int:
        return len(self._latest)
