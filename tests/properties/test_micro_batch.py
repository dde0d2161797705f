"""MicroBatcher beside a model that is one list of (key, time, item) in order of arrival."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.core.fair_queue import Charge
from streams.core.micro_batch import MicroBatcher


class BatcherMachine(RuleBasedStateMachine):
    """Items are numbered as they come, so a smaller number is an older item."""

    @initialize(max_size=st.integers(1, 4), max_age_s=st.sampled_from([0.0, 1.0, 5.0]))
    def begin(self, max_size: int, max_age_s: float) -> None:
        self.max_size, self.max_age_s = max_size, max_age_s
        self.batcher: MicroBatcher[int] = MicroBatcher(max_size, max_age_s)
        self.waiting: list[tuple[str, float, int]] = []
        self.num_added = 0
        self.now_s = 0.0

    @rule(elapsed_s=st.sampled_from([0.25, 1.0, 3.0]))
    def wait(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s

    @rule(key=st.sampled_from("abc"))
    def add(self, key: str) -> None:
        self.batcher.add(key, self.num_added, Charge(), None, self.now_s)
        self.waiting.append((key, self.now_s, self.num_added))
        self.num_added += 1

    @rule(is_idle=st.booleans())
    def take(self, is_idle: bool) -> None:
        expected: tuple[int, ...] = ()
        oldest_s = None
        for key in sorted({key for key, _, _ in self.waiting}):
            queue = [(at_s, item) for each, at_s, item in self.waiting if each == key]
            head_s = queue[0][0]
            is_ready = is_idle or len(queue) >= self.max_size
            is_ready = is_ready or self.now_s - head_s >= self.max_age_s
            if is_ready and (oldest_s is None or head_s < oldest_s):
                oldest_s, expected = head_s, tuple(item for _, item in queue[: self.max_size])
        taken = self.batcher.take(self.now_s, is_idle)
        keys = {key for key, _, item in self.waiting if item in taken}
        assert len(keys) <= 1, "a batch holds one key"
        head = [at_s for _, at_s, item in self.waiting if item in taken][:1]
        assert (len(taken), head) == (len(expected), [oldest_s] if expected else []) or (
            head == [oldest_s]  # heads that came at one instant: either may go first
        )
        of_key = [item for key, _, item in self.waiting if key in keys][: self.max_size]
        assert list(taken) == of_key, "inside a key the order is that of arrival"
        self.waiting = [each for each in self.waiting if each[2] not in taken]

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        items = [item for _, _, item in self.waiting]
        gone = data.draw(st.sets(st.sampled_from(items))) if items else set()
        assert set(self.batcher.remove(gone)) == gone
        self.waiting = [each for each in self.waiting if each[2] not in gone]

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert len(self.batcher) == len(self.waiting)
        heads = [at_s for _, at_s, _ in self.waiting]
        expected = min(heads) + self.max_age_s if heads else None
        assert self.batcher.next_due_s() == expected


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
