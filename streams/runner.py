"""The one loop of every stage: poll, decide, perform.

    records, rebalances, acknowledgements, completions, controls -> StageState.handle -> commands

A record's offset is finished when the record for the next stage is acknowledged by the brokers;
the lowest unfinished offset of each partition is what gets committed, here by `Commit` and nowhere
else. All Kafka clients belong to this thread; the engine's threads never touch them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from streams.core.events import (
    Announce,
    Command,
    Commit,
    CommitPoint,
    DeadLetter,
    Drain,
    Drop,
    End,
    Event,
    Offload,
    Output,
    Park,
    Pause,
    Probe,
    Produce,
    Resume,
    Retry,
    Start,
    Tick,
    Ticket,
    TopicPartition,
)
from streams.core.shares import Follow
from streams.core.stage import StageState
from streams.engine import Engine

Dispatch = Callable[[Event], None]


class Source(Protocol):
    """Where records come from (streams/kafka/consumer.py)."""

    def poll(self, timeout_s: float, dispatch: Dispatch) -> None:
        """Hand on records, rebalances and answered commits as events, for at most that long."""

    def commit(self, points: Mapping[TopicPartition, CommitPoint], must_finish: bool) -> None:
        """Commit; returns when it is done if `must_finish`, else at once, `Committed` following."""

    def pause(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Deliver nothing more of these."""

    def resume(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Deliver records of these again."""

    def close(self) -> None:
        """Leave the group."""


class Sink(Protocol):
    """Where records go (streams/kafka/producer.py)."""

    def produce(self, ticket: Ticket, outputs: tuple[Output, ...]) -> None:
        """Send; `Acknowledged` follows when every one is on the log, else `NotAcknowledged`."""

    def announce(self, output: Output) -> None:
        """Send, and forget about it."""

    def poll(self, dispatch: Dispatch) -> None:
        """Hand on answers as events."""

    def close(self) -> None:
        """Flush what is under way, for a bounded time."""


class Letters(Protocol):
    """How records that could not be worked are written (streams/letters.py)."""

    def retry(self, command: Retry) -> Output:
        """The copy to be tried later."""

    def dead(self, command: DeadLetter) -> Output:
        """The dead letter."""

    def parked(self, command: Park) -> Output:
        """The copy that waits for room."""

    def retried(self, command: Retry) -> Output | None:
        """The hint that a job is to be tried again; None where it cannot be written now."""


class Controls(Protocol):
    """What operators and clients wish (streams/kafka/controls.py)."""

    def poll(self, dispatch: Dispatch) -> None:
        """Hand on new wishes as events."""

    def close(self) -> None:
        """Stop reading."""


class Feed(Protocol):
    """What the log tells of runs, for who lets requests in (streams/kafka/ledger_feed.py)."""

    def follow(self, command: Follow) -> None:
        """Tell of these partitions from now on, old runs first, and no longer of those."""

    def poll(self, dispatch: Dispatch) -> None:
        """Hand on what there is as events."""

    def close(self) -> None:
        """Stop reading."""


class Clock(Protocol):
    """Time."""

    def now_s(self) -> float:
        """Seconds since the epoch, never going back."""


class Watch(Protocol):
    """Who notices what the loop does: metrics, health, log (streams/monitor/)."""

    def turned(self, state: StageState, now_s: float) -> None:
        """The loop has turned once."""

    def event(self, event: Event) -> None:
        """About to be handled."""

    def command(self, command: Command) -> None:
        """About to be performed."""


class StageRunner:
    """Runs one worker of one stage until it has drained."""

    def __init__(
        self,
        state: StageState,
        source: Source,
        sink: Sink,
        engine: Engine,
        controls: Controls,
        clock: Clock,
        watch: Watch,
        letters: Letters,
        feed: Feed | None = None,
    ) -> None:
        """`feed`: of the stage that lets requests in, where there are quotas."""
        self.state, self.feed = state, feed
        self.source, self.sink, self.engine, self.controls = source, sink, engine, controls
        self.clock, self.watch, self.letters = clock, watch, letters
        self._must_drain = False

    def drain(self) -> None:
        """Stop soon and well; safe to call from a signal handler."""
        self._must_drain = True

    def run(self) -> None:
        """Turn until drained. Whatever is raised here is a bug or a dead host: the process ends."""
        try:
            while not self.state.stopped:
                self.turn()
        finally:
            self.engine.stop()
            self.sink.close()
            self.controls.close()
            if self.feed is not None:
                self.feed.close()
            self.source.close()

    def turn(self) -> None:
        """One turn of the loop."""
        now_s = self.clock.now_s()
        self.watch.turned(self.state, now_s)
        if self._must_drain and not self.state.is_draining:
            self.dispatch(Drain())
        self.source.poll(self.state.poll_timeout_s(now_s), self.dispatch)
        self.controls.poll(self.dispatch)
        if self.feed is not None:
            self.feed.poll(self.dispatch)
        for completion in self.engine.completions():  # what the engine has finished since
            self.dispatch(completion)
        self.sink.poll(self.dispatch)
        self.dispatch(Tick())  # flush a batch, start work, commit what is due

    def dispatch(self, event: Event) -> None:
        """Let the state decide, and do what it says, before this returns.

        `Revoked` arrives inside `poll`: its commit must be done when this returns, because
        afterwards the partition belongs to someone else.
        """
        self.watch.event(event)
        for command in self.state.handle(event, self.clock.now_s()):
            self.perform(command)

    def perform(self, command: Command) -> None:
        """Carry out one command at its edge."""
        self.watch.command(command)
        match command:
            case Start():
                self.engine.start(command)
            case Produce(ticket, outputs):
                self.sink.produce(ticket, outputs)
            case Commit(points, must_finish):
                self.source.commit(points, must_finish)
            case Pause(partitions):
                self.source.pause(partitions)
            case Resume(partitions):
                self.source.resume(partitions)
            case Announce(output):
                self.sink.announce(output)
            case Retry(ticket):
                self.sink.produce(ticket, (self.letters.retry(command),))
                if (hint := self.letters.retried(command)) is not None:
                    self.sink.announce(hint)
            case DeadLetter(ticket):
                self.sink.produce(ticket, (self.letters.dead(command),))
            case Park(ticket):
                self.sink.produce(ticket, (self.letters.parked(command),))
            case Follow():
                assert self.feed is not None, "or there were no quotas"
                self.feed.follow(command)
            case Offload():
                self.engine.offload(command)
            case End():
                self.engine.end(command)
            case Drop():
                self.engine.drop(command)
            case Probe():
                self.engine.probe()
