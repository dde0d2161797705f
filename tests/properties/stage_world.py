"""A naive world around a `StageState`: a log, a group, an engine and a producer that obey it.

The world performs each command and holds it against what it knows by itself: which records it
delivered, which it has seen through (`settled`), what is committed, how often a process died with
a record inside its engine. Of the state it asks only which records it has let go of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from streams.core.events import (
    Acknowledged,
    Assigned,
    Command,
    Commit,
    CommitPoint,
    Committed,
    DeadLetter,
    Delivered,
    Drain,
    Drop,
    Emitted,
    End,
    Ended,
    Event,
    Failed,
    Fault,
    HostSick,
    HostWell,
    JobCancelled,
    Lost,
    NotAcknowledged,
    NotEnded,
    Offload,
    Offloaded,
    Pause,
    Probe,
    Probed,
    Produce,
    Resume,
    Retry,
    Revoked,
    StagePaused,
    Start,
    StartOffset,
    Tick,
    Ticket,
    TopicPartition,
    Work,
)
from streams.core.flights import CANCELLED
from streams.core.limits import StageLimits
from streams.core.offset_map import decode_offset_map
from streams.core.runs import Wished
from streams.core.stage import StageState
from tests.builders import a_fault, an_output
from tests.properties.stage_log import LIMITS, Assignment, Log
from tests.properties.stage_rules import (
    check_blame,
    check_copy,
    check_handed_back,
    check_map,
    check_marked,
    crashes_of,
    is_cancelled,
    is_outranked,
    snapshot,
)

Write = Produce | DeadLetter | Retry | Offload


class World:
    """Everything that a `StageState` talks to; `dispatch` is the loop's."""

    def __init__(self, limits: StageLimits = LIMITS) -> None:
        self.limits = limits
        self.now_s = 100.0
        self.log = Log()
        self.committed: dict[TopicPartition, CommitPoint] = {}  # the group's, on the broker
        self.cancelled: list[Wished] = []
        self.num_crashes = self.num_retried = self.num_skipped = 0
        self.boot()

    def boot(self) -> None:
        """A new process: it knows nothing but what is on the log and the broker."""
        self.state = StageState(self.limits)
        self.ours: dict[TopicPartition, Assignment] = {}
        self.paused: set[TopicPartition] = set()
        self.batches: list[set[Ticket]] = []  # still at work
        self.working: dict[Ticket, Work] = {}
        self.alone: Ticket | None = None  # a suspect is at work
        self.ending: dict[Ticket, End] = {}
        self.abandoned: list[Ticket] = []  # dropped in the engine: may answer late
        self.last_epoch = 0
        self.tickets: list[Ticket] = []  # of every record that was delivered
        self.writing: dict[Ticket, Write] = {}
        self.refused: dict[Ticket, float] = {}  # and when; to be asked again
        self.dead_lettered, self.made_way = set[Ticket](), set[Ticket]()
        self.committing: list[tuple[dict[TopicPartition, CommitPoint], dict[str, int]]] = []
        self.is_probing = self.is_probe_bad = self.is_sick = self.is_stage_paused = False
        self.drain_until_s: float | None = None
        for tenant_id, job_id, run in self.cancelled:  # the control topic is read to its end first
            self.state.handle(JobCancelled(job_id, run, self.now_s, tenant_id), self.now_s)

    # ---- the loop

    def dispatch(self, event: Event) -> list[Command]:
        """Handle and perform, as the runner does."""
        commands = self.state.handle(event, self.now_s)
        for command in commands:
            self.perform(command)
        return commands

    def dispatch_stale(self, event: Event) -> None:
        """An event that must change nothing."""
        before = snapshot(self.state)
        assert self.state.handle(event, self.now_s) == []
        assert snapshot(self.state) == before

    def perform(self, command: Command) -> None:
        """Carry out a command; an unlawful one is an AssertionError."""
        match command:
            case Start(batch):
                self.start(batch)
            case End(ticket, work, ending):
                self.check_lawful(ticket, work)
                assert ending != CANCELLED or is_cancelled(self, work), "nobody has cancelled it"
                assert ticket not in self.working
                assert ticket not in self.ending
                self.check_asked_again_in_time(ticket)
                self.ending[ticket] = command
            case Drop(tickets):
                self.drop(tickets)
            case Produce(ticket) | DeadLetter(ticket) | Retry(ticket) | Offload(ticket):
                assert self.is_current(ticket)
                assert ticket not in self.writing, "one answer for one question"
                assert ticket not in self.working
                self.check_asked_again_in_time(ticket)
                check_copy(self, command)
                self.writing[ticket] = command
            case Commit(points, must_finish):
                self.commit(dict(points), must_finish)
            case Pause(partitions):
                assert self.ours.keys() >= set(partitions)
                self.paused.update(partitions)
            case Resume(partitions):
                assert self.ours.keys() >= set(partitions)
                assert self.drain_until_s is None
                assert not self.is_stage_paused
                assert not self.is_holding, "a host that holds takes nothing in"
                self.paused.difference_update(partitions)
            case Probe():
                assert not self.is_probing, "one probe at a time"
                self.is_probing = True
            case _:
                raise AssertionError(f"nobody asked for {command}")

    def check_lawful(self, ticket: Ticket, work: Work) -> None:
        """The engine may be given this: it is ours, delivered, unsettled, the log's own."""
        assert self.is_current(ticket)
        assignment = self.ours[ticket.partition]
        assert ticket.offset in assignment.delivered - assignment.settled
        own = self.log.records[ticket.partition][ticket.offset][0]
        assert work == replace(own, crashes=work.crashes)

    def check_asked_again_in_time(self, ticket: Ticket) -> None:
        """What was refused is asked again after a while, not at once."""
        refused_s = self.refused.pop(ticket, None)
        assert refused_s is None or self.now_s >= refused_s + self.limits.ask_again_s

    def start(self, batch: tuple[tuple[Ticket, Work], ...]) -> None:
        assert not self.is_stage_paused
        assert not self.is_holding
        assert self.drain_until_s is None
        assert 1 <= len(batch) <= self.limits.batch_max
        assert len({work.batch_key for _, work in batch}) == 1, "a batch holds one key"
        assert self.alone is None, "something runs alone"
        for ticket, work in batch:
            self.check_lawful(ticket, work)
            assert ticket not in self.working
            assert ticket not in self.ending
            assert not is_cancelled(self, work)
            assert work.due_s is None or work.due_s <= self.now_s, "before it is due"
            check_marked(self, ticket)
            if crashes_of(self, ticket).num >= 2:
                assert not self.working, "a suspect runs alone"
                assert len(batch) == 1
                self.alone = ticket
            self.working[ticket] = work
        self.batches.append({ticket for ticket, _ in batch})
        assert len(self.batches) <= self.limits.max_batches

    def drop(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if self.working.pop(ticket, None) or self.ending.pop(ticket, None):
                self.abandoned.append(ticket)
            self.leave_batch(ticket)

    def leave_batch(self, ticket: Ticket) -> None:
        if self.alone == ticket:
            self.alone = None
        for batch in self.batches:
            batch.discard(ticket)
        self.batches = [batch for batch in self.batches if batch]

    # ---- commits

    def commit(self, points: dict[TopicPartition, CommitPoint], must_finish: bool) -> None:
        assert points, "an empty commit means the current positions"
        num_marked = 0
        for partition, point in points.items():
            assignment = self.ours[partition]
            assert point.offset <= assignment.highest_commit(), "committed past an unfinished one"
            assert point.offset >= assignment.committed, "a commit went back"
            assignment.committed = point.offset
            num_marked += check_map(self, partition, decode_offset_map(*point), must_finish)
        assert num_marked <= self.limits.max_batches * self.limits.batch_max
        if must_finish:
            self.committed |= points
        else:
            assert not self.committing, "one asynchronous commit at a time"
            epochs = {each.topic + str(each.partition): self.ours[each].epoch for each in points}
            self.committing.append((points, epochs))

    def answer_commit(self, is_ok: bool) -> None:
        """The broker has taken the asynchronous commit, or not."""
        points, epochs = self.committing.pop()
        for partition, point in points.items():
            assignment = self.ours.get(partition)
            epoch = epochs[partition.topic + str(partition.partition)]
            # Brokers refuse a commit of a former generation.
            if is_ok and assignment and assignment.epoch == epoch:
                self.committed[partition] = point
        self.dispatch(Committed(is_ok))

    # ---- the group

    def is_current(self, ticket: Ticket) -> bool:
        """Whether the ticket is of the assignment that its partition has now."""
        assignment = self.ours.get(ticket.partition)
        return assignment is not None and assignment.epoch == ticket.assignment_epoch

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Become the owner; the state is told where reading begins, and what was finished."""
        starts: dict[TopicPartition, StartOffset] = {}
        for each in partitions:
            known = decode_offset_map(*self.committed.get(each, CommitPoint(0)))
            starts[each] = StartOffset(known, each in self.committed)
            self.ours[each] = Assignment(-1, known, known.offset)
            self.paused.discard(each)
        self.dispatch(Assigned(starts))
        for each in starts:
            epoch = self.state.ours.trackers[each].assignment_epoch
            assert epoch > self.last_epoch, "epochs grow"
            self.ours[each].epoch = self.last_epoch = epoch

    def take_away(self, partitions: tuple[TopicPartition, ...], is_lost: bool) -> None:
        """The group gives partitions to another; when `dispatch` returns they are its own."""
        commands = self.dispatch(Lost(partitions) if is_lost else Revoked(partitions))
        assert not (is_lost and any(isinstance(each, Commit) for each in commands))
        if not is_lost:
            check_handed_back(self, partitions)
        for each in partitions:
            del self.ours[each]
            self.paused.discard(each)

    def crash(self, is_commit_taken: bool) -> None:
        """The process dies: what is on the broker must blame who was inside, and nobody else."""
        if self.committing and is_commit_taken:  # the broker has it, the answer is never read
            points, _ = self.committing.pop()
            self.committed |= {each: at for each, at in points.items() if each in self.ours}
        check_blame(self)
        self.num_crashes += 1
        self.boot()

    # ---- records

    def poll(self, partition: TopicPartition, most: int) -> int:
        """Deliver records of a partition until it is paused; the number of them."""
        num_delivered = 0
        assignment = self.ours.get(partition)
        records = self.log.records[partition]
        while assignment and partition not in self.paused and num_delivered < most:
            offset = min((each for each in records if each >= assignment.position), default=None)
            if offset is None:
                break
            assert not self.is_stage_paused, "delivered while the stage is paused"
            assert not self.is_holding, "delivered while the host holds"
            assert self.drain_until_s is None, "delivered while draining"
            assignment.position = offset + 1
            event = Delivered(partition, offset, *records[offset])
            if assignment.known.finished_bits >> (offset - assignment.known.offset) & 1:
                assignment.skipped.add(offset)
                self.num_skipped += 1
                num_flights = len(self.state.flights)
                assert self.dispatch(event) == [], "worked twice"
                assert len(self.state.flights) == num_flights
            else:
                assignment.delivered.add(offset)
                self.tickets.append(Ticket(partition, offset, assignment.epoch))
                self.dispatch(event)
            self.note_needless()
            num_delivered += 1
        return num_delivered

    def note_needless(self, *retried: Work) -> None:
        """A copy may be finished unworked only while a higher one is here, or its retry is written.

        The world looks at what the state lets go of, and then for the copy that permits it.
        """
        for partition, assignment in self.ours.items():
            for offset in assignment.delivered - assignment.settled:
                ticket = Ticket(partition, offset, assignment.epoch)
                if ticket in self.state.flights or self.drain_until_s is not None:
                    continue
                work = self.log.records[partition][offset][0]
                assert ticket not in self.working
                assert ticket not in self.ending
                assert ticket not in self.writing
                assert is_outranked(self, work, retried), f"{work} was never worked"
                assignment.settled.add(offset)

    # ---- engine and producer answer

    def answer_work(self, ticket: Ticket, fault: Fault | None = None) -> None:
        """The engine has worked a record, or failed to."""
        del self.working[ticket]
        self.leave_batch(ticket)
        self.dispatch(Emitted(ticket, (an_output(),)) if fault is None else Failed(ticket, fault))
        self.note_needless()

    def answer_end(self, ticket: Ticket, fault: Fault | None = None) -> None:
        """The engine has ended a run, or could not."""
        del self.ending[ticket]
        if fault is None:
            assert self.dispatch(Ended(ticket, (an_output(),)))
            return
        self.dispatch(NotEnded(ticket, fault))
        if ticket in self.state.flights and ticket not in self.writing:
            self.refused[ticket] = self.now_s
        elif ticket in self.dead_lettered:
            self.settle(ticket)

    def answer_late(self, ticket: Ticket, kind: type) -> None:
        """The engine answers what it was told to drop; a cancelled record may be ending by now."""
        if ticket in self.ending and kind in (Ended, NotEnded):
            return
        self.abandoned.remove(ticket)
        is_good = kind in (Emitted, Ended)
        self.dispatch_stale(kind(ticket, (an_output(),) if is_good else a_fault()))

    def answer_write(self, ticket: Ticket) -> None:
        """The log, or the object store, has what was asked for."""
        asked = self.writing.pop(ticket)
        is_offload = isinstance(asked, Offload)
        event = Offloaded(ticket, (("blob", b"here"),)) if is_offload else Acknowledged(ticket)
        if isinstance(asked, Retry):  # it is on the log, whoever reads it
            self.num_retried += 1
            self.log.retry(ticket.partition, asked.work, self.now_s + asked.delay_s)
        if not self.is_current(ticket):
            self.dispatch_stale(event)
            return
        if isinstance(asked, DeadLetter):
            self.dead_lettered.add(ticket)
            if not asked.fault.ends_job or asked.work.job_id is None:
                self.settle(ticket)
        elif not is_offload:
            self.settle(ticket)
        self.dispatch(event)
        self.note_needless(*([asked.work] if isinstance(asked, Retry) else []))

    def refuse_write(self, ticket: Ticket, is_permanent: bool) -> None:
        """The log does not have it; the state must ask again, in one way or another."""
        if isinstance(self.writing[ticket], Offload):
            return  # the engine holds until it can
        del self.writing[ticket]
        event = NotAcknowledged(ticket, "refused", is_permanent)
        if not self.is_current(ticket):
            self.dispatch_stale(event)
            return
        self.dispatch(event)
        assert is_permanent or ticket not in self.writing, "asked again at once"
        if ticket not in self.writing:
            self.refused[ticket] = self.now_s

    def former_tickets(self) -> list[Ticket]:
        """Records that were delivered under an assignment that is over."""
        return [each for each in self.tickets if not self.is_current(each)]

    def settle(self, ticket: Ticket) -> None:
        """From now on the record may count as finished."""
        self.ours[ticket.partition].settled.add(ticket.offset)
        self.log.proven.add((ticket.partition, ticket.offset))

    # ---- time, wishes, the host

    @property
    def is_holding(self) -> bool:
        """Whether the worker knows that its host is sick, or tries to find out."""
        return self.is_sick or self.is_probing or self.is_probe_bad

    def tick(self, elapsed_s: float) -> None:
        """Time passes. Afterwards nothing is due, or the loop would spin."""
        self.now_s += elapsed_s
        self.dispatch(Tick())
        if self.state.left_because and self.drain_until_s is None:
            assert self.is_holding, "it leaves although it is well"
            self.drain_until_s = self.now_s + self.limits.drain_s
        if self.state.stopped:
            check_handed_back(self, self.ours)
            self.ours.clear()
        else:
            assert 0 < self.state.poll_timeout_s(self.now_s) <= self.limits.poll_s
        if self.drain_until_s is not None and self.now_s >= self.drain_until_s:
            assert self.state.stopped, "the drain is over its budget"

    def drain(self) -> None:
        """SIGTERM."""
        self.drain_until_s = self.drain_until_s or self.now_s + self.limits.drain_s
        self.dispatch(Drain())

    def cancel(self, wished: Wished) -> None:
        """A client has lost interest."""
        self.cancelled.append(wished)
        tenant_id, job_id, run = wished
        self.dispatch(JobCancelled(job_id, run, self.now_s, tenant_id))

    def pause_stage(self, is_paused: bool) -> None:
        """An operator's wish."""
        self.is_stage_paused = is_paused
        self.dispatch(StagePaused(is_paused))

    def fall_sick(self, is_local: bool) -> None:
        """The engine holds."""
        self.is_sick = True
        self.dispatch(HostSick("sick", "it is sick", is_local))

    def recover(self) -> None:
        """The engine works again."""
        self.is_sick = False
        self.dispatch(HostWell())

    def answer_probe(self, is_ok: bool) -> None:
        """The built-in good job was worked, or not."""
        self.is_probing, self.is_probe_bad = False, not is_ok
        self.dispatch(Probed(is_ok))
        self.note_needless()
