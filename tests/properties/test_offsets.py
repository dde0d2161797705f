"""OffsetTracker beside a model that remembers every offset, over several owners of a partition."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.offset_map import Crashes, OffsetMap, decode_offset_map, encode_offset_map
from streams.core.offsets import OffsetTracker

CRASHES = st.builds(Crashes, st.integers(1, 5), st.integers(0, 3))


class TrackerMachine(RuleBasedStateMachine):
    """The model: what was delivered to this owner, what has finished ever, what crashed.

    A new owner knows what was committed, and begins to read there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 7
        self.start = 0
        self.delivered: list[int] = []
        self.finished: set[int] = set()
        self.crashes: dict[int, Crashes] = {}
        self.committed: list[int] = []
        self.tracker = OffsetTracker(self.epoch, OffsetMap(0))

    @rule()
    def another_owner_takes_over(self) -> None:
        known = self.tracker.offset_map()
        text = encode_offset_map(known)
        self.epoch += 1
        self.tracker = OffsetTracker(self.epoch, decode_offset_map(known.offset, text))
        self.start, self.delivered, self.committed = known.offset, [], []
        self.finished = {each for each in self.finished if each >= self.start}

    @rule()
    def somebody_resets_the_offset(self) -> None:
        self.epoch += 1
        self.start, self.delivered, self.committed = 0, [], []
        self.finished, self.crashes = set(), {}
        self.tracker = OffsetTracker(self.epoch, OffsetMap(0))

    def next_offset(self) -> int:
        return self.delivered[-1] + 1 if self.delivered else self.start

    @rule(gap=st.sampled_from([0, 0, 0, 1, 3]))
    def deliver(self, gap: int) -> None:
        offset = self.next_offset() + gap
        assert self.tracker.deliver(offset) == (offset not in self.finished)
        self.delivered.append(offset)

    @rule(back=st.integers(1, 4))
    def deliver_again(self, back: int) -> None:
        assert not self.tracker.deliver(self.next_offset() - back)

    @rule(offset=st.integers(0, 40))
    def complete(self, offset: int) -> None:
        is_open = offset in self.delivered and offset not in self.finished
        assert self.tracker.complete(offset, self.epoch) == is_open
        if is_open:
            self.finished.add(offset)
            self.crashes.pop(offset, None)

    @rule(data=st.data())
    def complete_one_of_the_open(self, data: st.DataObject) -> None:
        still_open = [each for each in self.delivered if each not in self.finished]
        if still_open:
            self.complete(data.draw(st.sampled_from(still_open)))

    @rule(data=st.data(), crashes=CRASHES)
    def crash_one_of_the_open(self, data: st.DataObject, crashes: Crashes) -> None:
        still_open = [each for each in self.delivered if each not in self.finished]
        if still_open:
            offset = data.draw(st.sampled_from(still_open))
            self.tracker.set_crashes(offset, crashes)
            self.crashes[offset] = crashes

    @rule(data=st.data(), other=st.sampled_from([-1, 1]))
    def complete_in_another_epoch(self, data: st.DataObject, other: int) -> None:
        offset = data.draw(st.sampled_from(self.delivered or [0]))
        assert not self.tracker.complete(offset, self.epoch + other)

    @invariant()
    def agrees_with_the_model(self) -> None:
        tracker = self.tracker
        still_open = [each for each in self.delivered if each not in self.finished]
        assert tracker.num_unfinished == len(still_open)
        assert tracker.next_offset == self.next_offset()
        assert tracker.commit_offset == min(still_open, default=self.next_offset())
        known = tracker.offset_map()
        assert known.offset == tracker.commit_offset
        beyond = {each for each in self.finished if each >= known.offset}
        assert set(known.finished()) == beyond, "no finished record beyond the commit is forgotten"
        crashes = {at: each for at, each in self.crashes.items() if at >= known.offset}
        assert known.crashes == crashes
        self.committed.append(tracker.commit_offset)
        assert self.committed == sorted(self.committed), "commit offsets go back"


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
