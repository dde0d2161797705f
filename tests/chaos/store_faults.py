"""Faults of the object store and of what lies in it."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from schemas.codec import Codec
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.blobs.named import blobs_of
from streams.blobs.opening import store_of
from streams.topology import VIDEOS_DONE, Stage, worker_stages
from tests.chaos.proxy import UNANSWERED, LinkFault
from tests.chaos.scene import Scene
from tests.chaos.submitter import tenant_of

REFUSES = LinkFault(
    answer=b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
WITHIN_S = 60.0
NUM_SPOILT = 3  # of each sort, between each two stages


def refuse(scene: Scene) -> None:
    """503 to whatever is asked, for longer than a worker's client tries again."""
    _for_s(scene, REFUSES, 8.0)


def slow(scene: Scene) -> None:
    """Every answer takes its time."""
    _for_s(scene, LinkFault(latency_s=0.15), 10.0)


def unanswered(scene: Scene) -> None:
    """What is put and fenced is there, and nobody is told: the writers lose to themselves."""
    _for_s(scene, UNANSWERED, 8.0)


def spoil(scene: Scene) -> None:
    """Between each two stages blobs vanish, or hold other bytes: these jobs must fail, alone.

    The last two stages first: a writer that was killed is given its records again, and mends what
    it finds spoilt.
    """
    for writer, reader in reversed(list(itertools.pairwise(worker_stages()))):
        scene.crew.stand_down(reader.name)
        spoilt = _spoil_between(scene, writer, reader)
        scene.crew.heal()
        has_ended = scene.until(partial(scene.has_ended, spoilt), WITHIN_S)
        assert has_ended, f"what is spoilt has not ended at the {reader.name}"


def _spoil_between(scene: Scene, writer: Stage, reader: Stage) -> list[str]:
    """Of which jobs."""
    store, waiting = store_of(scene.cluster.direct), set[str]()

    def has_enough() -> bool:
        gone = scene.heard.reached[reader.writes or ""]
        for job_id, _ in sorted(scene.heard.reached[reader.reads] - gone):
            # What a reader had made before it was killed need not have been read here yet.
            if job_id not in waiting and not _has_made(store, reader, job_id):
                waiting.add(job_id)
        return len(waiting) >= 2 * NUM_SPOILT

    assert scene.until(has_enough, 30.0), f"nothing waits for a {reader.name}"
    spoilt = sorted(waiting)[: 2 * NUM_SPOILT]
    for number, job_id in enumerate(spoilt):
        key = _key_of(store, writer, job_id)
        store.remove(key)
        if number % 2:
            store.create(key, b"other bytes")
        scene.expect(job_id, "failed")
    return spoilt


def _has_made(store: BlobStore, stage: Stage, job_id: str) -> bool:
    fences, tenant = Fences(store), tenant_of(job_id)
    if stage.writes == VIDEOS_DONE:
        return fences.outcome(tenant, job_id, 1) is not None
    return fences.result(tenant, job_id, 1, stage.name) is not None


def _key_of(store: BlobStore, writer: Stage, job_id: str) -> str:
    """Of a blob that the stage's result names."""
    found = Fences(store).result(tenant_of(job_id), job_id, 1, writer.name)
    assert found is not None, "its record is on the log, so its result stands"
    written: Any = writer.writes_record
    blob, *_ = blobs_of(Codec().decode(found[1], written))
    return blob.uri.removeprefix(f"{store.root_uri}/")


def _for_s(scene: Scene, fault: LinkFault, seconds: float) -> None:
    scene.cluster.store_proxy.set_fault(fault)
    scene.wait_s(seconds)
    scene.cluster.store_proxy.heal()
    scene.wait_s(2.0)
