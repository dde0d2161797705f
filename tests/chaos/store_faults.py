"""Faults of the object store and of what lies in it."""

from __future__ import annotations

from schemas.codec import Codec
from schemas.records import LatentsReady
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.blobs.opening import store_of
from tests.chaos.proxy import LinkFault
from tests.chaos.scene import Scene
from tests.chaos.submitter import tenant_of

REFUSES = LinkFault(
    answer=b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
NUM_SPOILT = 6  # of each sort


def refuse(scene: Scene) -> None:
    """503 to whatever is asked, for longer than a worker's client tries again."""
    _for_s(scene, REFUSES, 8.0)


def slow(scene: Scene) -> None:
    """Every answer takes its time."""
    _for_s(scene, LinkFault(latency_s=0.15), 10.0)


def unanswered(scene: Scene) -> None:
    """What is put and fenced is there, and nobody is told: the writers lose to themselves."""
    _for_s(scene, LinkFault(drops_answers=True), 8.0)


def spoil(scene: Scene) -> None:
    """Latents vanish, or hold other bytes, while no decoder runs: these jobs must fail, alone."""
    scene.crew.stand_down("decoder")
    store, waiting = store_of(scene.cluster.direct), set[str]()

    def has_enough() -> bool:
        gone = scene.heard.reached["frames.decoded"]
        for job_id, _ in sorted(scene.heard.reached["latents.ready"] - gone):
            # What a decoder had made before it was killed need not have been read here yet.
            if job_id not in waiting and _has_no_frames(store, job_id):
                waiting.add(job_id)
        return len(waiting) >= 2 * NUM_SPOILT

    assert scene.until(has_enough, 30.0), "no latents wait for a decoder"
    for number, job_id in enumerate(sorted(waiting)[: 2 * NUM_SPOILT]):
        key = _latents_key(store, job_id)
        store.remove(key)
        if number % 2:
            store.create(key, b"other bytes")
        scene.expect(job_id, "failed")
    scene.crew.heal()


def _has_no_frames(store: BlobStore, job_id: str) -> bool:
    return Fences(store).result(tenant_of(job_id), job_id, 1, "decoder") is None


def _latents_key(store: BlobStore, job_id: str) -> str:
    found = Fences(store).result(tenant_of(job_id), job_id, 1, "sampler")
    assert found is not None, "its record is on the log, so its result stands"
    record = Codec().decode(found[1], LatentsReady)
    return record.latents.uri.removeprefix(f"{store.root_uri}/")


def _for_s(scene: Scene, fault: LinkFault, seconds: float) -> None:
    scene.cluster.store_proxy.set_fault(fault)
    scene.wait_s(seconds)
    scene.cluster.store_proxy.heal()
    scene.wait_s(2.0)
