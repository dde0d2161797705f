"""Window beside a model that is one number and one flag a partition."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.core.window import Window

KEYS = ("p0", "p1", "p2")
TENANTS = ("acme", "noisy")
NOBODY = None


class WindowMachine(RuleBasedStateMachine):
    """Partitions fill and empty; the model is the tenants held, and whether it was full since."""

    @initialize(high=st.integers(1, 5), data=st.data())
    def begin(self, high: int, data: st.DataObject) -> None:
        self.high, self.low = high, data.draw(st.integers(0, high - 1))
        self.per_tenant = data.draw(st.integers(1, high))
        self.most = data.draw(st.integers(high, 2 * high))
        self.window: Window[str] = Window(self.high, self.low, self.per_tenant, self.most)
        self.held: dict[str, list[str | None]] = {key: [] for key in KEYS}
        self.full = dict.fromkeys(KEYS, False)

    def num_counted(self, key: str) -> int:
        return sum(min(self.held[key].count(each), self.per_tenant) for each in TENANTS)

    @rule(key=st.sampled_from(KEYS), tenant=st.sampled_from((*TENANTS, NOBODY)))
    def enter(self, key: str, tenant: str | None) -> None:
        was_full = self.full[key]
        self.held[key].append(tenant)
        is_over = self.num_counted(key) >= self.high or len(self.held[key]) >= self.most
        self.full[key] = was_full or is_over
        assert self.window.enter(key, tenant) == (self.full[key] and not was_full)

    @rule(key=st.sampled_from(KEYS), data=st.data())
    def leave(self, key: str, data: st.DataObject) -> None:
        if not self.held[key]:
            return
        was_full = self.full[key]
        tenant = data.draw(st.sampled_from(self.held[key]))
        self.held[key].remove(tenant)
        has_room = len(self.held[key]) <= self.most - (self.high - self.low)
        self.full[key] = was_full and not (self.num_counted(key) <= self.low and has_room)
        assert self.window.leave(key, tenant) == (was_full and not self.full[key])

    @rule(key=st.sampled_from(KEYS))
    def forget(self, key: str) -> None:
        self.window.forget(key)
        self.held[key], self.full[key] = [], False

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert len(self.window) == sum(map(len, self.held.values()))
        assert not any(self.full[key] and not self.held[key] for key in KEYS), "full for ever"
        assert {key: self.window.is_full(key) for key in KEYS} == self.full
        for key in KEYS:
            would_open = self.full[key] and self.num_counted(key) <= self.low
            assert self.window.is_full_of_nobodys(key) == would_open


TestWindow = WindowMachine.TestCase
TestWindow.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
