"""OffsetTracker beside a model that remembers every offset."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.offset_map import (
    NO_CRASHES,
    Crashes,
    OffsetMap,
    decode_offset_map,
    encode_offset_map,
)
from streams.core.offsets import OffsetTracker

EPOCH = 7
COUNTS = st.builds(Crashes, st.integers(1, 3), st.integers(0, 1))


class TrackerMachine(RuleBasedStateMachine):
    """The model: where it began, all that was delivered, all that has finished, all counts.

    What it must tell is what is finished, here or by an earlier owner, beyond the lowest record
    that is not; an owner who begins with that must not get any of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: set[int] = set()  # offsets that hold a record; the others are gaps
        self.worked: set[int] = set()  # by any owner
        self.begin(OffsetMap(0))

    def begin(self, known: OffsetMap) -> None:
        self.start = known.offset
        self.before = set(known.finished())
        self.seen: list[int] = []  # delivered, whether or not there is something to do
        self.open: set[int] = set()
        self.counts = dict(known.crashes)
        self.committed: list[int] = []
        self.tracker = OffsetTracker(EPOCH, known)

    @rule(
        start=st.integers(0, 5),
        bits=st.integers(0, 2**12),
        counts=st.dictionaries(st.integers(0, 9), COUNTS, max_size=2),
    )
    def begin_anywhere(self, start: int, bits: int, counts: dict[int, Crashes]) -> None:
        counts = {start + distance: count for distance, count in counts.items()}
        known = OffsetMap(start, bits, counts)
        self.log, self.worked = set(), set(known.finished())
        self.begin(known)

    @rule()
    def hand_over(self) -> None:
        known = self.tracker.offset_map()
        self.begin(decode_offset_map(known.offset, encode_offset_map(known)))

    def next_offset(self) -> int:
        return self.seen[-1] + 1 if self.seen else self.start

    @rule(gap=st.sampled_from([0, 0, 0, 1, 3]))
    def deliver(self, gap: int) -> None:
        known = sorted(each for each in self.log if each >= self.next_offset())
        offset = known[0] if known else self.next_offset() + gap
        assert self.tracker.deliver(offset) == (offset not in self.before)
        self.log.add(offset)
        self.seen.append(offset)
        if offset not in self.before:
            assert offset not in self.worked, "worked twice"
            self.open.add(offset)

    @rule(back=st.integers(1, 4))
    def deliver_again(self, back: int) -> None:
        assert not self.tracker.deliver(self.next_offset() - back)

    @rule(offset=st.integers(0, 40))
    def complete(self, offset: int) -> None:
        assert self.tracker.complete(offset, EPOCH) == (offset in self.open)
        if offset in self.open:
            self.open.remove(offset)
            self.worked.add(offset)
            self.counts.pop(offset, None)

    @rule(data=st.data())
    def complete_one_of_the_open(self, data: st.DataObject) -> None:
        if self.open:
            self.complete(data.draw(st.sampled_from(sorted(self.open))))

    @rule(data=st.data(), assignment_epoch=st.sampled_from([EPOCH - 1, EPOCH + 1]))
    def complete_in_another_epoch(self, data: st.DataObject, assignment_epoch: int) -> None:
        offset = data.draw(st.sampled_from(self.seen or [0]))
        assert not self.tracker.complete(offset, assignment_epoch)

    @rule(data=st.data(), count=COUNTS | st.just(NO_CRASHES))
    def count_crashes(self, data: st.DataObject, count: Crashes) -> None:
        if self.open:
            offset = data.draw(st.sampled_from(sorted(self.open)))
            self.tracker.set_crashes(offset, count)
            self.counts[offset] = count

    @invariant()
    def agrees_with_the_model(self) -> None:
        tracker = self.tracker
        expected = min(self.open, default=self.next_offset())
        assert tracker.commit_offset == expected
        assert tracker.num_unfinished == len(self.open)
        assert tracker.next_offset == self.next_offset()
        self.committed.append(expected)
        assert self.committed == sorted(self.committed), "commit offsets go back"
        told = tracker.offset_map()
        finished = self.before | (set(self.seen) - self.open)
        assert told.offset == expected
        assert told.finished() == sorted(each for each in finished if each >= expected)
        reached = max((each for each in told.finished() if each < self.next_offset()), default=-1)
        assert tracker.span >= reached - expected
        assert tracker.span <= self.next_offset() - expected
        counts = {at: n for at, n in self.counts.items() if at >= expected and n != NO_CRASHES}
        assert dict(told.crashes) == counts
        assert all(tracker.crashes(each) == counts.get(each) for each in self.open)


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
