"""Gate beside a model that is one set of (partition, reason) pairs."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.gate import Gate, Why

KEYS = st.sampled_from(["p0", "p1", "p2"])
REASONS = st.sampled_from(list(Why))


class GateMachine(RuleBasedStateMachine):
    """What the gate says is obeyed; who is paused then must be whoever has a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate[str] = Gate()
        self.ours: set[str] = set()
        self.paused: set[str] = set()
        self.reasons: set[tuple[str, Why]] = set()
        self.for_all: set[Why] = set()

    def pause(self, keys: tuple[str, ...]) -> None:
        assert not self.paused & set(keys), "paused twice"
        self.paused |= set(keys)

    def resume(self, keys: tuple[str, ...]) -> None:
        assert self.paused >= set(keys), "resumed, and was not paused"
        self.paused -= set(keys)

    @rule(keys=st.sets(KEYS))
    def come(self, keys: set[str]) -> None:
        new = sorted(keys - self.ours)
        self.ours |= keys
        self.pause(self.gate.add(new))

    @rule(key=KEYS)
    def go(self, key: str) -> None:
        self.gate.remove(key)
        self.ours.discard(key)
        self.paused.discard(key)
        self.reasons = {each for each in self.reasons if each[0] != key}

    @rule(key=KEYS, why=REASONS)
    def close(self, key: str, why: Why) -> None:
        if key in self.ours:
            self.reasons.add((key, why))
            self.pause(self.gate.close(key, why))

    @rule(key=KEYS, why=REASONS)
    def open(self, key: str, why: Why) -> None:
        self.reasons.discard((key, why))
        self.resume(self.gate.open(key, why))

    @rule(why=REASONS)
    def close_all(self, why: Why) -> None:
        self.for_all.add(why)
        self.pause(self.gate.close_all(why))

    @rule(why=REASONS)
    def open_all(self, why: Why) -> None:
        self.for_all.discard(why)
        self.resume(self.gate.open_all(why))

    @invariant()
    def agrees_with_the_model(self) -> None:
        closed = self.ours if self.for_all else {key for key, _ in self.reasons}
        assert self.paused == closed
        assert {each for each in Why if self.gate.is_closed_by(each)} == self.for_all


TestGate = GateMachine.TestCase
TestGate.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
