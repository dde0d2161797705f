"""How many requests of a tenant are taken: a rate with a burst, one number a tenant."""

from __future__ import annotations

from collections.abc import Hashable


class RateLimit:
    """Takes what comes no faster than so many a minute; as many at once may come after a pause.

    The generic cell rate algorithm (ITU-T I.371): a token bucket without a clock of its own, kept
    as the time at which the bucket would be full again. Asked again about the same item it answers
    as before, for as long as that item's minute lasts. Memory: who asked in the last minute or so.

    >>> limit = RateLimit()
    >>> limit.wait_s("acme", "job-1", 1.0, now_s=0.0), limit.wait_s("acme", "job-2", 1.0, now_s=0.0)
    (0.0, 60.0)
    >>> limit.wait_s("acme", "job-1", 1.0, now_s=30.0), limit.wait_s("acme", "job-3", 1.0, 60.0)
    (0.0, 0.0)
    """

    def __init__(self) -> None:
        self._full_s: dict[Hashable, float] = {}  # when the bucket is full again
        self._taken_s: dict[tuple[Hashable, Hashable], float] = {}  # when, in that order
        self._tidy_at = 64

    def wait_s(self, payer: Hashable, item: Hashable, per_minute: float, now_s: float) -> float:
        """0: taken. Else it is not, and another would be in so many seconds, if none comes before.

        Args:
            payer: whose bucket it is.
            item: what is to be taken.
            per_minute: > 0; the burst is as many, at least one.
            now_s: never less than before.
        """
        self._tidy(now_s)
        if (payer, item) in self._taken_s:
            return 0.0
        gap_s = 60.0 / per_minute
        burst_s = max(60.0, gap_s)
        full_s = max(self._full_s.get(payer, now_s), now_s) + gap_s
        if full_s - now_s > burst_s * (1 + 1e-9):
            return full_s - now_s - burst_s
        self._full_s[payer] = full_s
        self._taken_s[payer, item] = now_s
        return 0.0

    def __len__(self) -> int:
        """What is remembered."""
        return len(self._full_s) + len(self._taken_s)

    def _tidy(self, now_s: float) -> None:
        while self._taken_s:
            oldest = next(iter(self._taken_s))
            if self._taken_s[oldest] > now_s - 60.0:
                break
            del self._taken_s[oldest]
        if len(self._full_s) >= self._tidy_at:
            self._full_s = {
                payer: full_s for payer, full_s in self._full_s.items() if full_s > now_s
            }
            self._tidy_at = 2 * len(self._full_s) + 64
