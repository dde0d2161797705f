"""The brokers: topics of partitions of records, and a group for each stage."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

from streams.core.events import CommitPoint, Headers, Output, TopicPartition
from streams.core.offset_map import MAX_CHARS


class Entry(NamedTuple):
    """A record on the log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


class Log:
    """Partitions by name; every one exists. Offsets may have gaps."""

    def __init__(self) -> None:
        self.entries: dict[TopicPartition, list[Entry]] = {}
        self._offsets: dict[TopicPartition, list[int]] = {}

    def append(self, output: Output, now_s: float, gap: int) -> tuple[TopicPartition, Entry]:
        """Put a record at the end, `gap` offsets further than need be."""
        at = TopicPartition(output.topic, output.partition)
        timestamp_ms = int(now_s * 1000) if output.timestamp_ms is None else output.timestamp_ms
        entry = Entry(self.end(at) + gap, output.key, output.value, output.headers, timestamp_ms)
        self.entries.setdefault(at, []).append(entry)
        self._offsets.setdefault(at, []).append(entry.offset)
        return at, entry

    def end(self, at: TopicPartition) -> int:
        """One past the last record."""
        offsets = self._offsets.get(at)
        return offsets[-1] + 1 if offsets else 0

    def next_entry(self, at: TopicPartition, position: int) -> Entry | None:
        """The first record at `position` or beyond."""
        if position >= self.end(at):
            return None
        return self.entries[at][bisect_left(self._offsets[at], position)]


@dataclass(slots=True)
class Member:
    """A worker as its group knows it. Partitions by number: a stage's topics go together."""

    epoch: int
    owned: set[int] = field(default_factory=set)
    target: set[int] = field(default_factory=set)
    has_joined: bool = True  # classic: since the rebalance began


class Group:
    """The coordinator of one stage: who owns what, what is committed.

    Incremental (KIP-848): a partition moves once its owner has let go of it, the others notice
    nothing. Classic: everybody lets go of everything and joins again, then all are assigned.
    """

    def __init__(self, is_incremental: bool, num_partitions: int) -> None:
        self._is_incremental, self._num_partitions = is_incremental, num_partitions
        self.members: dict[str, Member] = {}
        self.committed: dict[TopicPartition, CommitPoint] = {}
        self.generation = 0
        self._rotation = 0
        self._is_preparing = False

    def join(self, name: str) -> None:
        """A new member; its partitions come later."""
        self.members[name] = Member(self.generation)
        self._rebalance()

    def leave(self, name: str) -> None:
        """It has left, or was silent for too long."""
        if self.members.pop(name, None) is not None:
            self._rebalance()

    def shuffle(self, by: int) -> None:
        """The assignor changes its mind."""
        self._rotation += by
        self._rebalance()

    def to_revoke(self, name: str) -> list[int] | None:
        """What the member must let go of, then `released`; None: nothing to be answered."""
        member = self.members[name]
        if self._is_incremental:
            return sorted(member.owned - member.target) or None
        if not self._is_preparing or member.has_joined:
            return None
        return sorted(member.owned)

    def released(self, name: str, numbers: list[int]) -> None:
        """The member has let go of these, its last commits included."""
        member = self.members[name]
        member.owned.difference_update(numbers)
        member.has_joined = True
        if self._is_incremental:
            member.epoch = self.generation
        else:
            self._complete_if_joined()

    def to_assign(self, name: str) -> list[int]:
        """What the member owns from now on beside what it has."""
        member = self.members[name]
        if self._is_preparing:
            return []
        taken = set().union(*(each.owned for each in self.members.values()))
        new = sorted(member.target - taken)
        if new:
            member.owned.update(new)
            member.epoch = self.generation
        return new

    def commit(self, name: str, epoch: int, points: dict[TopicPartition, CommitPoint]) -> bool:
        """Whether the coordinator takes it: not from who is no member, or was one long ago."""
        member = self.members.get(name)
        if member is None or member.epoch != epoch:
            return False
        if self._is_preparing and member.has_joined and not self._is_incremental:
            return False
        for partition, point in points.items():
            assert len(point.metadata) <= MAX_CHARS, "metadata is too long for the broker"
            assert partition.partition in member.owned, f"committed {partition}, another's"
        self.committed.update(points)
        return True

    def _rebalance(self) -> None:
        self.generation += 1
        names = sorted(self.members)
        for member in self.members.values():
            member.target = set()
        if not names:
            return
        names = names[self._rotation % len(names) :] + names[: self._rotation % len(names)]
        share, extra = divmod(self._num_partitions, len(names))
        first = 0
        for position, name in enumerate(names):
            size = share + (position < extra)
            self.members[name].target = set(range(first, first + size))
            first += size
        if not self._is_incremental:
            self._is_preparing = True
            for member in self.members.values():
                member.has_joined = not member.owned
            self._complete_if_joined()

    def _complete_if_joined(self) -> None:
        if self._is_preparing and all(each.has_joined for each in self.members.values()):
            self._is_preparing = False
            for member in self.members.values():
                member.epoch = self.generation
