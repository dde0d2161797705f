"""OurPartitions beside a model: a broker that takes commits, or refuses them, and a log."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.events import CommitPoint, StartOffset, Ticket, TopicPartition
from streams.core.fair_queue import Charge
from streams.core.offset_map import OffsetMap, decode_offset_map
from streams.core.partitions import OurPartitions

PARTITIONS = [TopicPartition("t", number) for number in range(3)]
PARTITION = st.sampled_from(PARTITIONS)
HIGH, LOW = 3, 1
ACME = Charge("pro", "acme", 1.0)


class PartitionsMachine(RuleBasedStateMachine):
    """Every record is finished once in all, whatever comes, goes and is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = OurPartitions(HIGH, LOW)
        self.committed: dict[TopicPartition, CommitPoint] = {}
        self.under_way: dict[TopicPartition, CommitPoint] = {}
        self.mine: dict[TopicPartition, int] = {}  # partition: next offset to read
        self.open: set[Ticket] = set()
        self.done: set[tuple[TopicPartition, int]] = set()  # finished and not handed back
        self.paused: set[TopicPartition] = set()

    @rule(partition=PARTITION)
    def come(self, partition: TopicPartition) -> None:
        if partition in self.mine:
            return
        known = decode_offset_map(*self.committed.get(partition, CommitPoint(0)))
        start = StartOffset(known, partition in self.committed)
        assert self.ours.assign([(partition, start)]) == ()
        self.mine[partition] = known.offset
        below = {(partition, each) for each in range(known.offset)}
        told = below | {(partition, each) for each in known.finished()}
        self.done = {each for each in self.done if each[0] != partition} | told

    @rule(partition=PARTITION, is_lost=st.booleans())
    def go(self, partition: TopicPartition, is_lost: bool) -> None:
        if not is_lost:
            points = self.ours.last_commit([partition])
            self.committed |= points
            if partition in self.mine:
                known = decode_offset_map(*self.committed[partition])
                assert known == self.expected(partition), "not handed back"
        self.ours.forget([partition])
        self.mine.pop(partition, None)
        self.under_way.pop(partition, None)  # a broker refuses it now
        self.paused.discard(partition)
        self.open = {each for each in self.open if each.partition != partition}

    @rule(partition=PARTITION)
    def read(self, partition: TopicPartition) -> None:
        if partition not in self.mine:
            assert self.ours.deliver(partition, 0) is None
        elif partition not in self.paused:
            offset = self.mine[partition]
            self.mine[partition] += 1
            ticket = self.ours.deliver(partition, offset)
            assert (ticket is None) == ((partition, offset) in self.done)
            if ticket is not None:
                self.open.add(ticket)
                self.paused.update(self.ours.enter(partition, ACME))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.open:
            ticket = data.draw(st.sampled_from(sorted(self.open)))
            self.open.remove(ticket)
            self.done.add((ticket.partition, ticket.offset))
            self.paused.difference_update(self.ours.finish(ticket, ACME))
            assert self.ours.press_back(ticket.partition) == ((), ())

    @rule()
    def commit(self) -> None:
        if not self.ours.is_committing:
            self.under_way = self.ours.next_commit()
            assert not self.ours.is_dirty

    @rule(is_ok=st.booleans())
    def the_broker_answers(self, is_ok: bool) -> None:
        if self.ours.is_committing:
            if is_ok:
                self.committed |= self.under_way
            self.under_way = {}
            self.ours.committed(is_ok)

    def expected(self, partition: TopicPartition) -> OffsetMap:
        """What is done and not, as far as it can be told."""
        still_open = [each.offset for each in self.open if each.partition == partition]
        offset = min(still_open, default=self.mine[partition])
        bits = sum(1 << at - offset for p, at in self.done if p == partition and at >= offset)
        return OffsetMap(offset, bits)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.ours.trackers.keys() == self.mine.keys()
        for partition in self.mine:
            assert self.ours.trackers[partition].offset_map() == self.expected(partition)
            held = sum(each.partition == partition for each in self.open)
            assert held < HIGH or partition in self.paused
            assert held > LOW or partition not in self.paused


TestPartitions = PartitionsMachine.TestCase
TestPartitions.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
