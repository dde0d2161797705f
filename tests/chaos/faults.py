"""The fault table: what is done to a running pipeline, each under the name of the issue's list."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from confluent_kafka.admin import AdminClient

from streams.topology import REQUESTS, worker_stages
from tests.chaos import (
    change_faults,
    head_of_line,
    job_faults,
    log_faults,
    recovery,
    redrives,
    store_faults,
    storm,
)
from tests.chaos.cluster import Cluster
from tests.chaos.crew import Member
from tests.chaos.ledger import FAILPOINTS, in_hand
from tests.chaos.proxy import SILENT, SLOW, UNANSWERED, LinkFault
from tests.chaos.rollout import drain_each
from tests.chaos.scene import DONE_WITHIN_S, Scene, open_scene
from tests.chaos.worker import MODEL

#: Orders to be in the middle of a batch most of the time.
BUSY = MappingProxyType({"CHAOS_WORK_MS": "200"})
#: Who drains ends its batch, however slow the machine is.
PATIENT = MappingProxyType({"drain_ms": 30_000, "max_poll_interval_ms": 60_000})
WITHIN_S = 60.0
NOBODY: Mapping[str, Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. `num_jobs` is the least; more flow while the fault does its work.

    `orders` are more of them for the workers, `orders_of` for some, by name; `changes` are to the
    crew's settings. A fault that `replays` gives records to the workers a second time, on purpose:
    its duplicates are not held against the budget. One that `is_for_peers` breaks links between
    brokers, which lead through proxies then.
    """

    name: str
    what: str
    inflict: Callable[[Scene], None]
    num_jobs: int = 150
    orders: Mapping[str, str] = field(default_factory=dict)
    orders_of: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: NOBODY)
    changes: Mapping[str, object] = field(default_factory=dict)
    replays: bool = False
    is_for_peers: bool = False

    @property
    def is_real(self) -> bool:
        """Whether its samplers are the product's own."""
        return "CHAOS_REAL" in self.orders


@contextmanager
def open_row(
    cluster: Cluster,
    folder: Path,
    fault: Fault,
    seed: int,
    *,
    orders: Mapping[str, str] | None = None,
    done_within_s: float = DONE_WITHIN_S,
) -> Iterator[Scene]:
    """The scene of one row of the table, to be `run`; `orders` are more than the fault's own."""
    if fault.is_real:
        from workers.models.tiny import write_tiny_model

        write_tiny_model(folder / MODEL)
    with open_scene(
        cluster, folder, fault.name, seed, {**fault.orders, **(orders or {})},
        orders_of=fault.orders_of, changes=fault.changes, done_within_s=done_within_s,
    ) as scene:  # fmt: skip
        yield scene


# ---- workers


def die_at_failpoints(scene: Scene) -> None:
    """Every stage at every failpoint, each in a seeded order of its own, all side by side."""
    stages = [stage.name for stage in worker_stages()]
    orders = [scene.random.sample(FAILPOINTS, len(FAILPOINTS)) for _ in stages]
    for points in zip(*orders, strict=True):
        scene.die_at(dict(zip(stages, points, strict=True)))


def make_zombies(scene: Scene) -> None:
    """One worker of each stage stops for twice the poll interval, then goes on unaware.

    Each in the middle of a batch, whose jobs others take over meanwhile.
    """
    zombies = [scene.crew.of(stage.name)[0] for stage in worker_stages()]
    for member in zombies:
        _pause_in_a_batch(scene, member)
    scene.wait_s(2 * scene.cluster.settings.max_poll_interval_ms / 1000)
    for member in zombies:
        member.resume()
    scene.wait_s(3.0)


def _pause_in_a_batch(scene: Scene, member: Member) -> None:
    for _ in range(20):
        jobs = scene.until_busy(member)
        member.pause()
        if jobs & in_hand(scene.ledger.entries(), member.pids[-1]):
            return
        member.resume()
    raise AssertionError(f"{member.name} was never stopped in the middle of a batch")


