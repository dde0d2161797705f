"""A naive world around a `StageState`: a log, a group, an engine and a producer that obey it.

The world performs each command and holds it against what it knows by itself: which records it
delivered, which it has seen through (`settled`), what is committed. It never asks the state for
any of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from streams.core.events import (
    Acknowledged,
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
    Fault,
    JobCancelled,
    Lost,
    NotAcknowledged,
    NotEnded,
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
    Work,
)
from streams.core.flight import Phase, RunOfJob
from streams.core.stage import StageLimits, StageState
from tests.builders import a_fault, an_output

LIMITS = StageLimits(
    window_high=4, window_low=1, batch_max=2, batch_age_s=1.0, max_batches=2,
    commit_interval_s=1.0, drain_s=5.0,
)  # fmt: skip
PARTITIONS = tuple(TopicPartition("requests", number) for number in range(4))

Verdict = Fault | Ending | None


@dataclass(slots=True)
class Assignment:
    """A partition while it is ours, as the world remembers it."""

    epoch: int
    start_offset: int
    position: int  # of the next record to deliver, in offsets
    delivered: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)  # may be finished: the log has the proof
    committed: int = -1

    def highest_commit(self) -> int:
        """The largest offset that a commit may name."""
        unsettled = self.delivered - self.settled
        if unsettled:
            return min(unsettled)
        return max(self.delivered, default=self.start_offset - 1) + 1


class World:
    """Everything that a `StageState` talks to; `dispatch` is the loop's."""

    def __init__(self, limits: StageLimits = LIMITS) -> None:
        self.limits, self.state = limits, StageState(limits)
        self.now_s = 100.0
        self.log: dict[TopicPartition, dict[int, tuple[Work, Verdict]]] = {
            each: {} for each in PARTITIONS
        }
        self.end: dict[TopicPartition, int] = dict.fromkeys(PARTITIONS, 0)
        self.ours: dict[TopicPartition, Assignment] = {}
        self.epochs: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = {}  # the group's, on the broker
        self.paused: set[TopicPartition] = set()
        self.batches: list[set[Ticket]] = []  # still at work
        self.working: dict[Ticket, Work] = {}
        self.ending: dict[Ticket, End] = {}
        self.abandoned: list[Ticket] = []  # dropped in the engine: may answer late
        self.tickets: list[Ticket] = []  # of every record that was delivered
        self.producing: dict[Ticket, Produce | DeadLetter] = {}
        self.dead_lettered: set[Ticket] = set()
        self.committing: list[tuple[dict[TopicPartition, int], dict[TopicPartition, int]]] = []
        self.cancelled: set[RunOfJob] = set()
        self.is_stage_paused = False
        self.drain_until_s: float | None = None

    # ---- the loop

    def dispatch(self, event: Event) -> list[Command]:
        """Handle and perform, as the runner does."""
        commands = self.state.handle(event, self.now_s)
        for command in commands:
            self.perform(command)
        return commands

    def dispatch_stale(self, event: Event) -> None:
        """An event that must change nothing."""
        before = self.snapshot()
        assert self.state.handle(event, self.now_s) == []
        assert self.snapshot() == before

    def snapshot(self) -> str:
        """All that a stale event might change."""
        state = self.state
        trackers = {
            each: (t.assignment_epoch, t.commit_offset, t.next_offset, t.num_unfinished)
            for each, t in state.trackers.items()
        }
        return repr((trackers, state.flights, state.num_waiting, state.stopped))

    def perform(self, command: Command) -> None:
        """Carry out a command; an unlawful one is an AssertionError."""
        match command:
            case Start(batch):
                self.start(batch)
            case End(ticket, work, _):
                self.check_lawful(ticket, work)
                assert ticket not in self.working
                assert ticket not in self.ending
                self.ending[ticket] = command
            case Drop(tickets):
                self.drop(tickets)
            case Produce(ticket) | DeadLetter(ticket):
                assert self.is_current(ticket)
                assert ticket not in self.producing, "one answer for one question"
                self.producing[ticket] = command
            case Commit(offsets, must_finish):
                self.commit(dict(offsets), must_finish)
            case Pause(partitions):
                assert self.ours.keys() >= set(partitions)
                self.paused.update(partitions)
            case Resume(partitions):
                assert self.ours.keys() >= set(partitions)
                assert self.drain_until_s is None
                assert not self.is_stage_paused
                self.paused.difference_update(partitions)
            case _:
                raise AssertionError(f"nobody asked for {command}")

    def check_lawful(self, ticket: Ticket, work: Work) -> None:
        """The engine may be given this: it is ours, delivered, unsettled, the log's own."""
        assert self.is_current(ticket)
        assignment = self.ours[ticket.partition]
        assert ticket.offset in assignment.delivered - assignment.settled
        assert self.log[ticket.partition][ticket.offset][0] is work

    def start(self, batch: tuple[tuple[Ticket, Work], ...]) -> None:
        assert not self.is_stage_paused
        assert self.drain_until_s is None
        assert 1 <= len(batch) <= self.limits.batch_max
        assert len({work.batch_key for _, work in batch}) == 1, "a batch holds one key"
        for ticket, work in batch:
            self.check_lawful(ticket, work)
            assert ticket not in self.working
            assert ticket not in self.ending
            assert (work.job_id, work.run) not in self.cancelled
            self.working[ticket] = work
        self.batches.append({ticket for ticket, _ in batch})
        assert len(self.batches) <= self.limits.max_batches

    def drop(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if self.working.pop(ticket, None) or self.ending.pop(ticket, None):
                self.abandoned.append(ticket)
            self.leave_batch(ticket)

    def leave_batch(self, ticket: Ticket) -> None:
        for batch in self.batches:
            batch.discard(ticket)
        self.batches = [batch for batch in self.batches if batch]

    def commit(self, offsets: dict[TopicPartition, int], must_finish: bool) -> None:
        assert offsets, "an empty commit means the current positions"
        for partition, offset in offsets.items():
            assignment = self.ours[partition]
            assert offset <= assignment.highest_commit(), "committed past an unfinished record"
            assert offset >= assignment.committed, "a commit went back"
            assignment.committed = offset
        if must_finish:
            self.committed |= offsets
        else:
            assert not self.committing, "one asynchronous commit at a time"
            self.committing.append((offsets, {each: self.ours[each].epoch for each in offsets}))

    def is_current(self, ticket: Ticket) -> bool:
        """Whether the ticket is of the assignment that its partition has now."""
        assignment = self.ours.get(ticket.partition)
        return assignment is not None and assignment.epoch == ticket.assignment_epoch

    # ---- the log and the group

    def append(self, partition: TopicPartition, gap: int, work: Work, verdict: Verdict) -> None:
        """Put a record at the end of a partition, `gap` offsets further than need be."""
        offset = self.end[partition] + gap
        self.log[partition][offset] = work, verdict
        self.end[partition] = offset + 1

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Become the owner; the state is told where reading begins."""
        starts = {
            each: StartOffset(self.committed.get(each, 0), each in self.committed)
            for each in partitions
        }
        for each, start in starts.items():
            self.ours[each] = Assignment(-1, start.offset, start.offset)
            self.paused.discard(each)
        self.dispatch(Assigned(starts))
        for each in starts:
            epoch = self.state.trackers[each].assignment_epoch
            assert epoch > self.epochs.get(each, 0), "epochs of a partition grow"
            self.ours[each].epoch = self.epochs[each] = epoch

    def take_away(self, partitions: tuple[TopicPartition, ...], is_lost: bool) -> None:
        """The group gives partitions to another; when `dispatch` returns they are its own."""
        commands = self.dispatch(Lost(partitions) if is_lost else Revoked(partitions))
        assert not (is_lost and any(isinstance(each, Commit) for each in commands))
        for each in partitions:
            assignment = self.ours.pop(each)
            self.paused.discard(each)
            if not is_lost:
                assert self.committed[each] == assignment.highest_commit(), "not handed back"

    def poll(self, partition: TopicPartition, most: int) -> int:
        """Deliver records of a partition until it is paused; the number of them."""
        num_delivered = 0
        assignment = self.ours.get(partition)
        while assignment and partition not in self.paused and num_delivered < most:
            ahead = [each for each in self.log[partition] if each >= assignment.position]
            if not ahead:
                break
            offset = min(ahead)
            assert not self.is_stage_paused, "delivered while the stage is paused"
            assert self.drain_until_s is None, "delivered while draining"
            assignment.position = offset + 1
            assignment.delivered.add(offset)
            self.tickets.append(Ticket(partition, offset, assignment.epoch))
            self.dispatch(Delivered(partition, offset, *self.log[partition][offset]))
            num_delivered += 1
        return num_delivered

    # ---- engine, producer and broker answer

    def answer_work(self, ticket: Ticket, fault: Fault | None = None) -> None:
        """The engine has worked a record, or failed to."""
        del self.working[ticket]
        self.leave_batch(ticket)
        event = Emitted(ticket, (an_output(),)) if fault is None else Failed(ticket, fault)
        commands = self.dispatch(event)
        assert len(commands) == 1

    def answer_end(self, ticket: Ticket, fault: Fault | None = None) -> None:
        """The engine has ended a run, or could not."""
        del self.ending[ticket]
        if fault is None:
            assert self.dispatch(Ended(ticket, (an_output(),)))
            return
        if ticket in self.dead_lettered:
            self.settle(ticket)
        self.dispatch(NotEnded(ticket, fault))

    def answer_late(self, ticket: Ticket, kind: type) -> None:
        """The engine answers what it was told to drop; a cancelled record may be ending by now."""
        if ticket in self.ending and kind in (Ended, NotEnded):
            return
        self.abandoned.remove(ticket)
        is_good = kind in (Emitted, Ended)
        self.dispatch_stale(kind(ticket, (an_output(),) if is_good else a_fault()))

    def answer_produce(self, ticket: Ticket) -> None:
        """The log has what was asked for."""
        asked = self.producing.pop(ticket)
        event = Acknowledged(ticket)
        if not self.is_current(ticket):
            self.dispatch_stale(event)
            return
        if isinstance(asked, DeadLetter):
            self.dead_lettered.add(ticket)
            if not asked.fault.ends_job or asked.work.job_id is None:
                self.settle(ticket)
        else:
            self.settle(ticket)
        self.dispatch(event)

    def refuse_produce(self, ticket: Ticket, is_permanent: bool) -> None:
        """The log does not have it; the state must ask again, in one way or another."""
        del self.producing[ticket]
        event = NotAcknowledged(ticket, "refused", is_permanent)
        if self.is_current(ticket):
            self.dispatch(event)
            assert ticket in self.producing
        else:
            self.dispatch_stale(event)

    def answer_commit(self, is_ok: bool) -> None:
        """The broker has taken the asynchronous commit, or not."""
        offsets, epochs = self.committing.pop()
        for partition, offset in offsets.items():
            assignment = self.ours.get(partition)
            # Brokers refuse a commit of a former generation.
            if is_ok and assignment and assignment.epoch == epochs[partition]:
                self.committed[partition] = offset
        self.dispatch(Committed(offsets, is_ok))

    def former_tickets(self) -> list[Ticket]:
        """Records that were delivered under an assignment that is over."""
        return [each for each in self.tickets if not self.is_current(each)]

    def settle(self, ticket: Ticket) -> None:
        """From now on the record may count as finished."""
        self.ours[ticket.partition].settled.add(ticket.offset)

    def tick(self, elapsed_s: float) -> None:
        """Time passes. Afterwards nothing is due, or the loop would spin."""
        self.now_s += elapsed_s
        self.dispatch(Tick())
        if self.state.stopped:
            self.leave()
        else:
            assert 0 < self.state.poll_timeout_s(self.now_s) <= self.limits.poll_s
        if self.drain_until_s is not None and self.now_s >= self.drain_until_s:
            assert self.state.stopped, "the drain is over its budget"

    def leave(self) -> None:
        """It has stopped: what it did not finish is handed back, what is answered now is stale."""
        for partition, assignment in self.ours.items():
            assert self.committed[partition] == assignment.highest_commit(), "not handed back"
        self.ours.clear()

    def drain(self) -> None:
        """SIGTERM."""
        self.drain_until_s = self.drain_until_s or self.now_s + self.limits.drain_s
        self.dispatch(Drain())

    def cancel(self, run_of_job: RunOfJob) -> None:
        """A client has lost interest."""
        self.cancelled.add(run_of_job)
        self.dispatch(JobCancelled(*run_of_job))

    def pause_stage(self, is_paused: bool) -> None:
        """An operator's wish."""
        self.is_stage_paused = is_paused
        self.dispatch(StagePaused(is_paused))

    # ---- what holds after every event

    def check(self) -> None:
        """The invariants that no single command shows."""
        flights = self.state.flights
        assert self.state.trackers.keys() == self.ours.keys()
        held = Counter(ticket.partition for ticket in flights)
        assert max(held.values(), default=0) <= self.limits.window_high
        assert all(self.is_current(ticket) for ticket in flights)
        busy = Counter(
            flight.run_of_job
            for flight in flights.values()
            if flight.run_of_job and flight.phase is not Phase.WAITING
        )
        assert max(busy.values(), default=0) <= 1, "one flight of a run at a time"
        unsettled = {
            (partition, offset)
            for partition, each in self.ours.items()
            for offset in each.delivered - each.settled
        }
        known = {(ticket.partition, ticket.offset) for ticket in flights}
        assert known <= unsettled
        assert known == unsettled or self.drain_until_s is not None

    def cooperate(self) -> None:
        """Answer all that is asked, well, until nothing more happens."""
        self.pause_stage(False)
        self.assign([each for each in PARTITIONS if each not in self.ours])
        for _ in range(20 * sum(map(len, self.log.values())) + 20):
            for partition in PARTITIONS:
                self.poll(partition, 3)
            for ticket in list(self.working):
                self.answer_work(ticket)
            for ticket in list(self.ending):
                self.answer_end(ticket)
            for ticket in list(self.producing):
                self.answer_produce(ticket)
            if self.committing:
                self.answer_commit(is_ok=True)
            self.tick(0.5)
            self.check()
            if self.is_quiet():
                return
        raise AssertionError(f"stuck: {self.state.flights}")

    def is_quiet(self) -> bool:
        """Whether everything on the log has been worked and committed."""
        return not (self.working or self.ending or self.producing or self.committing) and all(
            self.committed.get(each, -1) == self.end[each]
            and self.ours[each].settled >= self.ours[each].delivered
            for each in PARTITIONS
        )


FAULTS = (a_fault(), a_fault(reason_code="conflict", ends_job=False))
ENDING = Ending("rejected", "over_quota", "too much")
