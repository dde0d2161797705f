"""When a dead worker is started again, and when that is given up. Pure: times are arguments."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
SETTLED_S = 60.0
"""A worker that was ready for so long has got over what its earlier deaths were about."""
MAX_UNREADY_DEATHS = 5
MAX_DEATHS_BY_SIGNAL = 20
"""A record may kill its worker before anybody has seen that ready: it does so five times, no more
(`streams/core/retry.py`). Some such records in a row are no reason to give the worker up."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It dies before it is ever ready; to start it again changes nothing."""


@dataclass(frozen=True, slots=True)
class StartAgain:
    """Start it again `delay_s` after its death."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Deaths:
    """A worker's deaths so far, as far as they still count.

    >>> deaths = Deaths()
    >>> for _ in range(3):
    ...     deaths = deaths.another(ready_for_s=None)
    >>> deaths.verdict
    StartAgain(delay_s=2.0)
    >>> deaths.another(ready_for_s=3600.0).verdict
    StartAgain(delay_s=0.5)
    """

    in_a_row: int = 0
    never_ready_in_a_row: int = 0
    killed_in_a_row: int = 0  # of those never ready, by a signal

    def another(self, ready_for_s: float | None, by_signal: bool = False) -> Deaths:
        """After one more death, of a life that was ready for so long (None: never)."""
        settled = ready_for_s is not None and ready_for_s >= SETTLED_S
        was_ready = ready_for_s is not None
        return Deaths(
            in_a_row=1 if settled else self.in_a_row + 1,
            never_ready_in_a_row=0 if was_ready else self.never_ready_in_a_row + (not by_signal),
            killed_in_a_row=0 if was_ready else self.killed_in_a_row + by_signal,
        )

    @property
    def num_unready(self) -> int:
        """How often in a row it died without ever having been ready."""
        return self.never_ready_in_a_row + self.killed_in_a_row

    @property
    def verdict(self) -> StartAgain | GiveUp:
        """What is to be done after the last of them: the delay doubles with each in a row."""
        if self.never_ready_in_a_row >= MAX_UNREADY_DEATHS:
            return GiveUp()
        if self.killed_in_a_row >= MAX_DEATHS_BY_SIGNAL:
            return GiveUp()
        doublings = min(max(self.in_a_row - 1, 0), 16)
        return StartAgain(min(FIRST_DELAY_S * 2**doublings, LONGEST_DELAY_S))
