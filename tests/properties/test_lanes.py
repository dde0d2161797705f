"""Lanes: nothing is lost or turned round, and no lane is served twice while another waits."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.lanes import Lanes

KEYS = st.integers(0, 3)
MAX_BYTES = 40


class LanesRules(RuleBasedStateMachine):
    """Beside a model of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes[int, int] = Lanes(MAX_BYTES)
        self.model: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.held: set[int] = set()
        self.full: set[int] = set()
        self.served: dict[int, set[int]] = defaultdict(set)  # by others, since a lane is ready
        self.last = 0

    def _ready(self) -> set[int]:
        return {key for key, items in self.model.items() if items and key not in self.held}

    def _share(self) -> float:
        return MAX_BYTES / max(1, sum(bool(items) for items in self.model.values()))

    @rule(key=KEYS, num_bytes=st.integers(1, 30))
    def add(self, key: int, num_bytes: int) -> None:
        self.last += 1
        self.model[key].append((self.last, num_bytes))
        is_over = sum(each for _, each in self.model[key]) >= self._share()
        assert self.lanes.add(key, self.last, num_bytes) == (is_over and key not in self.full)
        if is_over:
            self.full.add(key)

    @rule(must_go_back=st.booleans())
    def take(self, must_go_back: bool) -> None:
        found = self.lanes.take()
        if found is None:
            assert not self._ready()
            return
        key, item = found
        first = self.model[key].pop(0)
        assert item == first[0]
        assert key not in self.held
        if must_go_back:
            self.lanes.put_back(key, *first)
            self.model[key].insert(0, first)
        for other in self._ready() - {key}:
            assert key not in self.served[other], "it had its turn before another's came"
            self.served[other].add(key)
        self.served.pop(key, None)

    @rule(key=KEYS)
    def hold(self, key: int) -> None:
        self.lanes.hold([key])
        self.held.add(key)

    @rule(key=KEYS)
    def release(self, key: int) -> None:
        self.lanes.release([key])
        self.held.discard(key)

    @rule(key=KEYS)
    def forget(self, key: int) -> None:
        self.lanes.forget([key])
        self.model.pop(key, None)
        self.held.discard(key)
        self.full.discard(key)

    @rule()
    def drained(self) -> None:
        half = self._share() / 2
        expected = {key for key in self.full if sum(each for _, each in self.model[key]) <= half}
        assert set(self.lanes.drained()) == expected
        self.full -= expected

    @invariant()
    def says_what_is_there(self) -> None:
        assert self.lanes.is_ready == bool(self._ready())
        for key in list(self.served):
            if key not in self._ready():
                del self.served[key]


LanesRules.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLanes = LanesRules.TestCase
