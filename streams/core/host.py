"""Whether this worker can work at all, whatever the record: hold, or go on (DESIGN 4.6)."""

from __future__ import annotations

from typing import Literal

from streams.core.breaker import Breaker, Verdict


class Host:
    """Two ways to learn that the host is sick: the engine says so, or jobs fail in a row.

    While it holds, nothing starts, nothing is taken in and nothing is counted.

    >>> host = Host(Breaker(limit=5, first_wait_s=0.5, longest_wait_s=30.0), leave_after_s=60.0)
    >>> host.fell_sick("device_lost", is_local=True, now_s=0.0); host.is_holding
    True
    >>> host.must_leave(now_s=59.0), host.must_leave(now_s=60.0)
    (None, 'device_lost')
    >>> host.recovered(); host.is_holding, host.must_leave(now_s=99.0)
    (False, None)
    """

    def __init__(self, breaker: Breaker, leave_after_s: float) -> None:
        self.breaker = breaker
        self._leave_after_s = leave_after_s
        self._is_engine_sick = False
        # Of engine and probes, while only this host is known to be sick: why, and since when.
        self._complaints: dict[Literal["engine", "probe"], tuple[str, float]] = {}

    @property
    def is_holding(self) -> bool:
        """Whether no work is to be begun."""
        return self._is_engine_sick or self.breaker.is_open

    @property
    def breakers(self) -> dict[str, bool]:
        """Which is open: the one around the engine's calls (device, store), the one around jobs."""
        return {"engine": self._is_engine_sick, "jobs": self.breaker.is_open}

    def fell_sick(self, reason_code: str, is_local: bool, now_s: float) -> None:
        """The engine holds. `is_local` False: every worker would, so leaving helps nobody."""
        self._is_engine_sick = True
        self._note("engine", reason_code, is_local, now_s)

    def recovered(self) -> None:
        """The engine works again."""
        self._is_engine_sick = False
        self._complaints.pop("engine", None)

    def probed(self, is_ok: bool, is_local: bool, now_s: float) -> Verdict:
        """The breaker's probe was answered."""
        verdict = self.breaker.probed(is_ok, now_s)
        if verdict is Verdict.UNKNOWN:
            self._note("probe", "probe_failed", is_local, now_s)
        else:
            self._complaints.pop("probe", None)
        return verdict

    def must_leave(self, now_s: float) -> str | None:
        """Why the worker should leave its work to healthier hosts; None: it should not."""
        if not self._complaints:
            return None
        reason, since_s = min(self._complaints.values(), key=lambda each: each[1])
        return reason if now_s - since_s >= self._leave_after_s else None

    def _note(
        self, whose: Literal["engine", "probe"], reason_code: str, is_local: bool, now_s: float
    ) -> None:
        if not is_local:
            self._complaints.clear()
        else:
            self._complaints.setdefault(whose, (reason_code, now_s))
