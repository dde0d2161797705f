"""What a killed worker costs: how long its jobs lie, and which steps are done again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from streams.settings import Settings
from streams.topology import worker_stages
from tests.chaos.cluster import SHORT
from tests.chaos.ledger import FAILPOINTS, Entry
from tests.chaos.rollout import wait_for_join
from tests.chaos.scene import Scene

RECOVERS_WITHIN_S = 30.0
NUM_KILLS = 8

RECOVERY_S = "recovery_after_a_killed_worker_s"
STEPS_AGAIN = "steps_done_again_that_a_checkpoint_held"


@dataclass(frozen=True, slots=True)
class Steps:
    """Denoising steps: done, done again, and of these what a checkpoint held already."""

    num_done: int
    num_again: int
    num_again_though_held: int


def measured_bounds() -> dict[str, float]:
    """At most that may be measured. A killed worker's jobs are begun elsewhere within its session,
    the heartbeat by which the other one hears of them, and one poll.
    """
    said_ms = SHORT["session_timeout_ms"] + SHORT["heartbeat_ms"] + Settings().poll_ms
    return {RECOVERY_S: said_ms / 1000, STEPS_AGAIN: 0.0}


def die_beside_another(scene: Scene) -> None:
    """A worker of each stage dies with jobs in hand, and stays away: the other one takes them."""
    for stage in worker_stages():
        both = scene.crew.of(stage.name)
        for member in both:
            wait_for_join(scene, member, 0)  # the other one has partitions of its own
        for member in both:  # whoever dies is not started again
            member.is_wanted = False
        scene.die_at({stage.name: "after-work"})
        has_recovered = scene.until(
            lambda: None not in recoveries(scene.ledger.entries()), RECOVERS_WITHIN_S
        )
        assert has_recovered, f"jobs of a dead {stage.name} worker lie untouched"
        joins = [(member, member.num_joins) for member in both if not member.is_running]
        for member in both:
            member.is_wanted = True
        for member, num_joins in joins:
            wait_for_join(scene, member, num_joins)
    found = [each for each in recoveries(scene.ledger.entries()) if each is not None]
    scene.measured[RECOVERY_S] = max(found)
    scene.notes.append(f"begun elsewhere after {', '.join(f'{each:.1f}' for each in found)} s")


def die_in_the_middle_of_steps(scene: Scene) -> None:
    """SIGKILL to the real samplers, again and again; what they had saved is not done again."""
    for number in range(NUM_KILLS):
        member = scene.crew.of("sampler")[number % 2]
        num_joins = member.num_joins
        scene.wait_s(scene.random.uniform(0.5, 2.0))
        member.kill()
        wait_for_join(scene, member, num_joins)
    steps = steps_of(scene.ledger.entries())
    assert steps.num_again > 0, "nobody died in the middle of a job's steps"
    scene.measured[STEPS_AGAIN] = steps.num_again_though_held
    scene.notes.append(f"{steps.num_done} steps, {steps.num_again} of them done again")


def recoveries(entries: Iterable[Entry]) -> list[float | None]:
    """Of each worker that died with jobs in hand: until one of them was begun elsewhere, seconds.

    None: none has been. How long the others wait is not the group's doing, but their turn's.
    """
    deaths: list[tuple[Entry, set[str]]] = []
    found: list[float | None] = []
    held: dict[int, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.what == "fetched":
            held[entry.pid].update(entry.job_ids)
            for number, (death, jobs) in enumerate(deaths):
                is_elsewhere = death.stage == entry.stage and death.pid != entry.pid
                if is_elsewhere and found[number] is None and not jobs.isdisjoint(entry.job_ids):
                    found[number] = entry.at_s - death.at_s
        elif entry.what == "stored":
            held[entry.pid].difference_update(entry.job_ids)
        elif entry.what in FAILPOINTS and (jobs_held := held[entry.pid]):
            deaths.append((entry, set(jobs_held)))
            found.append(None)
    return found


def steps_of(entries: Iterable[Entry]) -> Steps:
    """What the ledger says of a real sampler's steps."""
    saved: dict[str, int] = {}  # the furthest checkpoint of each job that is stored
    could_begin: dict[tuple[int, str], int] = {}  # what was stored when a worker asked for it
    done: dict[str, set[int]] = defaultdict(set)
    num_done = num_again = num_though_held = 0
    for entry in entries:
        for word in entry.job_ids:
            job_id, _, number = word.partition(":")
            if entry.what == "loading":
                could_begin[entry.pid, job_id] = saved.get(job_id, 0)
            elif entry.what == "saved":
                saved[job_id] = max(saved.get(job_id, 0), int(number))
            elif entry.what == "stepped":
                step = int(number)
                is_again = step in done[job_id]
                num_done += 1
                num_again += is_again
                num_though_held += is_again and step <= could_begin.get((entry.pid, job_id), 0)
                done[job_id].add(step)
    return Steps(num_done, num_again, num_though_held)
