"""Window beside a model that is one number and one flag a partition."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.core.window import Window

KEYS = ("p0", "p1", "p2")


class WindowMachine(RuleBasedStateMachine):
    """Partitions fill and empty; the model is a count and whether it was full since."""

    @initialize(high=st.integers(1, 5), data=st.data())
    def begin(self, high: int, data: st.DataObject) -> None:
        self.high, self.low = high, data.draw(st.integers(0, high - 1))
        self.window: Window[str] = Window(self.high, self.low)
        self.held = dict.fromkeys(KEYS, 0)
        self.full = dict.fromkeys(KEYS, False)

    @rule(key=st.sampled_from(KEYS))
    def enter(self, key: str) -> None:
        was_full = self.full[key]
        self.held[key] += 1
        self.full[key] = was_full or self.held[key] >= self.high
        assert self.window.enter(key) == (self.full[key] and not was_full)

    @rule(key=st.sampled_from(KEYS))
    def leave(self, key: str) -> None:
        if not self.held[key]:
            return
        was_full = self.full[key]
        self.held[key] -= 1
        self.full[key] = was_full and self.held[key] > self.low
        assert self.window.leave(key) == (was_full and not self.full[key])

    @rule(key=st.sampled_from(KEYS))
    def forget(self, key: str) -> None:
        self.window.forget(key)
        self.held[key], self.full[key] = 0, False

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert len(self.window) == sum(self.held.values())
        assert {key: self.window.is_full(key) for key in KEYS} == self.full


TestWindow = WindowMachine.TestCase
TestWindow.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