def toggle(scene: Scene) -> None:
    """Every 0 to 500 ms a worker is killed or started; up to 60 % are down at a time."""
    workers = scene.crew.workers
    most_down = math.ceil(0.6 * len(workers))
    for _ in range(90):
        member = scene.random.choice(workers)
        num_down = sum(not each.is_wanted for each in workers)
        if not member.is_wanted:
            member.is_wanted = True
        elif num_down < most_down:
            member.is_wanted = False
            member.kill()
        scene.wait_s(scene.random.uniform(0, 0.5))


def ebb_and_flow(scene: Scene) -> None:
    """All workers drain and stay away while jobs pile up; then all come back; twice."""
    for _ in range(2):
        for member in scene.crew.workers:
            member.is_wanted = False
        scene.aside(*(member.terminate for member in scene.crew.workers))
        scene.crew.step()
        # By its own signal ends who has not come so far as to heed it.
        slow = [each.name for each in scene.crew.workers if each.exits[-1] not in (0, -15)]
        assert not slow, f"they did not drain: {slow}"
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
    scene.wait_s(2.0)  # what was answered before is heard
    num_acknowledged = scene.num_acknowledged
    scene.wait_s(scene.cluster.settings.delivery_timeout_ms / 1000 + 2.0)
    num_more = scene.num_acknowledged - num_acknowledged
    assert not num_more, f"{num_more} requests were acknowledged by one replica of three"
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


def cut_each_off(scene: Scene) -> None:
    """A worker of each stage, in the middle of a batch, hears no broker, beyond its session.

    The object store is there: so it works on, and stores, what others have taken over.
    """
    session_s = scene.cluster.settings.session_timeout_ms / 1000
    for stage in worker_stages():
        member = scene.crew.of(stage.name)[0]
        scene.until_busy(member)
        own = re.compile(rb"reel-%b-\S+?-%d\b" % (stage.name.encode(), member.pids[-1]))
        for proxy in scene.cluster.broker_proxies:
            proxy.set_fault(SILENT, own.search)
        scene.wait_s(session_s + 3.0)
        for proxy in scene.cluster.broker_proxies:
            proxy.heal()
        scene.wait_s(2.0)


def cut_off_among_brokers(scene: Scene) -> None:
    """Each broker in turn replicates nothing and is replicated by nobody; clients reach it.

    Nothing that it leads can be acknowledged: at first for want of the others' answers, then, when
    these are out of sync, for want of a second replica.
    """
    admin = AdminClient({"bootstrap.servers": scene.cluster.bootstrap})
    for node, own_proxy in zip(scene.cluster.kafka.nodes, scene.cluster.peer_proxies, strict=True):
        own = re.compile(rb"broker-%d-fetcher" % node.node_id)
        for proxy in scene.cluster.peer_proxies:
            proxy.set_fault(SILENT, None if proxy is own_proxy else own.search)
        scene.wait_s(1.0)  # what was replicated before is heard
        since_s = time.monotonic()
        is_cut_off = scene.until(partial(_is_cut_off, scene, admin, node.node_id), WITHIN_S)
        assert is_cut_off, f"broker {node.node_id} is in sync with the others"
        scene.wait_s(scene.cluster.settings.delivery_timeout_ms / 1000)
        requests = admin.list_topics(REQUESTS, timeout=20.0).topics[REQUESTS].partitions
        led = {each.id for each in requests.values() if each.leader == node.node_id}
        taken = scene.submitter.acknowledged_since(since_s)
        assert not led & taken, f"broker {node.node_id} acknowledged what it alone has"
        for proxy in scene.cluster.peer_proxies:
            proxy.heal()
        scene.wait_s(4.0)


def _is_cut_off(scene: Scene, admin: AdminClient, node_id: int) -> bool:
    """Whether that broker is alone in sync of something that it leads, if it leads anything, and
    not in sync of something else. (Of what nobody writes to all replicas are in sync for ever.)
    """
    scene.wait_s(1.0)
    topics = admin.list_topics(timeout=20.0).topics.values()
    partitions = [each for topic in topics for each in topic.partitions.values()]
    led = [each.isrs for each in partitions if each.leader == node_id]
    is_left_out = any(node_id not in each.isrs for each in partitions)
    return is_left_out and (not led or [node_id] in led)


