"""Batches beside a model that is two lists of what waits and one of what is in the engine."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.core.batches import Batches
from streams.core.fair_queue import Charge

MAX_SIZE, MAX_AGE_S = 3, 1.0


class BatchesMachine(RuleBasedStateMachine):
    """Items are numbered as they come; suspects are never in company."""

    @initialize(max_batches=st.integers(1, 3))
    def begin(self, max_batches: int) -> None:
        self.max_batches, self.now_s = max_batches, 0.0
        self.batches: Batches[int] = Batches(MAX_SIZE, MAX_AGE_S, max_batches)
        self.waiting: dict[int, str] = {}  # item: key
        self.suspects: list[int] = []
        self.engine: dict[int, list[int]] = {}  # batch: items
        self.num_items = 0
        self.alone: int | None = None
        self.num_passed = 0  # batches, one after the other, while a suspect waits

    @rule(elapsed_s=st.sampled_from([0.25, 1.0]))
    def wait(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s

    @rule(key=st.sampled_from("ab"))
    def add(self, key: str) -> None:
        self.num_items += 1
        self.waiting[self.num_items] = key
        self.batches.add(key, self.num_items, Charge(), None, self.now_s)

    @rule()
    def add_suspect(self) -> None:
        self.num_items += 1
        self.suspects.append(self.num_items)
        self.batches.add_suspect(self.num_items)

    @rule()
    def take(self) -> None:
        batch = self.batches.take(self.now_s)
        if batch is None:
            is_empty = not self.engine
            assert not (is_empty and (self.waiting or self.suspects)), "an idle engine takes all"
            return
        assert len(self.engine) < self.max_batches
        assert self.alone is None, "in company of a suspect"
        assert batch.number not in self.engine
        if batch.is_alone:
            assert not self.engine, "a suspect in company"
            assert list(batch.items) == self.suspects[:1]
            self.alone = self.suspects.pop(0)
            self.num_passed = 0
        else:
            assert 1 <= len(batch.items) <= MAX_SIZE
            assert len({self.waiting.pop(each) for each in batch.items}) == 1
            self.num_passed += bool(self.suspects)
            assert self.num_passed <= 1, "a suspect waits for ever"
        self.engine[batch.number] = list(batch.items)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if not self.engine:
            return
        number = data.draw(st.sampled_from(sorted(self.engine)))
        item = self.engine[number].pop()
        if item == self.alone:
            self.alone = None
        if not self.engine[number]:
            del self.engine[number]
        self.batches.leave(number)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        items = [*self.waiting, *self.suspects]
        gone = data.draw(st.sets(st.sampled_from(items))) if items else set()
        assert set(self.batches.remove(gone)) == gone
        self.waiting = {item: key for item, key in self.waiting.items() if item not in gone}
        self.suspects = [each for each in self.suspects if each not in gone]
        self.num_passed = self.num_passed if self.suspects else 0

    @invariant()
    def agrees_with_the_model(self) -> None:
        if hasattr(self, "batches"):
            assert self.batches.num_waiting == len(self.waiting) + len(self.suspects)
            due_s = self.batches.next_due_s()
            assert (due_s is None) == (not self.waiting and not self.suspects)
            assert due_s == 0.0 or not self.suspects


TestBatches = BatchesMachine.TestCase
TestBatches.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
