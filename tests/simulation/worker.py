"""One worker process: the real loop, state and fences; consumer, producer and engine simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from streams.core.admission import Quotas
from streams.core.events import (
    Acknowledged,
    Assigned,
    Command,
    CommitPoint,
    Committed,
    DeadLetter,
    Event,
    Lost,
    NotAcknowledged,
    Output,
    Revoked,
    StartOffset,
    Ticket,
    TopicPartition,
)
from streams.core.offset_map import OffsetMap, decode_offset_map
from streams.core.stage import StageState
from streams.engine import Task
from streams.errors import RetryableError, SickHost, StoreAway
from streams.intake import Intake
from streams.letters import StageLetters
from streams.runner import Dispatch, StageRunner
from streams.settings import Settings
from streams.topology import VIDEOS_DONE, Stage
from tests.simulation.engine import SimulatedEngine
from tests.simulation.plan import NUM_PARTITIONS, RETRY
from tests.simulation.readers import Controls, LedgerFeed
from tests.simulation.store import MemoryStore
from tests.simulation.work import SimulatedWork, charge_of, place
from workers.fenced import FencedWork
from workers.prompt.shares import RequestShares

if TYPE_CHECKING:
    from tests.simulation.world import World


SETTINGS = Settings(partitions=NUM_PARTITIONS)


class ProcessDied(BaseException):
    """SIGKILL: nothing of the process runs any more."""


class Slot:
    """A place for a worker, on a host of its own: what outlives its processes."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage, self.number = stage, number
        self.process: Process | None = None
        self.num_processes = 0
        self.is_closed = False  # scaled away
        self.clock_ahead_s = 0.0
        self.device = "well"

    @property
    def name(self) -> str:
        """For traces."""
        return f"{self.stage.name}-{self.number}"


