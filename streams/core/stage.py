"""The state of one worker of one stage: events in, commands out; no I/O, no clock, no threads.

The life of a record, from `Delivered` to a finished offset::

    delayed -> waiting -> entering -> running -> producing -> finished
                             |           |          ^
           its start marker is committed |          |  (the next record must be acknowledged
                                         |          |   before the offset counts)
                                       Failed       |
                                         |-- later: retrying -> finished, for a copy is due later
                                         |   (so is a head that holds up its partition)
                                         +-- dead-lettering -> ending -> producing -> finished
    cancelled, expired, rejected: ---------------------------^

A request over its tenant's quota is put on `requests.deferred`, and finished; delivered from there
it is parked until there is room.

What the group may commit is the lowest unfinished offset of each partition, and beside it what is
finished beyond and what was inside the engine: at most once in `commit_interval_s`, and before a
batch starts; one asynchronous commit at a time. Before a partition goes away, at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from streams.core import events as ev
from streams.core.batches import Batch
from streams.core.breaker import Breaker, Verdict
from streams.core.events import Command, Ending, Event, Fate, Fault, Ticket, TopicPartition
from streams.core.fair_queue import FairQueue
from streams.core.flight import IN_ENGINE, NOT_BEGUN, Flight, Phase, timed
from streams.core.flights import Flights
from streams.core.gate import Why
from streams.core.host import Host
from streams.core.limits import StageLimits
from streams.core.make_way import MakeWay
from streams.core.offset_map import NO_CRASHES
from streams.core.partitions import OurPartitions
from streams.core.retry import if_it_crashes_now
from streams.core.shares import JobSeen, LedgerRead

_MARK_AGAIN_S = 0.2
_FORGET_WISHES_EVERY_S = 60.0
_MAX_END_TRIES = 5


class StageState:
    """Decides; performs nothing. `handle` is the only way in.

    Invariants, checked by the property tests after every event: a commit offset never passes an
    unfinished record and never goes back within an assignment; results of an older assignment
    change nothing; no partition holds more records than its window; one flight at a time works on
    a job; nothing starts before its start marker is committed.
    """

    def __init__(self, limits: StageLimits) -> None:
        self.limits = limits
        self.stopped = False
        self.left_because: str | None = None  # a sick host; whoever starts workers must know
        self.ours = OurPartitions(
            limits.window_high, limits.window_low, limits.window_per_tenant, limits.look_ahead,
            limits.map_span,
        )  # fmt: skip
        self.host = Host(
            Breaker(limits.breaker_limit, limits.probe_wait_s, limits.longest_probe_wait_s),
            limits.leave_after_s,
        )
        self._here = Flights(self.ours, limits)
        self._make_way = MakeWay(self._here, self.ours, limits)
        self._entering: list[Batch[Ticket]] = []  # their start markers are to be committed
        self._marking: list[Batch[Ticket]] = []  # they are being committed
        self._drain_until_s: float | None = None
        self._event_s = 0.0  # when something last happened but time
        self._next_commit_s = self._next_mark_s = self._next_forgetting_s = 0.0

    # ---- what the loop asks

    @property
    def flights(self) -> dict[Ticket, Flight]:
        """The records that are here: delivered, not finished."""
        return self._here.by_ticket

    @property
    def is_draining(self) -> bool:
        """Whether no new work is begun, for good."""
        return self._drain_until_s is not None

    @property
    def queue(self) -> FairQueue[Ticket]:
        """What waits for its turn; to be looked at."""
        return self._here.batches.queue

    @property
    def num_waiting(self) -> int:
        """Records that wait for a batch."""
        return self._here.batches.num_waiting

    @property
    def has_quotas(self) -> bool:
        """Whether requests are let in by quotas."""
        return self._here.admission is not None

    @property
    def num_unread_ledgers(self) -> int:
        """Partitions that deliver nothing before who has what in the pipeline is known."""
        admission = self._here.admission
        return 0 if admission is None else admission.ledger.num_unread

    @property
    def num_parked(self) -> dict[str, int]:
        """Requests here that wait for room in their tenants' quotas, by tier."""
        admission = self._here.admission
        return {} if admission is None else admission.num_parked()

    def poll_timeout_s(self, now_s: float) -> float:
        """How long the loop may wait for records without being late for anything else."""
        if self._marking or self._entering:
            return self.limits.shortest_poll_s
        is_reading = self.num_unread_ledgers > 0  # by turns, while its requests wait
        if is_reading or self.ours.is_committing or self.is_draining or self._here.num_active:
            # As long again as nothing has happened: soon for what is quick, seldom for the rest.
            quiet_s = max(self.limits.shortest_poll_s, now_s - self._event_s)
            return min(self.limits.busy_poll_s, quiet_s)
        due_s = self._here.batches.next_due_s()
        if due_s is None or not self._may_start:
            return self.limits.poll_s
        return min(self.limits.poll_s, max(0.0, due_s - now_s))

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take note of an event; what is to be done about it, in order."""
        self._here.now_s = now_s
        if type(event) is not ev.Tick:
            self._event_s = now_s
        match event:
            case ev.Delivered():
                self._on_delivered(event)
            case ev.Emitted(ticket, outputs):
                if flight := self._here.get(ticket, Phase.RUNNING):
                    self.host.breaker.succeeded()
                    self._here.produce(flight, outputs)
            case ev.Acknowledged(ticket):
                self._on_acknowledged(ticket)
            case ev.Tick():
                self._on_tick()
            case ev.Announced(output):
                self._here.commands.append(ev.Announce(output))
            case ev.Committed(is_ok):
                self._on_committed(is_ok)
            case ev.Failed(ticket, fault):
                if flight := self._here.get(ticket, Phase.RUNNING):
                    self._on_failed(flight, fault)
            case ev.Ended(ticket, outputs):
                if flight := self._here.get(ticket, Phase.ENDING):
                    self._here.produce(flight, outputs)
            case ev.NotEnded(ticket, fault):
                if flight := self._here.get(ticket, Phase.ENDING):
                    self._on_not_ended(flight, fault)
            case ev.NotAcknowledged():
                self._on_not_acknowledged(event)
            case ev.Offloaded(ticket, blob):
                if flight := self._here.get(ticket, Phase.OFFLOADING):
                    flight.blob = blob
                    self._here.move(flight, Phase.DEAD_LETTERING)
                    self._here.ask(flight)
            case ev.Assigned(partitions):
                self._here.pause(self.ours.assign(partitions.items()))
                self._here.follow()
            case ev.Revoked(partitions):
                self._hand_back(partitions)
                self._forget(partitions)
            case ev.Lost(partitions):
                self._forget(partitions)
            case _:
                self._on_word(event)
        commands, self._here.commands = self._here.commands, []
        return commands

    def _on_word(self, event: Event) -> None:
        """What the host, operators and clients say."""
        match event:
            case ev.HostSick(reason_code, _, is_local):
                self.host.fell_sick(reason_code, is_local, self._here.now_s)
                self._hold_or_go_on()
            case ev.HostWell():
                self.host.recovered()
                self._hold_or_go_on()
            case ev.Places(num):
                self._here.batches.offer(num)
            case ev.Probed(is_ok, is_local):
                self._on_probed(is_ok, is_local)
            case ev.JobCancelled(job_id, run, issued_s, tenant_id):
                self._here.cancel((tenant_id, job_id, run), issued_s)
            case ev.JobDeadline(job_id, run, deadline_s, issued_s, tenant_id):
                self._here.move_deadline((tenant_id, job_id, run), deadline_s, issued_s)
            case JobSeen():
                self._here.seen(event)
            case LedgerRead(partition):
                self._here.ledger_read(partition)
            case ev.StagePaused(is_paused):
                self._close_or_open(Why.STAGE_PAUSED, is_paused)
            case ev.Drain():  # pragma: no branch - there is no other event
                self._on_drain()

    # ---- partitions

    def _close_or_open(self, why: Why, is_closed: bool) -> None:
        gate = self.ours.gate
        if is_closed:
            self._here.pause(gate.close_all(why))
            self._withdraw()
        else:
            self._here.resume(gate.open_all(why))

    def _hand_back(self, partitions: Iterable[TopicPartition]) -> None:
        """Commit before they go. What runs has not crashed: its count ends here."""
        going = set(partitions)
        for flight in self.flights.values():
            if flight.ticket.partition in going and flight.phase in IN_ENGINE:
                has_run = flight.phase is Phase.RUNNING
                self._here.set_crashes(flight, NO_CRASHES if has_run else flight.crashes)
        if points := self.ours.last_commit(going):
            self._here.commands.append(ev.Commit(points, must_finish=True))

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        gone = set(partitions)
        dropped = [flight for flight in self.flights.values() if flight.ticket.partition in gone]
        if dropped:
            self._here.commands.append(ev.Drop(tuple(flight.ticket for flight in dropped)))
        self.ours.forget(gone)
        following = self._here.remove(dropped)
        # Copies of one request may lie in several partitions of `requests`, and some of them stay.
        for flight in following:
            if flight is not None and flight.ticket in self.flights:
                self._here.admit(flight)
                self._here.park_behind(flight.work.job_id)
        self._here.follow()

    # ---- a record comes

    def _on_delivered(self, event: ev.Delivered) -> None:
        if self.is_draining:
            return
        ticket = self.ours.deliver(event.partition, event.offset)
        if ticket is None:
            return  # not ours (any more), known already, or finished by an earlier owner
        known = self.ours.trackers[event.partition].crashes(event.offset)
        work = timed(event.work, self._here.now_s)
        flight = Flight(ticket, work, event.verdict, crashes=known or work.crashes)
        self.flights[ticket] = flight
        self._here.pause(self.ours.enter(event.partition, event.work.charge))
        job_id = event.work.job_id
        if job_id is None:
            self._here.admit(flight)
            return
        needless, is_first = self._here.copies.add(job_id, flight)
        if is_first:
            self._here.admit(flight)
        for copy in needless:
            if copy.phase in IN_ENGINE:
                self._here.commands.append(ev.Drop((copy.ticket,)))
            self._here.finish(copy)
        self._here.park_behind(job_id)

    # ---- a record goes

    def _on_failed(self, flight: Flight, fault: Fault) -> None:
        assert flight.work.job_id is not None, "what has no job is not worked"
        is_last = fault.fate is Fate.LATER and self.limits.retry.is_last(flight.work.try_number)
        if fault.ends_job and self.host.breaker.failed(flight.work.job_id, is_last):
            self._hold_or_go_on()
        if self.host.breaker.is_open:
            self._here.leave_for(flight, Phase.JUDGED)
            flight.fault = fault
        else:
            self._here.take_fate(flight, fault)

    def _on_not_ended(self, flight: Flight, fault: Fault) -> None:
        flight.num_end_tries += 1
        if fault.fate is Fate.LATER and flight.num_end_tries < _MAX_END_TRIES:
            self._here.ask_later(flight)
        elif flight.fault is None:
            self._here.dead_letter(flight, replace(fault, ends_job=False))
        else:  # it is dead-lettered already, and its run cannot be ended: the evidence stands
            self._here.finish(flight)

    def _on_acknowledged(self, ticket: Ticket) -> None:
        flight = self.flights.get(ticket)
        match flight:
            case Flight(phase=Phase.PRODUCING | Phase.PARKING):
                self._here.finish(flight)
            case Flight(phase=Phase.RETRYING):
                self._here.finish_retried(flight)
            case Flight(phase=Phase.DEAD_LETTERING, fault=Fault() as fault):
                if fault.ends_job and flight.run_of_job is not None:
                    self._here.end(flight, Ending("failed", fault.reason_code, fault.message))
                else:
                    self._here.finish(flight)

    def _on_not_acknowledged(self, event: ev.NotAcknowledged) -> None:
        """Hold: ask again for as long as it takes; what can never be written goes another way."""
        flight = self.flights.get(event.ticket)
        too_large = Fault(Fate.DEAD_LETTER, "record_too_large", event.reason)
        match flight:
            case Flight(phase=Phase.PRODUCING, fault=None) if event.is_permanent:
                self._here.dead_letter(flight, too_large)
            case Flight(phase=Phase.RETRYING | Phase.PARKING) if event.is_permanent:
                self._here.dead_letter(flight, too_large)
            case Flight(phase=Phase.DEAD_LETTERING, blob=()) if event.is_permanent:
                self._here.move(flight, Phase.OFFLOADING)
                self._here.ask(flight)
            case Flight(
                phase=Phase.PRODUCING | Phase.PARKING | Phase.RETRYING | Phase.DEAD_LETTERING
            ):
                self._here.ask_later(flight)

    # ---- batches

    @property
    def _may_start(self) -> bool:
        gate = self.ours.gate
        return not (gate.is_closed_by(Why.STAGE_PAUSED) or gate.is_closed_by(Why.HOLDING))

    def _start_batches(self) -> None:
        while self._may_start and (batch := self._here.batches.take(self._here.now_s)) is not None:
            for ticket in batch.items:
                flight = self.flights[ticket]
                flight.batch = batch.number
                self._here.move(flight, Phase.ENTERING)
                self._here.set_crashes(flight, if_it_crashes_now(flight.crashes, batch.is_alone))
            self._entering.append(batch)
            for ticket in batch.items:
                if ending := self._here.ending_due(self.flights[ticket]):
                    self._here.end(self.flights[ticket], ending)

    def _on_committed(self, is_ok: bool) -> None:
        self.ours.committed(is_ok)
        batches, self._marking = self._marking, []
        if is_ok:
            self._start(batches)
        else:
            self._entering = batches + self._entering
            self._next_mark_s = self._here.now_s + _MARK_AGAIN_S

    def _withdraw(self) -> None:
        """Nothing may start now: what has not entered yet waits again, unmarked.

        Or a process that dies while it holds, perhaps for long, would be blamed on it.
        """
        self._entering = []
        for flight in [each for each in self.flights.values() if each.phase is Phase.ENTERING]:
            self._here.leave_for(flight, Phase.BEHIND)
            self._here.admit(flight)

    def _start(self, batches: list[Batch[Ticket]]) -> None:
        """Their start markers are committed: a crash from here on is told of them."""
        for batch in batches:
            flights = [self._here.get(ticket, Phase.ENTERING) for ticket in batch.items]
            entered = [each for each in flights if each is not None and each.batch == batch.number]
            for flight in entered:
                if ending := self._here.ending_due(flight):  # the commit may have taken its time
                    self._here.end(flight, ending)
                else:
                    self._here.move(flight, Phase.RUNNING)
            entered = [each for each in entered if each.phase is Phase.RUNNING]
            if entered:
                self._here.commands.append(
                    ev.Start(tuple((flight.ticket, flight.work) for flight in entered))
                )

    # ---- time

    def _on_tick(self) -> None:
        self._here.ask_again()
        if self.is_draining:
            self._on_draining()
            return
        self._here.admit_due()
        self._here.tend_parked()
        self._make_way.look(self._may_start)
        if self.host.breaker.must_probe(self._here.now_s):
            self._here.commands.append(ev.Probe())
        self._start_batches()
        self._commit_if_due()
        if reason := self.host.must_leave(self._here.now_s):
            self.left_because = reason
            self._on_drain()
        if self._here.now_s >= self._next_forgetting_s:
            self._here.wishes.forget_old(self._here.now_s)
            self._next_forgetting_s = self._here.now_s + _FORGET_WISHES_EVERY_S

    def _commit_if_due(self) -> None:
        if self.ours.is_committing or self._here.now_s < self._next_mark_s:
            return
        is_due = self.ours.is_dirty and self._here.now_s >= self._next_commit_s
        if not is_due and not self._entering:
            return
        self._marking, self._entering = self._entering, []
        self._next_commit_s = self._here.now_s + self.limits.commit_interval_s
        points = self.ours.next_commit()
        if points:
            self._here.commands.append(ev.Commit(points, must_finish=False))
        else:
            self._on_committed(is_ok=True)

    def _hold_or_go_on(self) -> None:
        self._close_or_open(Why.HOLDING, self.host.is_holding)

    def _on_probed(self, is_ok: bool, is_local: bool) -> None:
        verdict = self.host.probed(is_ok, is_local, self._here.now_s)
        if verdict is Verdict.UNKNOWN:
            return
        for flight in [each for each in self.flights.values() if each.phase is Phase.JUDGED]:
            fault, flight.fault = flight.fault, None
            assert fault is not None, "what is judged has failed"
            if verdict is Verdict.RECORDS:
                self._here.take_fate(flight, fault)
            else:  # it never happened
                self._here.admit(flight)
        self._hold_or_go_on()

    def _on_drain(self) -> None:
        if self.is_draining:
            return
        self._drain_until_s = self._here.now_s + self.limits.drain_s
        self._close_or_open(Why.DRAINING, is_closed=True)
        # What has not begun goes back to the log: its offset is simply not committed.
        idle = NOT_BEGUN | {Phase.ENTERING, Phase.JUDGED}
        handed_back = [each for each in self.flights.values() if each.phase in idle]
        for flight in handed_back:
            self._here.leave_for(flight, flight.phase)
        self._here.remove(handed_back)

    def _on_draining(self) -> None:
        assert self._drain_until_s is not None
        # Nobody probes any more: what would wait for that goes back to the log.
        is_busy = any(each.phase is not Phase.JUDGED for each in self.flights.values())
        if is_busy and self._here.now_s < self._drain_until_s:
            return
        partitions = tuple(self.ours.trackers)
        self._hand_back(partitions)
        self._forget(partitions)
        self.stopped = True
