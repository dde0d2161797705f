"""OffsetTracker beside a model that remembers every offset."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.offsets import OffsetTracker

EPOCH = 7


class TrackerMachine(RuleBasedStateMachine):
    """The model: the start, all that was delivered, all that has finished."""

    def __init__(self) -> None:
        super().__init__()
        self.start: int | None = None
        self.delivered: list[int] = []
        self.finished: set[int] = set()
        self.committed: list[int] = []
        self.tracker = OffsetTracker(EPOCH)

    @rule(start=st.none() | st.integers(0, 5))
    def begin_anew(self, start: int | None) -> None:
        self.start, self.delivered, self.finished, self.committed = start, [], set(), []
        self.tracker = OffsetTracker(EPOCH, start)

    def next_offset(self) -> int:
        if self.delivered:
            return self.delivered[-1] + 1
        return -1 if self.start is None else self.start

    @rule(gap=st.integers(0, 3))
    def deliver(self, gap: int) -> None:
        offset = max(self.next_offset(), 0) + gap
        assert self.tracker.deliver(offset)
        self.delivered.append(offset)

    @rule(back=st.integers(1, 4))
    def deliver_again(self, back: int) -> None:
        offset = self.next_offset() - back
        if offset >= 0:
            assert not self.tracker.deliver(offset)

    @rule(offset=st.integers(0, 40))
    def complete(self, offset: int) -> None:
        is_open = offset in self.delivered and offset not in self.finished
        assert self.tracker.complete(offset, EPOCH) == is_open
        if is_open:
            self.finished.add(offset)

    @rule(data=st.data())
    def complete_one_of_the_open(self, data: st.DataObject) -> None:
        still_open = [each for each in self.delivered if each not in self.finished]
        if still_open:
            self.complete(data.draw(st.sampled_from(still_open)))

    @rule(data=st.data(), assignment_epoch=st.sampled_from([EPOCH - 1, EPOCH + 1]))
    def complete_in_another_epoch(self, data: st.DataObject, assignment_epoch: int) -> None:
        offset = data.draw(st.sampled_from(self.delivered or [0]))
        assert not self.tracker.complete(offset, assignment_epoch)

    @invariant()
    def agrees_with_the_model(self) -> None:
        still_open = [each for each in self.delivered if each not in self.finished]
        assert self.tracker.num_unfinished == len(still_open)
        assert self.tracker.next_offset == self.next_offset()
        if not self.delivered:
            assert self.tracker.commit_offset == self.start
            return
        expected = min(still_open, default=self.next_offset())
        assert self.tracker.commit_offset == expected
        self.committed.append(expected)
        assert self.committed == sorted(self.committed), "commit offsets go back"


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
