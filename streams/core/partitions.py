"""The partitions that are ours: what was delivered, what may be committed, who may deliver."""

from __future__ import annotations

from collections.abc import Iterable

from streams.core.events import CommitPoint, StartOffset, Ticket, TopicPartition
from streams.core.fair_queue import Charge
from streams.core.gate import Gate, Why
from streams.core.head_of_line import is_held_up
from streams.core.offset_map import BACK_PRESSURE_SPAN, encode_offset_map
from streams.core.offsets import OffsetTracker
from streams.core.tiers import OFF_PEAK
from streams.core.window import Window

Partitions = tuple[TopicPartition, ...]


class OurPartitions:
    """Bookkeeping for every assigned partition. Epochs count assignments and never repeat."""

    def __init__(
        self,
        window_high: int,
        window_low: int,
        per_tenant: int | None = None,
        look_ahead: int | None = None,
        map_span: int = BACK_PRESSURE_SPAN,
    ) -> None:
        self.trackers: dict[TopicPartition, OffsetTracker] = {}
        self.gate: Gate[TopicPartition] = Gate()
        self._window: Window[TopicPartition] = Window(
            window_high, window_low, per_tenant, look_ahead
        )
        self.held_up: set[TopicPartition] = set()  # by their heads, says the offset map
        self._map_span = map_span
        self._epoch = 0
        self._asked: dict[TopicPartition, CommitPoint] = {}  # by the last commit
        self._dirty: set[TopicPartition] = set()
        self._under_way: frozenset[TopicPartition] = frozenset()  # in the asynchronous commit

    # ---- coming and going

    def assign(self, starts: Iterable[tuple[TopicPartition, StartOffset]]) -> Partitions:
        """These are ours now; those that must be paused at once."""
        new = []
        for partition, start in starts:
            assert partition not in self.trackers, f"{partition} assigned twice"
            self._epoch += 1
            self.trackers[partition] = OffsetTracker(self._epoch, start.known)
            if start.is_committed:
                self._asked[partition] = CommitPoint(
                    start.known.offset, encode_offset_map(start.known)
                )
            else:  # so that lag is known, and scaling from zero works, before the first record
                self._dirty.add(partition)
            new.append(partition)
        return self.gate.add(new)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """These are another's now."""
        for partition in partitions:
            self.trackers.pop(partition, None)
            self.gate.remove(partition)
            self._window.forget(partition)
            self.held_up.discard(partition)
            self._asked.pop(partition, None)
            self._dirty.discard(partition)

    # ---- records

    def deliver(self, partition: TopicPartition, offset: int) -> Ticket | None:
        """A record was delivered; its ticket, None if there is nothing to do for it."""
        tracker = self.trackers.get(partition)
        if tracker is None:
            return None
        self._dirty.add(partition)  # a record that an earlier owner finished moves the commit
        if not tracker.deliver(offset):
            return None
        return Ticket(partition, offset, tracker.assignment_epoch)

    def enter(self, partition: TopicPartition, charge: Charge) -> Partitions:
        """It takes a place in the window; those to be paused."""
        if self._window.enter(partition, _counts_as(charge)):
            return self.gate.close(partition, Why.WINDOW)
        return ()

    def is_full_of_off_peak(self, partition: TopicPartition) -> bool:
        """Whether its window would be open, were it not for what is looked past."""
        return self._window.is_full_of_nobodys(partition)

    def finish(self, ticket: Ticket, charge: Charge) -> Partitions:
        """It is finished; those to be resumed."""
        partition, tracker = ticket.partition, self.trackers[ticket.partition]
        is_finished = tracker.complete(ticket.offset, ticket.assignment_epoch)
        assert is_finished, f"{ticket} finished twice"
        self._dirty.add(partition)
        if self._window.leave(partition, _counts_as(charge)):
            return self.gate.open(partition, Why.WINDOW)
        return ()

    def press_back(self, partition: TopicPartition) -> tuple[Partitions, Partitions]:
        """After a record finished: those to be paused and resumed because of the offset map."""
        tracker = self.trackers[partition]
        span = tracker.span
        if is_held_up(span, tracker.num_unfinished, self._map_span):
            self.held_up.add(partition)
        elif self.held_up:
            self.held_up.discard(partition)
        if span >= self._map_span:
            return self.gate.close(partition, Why.OFFSET_MAP), ()
        return (), self.gate.open(partition, Why.OFFSET_MAP)

    def touch(self, partition: TopicPartition) -> None:
        """What would be committed for it has changed."""
        self._dirty.add(partition)

    # ---- commits

    @property
    def is_committing(self) -> bool:
        """Whether an asynchronous commit awaits its answer."""
        return bool(self._under_way)

    @property
    def is_dirty(self) -> bool:
        """Whether anything may be worth a commit."""
        return bool(self._dirty)

    def next_commit(self) -> dict[TopicPartition, CommitPoint]:
        """What an asynchronous commit should say; empty: nothing new. It is under way then."""
        assert not self._under_way, "one asynchronous commit at a time"
        points = self._new_points(self._dirty)
        self._dirty.clear()
        self._asked.update(points)
        self._under_way = frozenset(points)
        return points

    def last_commit(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, CommitPoint]:
        """What is to be committed of partitions that go away; empty: nothing new."""
        going = [each for each in partitions if each in self.trackers]
        for partition in self._under_way.intersection(going):
            self._asked.pop(partition, None)  # perhaps it will be refused: say it again
        points = self._new_points(going)
        self._asked.update(points)
        self._dirty.difference_update(going)
        return points

    def committed(self, is_ok: bool) -> None:
        """The asynchronous commit was answered."""
        if not is_ok:
            again = self._under_way & self.trackers.keys()
            self._dirty |= again
            for partition in again:
                self._asked.pop(partition, None)
        self._under_way = frozenset()

    def _new_points(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, CommitPoint]:
        points = {}
        for partition in partitions:
            known = self.trackers[partition].offset_map()
            point = CommitPoint(known.offset, encode_offset_map(known))
            if self._asked.get(partition) != point:
                points[partition] = point
        return points


def _counts_as(charge: Charge) -> str | None:
    """Whose place in a window it takes; None: nobody's, for everybody else goes before it."""
    return None if charge.tier == OFF_PEAK else charge.tenant_id
