"""What must hold after every step. It trusts the log, the group and the plan, not the workers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from schemas.records import GenerationRequest, VideoDone
from streams.core.events import (
    Acknowledged,
    Assigned,
    Command,
    Commit,
    CommitPoint,
    DeadLetter,
    Delivered,
    Drop,
    Emitted,
    End,
    Event,
    Failed,
    Fate,
    HostSick,
    HostWell,
    JobCancelled,
    Lost,
    NotEnded,
    Offload,
    Output,
    Park,
    Probe,
    Probed,
    Produce,
    Retry,
    Revoked,
    Start,
    Tick,
    Ticket,
    TopicPartition,
)
from streams.core.make_way import MAKES_WAY
from streams.core.offset_map import NO_CRASHES, Crashes, decode_offset_map
from streams.core.tiers import OFF_PEAK
from streams.engine import Task
from streams.topology import REQUESTS_DEFERRED, VIDEOS_DONE, Stage
from tests.properties.stage_rules import keeps_window
from tests.simulation.evidence import Evidence, Known

if TYPE_CHECKING:
    from tests.simulation.worker import Process
    from tests.simulation.world import World

Place = tuple[TopicPartition, int]


class Violation(AssertionError):
    """Something that must hold does not. `kind` is the rule's name."""

    def __init__(self, kind: str, message: str, job_id: str | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.job_id = kind, job_id


class Memory:
    """What the judge remembers of one process."""

    def __init__(self) -> None:
        self.seen: set[Ticket] = set()
        self.asked: dict[TopicPartition, CommitPoint] = {}  # the last commit of this assignment
        self.epochs: dict[TopicPartition, int] = {}
        self.accepted: dict[TopicPartition, CommitPoint] = {}
        self.told: dict[Place, int] = {}  # crashes, by the map with which it was assigned
        self.marks: dict[Place, bool | None] = {}  # inside the engine, for all the group knows
        self.running: dict[Ticket, bool] = {}  # whether alone
        self.outlived: set[Ticket] = set()  # begun before the record came out well elsewhere
        self.failed: set[Ticket] = set()
        self.settled: set[Ticket] = set()
        self.finished: set[Place] = set()  # says the map with which it was assigned
        self.cancelled: set[tuple[str, int]] = set()
        self.is_sick = self.is_probing = False
        self.num_bad_probes = 0
        self.was_sick = False
        self.event: Event | None = None


class Judge:
    """Is told of every event, command, commit and fence, and raises `Violation`."""

    def __init__(self, world: World, evidence: Evidence) -> None:
        self._world, self.evidence = world, evidence
        self._memories: dict[str, Memory] = defaultdict(Memory)
        self._verified: dict[TopicPartition, int] = {}
        self._made_way: set[tuple[str, Ticket]] = set()  # by process
        self.deaths: Counter[Place] = Counter()  # inside the engine, since it last came out well
        self.unclean_alone: Counter[tuple[str, str, int]] = Counter()
        self.failures: Counter[tuple[str, str, int]] = Counter()
        self.sick_failures: Counter[tuple[str, str, int]] = Counter()
        self.host_was_well: set[tuple[str, str, int]] = set()  # said a probe after it had failed
        self.num_failed: Counter[tuple[str, str, int]] = Counter()
        self.num_worked: Counter[tuple[str, str, int]] = Counter()
        self.num_handled = 0

    # ---- events

    def event(self, process: Process, event: Event) -> None:
        """About to be handled; what came before has been."""
        self.num_handled += 1
        memory = self._memories[process.name]
        memory.event = event
        self._world.trace(process.name, event)
        match event:
            case Tick():
                pass
            case Assigned(partitions):
                memory.told = {
                    place: num for place, num in memory.told.items() if place[0] not in partitions
                }
                for at, start in partitions.items():
                    memory.asked.pop(at, None)
                    memory.epochs.pop(at, None)
                    memory.accepted.pop(at, None)
                    for offset, crashes in start.known.crashes.items():
                        memory.told[at, offset] = crashes.num
                    memory.finished = {each for each in memory.finished if each[0] != at}
                    memory.finished.update((at, each) for each in start.known.finished())
            case Delivered(partition, offset):
                self._delivered(process, memory, partition, offset)
            case Emitted(ticket) | Failed(ticket):
                memory.running.pop(ticket, None)
                if isinstance(event, Failed):
                    memory.failed.add(ticket)
                    known = self.evidence.known[ticket.partition][ticket.offset]
                    self.num_failed[process.stage.name, known.job_id or "", known.run] += 1
            case NotEnded(ticket, fault) if fault.fate is Fate.DEAD_LETTER:
                self.evidence.cannot_end(ticket.partition, ticket.offset)
            case Acknowledged(ticket):
                if not isinstance(process.sink.answered, DeadLetter):
                    memory.settled.add(ticket)
            case Lost(partitions):
                self._gone(process, memory, set(partitions), has_died=False)
            case JobCancelled(job_id, run):
                memory.cancelled.add((job_id, run))
            case HostWell():
                memory.is_sick = False
            case HostSick(_, _, is_local):
                memory.is_sick = True
                self._world.count["local holds" if is_local else "holds"] += 1
            case Probed(is_ok):
                memory.is_probing = not is_ok
                memory.was_sick = is_ok and memory.num_bad_probes > 0
                memory.num_bad_probes = 0 if is_ok else memory.num_bad_probes + 1

    def _delivered(self, process: Process, memory: Memory, at: TopicPartition, offset: int) -> None:
        if not keeps_window(process.state.limits, process.state.flights):
            raise Violation("window", f"{process.name} holds more than its window")
        tracker = process.state.ours.trackers.get(at)
        if tracker is None:
            return
        ticket = Ticket(at, offset, tracker.assignment_epoch)
        if ticket in memory.seen:
            raise Violation("epoch", f"{process.name} met {ticket} in two assignments")
        memory.seen.add(ticket)
        memory.epochs[at] = ticket.assignment_epoch

    # ---- commands

    def command(self, process: Process, command: Command) -> None:
        """About to be performed."""
        memory = self._memories[process.name]
        self._world.trace(process.name, command)
        match command:
            case Start(batch):
                self._start(process, memory, [ticket for ticket, _ in batch])
            case End(ticket):
                self._one_flight(process, memory, ticket)
            case Drop(tickets):
                for ticket in tickets:
                    memory.running.pop(ticket, None)
            case Produce(ticket) | Retry(ticket) | DeadLetter(ticket) | Park(ticket):
                self._asked(process, memory, ticket, command)
            case Commit(points, must_finish):
                self._commit(process, memory, points, must_finish)
            case Offload():
                self._world.count["offloads"] += 1
            case Probe():
                memory.is_probing = True
                self._world.count["probes"] += 1

    def _start(self, process: Process, memory: Memory, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            place = ticket.partition, ticket.offset
            known = self.evidence.known[ticket.partition][ticket.offset]
            self._one_flight(process, memory, ticket)
            if not self._is_marked(memory, ticket, known):
                raise Violation("marker", f"{process.name} starts {ticket} unmarked", known.job_id)
            self._may_start(process, memory, place, known)
            is_alone = len(tickets) == 1 and not memory.running
            self._is_kept_alone(process, memory, ticket, is_alone)
        for ticket in tickets:
            memory.running[ticket] = is_alone
            memory.outlived.discard(ticket)
            memory.marks[ticket.partition, ticket.offset] = is_alone
            memory.failed.discard(ticket)
            self._world.count["starts"] += 1

    def _is_kept_alone(
        self, process: Process, memory: Memory, ticket: Ticket, is_alone: bool
    ) -> None:
        if process.name not in self._world.groups[process.stage.name].members:
            return  # it can't know who has died elsewhere since the group dropped it
        job_id = self._job_id(ticket)
        if self._is_suspect((ticket.partition, ticket.offset)):
            self._world.count["suspects"] += 1
            if not is_alone:
                raise Violation("alone", f"the suspect {ticket} has company", job_id)
        if any(self._is_suspect((each.partition, each.offset)) for each in memory.running):
            raise Violation("alone", f"{ticket} joins a suspect", job_id)

    def _is_marked(self, memory: Memory, ticket: Ticket, known: Known) -> bool:
        point = memory.accepted.get(ticket.partition)
        if point is None or point.offset > ticket.offset:
            return False
        crashes = decode_offset_map(*point).crashes.get(ticket.offset, NO_CRASHES)
        told = memory.told.get((ticket.partition, ticket.offset), 0)
        return crashes.num == max(told, known.crashes.num) + 1

    def _may_start(self, process: Process, memory: Memory, place: Place, known: Known) -> None:
        now_s, run_of_job = process.now_s(), (known.job_id or "", known.run)
        is_hurried = run_of_job in self._world.hurried
        for rule, is_broken in (
            ("due", known.due_s > now_s),
            ("deadline", known.deadline_s <= now_s and not is_hurried),
            ("cancel", run_of_job in memory.cancelled),
            ("offset map", place in memory.finished),
            ("hold", memory.is_sick or memory.is_probing),
        ):
            if is_broken:
                raise Violation(rule, f"{process.name} must not start {place}", known.job_id)

    def _is_suspect(self, place: Place) -> bool:
        known = self.evidence.known[place[0]][place[1]]
        return known.crashes.num + self.deaths[place] >= 2

    def _one_flight(self, process: Process, memory: Memory, ticket: Ticket) -> None:
        job_id = self._job_id(ticket)
        for other in memory.running:
            if other != ticket and self._job_id(other) == job_id:
                raise Violation("one flight", f"{process.name}: {other} and {ticket}", job_id)
        if ticket.partition not in process.source.positions:
            raise Violation("ownership", f"{process.name} works {ticket}, another's", job_id)

    def _job_id(self, ticket: Ticket) -> str | None:
        return self.evidence.known[ticket.partition][ticket.offset].job_id

    def _asked(self, process: Process, memory: Memory, ticket: Ticket, command: Command) -> None:
        job_id = self._job_id(ticket)
        if ticket in process.sink.open or ticket in memory.settled:
            raise Violation("emitted twice", f"{process.name}: {ticket}", job_id)
        process.sink.open[ticket] = command
        self._world.count["parked"] += isinstance(command, Park)
        if isinstance(command, Retry):
            self._world.count["retries"] += 1
            known = self.evidence.known[ticket.partition][ticket.offset]
            self._stepped_aside(process, ticket, command, known)
            is_counted = command.work.try_number > known.try_number
            if is_counted and ticket not in memory.failed:
                raise Violation("try", f"{ticket} is a try further and has not failed", job_id)
        is_answer = isinstance(memory.event, Probed) and isinstance(command, Retry | DeadLetter)
        if is_answer and memory.was_sick:
            raise Violation("hold", f"{ticket}: a sick host's failure was counted", job_id)
        if is_answer:
            known = self.evidence.known[ticket.partition][ticket.offset]
            self.host_was_well.add((process.stage.name, job_id or "", known.run))

    def _stepped_aside(
        self, process: Process, ticket: Ticket, command: Retry, known: Known
    ) -> None:
        """A copy that is no try further: off-peak, or a head with all behind it settled."""
        if command.work.num_diverted == known.num_diverted:
            return
        at, offset, limits = ticket.partition, ticket.offset, process.state.limits
        if command.fault == MAKES_WAY:
            held = [each for each in process.state.flights if each.partition == at]
            is_full = len(held) > limits.look_ahead - (limits.window_high - limits.window_low)
            is_said = (process.name, ticket) in self._made_way  # and was not acknowledged
            if not is_said and (not is_full or command.work.charge.tier != OFF_PEAK):
                raise Violation("make way", f"{ticket} was in nobody's way", known.job_id)
            self._world.count["deferrable jobs that made way"] += not is_said
            self._made_way.add((process.name, ticket))
            return
        self._world.count["heads that stepped aside"] += 1
        tracker, most = process.state.ours.trackers[at], limits.map_span
        behind = range(offset + 1, offset + tracker.span)
        if tracker.commit_offset != offset or tracker.span <= 0.9 * most:
            raise Violation("head of line", f"{ticket} holds up nobody", known.job_id)
        if not all(self.evidence.is_settled(at, each) for each in behind[-most:]):
            raise Violation("head of line", f"behind {ticket} not all is settled", known.job_id)

    def _commit(self, process: Process, memory: Memory, points: Any, must_finish: bool) -> None:
        if must_finish and not isinstance(memory.event, Revoked | Tick):
            raise Violation("commit", "only a partition that goes away is waited for")
        for at, point in points.items():
            if at not in process.source.positions:
                raise Violation("stale commit", f"{process.name} commits {at}, another's")
            if at in memory.asked and point.offset < memory.asked[at].offset:
                raise Violation("commit went back", f"{process.name}: {at} to {point.offset}")
            memory.asked[at] = point
            self._check_settled(process, at, point)

    def _check_settled(self, process: Process, at: TopicPartition, point: CommitPoint) -> None:
        known, evidence = self.evidence.known[at], self.evidence
        first = self._verified.get(at, 0)
        finished = decode_offset_map(point.offset, point.metadata).finished()
        for offset in (*range(first, point.offset), *finished):
            if not evidence.is_settled(at, offset) and not self._has_open_twin(at, offset, point):
                job_id = known[offset].job_id
                text = f"{process.name} commits {at.topic}[{at.partition}]@{point.offset}"
                raise Violation("unfinished", f"{text} past {offset} of {job_id}", job_id)
        self._verified[at] = max(first, point.offset)

    def _has_open_twin(self, at: TopicPartition, offset: int, point: CommitPoint) -> bool:
        """Whether that very commit leaves the same request open, in another parked copy.

        A zombie may have copied the one that stays open: the log alone would have its copy stand.
        """
        finished = decode_offset_map(point.offset, point.metadata).finished()
        return at.topic == REQUESTS_DEFERRED and any(
            each >= point.offset and each not in finished
            for each in self.evidence.parked_twins(at, offset)
        )

    # ---- the group and the ends of processes

    def committed(
        self, process: Process, points: dict[TopicPartition, CommitPoint], must_finish: bool
    ) -> None:
        """The group has taken a commit."""
        memory = self._memories[process.name]
        memory.accepted.update(points)
        for at, point in points.items():
            crashes = decode_offset_map(*point).crashes
            if must_finish and isinstance(memory.event, Revoked):
                self._check_hand_back(memory, at, crashes)
            for place in [each for each in memory.marks if each[0] == at]:
                told = max(memory.told.get(place, 0), self.evidence.known[at][place[1]].crashes.num)
                count = crashes.get(place[1], NO_CRASHES).num
                if place[1] < point.offset or count <= told:
                    del memory.marks[place]
                    if must_finish and count == 0:
                        self._came_out_well(memory, place)
            for offset, counted in crashes.items():
                known = self.evidence.known[at][offset]
                if counted.num > max(memory.told.get((at, offset), 0), known.crashes.num):
                    memory.marks.setdefault((at, offset), None)

    def _came_out_well(self, by: Memory, place: Place) -> None:
        """Others' deaths in runs that began before then count no more: nor do zombies', later."""
        self.deaths.pop(place, None)
        for memory in self._memories.values():
            if memory is not by:
                memory.outlived.update(
                    each for each in memory.running if (each.partition, each.offset) == place
                )

    def handed_back(self, process: Process, partitions: Iterable[TopicPartition]) -> None:
        """The loop has let go of partitions: what is finished there must be committed."""
        memory = self._memories[process.name]
        for at in partitions:
            point = memory.asked.get(at, CommitPoint(0))
            finished = decode_offset_map(*point).finished()
            for ticket in memory.settled:
                is_ours = ticket.partition == at and ticket.assignment_epoch == memory.epochs.get(
                    at
                )
                if is_ours and ticket.offset >= point.offset and ticket.offset not in finished:
                    text = f"{process.name} gives away {at} without committing {ticket}"
                    raise Violation("hand back", text, self._job_id(ticket))

    def _check_hand_back(
        self, memory: Memory, at: TopicPartition, crashes: Mapping[int, Crashes]
    ) -> None:
        """What runs and is handed back has not crashed, though the process may die next."""
        for ticket in [each for each in memory.running if each.partition == at]:
            if ticket.offset in crashes:
                text = f"{ticket} is handed back as if it had crashed"
                raise Violation("hand back", text, self._job_id(ticket))
            del memory.running[ticket]

    def died(self, process: Process) -> None:
        """A process was killed."""
        self._gone(process, self._memories[process.name], set(process.source.positions), True)

    def _gone(
        self, process: Process, memory: Memory, partitions: set[TopicPartition], has_died: bool
    ) -> None:
        for place, is_alone in memory.marks.items():
            known = self.evidence.known[place[0]][place[1]]
            if place[0] in partitions and known.job_id is not None and is_alone is not False:
                key = process.stage.name, known.job_id, known.run
                self.unclean_alone[key] += 1
                self._world.count["crashes alone"] += is_alone is True and has_died
        memory.marks = {at: each for at, each in memory.marks.items() if at[0] not in partitions}
        if has_died:
            for ticket in memory.running:
                if ticket.partition in partitions and ticket not in memory.outlived:
                    self._world.count["crashes inside the engine"] += 1
                    self.deaths[ticket.partition, ticket.offset] += 1

    def offsets_reset(self, partitions: list[TopicPartition]) -> None:
        """Maps and counts are gone."""
        for place in [each for each in self.deaths if each[0] in partitions]:
            del self.deaths[place]

    # ---- fences and work

    def is_done(self, stage: Stage, task: Task) -> bool:
        """Whether the run has ended, or the stage has its result, with all its blobs."""
        record = task.record
        job = record if isinstance(record, GenerationRequest) else record.job
        return self._world.is_done(stage, job.tenant_id, job.job_id, job.run)

    def prepared(self, process: Process, task: Task, was_done: bool) -> None:
        """A record is about to be worked."""
        record = task.record
        job = record if isinstance(record, GenerationRequest) else record.job
        if was_done and self.is_done(process.stage, task):
            raise Violation("worked twice", f"{process.name}: {job.job_id}", job.job_id)
        self.num_worked[process.stage.name, job.job_id, job.run] += 1

    def stored(self, process: Process, call: str, key: str) -> None:
        """Something was put into the store."""
        if call != "create" or not key.endswith("/outcome"):
            return
        done: VideoDone = self._world.decoded_outcome(key)
        self.evidence.ended(done)
        if done.status == "failed" and not self.evidence.was_buried(done.job_id, done.run):
            text = f"{done.job_id} run {done.run} failed without a dead letter on the log"
            raise Violation("dead letter first", text, done.job_id)

    def unworked(self, process: Process, output: Output) -> None:
        """A record is settled by what its stage has made before: that must be there."""
        record_type, body = process.stage.writes_record, output.value or b""
        if output.topic == VIDEOS_DONE:
            return  # an outcome stands, whatever has become of the video
        if output.topic == process.stage.writes and record_type is not None:
            record: Any = self._world.codec.decode(body, record_type)
            if not self._world.are_intact(record):
                text = f"{process.name} re-emits {output.key!r}, whose blobs are lost"
                raise Violation("edition", text, (output.key or b"").decode())
