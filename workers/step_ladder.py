"""One step of several jobs, whatever it takes: what becomes of a forward that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from enum import Enum, auto
from typing import Any

from streams.core.step_caps import StepCap
from streams.errors import FatalError, OutOfMemory, SettingsError
from workers.engine import log_failure, without_tensors
from workers.stage_work import SteppedWork


class _Rung(Enum):
    """Of the ladder that a forward climbs down for want of memory."""

    WHOLE = auto()
    FREED = auto()  # what was cached is given back
    SPLIT = auto()  # guidance goes through a forward of its own


class StepLadder:
    """On the engine thread, alone. The caps learn from what it meets."""

    def __init__(
        self,
        work: SteppedWork,
        cap_of: Callable[[Hashable], StepCap],
        unless_sick: Callable[[Exception], Exception],
    ) -> None:
        """`unless_sick`: `RowEngine._unless_sick`."""
        self._work, self._cap_of, self._unless_sick = work, cap_of, unless_sick

    def outcomes(self, key: Hashable, states: Sequence[Any]) -> Sequence[Any]:
        """The next state of each, or why it has none; every job is judged by itself.

        A forward that finds no memory is done again: with the cache freed, with guidance in a
        forward of its own, with half of the jobs, with each alone. One that fails otherwise, on a
        device that is well, in halves until the job is found whose row does it.

        Raises:
            SickHost: no job's failure; the states are as they were.
        """
        has_room = self._cap_of(key).has_room(self._num_rows(states))
        return self._tried(key, states, _Rung.WHOLE if has_room else _Rung.SPLIT)

    def _tried(self, key: Hashable, states: Sequence[Any], rung: _Rung) -> Sequence[Any]:
        """From that rung on; always outside of `except`: a traceback keeps a batch's tensors."""
        error: Exception
        began_s = time.monotonic()
        rows, cap = self._num_rows(states), self._cap_of(key)
        try:
            self._work.peak_bytes()  # of what failed, was split or was no step: it says nothing
            outcomes = self._work.step(states, is_split=rung is _Rung.SPLIT)
        except (FatalError, SettingsError):
            raise
        except Exception as caught:  # anything that a forward can raise is one of its rows' failure
            log_failure(caught)
            error = without_tensors(caught, rows)
        else:
            assert len(outcomes) == len(states), "a step answers every job"
            if rung is _Rung.SPLIT:
                cap.succeeded()
            else:
                cap.took(rows, time.monotonic() - began_s, self._work.peak_bytes())
            return outcomes
        error = self._unless_sick(error)
        if isinstance(error, OutOfMemory):
            self._work.free_memory()
            if rung is _Rung.WHOLE:
                return self._tried(key, states, _Rung.FREED)
            cap.found_no_memory(rows)
            if rung is _Rung.FREED and rows > len(states):
                return self._tried(key, states, _Rung.SPLIT)
            error = OutOfMemory(str(error), {**error.evidence, "cap-rows": str(cap.rows)})
        if len(states) == 1:
            return (error,)
        middle = len(states) // 2
        return [
            *self._tried(key, states[:middle], rung),
            *self._tried(key, states[middle:], rung),
        ]

    def _num_rows(self, states: Sequence[Any]) -> int:
        return sum(map(self._work.width, states))
