"""The records that are here, and every step that one of them can take."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from streams.core import events as ev
from streams.core.admission import Admission, LetIn, Park, Refuse
from streams.core.batches import Batches
from streams.core.copies import Copies
from streams.core.events import Command, Ending, Fate, Fault, Ticket, TopicPartition
from streams.core.flight import IN_ENGINE, NOT_BEGUN, Flight, Phase
from streams.core.gate import Why
from streams.core.limits import StageLimits
from streams.core.offset_map import Crashes
from streams.core.partitions import OurPartitions
from streams.core.retry import is_suspect, sentence
from streams.core.runs import Wished
from streams.core.shares import Follow, JobSeen, Level, Payer, Source
from streams.core.timers import Timers
from streams.core.wishes import Wishes

CANCELLED = Ending("cancelled", "cancelled", "cancelled by request")
EXPIRED = Ending("expired", "deadline_passed", "the deadline passed before the work was done")


class Flights:
    """The delivered, unfinished records of one worker; `StageState` says what happens to them.

    Every step appends to `commands` what it asks for. `now_s` is set before each event.
    """

    def __init__(self, ours: OurPartitions, limits: StageLimits) -> None:
        self._ours, self._policy = ours, limits.retry
        self._ask_again_s = limits.ask_again_s
        self.by_ticket: dict[Ticket, Flight] = {}
        self.batches: Batches[Ticket] = Batches(
            limits.batch_max,
            limits.batch_age_s,
            limits.max_batches,
            limits.fairness,
            limits.has_room_for_heavier,
        )
        self.copies = Copies()
        self.wishes = Wishes(limits.longest_run_s)
        self.num_active = 0  # flights that somebody's answer is due for
        self.commands: list[Command] = []
        self.now_s = 0.0
        self._due: list[tuple[float, Ticket]] = []  # heap of delayed flights
        self._num_delayed: Counter[TopicPartition] = Counter()
        self._again: list[tuple[float, Ticket]] = []  # heap of questions to ask once more
        self.admission: Admission[Ticket] | None = None
        if limits.quotas.is_any:
            self.admission = Admission(limits.quotas)
        self._parked_until: Timers[Ticket] = Timers()  # deadlines of parked flights
        self._longest_run_s = limits.longest_run_s

    def get(self, ticket: Ticket, phase: Phase) -> Flight | None:
        """The flight of that ticket if it still is in that phase; None: the answer is stale."""
        flight = self.by_ticket.get(ticket)
        return flight if flight is not None and flight.phase is phase else None

    def admit(self, flight: Flight) -> None:
        """It has its turn: to wait for a batch, or for what its delivery or its past say."""
        if isinstance(flight.verdict, Fault):
            self.dead_letter(flight, flight.verdict)
            return
        if ending := flight.verdict or self.ending_due(flight):
            self.end(flight, ending)
            return
        work = flight.work
        if work.due_s is not None and work.due_s > self.now_s:
            self._delay(flight, work.due_s)
            return
        match sentence(flight.crashes, work.crashes):
            case Fault(fate=Fate.LATER) as fault:
                self.retry(flight, self._policy.longest_s, work.try_number, fault)
            case Fault() as fault:
                self.dead_letter(flight, fault)
            case _ if self._is_let_in(flight):
                self.move(flight, Phase.WAITING)
                if is_suspect(flight.crashes):
                    self.batches.add_suspect(flight.ticket)
                else:
                    deadline_s = self._deadline_s(flight)
                    self.batches.add(
                        work.batch_key, flight.ticket, work.charge, deadline_s, self.now_s
                    )

    def _is_let_in(self, flight: Flight) -> bool:
        """Whether it goes on now; if not, what becomes of it has begun."""
        share, run_of_job = flight.work.share, flight.run_of_job
        if self.admission is None or share is None:
            return True
        assert run_of_job is not None, "what asks for a share is a job's"
        until_s = flight.asks_until_s(self._deadline_s(flight), self.now_s + self._longest_run_s)
        match self.admission.decide(run_of_job, share, until_s, self.now_s):
            case LetIn(degradations):
                if degradations:
                    flight.work = replace(flight.work, degradations=degradations)
                return True
            case Refuse(reason_code, reason, retry_at_s):
                self.end(flight, Ending("rejected", reason_code, reason, retry_at_s))
            case Park(over):  # pragma: no branch - there is nothing else
                flight.over = over
                if share.source is Source.PARKED:
                    self.move(flight, Phase.PARKED)
                    self._wait_parked(flight, until_s)
                else:
                    self.move(flight, Phase.PARKING)
                    self.ask(flight)
        return False

    def ending_due(self, flight: Flight) -> Ending | None:
        """How the run ends because somebody, or time, has said so."""
        run_of_job = flight.run_of_job
        assert run_of_job is not None, "a record without a job has a fault"
        if self.wishes.is_cancelled(run_of_job):
            return CANCELLED
        deadline_s = self._deadline_s(flight)
        return EXPIRED if deadline_s is not None and deadline_s <= self.now_s else None

    def _deadline_s(self, flight: Flight) -> float | None:
        assert flight.run_of_job is not None, "a record without a job has a fault"
        return self.wishes.deadline_s(flight.run_of_job, flight.work.deadline_s)

    def _delay(self, flight: Flight, due_s: float) -> None:
        """Records of a retry topic come due in order: none behind this one need be delivered."""
        self.move(flight, Phase.DELAYED)
        self._num_delayed[flight.ticket.partition] += 1
        heapq.heappush(self._due, (due_s, flight.ticket))
        self.pause(self._ours.gate.close(flight.ticket.partition, Why.NOT_DUE))

    def admit_due(self) -> None:
        """Records whose time has come go on."""
        while self._due and self._due[0][0] <= self.now_s:
            _, ticket = heapq.heappop(self._due)
            if flight := self.get(ticket, Phase.DELAYED):
                self.admit(flight)

    def ask_later(self, flight: Flight) -> None:
        """The answer was no, for now."""
        heapq.heappush(self._again, (self.now_s + self._ask_again_s, flight.ticket))

    def ask_again(self) -> None:
        """Questions whose time has come are asked once more."""
        while self._again and self._again[0][0] <= self.now_s:
            _, ticket = heapq.heappop(self._again)
            if (flight := self.by_ticket.get(ticket)) is not None:
                self.ask(flight)

    def ask(self, flight: Flight) -> None:
        """Ask what is asked of engine or producer in its phase."""
        self.commands.append(flight.question())

    def produce(self, flight: Flight, outputs: tuple[ev.Output, ...]) -> None:
        """It is worked, or ended: put that on the log."""
        self.leave_for(flight, Phase.PRODUCING)
        flight.outputs = outputs
        self.ask(flight)

    def dead_letter(self, flight: Flight, fault: Fault) -> None:
        """It can never be worked: keep the evidence."""
        self.leave_for(flight, Phase.DEAD_LETTERING)
        share, run_of_job = flight.work.share, flight.run_of_job
        if self.admission is not None and share is not None and not fault.ends_job:
            assert run_of_job is not None, "what asks for a share is a job's"
            ledger = self.admission.ledger  # no VideoDone will tell that the share is free
            self._let_parked_in(ledger.release(share.payer.partition, run_of_job, self.now_s))
        flight.fault, flight.work = fault, replace(flight.work, crashes=flight.crashes)
        self.ask(flight)

    def retry(self, flight: Flight, delay_s: int, try_number: int, fault: Fault) -> None:
        """It may be worked later: put a copy on the retry topic of that delay."""
        self.leave_for(flight, Phase.RETRYING)
        work = replace(flight.work, try_number=try_number, crashes=flight.crashes, due_s=None)
        flight.retry = ev.Retry(flight.ticket, work, delay_s, fault)
        self.ask(flight)

    def step_aside(self, flight: Flight, delay_s: int, why: Fault) -> None:
        """It waits, or runs, and others are in need of its place: its own turn is later."""
        if flight.phase is Phase.WAITING:
            self.batches.remove({flight.ticket})
        else:
            self.commands.append(ev.Drop((flight.ticket,)))
        flight.work = replace(flight.work, num_diverted=flight.work.num_diverted + 1)
        self.retry(flight, delay_s, flight.work.try_number, why)

    def end(self, flight: Flight, ending: Ending) -> None:
        """Its run ends without being completed."""
        self.leave_for(flight, Phase.ENDING)
        flight.ending = ending
        self.ask(flight)

    def take_fate(self, flight: Flight, fault: Fault) -> None:
        """Its work has failed, and it was not the host: later, or dead letter."""
        work = flight.work
        assert work.job_id is not None, "what has no job is not worked"
        delay_s = self._policy.delay_s(work.job_id, work.run, work.try_number)
        if self.copies.is_outranked(flight):  # its next try is here already
            self.finish(flight)
        elif fault.fate is Fate.DEAD_LETTER or delay_s is None:
            self.dead_letter(flight, fault)
        else:
            self.retry(flight, delay_s, work.try_number + 1, fault)

    def cancel(self, wished: Wished, issued_s: float) -> None:
        """A cancel names its run; what is past being cancelled goes its way."""
        self.wishes.cancel(wished, issued_s)
        flight = self.copies.at_work_on(wished)
        if flight is None or flight.phase not in NOT_BEGUN | IN_ENGINE | {Phase.JUDGED}:
            return
        if flight.phase is Phase.WAITING:
            self.batches.remove({flight.ticket})
        elif flight.phase is Phase.RUNNING:
            self.commands.append(ev.Drop((flight.ticket,)))
        flight.fault = None
        self.end(flight, CANCELLED)

    def finish(self, flight: Flight) -> None:
        """Its offset counts as finished; a copy that waited for it has its turn."""
        (following,) = self.remove([flight])
        partition = flight.ticket.partition
        self.resume(self._ours.finish(flight.ticket, flight.work.charge))
        paused, resumed = self._ours.press_back(partition)
        self.pause(paused)
        self.resume(resumed)
        if following is not None:
            self.admit(following)
            self.park_behind(following.work.job_id)

    def finish_retried(self, flight: Flight) -> None:
        """A copy that outranks it is on the log: others of its own rank have nothing left to do.

        A twin, worked now, would do the same again, and count its crashes from zero.
        """
        assert flight.work.job_id is not None, "what has no job is not retried"
        for twin in self.copies.twins(flight.work.job_id, flight):
            self.finish(twin)
        self.finish(flight)

    def remove(self, flights: Collection[Flight]) -> list[Flight | None]:
        """Let go of flights; for each the copy that takes over, perhaps itself about to go."""
        waiting = {flight.ticket for flight in flights if flight.phase is Phase.WAITING}
        if waiting:
            self.batches.remove(waiting)
        following = []
        for flight in flights:
            self.move(flight, Phase.BEHIND)
            del self.by_ticket[flight.ticket]
            job_id = flight.work.job_id
            following.append(None if job_id is None else self.copies.remove(job_id, flight))
        return following

    def leave_for(self, flight: Flight, phase: Phase) -> None:
        """It goes on to that phase; if it was in the engine, it has not crashed there."""
        if flight.phase in IN_ENGINE:
            self.set_crashes(flight, flight.crashes)
        self.move(flight, phase)

    def move(self, flight: Flight, phase: Phase) -> None:
        """Every change of phase, and what leaving the one and entering the other means."""
        before, flight.phase = flight.phase, phase
        if before is phase:
            return
        self.num_active += (phase not in NOT_BEGUN) - (before not in NOT_BEGUN)
        if before in IN_ENGINE and phase not in IN_ENGINE:
            self.batches.leave(flight.batch)
        if before is Phase.PARKED:
            assert self.admission is not None, "or nothing were parked"
            assert flight.work.share is not None, "or it were not parked"
            self.admission.leave(flight.work.share.payer, flight.ticket)
            self._parked_until.discard(flight.ticket)
        if before is Phase.DELAYED:
            partition = flight.ticket.partition
            self._num_delayed[partition] -= 1
            if not self._num_delayed[partition]:
                del self._num_delayed[partition]
                self.resume(self._ours.gate.open(partition, Why.NOT_DUE))

    def set_crashes(self, flight: Flight, crashes: Crashes) -> None:
        """What the offset map shall say of its crashes from the next commit on."""
        partition, offset, _ = flight.ticket
        self._ours.trackers[partition].set_crashes(offset, crashes)
        self._ours.touch(partition)

    def pause(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Deliver no more of these; none is no command."""
        if partitions:
            self.commands.append(ev.Pause(partitions))

    def resume(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Deliver these again; none is no command."""
        if partitions:
            self.commands.append(ev.Resume(partitions))

    # ---- quotas

    def follow(self) -> None:
        """Keep the ledgers of the partitions that are ours; deliver nothing before they are read.

        What was let in, and what of it has ended, was another's to know.
        """
        if self.admission is None:
            return
        ledger = self.admission.ledger
        ours = {each.partition for each in self._ours.trackers}
        new, gone = sorted(ours - ledger.numbers), sorted(ledger.numbers - ours)
        for number in new:
            ledger.open(number)
        for number in gone:
            ledger.forget(number)
        if new or gone:
            self.commands.append(Follow(tuple(new), tuple(gone)))
        for partition in self._ours.trackers:
            if not ledger.is_read(partition.partition):
                self.pause(self._ours.gate.close(partition, Why.LEDGER_UNREAD))

    def ledger_read(self, number: int) -> None:
        """The ledger of a partition tells all that was on the log."""
        assert self.admission is not None, "or nobody had asked"
        self.admission.ledger.read(number)
        for partition in self._ours.trackers:
            if partition.partition == number:
                self.resume(self._ours.gate.open(partition, Why.LEDGER_UNREAD))

    def seen(self, event: JobSeen) -> None:
        """The log tells of a run; perhaps somebody has room now."""
        assert self.admission is not None, "or nobody had asked"
        ledger, run_of_job = self.admission.ledger, event.run_of_job
        if event.share is None:
            freed = ledger.ended(event.partition, run_of_job, event.cost_s, self.now_s)
            self._let_parked_in(freed)
        else:
            until_s = self.wishes.deadline_s(run_of_job, event.deadline_s)
            assert until_s is not None, "it says when"
            entry = run_of_job, event.share.payer, event.share.bulk, until_s, self.now_s
            if event.level is Level.ADMITTED:
                ledger.hold(*entry, is_logged=True)
            else:
                ledger.park(*entry)
        flight = self.copies.at_work_on(run_of_job)
        if event.level is not Level.PARKED and flight is not None and flight.phase is Phase.PARKED:
            self._ask(flight)  # it need not wait: its fences know what to do

    def move_deadline(self, wished: Wished, deadline_s: float, issued_s: float) -> None:
        """It may hold its share, or wait for one, as long as that."""
        self.wishes.set_deadline(wished, deadline_s, issued_s)
        if self.admission is None:
            return
        self.admission.ledger.extend(wished, deadline_s)
        flight = self.copies.at_work_on(wished)
        if flight is not None and flight.phase is Phase.PARKED:
            self._wait_parked(flight, deadline_s)

    def tend_parked(self) -> None:
        """Time has passed: shares are free, parked requests have had their deadline."""
        if self.admission is None:
            return
        for payer in self.admission.ledger.expire(self.now_s):
            self._let_parked_in(payer)
        while (ticket := self._parked_until.pop_due(self.now_s)) is not None:
            self._ask(self.by_ticket[ticket])

    def _wait_parked(self, flight: Flight, until_s: float) -> None:
        """Its place in its payer's line, and the end of its wait, are by that time."""
        share, over = flight.work.share, flight.over
        assert self.admission is not None, "or nothing were parked"
        assert share is not None, "or it were not parked"
        assert over is not None, "or it were not parked"
        self.admission.wait(share.payer, flight.ticket, until_s, over)
        self._parked_until.set(flight.ticket, until_s)

    def _ask(self, flight: Flight) -> None:
        self.move(flight, Phase.BEHIND)
        self.admit(flight)

    def _let_parked_in(self, payer: Payer | None) -> None:
        assert self.admission is not None, "or nobody held a share"
        while payer is not None and (ticket := self.admission.first(payer)) is not None:
            flight = self.by_ticket[ticket]
            self._ask(flight)
            if flight.phase is Phase.PARKED:
                return

    def park_behind(self, job_id: str | None) -> None:
        """Other requests under a parked one's id go where that lies; their partitions go on.

        Only their claims tell which of them is the job: none is worked before the parked one.
        """
        parked = self.copies.at_work(job_id)
        if job_id is None or parked is None or parked.phase is not Phase.PARKED:
            return
        for flight in self.copies.behind(job_id):
            is_there = flight.ticket.partition.topic == parked.ticket.partition.topic
            if not is_there and self.is_as_parked(flight):
                self.park_again(flight)

    def is_as_parked(self, flight: Flight) -> bool:
        """Whether it is parked, or behind one that is, and its copy would say all that it does."""
        if flight.phase is not Phase.BEHIND:
            return flight.phase is Phase.PARKED
        at_work = self.copies.at_work(flight.work.job_id)
        return flight.is_untried and at_work is not None and at_work.phase is Phase.PARKED

    def park_again(self, flight: Flight) -> None:
        """A copy goes to the end of `requests.deferred`."""
        at_work = self.copies.at_work(flight.work.job_id)
        assert at_work is not None, "parked, or behind one that is"
        flight.over = at_work.over
        self.move(flight, Phase.PARKING)
        self.ask(flight)
