"""The fault table: what is done to a running pipeline, each under the name of the issue's list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from streams.topology import worker_stages
from tests.chaos import redrives, store_faults
from tests.chaos.ledger import FAILPOINTS, Failpoint, arm, is_armed
from tests.chaos.proxy import LinkFault
from tests.chaos.scene import Scene

FIRES_WITHIN_S = 30.0
NOBODY: Mapping[str, Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. `num_jobs` is the least; more flow while the fault does its work.

    `orders_of` are more orders for some workers, by name. A fault that `replays` gives records to
    the workers a second time, on purpose: its duplicates are not held against the budget.
    """

    name: str
    what: str
    inflict: Callable[[Scene], None]
    num_jobs: int = 150
    orders_of: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: NOBODY)
    replays: bool = False


# ---- workers


def die_at_failpoints(scene: Scene) -> None:
    """Every stage at every failpoint, in a seeded order, one after the other."""
    points = [(stage.name, point) for stage in worker_stages() for point in FAILPOINTS]
    scene.random.shuffle(points)
    for stage, point in points:
        die_at(scene, stage, point)


def die_at(scene: Scene, stage: str, point: Failpoint) -> None:
    """The next of that stage's workers to pass there dies."""
    arm(scene.folder, stage, point)
    has_fired = scene.until(lambda: not is_armed(scene.folder, stage, point), FIRES_WITHIN_S)
    assert has_fired, f"no {stage} worker came by {point} within {FIRES_WITHIN_S:g} s"


def drain_each(scene: Scene) -> None:
    """SIGTERM to each worker in turn, in the middle of its batches; each must end with 0."""
    for member in scene.crew.workers:
        num_lives = len(member.pids)
        scene.aside(member.terminate)
        scene.until(lambda: len(member.exits) == num_lives, 10.0)  # noqa: B023 - called here
        assert member.exits[-1] == 0, f"{member.name} did not drain: exit {member.exits[-1]}"


def make_zombies(scene: Scene) -> None:
    """One worker of each stage stops for twice the poll interval, then goes on unaware."""
    zombies = [scene.crew.of(stage.name)[0] for stage in worker_stages()]
    for member in zombies:
        member.pause()
    scene.wait_s(2 * scene.cluster.settings.max_poll_interval_ms / 1000)
    for member in zombies:
        member.resume()
    scene.wait_s(3.0)


def toggle(scene: Scene) -> None:
    """Every 0 to 500 ms a worker is killed or started; up to 60 % are down at a time."""
    workers = scene.crew.workers
    for _ in range(90):
        member = scene.random.choice(workers)
        num_down = sum(not each.is_wanted for each in workers)
        if not member.is_wanted:
            member.is_wanted = True
        elif num_down + 1 <= 0.6 * len(workers):
            member.is_wanted = False
            member.kill()
        scene.wait_s(scene.random.uniform(0, 0.5))


def ebb_and_flow(scene: Scene) -> None:
    """All workers drain and stay away while jobs pile up; then all come back; twice."""
    for _ in range(2):
        for member in scene.crew.workers:
            member.is_wanted = False
        scene.aside(*(member.terminate for member in scene.crew.workers))
        scene.wait_s(4.0)
        scene.crew.heal()
        scene.wait_s(8.0)


# ---- brokers


def bounce_clean(scene: Scene) -> None:
    """Each broker is stopped as an operator would and started again, one after the other."""
    for node in scene.cluster.kafka.nodes:
        scene.aside(node.stop)
        scene.wait_s(1.0)
        scene.aside(node.start)
        scene.wait_s(2.0)


def bounce_hard(scene: Scene) -> None:
    """SIGKILL to the active controller, then to each broker, with a few seconds in between."""
    for node in (scene.cluster.controller, *scene.cluster.kafka.nodes):
        node.kill()
        scene.wait_s(2.0)
        scene.aside(node.start)
        scene.wait_s(4.0)


def lose_two_brokers(scene: Scene) -> None:
    """Two of three are gone for longer than a delivery may take: nothing can be acknowledged."""
    down = scene.random.sample(scene.cluster.kafka.nodes, 2)
    for node in down:
        node.kill()
    scene.wait_s(scene.cluster.settings.delivery_timeout_ms / 1000 + 4.0)
    scene.aside(*(node.start for node in down))
    scene.wait_s(3.0)


def pause_broker(scene: Scene) -> None:
    """Each broker in turn is silent for longer than its session, its connections open."""
    for node in scene.cluster.kafka.nodes:
        node.pause()
        scene.wait_s(8.0)
        node.resume()
        scene.wait_s(4.0)


# ---- links to the brokers


def link_fault(fault: LinkFault, seconds: float, scene: Scene) -> None:
    """Every client's links to every broker suffer that for so long."""
    for proxy in scene.cluster.broker_proxies:
        proxy.set_fault(fault)
    scene.wait_s(seconds)
    for proxy in scene.cluster.broker_proxies:
        proxy.heal()
    scene.wait_s(2.0)


def reset_links(scene: Scene) -> None:
    """All connections to a broker are reset, or cut after some bytes, again and again."""
    for _ in range(12):
        proxy = scene.random.choice(scene.cluster.broker_proxies)
        if scene.random.random() < 0.5:
            proxy.reset_all()
        else:
            proxy.set_fault(LinkFault(cut_after_bytes=scene.random.randint(1, 4_000)))
        scene.wait_s(1.0)
        proxy.heal()


SLOW = LinkFault(latency_s=0.1, bytes_per_s=3_000_000 / 8)
SILENT = LinkFault(is_black_hole=True)
UNANSWERED = LinkFault(drops_answers=True)


FAULTS: Mapping[str, Fault] = {
    each.name: each
    for each in (
        Fault("F1", "SIGKILL at each failpoint of each stage", die_at_failpoints, 400),
        Fault("F2", "SIGTERM to each worker with a running batch", drain_each),
        Fault("F3", "zombies: SIGSTOP for 2 x max.poll.interval, SIGCONT", make_zombies),
        Fault("F4", "workers toggled every 0-500 ms, 60 % down at times", toggle),
        Fault("F5-clean", "each broker stopped and started", bounce_clean),
        Fault("F5-hard", "controller, then each broker, killed and started", bounce_hard),
        Fault("F5-two", "two of three brokers down", lose_two_brokers),
        Fault("F5-pause", "each broker paused for 8 s", pause_broker),
        Fault("F6-slow", "links of 100 ms and 3 Mbit/s", partial(link_fault, SLOW, 12.0)),
        Fault("F6-silent", "all clients cut off, half-open", partial(link_fault, SILENT, 15.0)),
        Fault("F6-reset", "links reset, or cut in the middle", reset_links),
        Fault("F7", "brokers' answers are lost", partial(link_fault, UNANSWERED, 8.0)),
        Fault("F10", "bulk redrives at once, workers killed", redrives.redrive_under_fire, 200),
        Fault("F12-5xx", "object store answers 503", store_faults.refuse),
        Fault("F12-slow", "object store slow", store_faults.slow),
        Fault("F12-lost", "object store does it, and says nothing", store_faults.unanswered),
        Fault("F12-bad", "blobs missing and corrupt", store_faults.spoil),
        Fault("F14", "all workers away while jobs pile up, twice", ebb_and_flow),
    )
}
