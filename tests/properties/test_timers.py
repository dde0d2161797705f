"""Timers beside a model that is a table of all times, searched whole every time."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.timers import Timers

KEYS = st.integers(0, 40)
TIMES_S = st.integers(0, 9).map(float)  # few: equal ones are common


class TimersMachine(RuleBasedStateMachine):
    """Keys that get times, lose them, and come due."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: Timers[int] = Timers()
        self.rows: dict[int, tuple[float, int]] = {}  # when, and as the how manieth it was set
        self.num_set = 0

    def first(self) -> tuple[float, int] | None:
        found = min(((*row, key) for key, row in self.rows.items()), default=None)
        return None if found is None else (found[0], found[2])

    @rule(key=KEYS, at_s=TIMES_S)
    def set(self, key: int, at_s: float) -> None:
        self.timers.set(key, at_s)
        self.num_set += 1
        self.rows[key] = at_s, self.num_set

    @rule(key=KEYS, at_s=TIMES_S, times=st.integers(1, 200))
    def set_often(self, key: int, at_s: float, times: int) -> None:
        for _ in range(times):
            self.set(key, at_s)

    @rule(key=KEYS)
    def discard(self, key: int) -> None:
        self.timers.discard(key)
        self.rows.pop(key, None)

    @rule(now_s=TIMES_S)
    def pop_due(self, now_s: float) -> None:
        first = self.first()
        key = None if first is None or first[0] > now_s else first[1]
        assert self.timers.pop_due(now_s) == key
        if key is not None:
            del self.rows[key]

    @invariant()
    def is_alike(self) -> None:
        assert self.timers.first() == self.first()
        assert len(self.timers) == len(self.rows)
        assert self.timers.num_places <= 2 * len(self.rows) + 64


TestTimers = TimersMachine.TestCase


def test_what_comes_due_leaves_no_more_stale_places_than_are_allowed() -> None:
    state = TimersMachine()
    for key in range(40):
        state.set(key, at_s=0.0)
    for key in range(3):
        state.set_often(key, at_s=1.0, times=34)  # stale places, as many as are allowed just now
    for _ in range(37):
        state.is_alike()
        state.pop_due(now_s=0.0)
