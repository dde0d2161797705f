"""What must be true at the end, and the run of one schedule from its plan to its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schemas.records import CleanedPrompt, GenerationRequest, VideoDone
from streams import topology
from streams.claims import read_claim, request_sha256
from streams.core.effective import EffectiveEndings
from streams.core.events import TopicPartition
from streams.core.tiers import OFF_PEAK
from tests.simulation.evidence import DeadLettered
from tests.simulation.faults import Outside
from tests.simulation.judge import Violation
from tests.simulation.plan import NUM_PARTITIONS, RETRY, SETTLED_AFTER_S, JobPlan, Plan
from tests.simulation.work import START_S, home, tenant_of, tier_of
from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Result:
    """How a schedule went."""

    counts: Counter[str]
    violation: Violation | None
    num_events: int
    lasted_s: float  # simulated


def simulate(plan: Plan, tell: Callable[[str], None] | None = None) -> Result:
    """Run a schedule. The same plan gives the same result, always."""
    world = World(plan, tell)
    outside = Outside(world)
    violation = None
    try:
        world.run(outside.is_settled, outside.begin)
        check_end(world, outside)
    except Violation as found:
        violation = found
    world.counts["results that lost to another's"] += world.memory.num_lost
    world.counts["worked"] += sum(world.judge.num_worked.values())
    return Result(world.counts, violation, world.judge.num_handled, world.now_s - START_S)


def check_end(world: World, outside: Outside) -> None:
    """Raise Violation for the first promise that was not kept."""
    if not world.is_settled:
        _explain_stall(world, outside)
    for job in world.plan.jobs:
        _check_job(world, outside, job)
    for letter in world.judge.evidence.dead:
        _check_dead_letter(world, outside, letter)
    num_undecodable = sum(each.reason_code == "undecodable" for each in _unique(world))
    if num_undecodable != outside.num_garbage:
        raise Violation("garbage", f"{num_undecodable} of {outside.num_garbage} dead-lettered")
    _check_conflicts(world)
    _check_subscriber(world)
    _check_quotas(world)


def _unique(world: World) -> list[DeadLettered]:
    dead = world.judge.evidence.dead
    return list({(each.topic, each.partition, each.offset): each for each in dead}.values())


def _explain_stall(world: World, outside: Outside) -> None:
    unread = outside.unread()
    if unread:
        stage, at, committed, end = unread[0]
        held = [
            f"{ticket.offset} {flight.phase.name} {flight.work.job_id}"
            for slot in world.slots
            if slot.process is not None
            for ticket, flight in slot.process.state.flights.items()
            if ticket.partition == at
        ]
        known = world.judge.evidence.known[at].get(committed)
        text = (
            f"{stage}: {at.topic}[{at.partition}] stands at {committed} of {end}"
            f" {SETTLED_AFTER_S:g} s after the faults; held there: {held}"
        )
        raise Violation("stalled", text, known.job_id if known else None)
    raise Violation("stalled", "something is under way for ever")


def _check_job(world: World, outside: Outside, job: JobPlan) -> None:
    job_id = job.job_id
    run = world.fences.latest_run(tenant_of(job_id), job_id)
    done = world.outcome(job_id, run)
    if done is None:
        raise Violation("lost", f"{job_id} run {run} has no outcome", job_id)
    if world.judge.evidence.done.get((job_id, run)) != done:
        raise Violation("lost", f"{job_id} run {run}: no VideoDone on the log", job_id)
    world.counts[f"jobs {done.status}"] += 1
    for earlier in range(1, run):
        before = world.outcome(job_id, earlier)
        if before is None or before.status not in ("failed", "expired"):
            raise Violation("redrive", f"{job_id}: run {earlier + 1} after {before}", job_id)
    if not _is_explained(world, outside, job, done):
        text = f"{job_id} ({job.behaviour} at {job.stage}) is {done.status}: {done.reason_code}"
        raise Violation("unexplained", text, job_id)


def _is_explained(world: World, outside: Outside, job: JobPlan, done: VideoDone) -> bool:
    run_of_job = done.job_id, done.run
    match done.status:
        case "completed":
            return job.behaviour not in ("permanent", "rejected", "invalid", "large")
        case "cancelled":
            return run_of_job in outside.cancelled
        case "expired":
            return job.behaviour == "hasty" or run_of_job in world.hurried
        case "rejected":
            return job.behaviour == "rejected" or _was_crowded_out(world, done)
    return _is_fault_of(world, job, done.run, done.ended_by or "", done.reason_code or "")


def _was_crowded_out(world: World, done: VideoDone) -> bool:
    """Refused for want of room to wait: so many others of its payer have waited."""
    quotas = world.plan.limits.quotas
    most = quotas.parked.get(tier_of(done.job_id))
    if done.reason_code != "quota_exceeded" or most is None:
        return False
    place = TopicPartition(topology.REQUESTS_DEFERRED, done.partition)
    waited = {
        (request.job_id, request.run)
        for entry in world.log.entries.get(place, [])
        for request in (world.codec.decode(entry.value, GenerationRequest),)
        if request.tenant_id == done.tenant_id
    } - {(done.job_id, done.run)}
    return len(waited) >= max(1, most // quotas.num_parts)


def _is_fault_of(world: World, job: JobPlan, run: int, stage: str, reason_code: str) -> bool:
    key = stage, job.job_id, run
    judge = world.judge
    match reason_code:
        case "killed_workers":
            return judge.unclean_alone[key] >= 3
        case "input_lost" | "input_corrupt":
            prefix = f"{tenant_of(job.job_id)}/{job.job_id}/{run}/"
            return any(each.startswith(prefix) for each in world.memory.harmed)
        case "planned_invalid":
            return job.behaviour == "invalid"
        case "planned_failure" if job.behaviour != "permanent" or job.number % 2 == 0:
            return judge.failures[key] > 0  # dead-lettered at once
    # Its tries are used up: some by a sick device perhaps, but not all, or a probe found it well.
    is_by_device = judge.sick_failures[key] >= judge.num_failed[key]
    is_excused = not is_by_device or key in judge.host_was_well
    return judge.num_failed[key] >= RETRY.max_tries and is_excused


def _check_dead_letter(world: World, outside: Outside, letter: DeadLettered) -> None:
    origin = f"{letter.topic}[{letter.partition}]@{letter.offset}"
    if letter.job_id is None:
        if letter.reason_code != "undecodable":
            raise Violation("unexplained", f"dead letter {letter.reason_code} of {origin}")
        return
    job = world.jobs[letter.job_id]
    if letter.reason_code == "idempotency_conflict":
        is_explained = job.has_conflict
    else:
        is_explained = _is_fault_of(world, job, letter.run, letter.stage, letter.reason_code)
    if not is_explained:
        text = f"dead letter {letter.reason_code} of {letter.job_id}, {origin}"
        raise Violation("unexplained", f"{text} ({job.behaviour} at {job.stage})", job.job_id)


def _check_conflicts(world: World) -> None:
    """The requests that lost their job id are dead-lettered, and no other is for that reason."""
    evidence = world.judge.evidence
    letters = [each for each in evidence.dead if each.reason_code == "idempotency_conflict"]
    buried = {(each.topic, each.partition, each.offset) for each in letters}
    # By where they lay: of what was too large for its letter, that has no value.
    bodies = {
        evidence.known[TopicPartition(each.topic, each.partition)][each.offset].value
        for each in letters
    }
    stepped_aside = {
        each.value for found in evidence.known.values() for each in found.values()
        if each.num_diverted
    }  # fmt: skip
    for number in range(NUM_PARTITIONS):
        at = TopicPartition(topology.REQUESTS, number)
        for offset, known in evidence.known[at].items():
            if known.job_id is None or known.run > 1 or number != home(known.job_id):
                continue  # a misplaced one was forwarded
            if world.jobs[known.job_id].behaviour == "invalid":
                continue
            tenant = tenant_of(known.job_id)
            body = world.fences.request(tenant, known.job_id)
            assert body is not None
            request = world.codec.decode(known.value, GenerationRequest)
            is_loser = read_claim(body).request_sha256 != request_sha256(request)
            # What was parked or stepped aside stood for its like: the copy of it is buried.
            is_moved = (number, known.value) in evidence.parked or known.value in stepped_aside
            is_buried = (*at, offset) in buried or (is_moved and known.value in bodies)
            world.counts["conflicts"] += is_loser
            if is_buried != is_loser:
                raise Violation("conflict", f"{at}@{offset}: loser {is_loser}", known.job_id)


def _check_quotas(world: World) -> None:
    """No tenant has more jobs in the pipeline than its part of the quota: where nobody dies.

    Of what a dead worker had let in, the log tells nothing before the next stage's record. A
    misplaced request that was to be tried again before it was forwarded counts as let in.
    """
    quotas = world.plan.limits.quotas
    is_quiet = not world.plan.faults and not world.counts["kills"]
    if not quotas.jobs or not is_quiet:
        return
    moments: list[tuple[int, int, tuple[int, str, str], str]] = []
    for number in range(NUM_PARTITIONS):
        for topic, record_type, step in (
            (topology.VIDEOS_DONE, VideoDone, -1),
            (topology.stage("sampler").reads, CleanedPrompt, 1),
        ):
            seen = set()
            for entry in world.log.entries.get(TopicPartition(topic, number), []):
                record: Any = world.codec.decode(entry.value, record_type)
                job = record if step < 0 else record.job
                is_misplaced = world.jobs[job.job_id].is_misplaced
                if not is_misplaced and (job.job_id, job.run) not in seen:
                    seen.add((job.job_id, job.run))
                    payer = number, _payer_tier(world.jobs[job.job_id]), job.tenant_id
                    moments.append((entry.timestamp_ms, step, payer, job.job_id))
                    if step > 0:  # or its deadline frees its share
                        due_ms = int(1000 * job.deadline.timestamp())
                        moments.append((due_ms, -1, payer, job.job_id))
    inside: dict[tuple[int, str, str], set[str]] = {}
    for _, step, payer, job_id in sorted(moments):
        mine = inside.setdefault(payer, set())
        mine.discard(job_id) if step < 0 else mine.add(job_id)
        if len(mine) > max(1, quotas.jobs[payer[1]] // quotas.num_parts):
            raise Violation("quota", f"{payer} has {sorted(mine)} in the pipeline", job_id)
    world.counts["quotas checked"] += bool(world.counts["parked"])


def _payer_tier(job: JobPlan) -> str:
    return OFF_PEAK if job.is_deferrable else tier_of(job.job_id)


def _check_subscriber(world: World) -> None:
    """A subscriber that reads `videos.done` hears of each job's effective outcome."""
    endings, heard = EffectiveEndings(), {}
    entries = [
        entry
        for number in range(NUM_PARTITIONS)
        for entry in world.log.entries.get(TopicPartition(topology.VIDEOS_DONE, number), [])
    ]
    world.counts["repeated endings"] += len(entries)
    for entry in sorted(entries, key=lambda each: each.timestamp_ms):
        done = world.codec.decode(entry.value, VideoDone)
        job_of_tenant = done.tenant_id, done.job_id
        is_news = endings.is_news(job_of_tenant, done.run)
        endings.note(job_of_tenant, done.run, entry.timestamp_ms / 1000)
        if is_news:
            heard[done.job_id] = done
            world.counts["repeated endings"] -= 1
    for job in world.plan.jobs:
        run = world.fences.latest_run(tenant_of(job.job_id), job.job_id)
        if heard.get(job.job_id) != world.outcome(job.job_id, run):
            raise Violation("subscriber", f"{job.job_id}: heard of another ending", job.job_id)
