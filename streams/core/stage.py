"""The state of one worker of one stage: events in, commands out; no I/O, no clock, no threads.

The life of a record, from `Delivered` to a finished offset::

    waiting -> running -> producing -> finished
                  |            ^
                  |  Emitted   |  (the next record must be acknowledged before the offset counts)
                  |
                  +-- Failed -> dead-lettering -> ending -> producing -> finished
    cancelled, expired, rejected: ---------------^

What the group may commit is the lowest unfinished offset of each partition, at most once in
`commit_interval_s`, one asynchronous commit at a time; before a partition goes away, at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from streams.core.events import (
    Acknowledged,
    Announce,
    Announced,
    Assigned,
    Command,
    Commit,
    Committed,
    DeadLetter,
    Delivered,
    Drain,
    Drop,
    Emitted,
    End,
    Ended,
    Ending,
    Event,
    Failed,
    Fate,
    Fault,
    JobCancelled,
    JobDeadline,
    Lost,
    NotAcknowledged,
    NotEnded,
    Output,
    Pause,
    Produce,
    Resume,
    Revoked,
    StagePaused,
    Start,
    StartOffset,
    Tick,
    Ticket,
    TopicPartition,
)
from streams.core.flight import Flight, Phase, RunOfJob
from streams.core.micro_batch import MicroBatcher
from streams.core.offsets import OffsetTracker
from streams.core.window import Window

CANCELLED = Ending("cancelled", "cancelled", "cancelled by request")
EXPIRED = Ending("expired", "deadline_passed", "the deadline passed before the work was done")


@dataclass(frozen=True, slots=True)
class StageLimits:
    """How much a worker holds and when it acts. Times in seconds, sizes in records."""

    window_high: int = 64
    window_low: int = 32
    batch_max: int = 4
    batch_age_s: float = 0.2
    max_batches: int = 2  # one computing, one fetching its inputs
    commit_interval_s: float = 1.0
    drain_s: float = 20.0
    poll_s: float = 0.1
    busy_poll_s: float = 0.01  # while answers of engine or producer are due


class StageState:
    """Decides; performs nothing. `handle` is the only way in.

    Invariants, checked by the property tests after every event: a commit offset never passes an
    unfinished record and never goes back within an assignment; results of an older assignment
    change nothing; no partition holds more records than its window.
    """

    def __init__(self, limits: StageLimits) -> None:
        self.limits = limits
        self.stopped = False
        self.flights: dict[Ticket, Flight] = {}
        self.trackers: dict[TopicPartition, OffsetTracker] = {}
        self._batcher: MicroBatcher[Ticket] = MicroBatcher(limits.batch_max, limits.batch_age_s)
        self._window: Window[TopicPartition] = Window(limits.window_high, limits.window_low)
        self._epoch = 0
        self._batches: Counter[int] = Counter()  # records still running, by batch
        self._last_batch = 0
        self._working: dict[RunOfJob, Ticket] = {}
        self._behind: dict[RunOfJob, list[Ticket]] = {}  # copies that wait for the one working
        self._cancelled: set[RunOfJob] = set()
        self._deadlines_s: dict[RunOfJob, float] = {}
        self._is_paused = False
        self._drain_until_s: float | None = None
        self._committed: dict[TopicPartition, int] = {}
        self._dirty: set[TopicPartition] = set()
        self._is_committing = False
        self._next_commit_s = 0.0
        self._commands: list[Command] = []

    # ---- what the loop asks

    @property
    def is_draining(self) -> bool:
        """Whether no new work is begun, for good."""
        return self._drain_until_s is not None

    @property
    def num_waiting(self) -> int:
        """Records that wait for a batch."""
        return len(self._batcher)

    def poll_timeout_s(self, now_s: float) -> float:
        """How long the loop may wait for records without being late for anything else."""
        if self._is_committing or self.is_draining or len(self.flights) > len(self._batcher):
            return self.limits.busy_poll_s
        due_s = self._batcher.next_due_s()
        if due_s is None or self._is_paused:
            return self.limits.poll_s
        return min(self.limits.poll_s, max(0.0, due_s - now_s))

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take note of an event; what is to be done about it, in order."""
        match event:
            case Delivered():
                self._on_delivered(event, now_s)
            case Emitted(ticket, outputs):
                if flight := self._flight(ticket, Phase.RUNNING):
                    self._produce(flight, outputs)
            case Acknowledged(ticket):
                self._on_acknowledged(ticket, now_s)
            case Tick():
                self._on_tick(now_s)
            case Announced(output):
                self._commands.append(Announce(output))
            case Committed(offsets, is_ok):
                self._is_committing = False
                if not is_ok:
                    for partition in offsets.keys() & self.trackers.keys():
                        self._committed.pop(partition, None)
                        self._dirty.add(partition)
            case Failed(ticket, fault):
                if flight := self._flight(ticket, Phase.RUNNING):
                    # Every fate ends in the dead-letter topic here: holds are sat out inside the
                    # engine, and nothing is tried later until retry topics have readers.
                    self._dead_letter(flight, fault)
            case Ended(ticket, outputs):
                if flight := self._flight(ticket, Phase.ENDING):
                    self._produce(flight, outputs)
            case NotEnded(ticket, fault):
                self._on_not_ended(ticket, fault, now_s)
            case NotAcknowledged():
                self._on_not_acknowledged(event)
            case Assigned(partitions):
                self._on_assigned(partitions.items())
            case Revoked(partitions):
                self._commit(partitions, must_finish=True)
                self._forget(partitions, now_s)
            case Lost(partitions):
                self._forget(partitions, now_s)
            case JobCancelled(job_id, run):
                self._on_cancelled((job_id, run))
            case JobDeadline(job_id, run, deadline_s):
                self._deadlines_s[job_id, run] = deadline_s
            case StagePaused(is_paused):
                self._on_paused(is_paused)
            case Drain():  # pragma: no branch - there is no other event
                self._on_drain(now_s)
        commands, self._commands = self._commands, []
        return commands

    # ---- partitions

    def _on_assigned(self, partitions: Iterable[tuple[TopicPartition, StartOffset]]) -> None:
        held = []
        for partition, start in partitions:
            assert partition not in self.trackers, f"{partition} assigned twice"
            self._epoch += 1
            self.trackers[partition] = OffsetTracker(self._epoch, start.offset)
            if start.is_committed:
                self._committed[partition] = start.offset
            else:  # so that lag is known, and scaling from zero works, before the first record
                self._dirty.add(partition)
            held.append(partition)
        if held and (self._is_paused or self.is_draining):
            self._commands.append(Pause(tuple(held)))

    def _forget(self, partitions: Iterable[TopicPartition], now_s: float) -> None:
        gone = set(partitions)
        self._batcher.drop(lambda ticket: ticket.partition in gone)
        dropped = [flight for ticket, flight in self.flights.items() if ticket.partition in gone]
        for flight in dropped:
            del self.flights[flight.ticket]
            self._leave_batch(flight)
        if dropped:
            self._commands.append(Drop(tuple(flight.ticket for flight in dropped)))
        # Copies of one request may lie in several partitions of `requests`, and some of them stay.
        for flight in dropped:
            self._let_next_copy(flight.run_of_job, now_s)
        for partition in gone:
            self.trackers.pop(partition, None)
            self._window.forget(partition)
            self._committed.pop(partition, None)
            self._dirty.discard(partition)

    # ---- the life of a record

    def _on_delivered(self, event: Delivered, now_s: float) -> None:
        tracker = self.trackers.get(event.partition)
        if tracker is None or self.is_draining or not tracker.deliver(event.offset):
            return  # not ours (any more), or known already
        ticket = Ticket(event.partition, event.offset, tracker.assignment_epoch)
        flight = self.flights[ticket] = Flight(ticket, event.work, event.verdict)
        if self._window.enter(event.partition):
            self._commands.append(Pause((event.partition,)))
        run_of_job = flight.run_of_job
        if run_of_job is not None:
            if run_of_job in self._working:
                self._behind.setdefault(run_of_job, []).append(ticket)
                return
            self._working[run_of_job] = ticket
        self._admit(flight, now_s)

    def _admit(self, flight: Flight, now_s: float) -> None:
        if isinstance(flight.verdict, Fault):
            self._dead_letter(flight, flight.verdict)
            return
        run_of_job = flight.run_of_job
        assert run_of_job is not None, "a record without a job has a fault"
        deadline_s = self._deadlines_s.get(run_of_job, flight.work.deadline_s)
        if flight.verdict is not None:
            self._end(flight, flight.verdict)
        elif run_of_job in self._cancelled:
            self._end(flight, CANCELLED)
        elif deadline_s is not None and deadline_s <= now_s:
            self._end(flight, EXPIRED)
        else:
            flight.phase = Phase.WAITING
            self._batcher.add(flight.work.batch_key, flight.ticket, now_s)

    def _flight(self, ticket: Ticket, phase: Phase) -> Flight | None:
        """The flight of that ticket if it still is in that phase; None: the answer is stale."""
        flight = self.flights.get(ticket)
        return flight if flight is not None and flight.phase is phase else None

    def _produce(self, flight: Flight, outputs: tuple[Output, ...]) -> None:
        self._leave_batch(flight)
        flight.phase, flight.outputs = Phase.PRODUCING, outputs
        self._commands.append(Produce(flight.ticket, outputs))

    def _dead_letter(self, flight: Flight, fault: Fault) -> None:
        self._leave_batch(flight)
        flight.phase, flight.fault = Phase.DEAD_LETTERING, fault
        self._commands.append(DeadLetter(flight.ticket, flight.work, fault))

    def _end(self, flight: Flight, ending: Ending) -> None:
        self._leave_batch(flight)
        flight.phase = Phase.ENDING
        self._commands.append(End(flight.ticket, flight.work, ending))

    def _on_not_ended(self, ticket: Ticket, fault: Fault, now_s: float) -> None:
        flight = self._flight(ticket, Phase.ENDING)
        if flight is None:
            return
        if flight.fault is None:
            self._dead_letter(flight, replace(fault, ends_job=False))
        else:  # it is dead-lettered already, and its run cannot be ended: the evidence stands
            self._finish(flight, now_s)

    def _on_acknowledged(self, ticket: Ticket, now_s: float) -> None:
        flight = self.flights.get(ticket)
        if flight is None:
            return
        match flight.phase, flight.fault:
            case Phase.PRODUCING, _:
                self._finish(flight, now_s)
            case Phase.DEAD_LETTERING, Fault(ends_job=False):
                self._finish(flight, now_s)
            case Phase.DEAD_LETTERING, Fault(_, reason_code, message) if flight.run_of_job:
                self._end(flight, Ending("failed", reason_code, message))
            case Phase.DEAD_LETTERING, _:
                self._finish(flight, now_s)

    def _on_not_acknowledged(self, event: NotAcknowledged) -> None:
        """Hold: ask again for as long as it takes; what can never be written is dead-lettered."""
        flight = self.flights.get(event.ticket)
        if flight is None:
            return
        match flight.phase, flight.fault:
            case Phase.PRODUCING, None if event.is_permanent:
                fault = Fault(Fate.DEAD_LETTER, "record_too_large", event.reason)
                self._dead_letter(flight, fault)
            case Phase.PRODUCING, _:
                self._commands.append(Produce(flight.ticket, flight.outputs))
            case Phase.DEAD_LETTERING, Fault() as fault:
                self._commands.append(DeadLetter(flight.ticket, flight.work, fault))

    def _finish(self, flight: Flight, now_s: float) -> None:
        ticket = flight.ticket
        del self.flights[ticket]
        is_finished = self.trackers[ticket.partition].complete(
            ticket.offset, ticket.assignment_epoch
        )
        assert is_finished, f"{ticket} finished twice"
        self._dirty.add(ticket.partition)
        if self._window.leave(ticket.partition) and not (self._is_paused or self.is_draining):
            self._commands.append(Resume((ticket.partition,)))
        self._let_next_copy(flight.run_of_job, now_s)

    def _let_next_copy(self, run_of_job: RunOfJob | None, now_s: float) -> None:
        """Once the flight that worked on this run is over, the next waiting copy begins."""
        if run_of_job is None:
            return
        waiting = [each for each in self._behind.pop(run_of_job, ()) if each in self.flights]
        if self._working.get(run_of_job) not in self.flights:
            self._working.pop(run_of_job, None)
            if waiting:
                following = self.flights[waiting.pop(0)]
                self._working[run_of_job] = following.ticket
                self._admit(following, now_s)
        if waiting:
            self._behind[run_of_job] = waiting

    def _on_cancelled(self, run_of_job: RunOfJob) -> None:
        self._cancelled.add(run_of_job)
        ticket = self._working.get(run_of_job)
        flight = None if ticket is None else self.flights[ticket]
        if flight is None or flight.phase not in (Phase.WAITING, Phase.RUNNING):
            return
        if flight.phase is Phase.WAITING:
            self._batcher.drop(lambda each: each == ticket)
        else:
            self._commands.append(Drop((flight.ticket,)))
        self._end(flight, CANCELLED)

    # ---- batches, commits, controls

    def _leave_batch(self, flight: Flight) -> None:
        if flight.phase is not Phase.RUNNING:
            return
        self._batches[flight.batch] -= 1
        if not self._batches[flight.batch]:
            del self._batches[flight.batch]

    def _on_tick(self, now_s: float) -> None:
        if self.is_draining:
            self._on_draining(now_s)
            return
        while not self._is_paused and len(self._batches) < self.limits.max_batches:
            tickets = self._batcher.take(now_s, is_idle=not self._batches)
            if not tickets:
                break
            self._start(tickets)
        if self._dirty and not self._is_committing and now_s >= self._next_commit_s:
            self._commit(self._dirty, must_finish=False)
            self._next_commit_s = now_s + self.limits.commit_interval_s

    def _start(self, tickets: tuple[Ticket, ...]) -> None:
        self._last_batch += 1
        self._batches[self._last_batch] = len(tickets)
        flights = [self.flights[ticket] for ticket in tickets]
        for flight in flights:
            flight.phase, flight.batch = Phase.RUNNING, self._last_batch
        self._commands.append(Start(tuple((flight.ticket, flight.work) for flight in flights)))

    def _commit(self, partitions: Iterable[TopicPartition], must_finish: bool) -> None:
        offsets: dict[TopicPartition, int] = {}
        for partition in partitions:
            tracker = self.trackers.get(partition)
            offset = None if tracker is None else tracker.commit_offset
            if offset is not None and (partition in self._dirty or must_finish):
                known = self._committed.get(partition)
                if known is None or offset > known or (must_finish and self._is_committing):
                    offsets[partition] = offset
        self._dirty.difference_update(list(partitions))
        if not offsets:
            return
        self._committed.update(offsets)
        self._is_committing = self._is_committing or not must_finish
        self._commands.append(Commit(offsets, must_finish))

    def _on_paused(self, is_paused: bool) -> None:
        if is_paused == self._is_paused:
            return
        self._is_paused = is_paused
        if is_paused:
            partitions = tuple(self.trackers)
        else:
            partitions = tuple(each for each in self.trackers if not self._window.is_full(each))
        if partitions and not self.is_draining:
            self._commands.append(Pause(partitions) if is_paused else Resume(partitions))

    def _on_drain(self, now_s: float) -> None:
        if self.is_draining:
            return
        self._drain_until_s = now_s + self.limits.drain_s
        if self.trackers:
            self._commands.append(Pause(tuple(self.trackers)))
        # What has not begun goes back to the log: its offset is simply not committed.
        waiting = set(self._batcher.drop(lambda _: True))
        for behind in self._behind.values():
            waiting.update(behind)
        self._behind.clear()
        for ticket in waiting:
            self.flights.pop(ticket)
        self._working = {
            run_of_job: ticket for run_of_job, ticket in self._working.items()
            if ticket not in waiting
        }  # fmt: skip

    def _on_draining(self, now_s: float) -> None:
        assert self._drain_until_s is not None
        if self.flights and now_s < self._drain_until_s:
            return
        partitions = tuple(self.trackers)
        self._commit(partitions, must_finish=True)
        self._forget(partitions, now_s)
        self.stopped = True
