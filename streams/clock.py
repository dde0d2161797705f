"""Wall-clock time that never goes back."""

from __future__ import annotations

import time


class AnchoredClock:
    """The time of day at start plus what a monotonic clock has counted since.

    Ages and deadlines share it, so a clock that is set while a worker runs neither expires jobs
    nor makes ages negative.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return time.monotonic() + self._offset_s