class Process:
    """A worker from its start to its end."""

    def __init__(self, world: World, slot: Slot) -> None:
        self.world, self.slot, self.stage = world, slot, slot.stage
        slot.num_processes += 1
        self.name = f"{slot.name}.{slot.num_processes}"
        self.longest_compute_s = world.plan.longest_compute_s
        self.is_gone = False
        self.frozen_until_s = self.stalled_until_s = 0.0
        self.fuse: int | None = None  # steps that it has to live
        self.dies_at_outcome = False
        self.next_turn_s = float("inf")
        self.idle_s = 0.0
        codec = world.codec
        store = MemoryStore(world.memory, self._before_store, self._after_store)
        work = SimulatedWork(self.stage, store, world.jobs, self._effect, self._probe)
        fenced = FencedWork(
            work, self.stage, store, codec, self._now, place if self.is_first else None
        )
        self.engine = SimulatedEngine(fenced, self)
        quotas = world.plan.limits.quotas if self.is_first else Quotas()
        shares = RequestShares(SETTINGS, codec, work.job)
        feed = LedgerFeed(self, shares) if quotas.is_any else None
        intake = Intake(
            self.stage, codec, work.batch_key, RETRY.delays_s, charge_of, shares if feed else None
        )
        self.source = Source(self, intake)
        self.sink = Sink(self)
        self.state = StageState(replace(world.plan.limits, quotas=quotas))
        letters = StageLetters(self.stage, self.name, "simulated", fenced.announce)
        self.runner = StageRunner(
            self.state,
            self.source,
            self.sink,
            self.engine,
            Controls(self),
            self,
            self,
            letters,
            feed,
        )

    @property
    def is_first(self) -> bool:
        """Whether it reads the requests."""
        return self.stage.name == "prompt"

    # ---- the loop's clock and watch

    def now_s(self) -> float:
        """This host's clock."""
        return self.world.now_s + self.slot.clock_ahead_s

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.now_s(), UTC)

    def turned(self, state: StageState, now_s: float) -> None:
        """The loop turns."""

    def event(self, event: Event) -> None:
        """About to be handled."""
        self.world.judge.event(self, event)

    def command(self, command: Command) -> None:
        """About to be performed, unless the process dies here."""
        self.spend()
        self.world.judge.command(self, command)

    def spend(self) -> None:
        """One more step was lived."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise ProcessDied

    # ---- the engine's bench

    def step(self, delay_s: tuple[float, float], call: Callable[[], None]) -> None:
        """Run that in the engine, later."""
        self.world.engine_step(self, self.world.rng.uniform(*delay_s), call)

    def prepared(self, task: Task, was_done: bool, edition: int) -> None:
        """A record is about to be worked."""
        self.world.judge.prepared(self, task, was_done)
        self.world.count["next editions"] += edition > 1

    def unworked(self, outputs: tuple[Output, ...]) -> None:
        """A record is settled without work."""
        names = {VIDEOS_DONE: "outcomes re-emitted", self.stage.writes: "results re-emitted"}
        for output in outputs:
            self.world.count[names.get(output.topic, "forwarded")] += 1
            self.world.judge.unworked(self, output)

    def is_done(self, task: Task) -> bool:
        """Whether that is needless."""
        return self.world.judge.is_done(self.stage, task)

    def wake(self) -> None:
        """There is something for the loop."""
        self.world.wake(self, self.world.rng.uniform(0.001, 0.02))

    def turn(self) -> None:
        """One turn of the loop; then when the next is due."""
        num_handled = self.world.judge.num_handled
        self.runner.turn()
        if self.state.stopped:
            self.world.exited(self)
            return
        num_events = self.world.judge.num_handled - num_handled
        if self.source.pick() is not None:
            self.idle_s = 0.0
        elif num_events > 1:  # more than a tick
            self.idle_s = 0.03
        else:
            self.idle_s = min(1.5, 2 * max(self.idle_s, 0.05))
        self.world.wake(self, self.world.rng.uniform(0.01, 0.03) + self.idle_s)

    # ---- the host: store and device

    def _before_store(self, call: str, key: str) -> None:
        self.spend()
        world = self.world
        if call == "create" and self.dies_at_outcome and key.endswith("/outcome"):
            self.fuse = 0  # right after it
        world.interleave(self)
        if self.is_gone:
            raise ProcessDied
        if world.is_on("store_away"):
            raise StoreAway("away", reason_code="store_away")
        if world.is_on("refused_calls") and world.chance("refused_calls"):
            raise StoreAway("throttled", reason_code="store_throttled")

    def _after_store(self, call: str, key: str) -> None:
        world = self.world
        world.judge.stored(self, call, key)
        if world.is_on("lost_answers") and world.chance("lost_answers"):
            world.count["lost creates" if call == "create" else "lost puts"] += 1
            raise StoreAway("no answer", reason_code="store_timeout")

    def _effect(self, job_id: str, run: int) -> Exception | None:
        match self.slot.device:
            case "silent":
                self.world.judge.sick_failures[self.stage.name, job_id, run] += 1
                return RetryableError("the device failed", reason_code="device_failed")
            case "outspoken":
                raise SickHost("the device is gone", reason_code="device_lost")
        return self.world.effect(self.stage.name, job_id, run)

    def _probe(self) -> None:
        if self.slot.device != "well":
            raise SickHost("the device fails", reason_code="device_failed")


class Source:
    """Implements `streams.runner.Source` on the simulated log and group."""

    def __init__(self, process: Process, intake: Intake) -> None:
        self._process, self._world, self._intake = process, process.world, intake
        self._group = process.world.groups[process.stage.name]
        self._topics = (process.stage.reads, *process.world.retries[process.stage.name])
        self.positions: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.answers: list[Committed] = []
        self._sent: list[tuple[int, dict[TopicPartition, CommitPoint]]] = []
        self._has_joined = False

    def poll(self, timeout_s: float, dispatch: Dispatch) -> None:
        """Rebalance; a few records of any partitions; answered commits."""
        self._rebalance(dispatch)
        for _ in range(self._world.rng.randint(1, 6)):
            at = self.pick()
            if at is None:
                break
            entry = self._world.log.next_entry(at, self.positions[at])
            assert entry is not None
            self.positions[at] = entry.offset + 1
            dispatch(self._intake(Task(
                None, at.partition, entry.value, at.topic, entry.offset, entry.key, entry.headers,
                entry.timestamp_ms,
            )))  # fmt: skip
        answers, self.answers = self.answers, []
        for answer in answers:
            dispatch(answer)

    def pick(self) -> TopicPartition | None:
        """A partition that has something to deliver."""
        log = self._world.log
        ready = [
            at
            for at, position in self.positions.items()
            if at not in self.paused and position < log.end(at)
        ]
        if not ready:
            return None
        return ready[0] if len(ready) == 1 else self._world.rng.choice(ready)

    def _rebalance(self, dispatch: Dispatch) -> None:
        name, group = self._process.name, self._group
        if name not in group.members:
            if self.positions and self._world.rng.random() < 0.7:
                return  # the next heartbeat will tell
            if self.positions:
                lost = tuple(self.positions)
                self._world.count["lost assignments"] += 1
                dispatch(Lost(lost))
                self._forget(lost)
            self._has_joined = True
            group.join(name)
        numbers = group.to_revoke(name)
        if numbers is not None:
            if revoked := self._partitions(numbers):
                self._world.count["rebalances"] += 1
                dispatch(Revoked(revoked))
                self._world.judge.handed_back(self._process, revoked)
                self._forget(revoked)
            group.released(name, numbers)
        if new := group.to_assign(name):
            self._assign(self._partitions(new), dispatch)

    def _partitions(self, numbers: list[int]) -> tuple[TopicPartition, ...]:
        return tuple(TopicPartition(topic, each) for each in numbers for topic in self._topics)

    def _assign(self, partitions: tuple[TopicPartition, ...], dispatch: Dispatch) -> None:
        starts = {}
        for at in partitions:
            point = self._group.committed.get(at)
            if point is None:
                known = OffsetMap(0)
            else:
                known = decode_offset_map(point.offset, point.metadata)
            self._world.count["offset maps used"] += bool(known.finished_bits)
            self._world.count["crash counts used"] += bool(known.crashes)
            starts[at] = StartOffset(known, point is not None)
            self.positions[at] = known.offset
        dispatch(Assigned(starts))

    def _forget(self, partitions: tuple[TopicPartition, ...]) -> None:
        for at in partitions:
            del self.positions[at]
            self.paused.discard(at)

    def commit(self, points: Mapping[TopicPartition, CommitPoint], must_finish: bool) -> None:
        """Commits of one member arrive in the order in which they were sent."""
        world, name = self._world, self._process.name
        member = self._group.members.get(name)
        epoch = -1 if member is None else member.epoch
        if must_finish:
            self._arrive_all()
            if not self._is_lost():
                self._commit(epoch, dict(points), must_finish=True)
            return
        self._sent.append((epoch, dict(points)))
        world.later(world.rng.uniform(0.001, 0.03) * world.slowness(), self._arrive_all)

    def _is_lost(self) -> bool:
        return self._world.is_on("lost_commits") and self._world.chance("lost_commits")

    def _arrive_all(self) -> None:
        sent, self._sent = self._sent, []
        world = self._world
        for epoch, points in sent:
            if self._process.is_gone and world.rng.random() < 0.5:
                return
            is_ok = not self._is_lost() and self._commit(epoch, points, must_finish=False)
            answered = Committed(is_ok and not self._is_lost())
            world.later(world.rng.uniform(0.001, 0.03), partial(self._answer, answered))

    def _commit(
        self, epoch: int, points: dict[TopicPartition, CommitPoint], must_finish: bool
    ) -> bool:
        if not self._group.commit(self._process.name, epoch, points):
            self._world.count["refused commits"] += 1
            return False
        self._world.judge.committed(self._process, points, must_finish)
        return True

    def _answer(self, answer: Committed) -> None:
        self.answers.append(answer)
        self._process.wake()

    def pause(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Deliver nothing more of these."""
        self.paused.update(partitions)

    def resume(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Deliver records of these again."""
        self.paused.difference_update(partitions)

    def close(self) -> None:
        """Leave the group."""


class _Pending:
    """The records of one `Produce`, under way."""

    def __init__(self, ticket: Ticket, num_records: int) -> None:
        self.ticket, self.num_left = ticket, num_records
        self.is_ok = True


class Sink:
    """Implements `streams.runner.Sink`: in order in each partition, else not."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world
        self._last_s: dict[TopicPartition, float] = {}
        self._cut: set[TopicPartition] = set()
        self.open: dict[Ticket, Command] = {}
        self.answered: Command | None = None  # what the last answer was about
        self._answers: list[Event] = []

    def produce(self, ticket: Ticket, outputs: tuple[Output, ...]) -> None:
        """Send; answered once, whatever comes of it."""
        world = self._world
        command = self.open[ticket]
        if isinstance(command, DeadLetter) and not command.blob and world.is_too_large(command):
            world.later(0.01, lambda: self._settle(NotAcknowledged(ticket, "too large", True)))
            return
        pending = _Pending(ticket, len(outputs))
        if not outputs:
            self._answer_later(pending)
        for output in outputs:
            at = TopicPartition(output.topic, output.partition)
            when_s = world.now_s + world.rng.uniform(0.002, 0.06) * world.slowness()
            when_s = self._last_s[at] = max(when_s, self._last_s.get(at, 0.0) + 1e-6)
            world.later(
                when_s - world.now_s,
                partial(self._append, pending, output, at, command),
            )

    def _append(
        self, pending: _Pending, output: Output, at: TopicPartition, command: Command
    ) -> None:
        world = self._world
        if self._process.is_gone and (at in self._cut or world.rng.random() < 0.5):
            self._cut.add(at)  # what comes behind it does not get through either
            return
        if world.is_on("refused_produces") and world.chance("refused_produces"):
            pending.is_ok = False
        else:
            world.append(output, self._process, command)
            if world.rng.random() < 0.01 or (
                world.is_on("lost_acks") and world.chance("lost_acks")
            ):
                world.count["lost acknowledgements"] += 1
                pending.is_ok = False
        pending.num_left -= 1
        if not pending.num_left:
            self._answer_later(pending)

    def _answer_later(self, pending: _Pending) -> None:
        ticket = pending.ticket
        answer: Event = Acknowledged(ticket)
        if not pending.is_ok:
            answer = NotAcknowledged(ticket, "no answer", is_permanent=False)
        self._world.later(self._world.rng.uniform(0.001, 0.05), lambda: self._settle(answer))

    def _settle(self, answer: Event) -> None:
        self._answers.append(answer)
        self._process.wake()

    def announce(self, output: Output) -> None:
        """Nobody listens."""

    def poll(self, dispatch: Dispatch) -> None:
        """Hand on answers."""
        answers, self._answers = self._answers, []
        for answer in answers:
            assert isinstance(answer, Acknowledged | NotAcknowledged)
            self.answered = self.open.pop(answer.ticket)
            dispatch(answer)

    def close(self) -> None:
        """Nothing."""
