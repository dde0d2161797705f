"""Faults of every family at once, each family with a seeded mind of its own.

A row of one fault shows what that fault does. What two do together, as when a worker is killed
while its broker is silent and the store takes what it is given and says nothing, nobody can list:
here each family draws a fault, lets it last, rests, and draws again, whatever the others do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from streams.topology import worker_stages
from tests.chaos.job_faults import cancel
from tests.chaos.proxy import SILENT, SLOW, UNANSWERED, LinkFault
from tests.chaos.scene import Scene
from tests.chaos.store_faults import REFUSES

STORM_S = 60.0
CUT = LinkFault(cut_after_bytes=2_000)

#: Acts of one family; each yields for how many seconds it wants to be left alone.
Acts = Iterator[float]
Family = Callable[[Scene, random.Random], Acts]


def rage(scene: Scene) -> None:
    """All families for a minute. What lasts at its end is the heal's matter."""
    chances = (random.Random(scene.random.random()) for _ in FAMILIES)
    acts = [family(scene, chance) for family, chance in zip(FAMILIES, chances, strict=True)]
    now_s = time.monotonic()
    end_s, due_s = now_s + STORM_S, [now_s for _ in acts]
    while (next_s := min(due_s)) < end_s:
        scene.wait_s(max(0.0, next_s - time.monotonic()))
        turn = due_s.index(next_s)
        due_s[turn] = time.monotonic() + next(acts[turn])


def _workers(scene: Scene, chance: random.Random) -> Acts:
    """One is killed, or stops for up to twice its session."""
    session_s = scene.cluster.settings.session_timeout_ms / 1000
    while True:
        member = chance.choice(scene.crew.workers)
        if chance.random() < 0.5:
            member.kill()
        else:
            member.pause()
            yield chance.uniform(0.5, 2 * session_s)
            member.resume()
        yield chance.uniform(0.5, 5.0)


def _brokers(scene: Scene, chance: random.Random) -> Acts:
    """One at a time is killed, or stops for up to twice its session."""
    while True:
        node = chance.choice(scene.cluster.kafka.nodes)
        if chance.random() < 0.5:
            node.kill()
            yield chance.uniform(1.0, 6.0)
            node.launch()
        else:
            node.pause()
            yield chance.uniform(1.0, 8.0)
            node.resume()
        yield chance.uniform(5.0, 10.0)  # until it has caught up, or nothing could be acknowledged


def _links(scene: Scene, chance: random.Random) -> Acts:
    """Those to one broker or more."""
    proxies = scene.cluster.broker_proxies
    while True:
        struck = chance.sample(proxies, chance.randint(1, len(proxies)))
        fault = chance.choice((None, SLOW, SILENT, UNANSWERED, CUT))
        for proxy in struck:
            if fault is None:
                proxy.reset_all()
            else:
                proxy.set_fault(fault)
        yield chance.uniform(1.0, 6.0)
        for proxy in struck:
            proxy.heal()
        yield chance.uniform(2.0, 8.0)


def _store(scene: Scene, chance: random.Random) -> Acts:
    """The links to it."""
    proxy = scene.cluster.store_proxy
    while True:
        proxy.set_fault(chance.choice((REFUSES, SLOW, SILENT, UNANSWERED, CUT)))
        yield chance.uniform(1.0, 5.0)
        proxy.heal()
        yield chance.uniform(3.0, 10.0)


def _jobs(scene: Scene, chance: random.Random) -> Acts:
    """Some are cancelled, some in a hurry, some can never succeed."""
    number = 0
    while True:
        number += 1
        cancelled = scene.submit(f"cancelled-{number}", None)
        scene.submit(f"hasty-{number}", None, deadline_s=chance.uniform(1.0, 20.0))
        scene.submit(f"bad.{chance.choice(worker_stages()).name}.{number}", "failed")
        yield chance.uniform(0.0, 3.0)
        cancel(scene, cancelled)
        yield chance.uniform(1.0, 5.0)


FAMILIES: tuple[Family, ...] = (_workers, _brokers, _links, _store, _jobs)
