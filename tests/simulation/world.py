"""The scheduler: one heap of things to come, one random generator, and what happens on the way."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from schemas.codec import Codec, UndecodableRecord
from schemas.records import VideoDone
from streams import topology
from streams.blobs.fences import Fences
from streams.blobs.named import blobs_of
from streams.core.events import Command, DeadLetter, Event, Output, TopicPartition
from streams.topology import Stage
from tests.simulation.evidence import Evidence
from tests.simulation.judge import Judge, Violation
from tests.simulation.log import Group, Log
from tests.simulation.plan import (
    NUM_PARTITIONS,
    RETRY,
    SESSION_S,
    SETTLED_AFTER_S,
    STAGES,
    JobPlan,
    Plan,
)
from tests.simulation.store import Memory, MemoryStore
from tests.simulation.trace import short
from tests.simulation.work import START_S, tenant_of
from tests.simulation.worker import Process, ProcessDied, Slot

MAX_HANDLED = 60_000
"""More events than any healthy schedule needs: somebody asks himself the same again and again."""


class World:
    """One schedule. `run` raises Violation at the first step that breaks a rule."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        self.plan, self._tell = plan, tell
        self.rng = random.Random(f"schedule-{plan.seed}")
        self.now_s = START_S
        self.counts: Counter[str] = Counter()
        self.codec = Codec()
        self.memory = Memory()
        self._store = MemoryStore(self.memory, _nothing, _nothing)
        self.fences = Fences(self._store)
        self.hurried: set[tuple[str, int]] = set()  # runs with another deadline than their own
        self.log = Log()
        self.jobs: dict[str, JobPlan] = {job.job_id: job for job in plan.jobs}
        self.wishes: list[tuple[str | None, Event]] = []
        self.retries = {
            each.name: each.also_reads(RETRY.delays_s) for each in topology.worker_stages()
        }
        self.groups = {name: Group(plan.is_incremental, NUM_PARTITIONS) for name in STAGES}
        self._stage_of = {
            topic: each.name
            for each in topology.worker_stages()
            for topic in (each.reads, *self.retries[each.name])
        }
        self.judge = Judge(self, Evidence(self.codec))
        self.slots: list[Slot] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._on: dict[str, tuple[float, int]] = {}  # fault: until when, how many percent
        self._engine_steps: dict[int, tuple[Process, Callable[[], None]]] = {}
        self._depth = 0
        self._outcomes: dict[str, VideoDone] = {}
        self.is_settled = False

    @property
    def count(self) -> Counter[str]:
        """What has happened, by name."""
        return self.counts

    def trace(self, who: str, what: object) -> None:
        """A line of the trace, if anybody reads it."""
        if self._tell is not None:
            self._tell(f"{self.now_s - START_S:9.4f} {who:13} {short(what)}")

    # ---- time

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Do that after a while."""
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._numbers), call))

    def run(self, is_settled: Callable[[], bool], begin: Callable[[], None]) -> None:
        """Until everything has come to rest after the faults, or should have."""
        for name, num_workers in zip(STAGES, self.plan.num_workers, strict=True):
            for _ in range(num_workers):
                self.start_slot(self.add_slot(name))
        begin()
        end_s = START_S + self.plan.faults_end_s + SETTLED_AFTER_S
        next_look_s = START_S + self.plan.faults_end_s + 1.0
        while self._heap:
            at_s, _, call = heapq.heappop(self._heap)
            if at_s >= next_look_s:
                if is_settled():
                    self.is_settled = True
                    return
                next_look_s = at_s + 2.0
            self.now_s = at_s
            if at_s > end_s or self.judge.num_handled > MAX_HANDLED:
                return
            call()

    # ---- faults that last

    def begin_fault(self, kind: str, for_s: float, percent: int) -> None:
        """Something goes wrong for a while."""
        self._on[kind] = self.now_s + for_s, percent

    def is_on(self, kind: str) -> bool:
        """Whether it goes wrong now."""
        until = self._on.get(kind)
        return until is not None and self.now_s < until[0]

    def chance(self, kind: str) -> bool:
        """Whether it goes wrong this time."""
        return self.rng.random() * 100 < self._on[kind][1]

    def slowness(self) -> float:
        """How many times longer than usual brokers take."""
        return 20.0 if self.is_on("slow_brokers") else 1.0

    # ---- processes

    def add_slot(self, stage: str) -> Slot:
        """A place for one more worker."""
        number = sum(each.stage.name == stage for each in self.slots)
        self.slots.append(Slot(topology.stage(stage), number))
        return self.slots[-1]

    def slot(self, stage: str, number: int) -> Slot:
        """One of the stage's places."""
        slots = [each for each in self.slots if each.stage.name == stage]
        return slots[number % len(slots)]

    def start_slot(self, slot: Slot) -> None:
        """A process starts, unless one runs or the place is gone."""
        if slot.process is None and not slot.is_closed:
            slot.process = Process(self, slot)
            self.trace(slot.process.name, "starts")
            self.wake(slot.process, self.rng.uniform(0.0, 0.2))

    def wake(self, process: Process, delay_s: float) -> None:
        """Its loop turns then, or earlier."""
        at_s = self.now_s + delay_s
        if at_s < process.next_turn_s:
            process.next_turn_s = at_s
            self.later(delay_s, lambda: self._turn(process, at_s))

    def _turn(self, process: Process, at_s: float) -> None:
        if process.is_gone or process.next_turn_s != at_s:
            return
        resume_s = max(process.frozen_until_s, process.stalled_until_s)
        process.next_turn_s = float("inf")
        if resume_s > self.now_s:
            self.wake(process, resume_s - self.now_s + self.rng.uniform(0.0, 0.05))
            return
        self._alive(process, process.turn)

    def engine_step(self, process: Process, delay_s: float, call: Callable[[], None]) -> None:
        """The engine of a process goes on then; others may come between, or it between others."""
        if self.is_on("store_slow"):
            delay_s *= 10.0
        number = next(self._numbers)
        self._engine_steps[number] = process, call
        self.later(delay_s, partial(self._engine_turn, number))

    def _engine_turn(self, number: int) -> None:
        process, call = self._engine_steps.get(number, (None, _idle))
        if process is None:
            return
        if process.frozen_until_s > self.now_s and not process.is_gone:
            delay_s = process.frozen_until_s - self.now_s + self.rng.uniform(0.0, 0.1)
            self.later(delay_s, partial(self._engine_turn, number))
            return
        del self._engine_steps[number]
        if not process.is_gone:
            self._alive(process, partial(_step, process, call))

    def interleave(self, process: Process) -> None:
        """While a worker calls the store, another one's engine may take a step."""
        if self._depth or len(self._engine_steps) < 2 or self.rng.random() > 0.15:
            return
        others = [
            number
            for number, (other, _) in self._engine_steps.items()
            if other is not process and not other.is_gone and other.frozen_until_s <= self.now_s
        ]
        if others:
            self._depth += 1
            self.counts["interleaved steps"] += 1
            self._engine_turn(self.rng.choice(others))
            self._depth -= 1

    def _alive(self, process: Process, call: Callable[[], None]) -> None:
        try:
            call()
        except ProcessDied:
            self.kill(process, self.rng.uniform(0.2, 3.0))

    def kill(self, process: Process, for_s: float) -> None:
        """SIGKILL; the host starts another one after a while."""
        if process.is_gone:
            return
        self.trace(process.name, "dies")
        self.counts["crashes"] += 1
        self.judge.died(process)
        self._forget(process)
        self.later(SESSION_S, lambda: self.groups[process.stage.name].leave(process.name))
        self.later(for_s, lambda: self.start_slot(process.slot))

    def exited(self, process: Process) -> None:
        """It has drained and left the group."""
        self.trace(process.name, "has drained")
        self.counts["drains"] += 1
        self.counts["sick hosts left"] += process.state.left_because is not None
        self.groups[process.stage.name].leave(process.name)
        self._forget(process)
        self.later(self.rng.uniform(0.5, 3.0), lambda: self.start_slot(process.slot))

    def _forget(self, process: Process) -> None:
        process.is_gone = True
        process.slot.process = None

    # ---- the log

    def append(self, output: Output, process: Process | None, command: Command | None) -> None:
        """A record reaches the log; those who wait for it are woken."""
        gap = self.rng.choice((1, 2)) if self.rng.random() < 0.05 else 0
        at, entry = self.log.append(output, self.now_s, gap)
        self.trace(process.name if process else "client", f"appends {at} {entry.offset}")
        self.judge.evidence.appended(at, entry, command)
        self.check_fenced(at, entry.value)
        stage = self._stage_of.get(at.topic)
        for slot in self.slots:
            if slot.stage.name == stage and slot.process is not None:
                reader = slot.process
                if at in reader.source.positions and at not in reader.source.paused:
                    self.wake(reader, self.rng.uniform(0.001, 0.03))

    def check_fenced(self, at: TopicPartition, value: bytes | None) -> None:
        """What tells of a fence holds that fence's bytes."""
        fences, body = self.memory.fences, value or b""
        if at.topic == topology.VIDEOS_DONE:
            done = self.codec.decode(body, VideoDone)
            key = f"{done.tenant_id}/{done.job_id}/{done.run}/outcome"
            if fences.get(key) != body:
                raise Violation("outcome", f"{done.job_id}: not what {key} says", done.job_id)
            return
        for stage in topology.worker_stages():
            if stage.writes == at.topic and at.topic in self._stage_of and body:
                self._check_result(stage, body)

    def _check_result(self, stage: Stage, body: bytes) -> None:
        assert stage.writes_record is not None, "worker stages write"
        try:
            job: Any = self.codec.decode(body, stage.writes_record).job
        except UndecodableRecord:
            return
        editions = f"{job.tenant_id}/{job.job_id}/{job.run}/{stage.name}/result."
        fences = self.memory.fences
        if body not in (fences[key] for key in fences if key.startswith(editions)):
            text = f"{job.job_id}: the {stage.name}'s record is none of its results"
            raise Violation("result", text, job.job_id)

    def is_too_large(self, command: DeadLetter) -> bool:
        """Whether the original fits no dead-letter topic."""
        job_id = command.work.job_id
        return job_id is not None and self.jobs[job_id].behaviour == "large"

    # ---- the store

    def decoded_outcome(self, key: str) -> VideoDone:
        """What a run has ended with."""
        if key not in self._outcomes:
            self._outcomes[key] = self.codec.decode(self.memory.fences[key], VideoDone)
        return self._outcomes[key]

    def is_done(self, stage: Stage, tenant: str, job_id: str, run: int) -> bool:
        """Whether the run has ended, or the stage has its result and every blob of it."""
        if f"{tenant}/{job_id}/{run}/outcome" in self.memory.fences:
            return True
        found = self.fences.result(tenant, job_id, run, stage.name)
        if found is None or stage.writes_record is None:
            return False
        return self.are_intact(self.codec.decode(found[1], stage.writes_record))

    def are_intact(self, record: Any) -> bool:
        """Whether every blob that a record names is there, and right."""
        return all(self._store.verify(ref) for ref in blobs_of(record))

    def outcome(self, job_id: str, run: int) -> VideoDone | None:
        """How a run ended."""
        key = f"{tenant_of(job_id)}/{job_id}/{run}/outcome"
        return self.decoded_outcome(key) if key in self.memory.fences else None

    def effect(self, stage: str, job_id: str, run: int) -> Exception | None:
        """What working a run of a job does, by its plan."""
        from streams.errors import InvalidRecord, RetryableError

        plan, key = self.jobs[job_id], (stage, job_id, run)
        if plan.stage != stage:
            return None
        failures = self.judge.failures
        match plan.behaviour:
            case "flaky" if failures[key] < plan.count:
                failures[key] += 1
                return RetryableError("not now", reason_code="planned_flaky")
            case "permanent":
                failures[key] += 1
                if plan.number % 2:
                    return RetryableError("never", reason_code="planned_failure")
                return InvalidRecord("never", reason_code="planned_failure")
            case "first_run" | "large" if run == 1 or plan.behaviour == "large":
                failures[key] += 1
                return InvalidRecord("not in this run", reason_code="planned_failure")
            case "killer" if failures[key] < plan.count:
                failures[key] += 1
                self.counts["kills"] += 1
                raise ProcessDied
        return None


def _nothing(call: str, key: str) -> None:
    """No fault."""


def _step(process: Process, call: Callable[[], None]) -> None:
    process.spend()
    call()


def _idle() -> None:
    """Nothing to do."""
