"""What clients and operators do, what goes wrong, and how it is healed."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from schemas.cloudevents import event_headers
from streams import topology
from streams.claims import Author, RunClaim
from streams.core.events import (
    JobCancelled,
    JobDeadline,
    Output,
    StagePaused,
    TopicPartition,
)
from streams.redrive import BeginRun, NothingToDo, SendAgain, claim_redrive, plan_redrive
from tests.simulation.plan import NUM_PARTITIONS, STAGES, FaultPlan, JobPlan
from tests.simulation.work import START, START_S, home, request_of, tenant_of
from tests.simulation.worker import Process, Slot
from tests.simulation.world import World

LASTING = {
    "store_away", "store_slow", "lost_answers", "refused_calls", "lost_acks", "refused_produces",
    "lost_commits", "slow_brokers",
}  # fmt: skip


class Outside:
    """Everybody who is no worker."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.cancelled: set[tuple[str, int]] = set()
        self.num_garbage = 0

    def begin(self) -> None:
        """Put everything on the schedule."""
        for job in self._world.plan.jobs:
            self._submit(job)
        for fault in self._world.plan.faults:
            self._world.later(fault.at_s, partial(self._happen, fault))
        self._world.later(self._world.plan.faults_end_s, self._heal)

    # ---- clients

    def _submit(self, job: JobPlan) -> None:
        rng, world = self._world.rng, self._world
        for number in range(job.num_copies):
            at_s = job.at_s + number * rng.uniform(0.0, 6.0)
            partition = home(job.job_id)
            if job.is_misplaced and (number or rng.random() < 0.7):
                partition = rng.randrange(NUM_PARTITIONS)
            world.later(at_s, partial(self._produce, job, partition, False))
        if job.has_conflict:
            partition = rng.choice((home(job.job_id), rng.randrange(NUM_PARTITIONS)))
            at_s = job.at_s + rng.uniform(-0.2, 6.0)
            world.later(max(0.0, at_s), partial(self._produce, job, partition, True))

    def _produce(self, job: JobPlan, partition: int, is_conflict: bool) -> None:
        request = request_of(job, is_conflict)
        headers = event_headers(
            "GenerationRequest", job_id=job.job_id, run=1, stage="client", outcome="submitted",
            time=START, deadline=request.deadline, cause=(), partition_key=job.job_id,
        )  # fmt: skip
        value = self._world.codec.encode(request)
        output = Output("requests", partition, job.job_id.encode(), value, tuple(headers))
        self._world.append(output, None, None)

    def redrive(self, job_id: str, may_die: bool) -> None:
        """An operator asks for the next run, and may go away in the middle."""
        world, tenant = self._world, tenant_of(job_id)
        rng = world.rng
        world.counts["redrives asked"] += 1

        def produce(record: RunClaim) -> None:
            output = Output(
                record.topic, record.partition, record.key, record.value, record.headers
            )
            world.append(output, None, None)

        def claim(plan: BeginRun) -> None:
            now = datetime.fromtimestamp(world.now_s, UTC)
            record = claim_redrive(
                world.fences, world.codec, plan, Author("simulation", now), 50_000.0
            )
            if isinstance(record, NothingToDo):
                return
            world.counts["redrives"] += 1
            if may_die and rng.random() < 0.3:
                world.counts["redrivers died"] += 1
            else:
                world.later(rng.uniform(0.0, 0.5), partial(produce, record))

        match plan_redrive(world.fences, world.codec, tenant, job_id):
            case BeginRun() as plan if may_die:  # else somebody completes what another began
                world.later(rng.uniform(0.0, 0.5), partial(claim, plan))
            case SendAgain(record=record):
                world.counts["redrives sent again"] += 1
                world.later(rng.uniform(0.0, 0.5), partial(produce, record))

    # ---- faults

    def _happen(self, fault: FaultPlan) -> None:
        world = self._world
        world.trace("fault", fault)
        world.counts[f"fault {fault.kind}"] += 1
        if fault.kind in LASTING:
            world.begin_fault(fault.kind, fault.for_s, fault.number)
            return
        slot = self._slot_of(fault)
        process = slot.process
        match fault.kind:
            case "crash" if process is not None:
                process.fuse = fault.number
            case "crash_at_outcome":
                for each in world.slots:
                    if each.process is not None:
                        each.process.dies_at_outcome = True
            case "stop" if process is not None:
                process.runner.drain()
            case "join":
                world.start_slot(world.add_slot(fault.stage))
            case "leave":
                is_last = (
                    sum(
                        each.stage.name == fault.stage and not each.is_closed
                        for each in world.slots
                    )
                    < 2
                )
                if not is_last and process is not None:
                    slot.is_closed = True
                    process.runner.drain()
            case "shuffle":
                world.groups[fault.stage].shuffle(fault.number)
            case "freeze" if process is not None:
                self._freeze(process, fault)
            case "sick_device":
                slot.device = ("silent", "outspoken")[fault.number]
                world.later(fault.for_s, lambda: setattr(slot, "device", "well"))
            case "clock_jump":
                slot.clock_ahead_s += fault.number
            case "pause_stage":
                world.wishes.append((fault.stage, StagePaused(True)))
                world.later(
                    fault.for_s, lambda: world.wishes.append((fault.stage, StagePaused(False)))
                )
            case "offset_reset":
                self._stop_and_reset(fault)
            case _:
                self._happen_to_a_record(fault)

    def _slot_of(self, fault: FaultPlan) -> Slot:
        """Faults of a process prefer one that has work: there they hurt."""
        if fault.kind in ("crash", "freeze", "sick_device", "stop"):
            slots = [each for each in self._world.slots if each.process is not None]
            if busy := [each for each in slots if each.process and each.process.engine.is_busy]:
                return busy[(fault.slot + fault.number) % len(busy)]
        return self._world.slot(fault.stage, fault.slot)

    def _freeze(self, process: Process, fault: FaultPlan) -> None:
        """It stands still; if that lasts, its group goes on without it, and it knows nothing."""
        world = self._world
        until_s = world.now_s + fault.for_s
        if fault.number:
            process.stalled_until_s = until_s
        else:
            process.frozen_until_s = until_s

        def expire() -> None:
            still_s = max(process.stalled_until_s, process.frozen_until_s)
            if not process.is_gone and still_s > world.now_s:
                world.counts["zombies"] += 1
                world.groups[process.stage.name].leave(process.name)

        world.later(3.0, expire)

    def _stop_and_reset(self, fault: FaultPlan) -> None:
        """Offsets are reset by hand only while nobody reads."""
        world = self._world
        group = world.groups[fault.stage]
        for slot in world.slots:
            if slot.stage.name == fault.stage and slot.process is not None:
                world.kill(slot.process, fault.for_s + 0.1)
        for name in list(group.members):
            group.leave(name)
        world.judge.offsets_reset(list(group.committed))
        for at, point in list(group.committed.items()):
            if fault.number:
                del group.committed[at]
            else:
                group.committed[at] = point._replace(offset=0, metadata="")

    def _happen_to_a_record(self, fault: FaultPlan) -> None:
        world, number = self._world, fault.number
        job = world.plan.jobs[number % len(world.plan.jobs)] if world.plan.jobs else None
        match fault.kind:
            case "blob_lost" | "blob_corrupt":
                keys = [key for key in world.memory.blobs if "/job-" in key]
                if keys:
                    key = keys[number % len(keys)]
                    world.memory.harmed.add(key)
                    if fault.kind == "blob_lost":
                        del world.memory.blobs[key]
                    else:
                        world.memory.blobs[key] = b"x" + world.memory.blobs[key][1:]
            case "cancel" if job is not None:
                tenant = tenant_of(job.job_id)
                run = world.fences.latest_run(tenant, job.job_id)
                self.cancelled.add((job.job_id, run))
                world.wishes.append((None, JobCancelled(job.job_id, run, world.now_s, tenant)))
            case "deadline" if job is not None:
                tenant = tenant_of(job.job_id)
                run = world.fences.latest_run(tenant, job.job_id)
                world.hurried.add((job.job_id, run))
                soon_s = world.now_s + number % 5
                wish = JobDeadline(job.job_id, run, soon_s, world.now_s, tenant)
                world.wishes.append((None, wish))
            case "redrive":
                for each in world.plan.jobs:  # one at least that it matters to
                    done = world.outcome(each.job_id, 1)
                    if each is job or (done is not None and done.status == "failed"):
                        self.redrive(each.job_id, may_die=True)
            case "garbage":
                self._put_garbage(fault)

    def _put_garbage(self, fault: FaultPlan) -> None:
        world = self._world
        stage = topology.stage(fault.stage)
        topic = (stage.reads, *world.retries[fault.stage])[fault.number % 4]
        partition = fault.number % NUM_PARTITIONS
        value = (None, b"", b"\xc3\x01garbage", world.rng.randbytes(40))[fault.number // 4 % 4]
        world.append(Output(topic, partition, b"x", value, ()), None, None)
        self.num_garbage += 1

    # ---- the end of the faults

    def _heal(self) -> None:
        world = self._world
        world.trace("fault", "all healed")
        for kind in LASTING:
            world.begin_fault(kind, -1.0, 0)
        for slot in world.slots:
            slot.device = "well"
            if slot.process is not None:
                slot.process.fuse, slot.process.dies_at_outcome = None, False
        for name in STAGES:
            world.wishes.append((name, StagePaused(False)))
        for job in world.plan.jobs:
            if world.fences.latest_run(tenant_of(job.job_id), job.job_id) > 1:
                self.redrive(job.job_id, may_die=False)

    def is_settled(self) -> bool:
        """Whether every group has read and finished everything, and nothing is under way."""
        world = self._world
        for slot in world.slots:
            process = slot.process
            if process is not None and (
                process.state.flights or process.sink.open or process.source.pick() is not None
            ):
                return False
        return not self.unread()

    def unread(self) -> list[tuple[str, TopicPartition, int, int]]:
        """Stage, partition, committed offset and end, of every partition that is not done."""
        world = self._world
        found = []
        for stage in topology.worker_stages():
            committed = world.groups[stage.name].committed
            for topic in (stage.reads, *world.retries[stage.name]):
                for number in range(NUM_PARTITIONS):
                    at = TopicPartition(topic, number)
                    point = committed.get(at)
                    if world.log.end(at) > (point.offset if point else 0):
                        found.append(
                            (stage.name, at, point.offset if point else 0, world.log.end(at))
                        )
        return found


def since_start(now_s: float) -> float:
    """Simulated seconds since the schedule began."""
    return now_s - START_S
