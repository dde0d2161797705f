"""The engine's calls that wait for a sick host; the loop is told of the first and the last."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Self

from streams.core.events import HostSick, HostWell
from streams.errors import SickHost

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


class Hold:
    """One call that is tried until it succeeds, or nobody waits for it any more.

    A context manager around the tries.
    """

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._has_waited = False
        self._wait_s = FIRST_WAIT_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_waited:
            self._holding.end(self)

    def sit_out(self, error: SickHost) -> None:
        """Wait before the next try, longer each time."""
        self._has_waited = True
        self._holding.begin(self, error)
        log.warning("holding", extra={"error": str(error), "next_try_s": self._wait_s})
        self._holding.stopping.wait(self._wait_s)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)


class Holding:
    """Thread-safe. Tells `HostSick` when the first call begins to wait, `HostWell` after the last.

    What is sick may change meanwhile: each call that begins to wait says so once.
    """

    def __init__(
        self,
        tell: Callable[[HostSick | HostWell], None],
        held: Callable[[str], None],
        stopping: threading.Event,
    ) -> None:
        """`held(reason_code)` is told of every wait; waits end early once `stopping` is set."""
        self._tell, self._held = tell, held
        self.stopping = stopping
        self._lock = threading.Lock()
        self._waiting: set[Hold] = set()

    def patiently(self) -> Hold:
        """Around the tries of one call."""
        return Hold(self)

    def begin(self, hold: Hold, error: SickHost) -> None:
        """A call must wait because of that."""
        self._held(error.reason_code)
        with self._lock:
            if hold not in self._waiting:
                self._waiting.add(hold)
                self._tell(HostSick(error.reason_code, str(error), error.is_local))

    def end(self, hold: Hold) -> None:
        """A call that had to wait does no longer."""
        with self._lock:
            self._waiting.remove(hold)
            if not self._waiting:
                self._tell(HostWell())