FAULTS: Mapping[str, Fault] = {
    each.name: each
    for each in (
        Fault("F1", "SIGKILL at each failpoint of each stage", die_at_failpoints, 400),
        Fault("F1-one", "a worker killed, another one alive", recovery.die_beside_another),
        Fault("F1-steps", "real samplers killed in the middle of steps",
              recovery.die_in_the_middle_of_steps, 100, {"CHAOS_REAL": "1"},
              changes={"checkpoint_ms": 100}),
        Fault("F2", "SIGTERM to each worker with a running batch", drain_each, orders=BUSY,
              changes=PATIENT),
        Fault("F3", "zombies: SIGSTOP for 2 x max.poll.interval, SIGCONT", make_zombies,
              orders=BUSY),
        Fault("F4", "workers toggled every 0-500 ms, 60 % down at times", toggle),
        Fault("F5-clean", "each broker stopped and started", bounce_clean),
        Fault("F5-hard", "controller, then each broker, killed and started", bounce_hard),
        Fault("F5-two", "two of three brokers down", lose_two_brokers),
        Fault("F5-pause", "each broker paused for 8 s", pause_broker),
        Fault("F5-disk", "a broker's disk is full", log_faults.fill_the_disk),
        Fault("F6-slow", "links of 100 ms and 3 Mbit/s", partial(link_fault, SLOW, 12.0)),
        Fault("F6-silent", "all clients cut off, half-open", partial(link_fault, SILENT, 15.0)),
        Fault("F6-reset", "links reset, or cut in the middle", reset_links),
        Fault("F6-one", "a worker of each stage cut off in a batch", cut_each_off, orders=BUSY),
        Fault("F7", "brokers' answers are lost", partial(link_fault, UNANSWERED, 8.0)),
        Fault("F8", "poison of every kind", job_faults.poison, 200),
        Fault("F9", "no memory, lost devices", job_faults.run_out_of_memory),
        Fault("F10", "bulk redrives at once, workers killed", redrives.redrive_under_fire, 200),
        Fault("F11", "cancels and deadlines race", job_faults.race_to_the_end),
        Fault("F11-expirer", "deadlines pass, the expirer is killed",
              job_faults.expire_beside_a_dying_expirer),
        Fault("F12-5xx", "object store answers 503", store_faults.refuse),
        Fault("F12-slow", "object store slow", store_faults.slow),
        Fault("F12-lost", "object store does it, and says nothing", store_faults.unanswered),
        Fault("F12-bad", "blobs missing and corrupt", store_faults.spoil),
        Fault("F13", "all offsets reset to the start", log_faults.replay_everything, 200,
              replays=True),
        Fault("F13-gone", "a stage away past retention", log_faults.outlive_the_log,
              replays=True),
        Fault("F14", "all workers away while jobs pile up, twice", ebb_and_flow),
        Fault("F15", "a tenant floods its quota, who parks is killed", job_faults.flood,
              changes=job_faults.FLOOD_QUOTA),
        Fault("head-of-line", "a job hangs, its partition's offset map fills",
              head_of_line.hang_at_the_head),
        Fault("F19-clocks", "clocks ten minutes apart", change_faults.fail_and_die,
              orders_of=change_faults.APART),
        Fault("F19-schemas", "old and new schemas written", change_faults.fail_and_die,
              orders_of=change_faults.OLD_WRITERS),
        Fault("F19-roll", "to classic groups and back", change_faults.roll_protocols,
              changes=PATIENT),
        Fault("storm", "workers, brokers, links, store and jobs, all at once", storm.rage, 200),
        Fault("F6-brokers", "each broker cut off from the others", cut_off_among_brokers,
              is_for_peers=True),
    )
}  # fmt: skip
