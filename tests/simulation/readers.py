"""What a worker reads besides the topics of its group: wishes, and what the log tells of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.core.events import TopicPartition
from streams.core.shares import Follow, LedgerRead
from streams.engine import Task
from streams.runner import Dispatch
from workers.prompt.shares import LEDGER_TOPICS, RequestShares

if TYPE_CHECKING:
    from tests.simulation.worker import Process


class Controls:
    """Implements `streams.runner.Controls`: every wish, from the first one on."""

    def __init__(self, process: Process) -> None:
        self._world, self._stage = process.world, process.stage.name
        self._position = 0

    def poll(self, dispatch: Dispatch) -> None:
        """What has been wished since."""
        wishes = self._world.wishes
        while self._position < len(wishes):
            stage, event = wishes[self._position]
            self._position += 1
            if stage in (None, self._stage):
                dispatch(event)

    def close(self) -> None:
        """Nothing."""


class LedgerFeed:
    """Implements `streams.runner.Feed`: topics in no order, a few records at a time."""

    def __init__(self, process: Process, shares: RequestShares) -> None:
        self._world, self._seen = process.world, shares.seen
        self._positions: dict[TopicPartition, int] = {}
        self._unread: dict[int, dict[TopicPartition, int]] = {}  # ends, by number

    def follow(self, command: Follow) -> None:
        """All that the log ever told."""
        self._positions = {
            at: position
            for at, position in self._positions.items()
            if at.partition not in command.gone
        }
        for number in command.gone:
            self._unread.pop(number, None)
        for number in command.new:
            topics = [TopicPartition(topic, number) for topic in LEDGER_TOPICS]
            self._positions.update(dict.fromkeys(topics, 0))
            self._unread[number] = {at: self._world.log.end(at) for at in topics}

    def poll(self, dispatch: Dispatch) -> None:
        """What some of the partitions hold next; then which are read."""
        log, rng = self._world.log, self._world.rng
        for _ in range(rng.randint(1, 8)):
            ready = [at for at, position in self._positions.items() if position < log.end(at)]
            if not ready:
                break
            at = rng.choice(ready)
            entry = log.next_entry(at, self._positions[at])
            assert entry is not None
            self._positions[at] = entry.offset + 1
            task = Task(
                None, at.partition, entry.value, at.topic, entry.offset, entry.key, entry.headers,
                entry.timestamp_ms,
            )  # fmt: skip
            if (event := self._seen(task)) is not None:
                dispatch(event)
        for number, ends in list(self._unread.items()):
            if all(self._positions[at] >= end for at, end in ends.items()):
                del self._unread[number]
                dispatch(LedgerRead(number))

    def close(self) -> None:
        """Nothing."""
