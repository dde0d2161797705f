"""The sweep on every blob store: what it removes of what workers really leave there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.codec import Codec
from schemas.records import BlobRef, FrameChunk, Record
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences, blob_prefix
from streams.blobs.sweep import Ages, Sweep, kind_of, run_of
from tests.builders import a_cleaned_prompt, a_frames_decoded, a_latents_ready, a_video_done
from tests.contract.places import Place

CODEC = Codec()
AGES = Ages(timedelta(hours=24), timedelta(hours=25), timedelta(days=7))
SHA256 = "5a" * 32


def swept(store: BlobStore, *, after: timedelta, is_applied: bool = True) -> dict[str, Any]:
    """The counts of one pass, so long after now; only the kinds that were met."""
    sweep = Sweep(store, CODEC, datetime.now(UTC) + after, AGES)
    sweep.run(is_applied=is_applied)
    return {sort: each for sort, each in sweep.counts.items() if each.objects}


class Job:
    """What a job leaves in a store, written as the stages write it."""

    def __init__(self, store: BlobStore, job_id: str = "order-7") -> None:
        self.store, self.fences, self.job_id = store, Fences(store), job_id
        self.fences.claim_request("acme", job_id, b"{}")

    def blob(self, stage: str, body: bytes) -> BlobRef:
        return self.store.put(blob_prefix("acme", self.job_id, 1, stage), [body], "a/b")

    def result(self, stage: str, record: Record, edition: int = 1) -> None:
        body = CODEC.encode(record)
        self.fences.publish_result("acme", self.job_id, 1, stage, edition, body)

    def outcome(self, **changes: Any) -> None:
        done = a_video_done(**{"video": None, "thumbnail": None, **changes})
        self.fences.end("acme", self.job_id, 1, CODEC.encode(done))

    def work(self) -> dict[str, BlobRef]:
        """Every stage has its result, and a loser's blob beside it."""
        blobs = {stage: self.blob(stage, stage.encode()) for stage in ("prompt", "sampler")}
        blobs["decoder"] = self.blob("decoder", b"chunk 1")
        blobs["decoder-2"] = self.blob("decoder", b"chunk 2")
        self.result("prompt", a_cleaned_prompt(conditioning=blobs["prompt"]))
        self.result("sampler", a_latents_ready(latents=blobs["sampler"]))
        chunks = (FrameChunk(blobs["decoder"], 0, 3), FrameChunk(blobs["decoder-2"], 3, 2))
        self.result("decoder", a_frames_decoded(chunks=chunks))
        blobs["orphan"] = self.blob("sampler", b"a loser's")
        return blobs


def key_of(store: BlobStore, ref: BlobRef) -> str:
    return ref.uri.removeprefix(store.root_uri + "/")


def test_a_run_that_goes_on_keeps_what_its_results_name(place: Place, store: BlobStore) -> None:
    blobs = Job(store).work()
    before = place.keys()
    assert swept(store, after=timedelta(hours=48))["blobs of open runs"].removed == 0
    assert place.keys() == before
    count = swept(store, after=timedelta(days=400))["blobs of open runs"]
    assert (count.objects, count.removed, count.removed_bytes) == (5, 1, len(b"a loser's"))
    assert place.keys() == before - {key_of(store, blobs["orphan"])}


def test_of_an_ended_run_its_video_thumbnail_and_records_stay(
    place: Place, store: BlobStore
) -> None:
    job = Job(store)
    blobs = job.work()
    video, thumbnail = job.blob("finisher", b"MP4"), job.blob("finisher", b"JPEG")
    job.outcome(video=video, thumbnail=thumbnail)
    before = place.keys()
    assert swept(store, after=timedelta(hours=23))["blobs of ended runs"].removed == 0
    dry = swept(store, after=timedelta(hours=25), is_applied=False)
    assert place.keys() == before
    assert swept(store, after=timedelta(hours=25)) == dry
    assert place.keys() == before - {key_of(store, ref) for ref in blobs.values()}
    assert store.read(video, 10) == b"MP4"
    assert Fences(store).outcome("acme", "order-7", 1) is not None
    assert Fences(store).result("acme", "order-7", 1, "decoder") is not None
    again = swept(store, after=timedelta(days=400))
    assert (again["blobs of ended runs"].objects, again["blobs of ended runs"].removed) == (2, 0)
    assert again["records"].objects == 5


def test_a_run_that_failed_leaves_its_records_only(place: Place, store: BlobStore) -> None:
    job = Job(store)
    job.work()
    job.outcome(status="failed")
    swept(store, after=timedelta(hours=25))
    assert place.keys() == {
        "acme/order-7/request",
        "acme/order-7/1/outcome",
        *(f"acme/order-7/1/{stage}/result.1" for stage in ("prompt", "sampler", "decoder")),
    }


def test_runs_and_jobs_do_not_speak_for_each_other(place: Place, store: BlobStore) -> None:
    ended, going = Job(store, "order-1"), Job(store, "order-10")
    ended.work()
    ended.outcome()
    kept = going.work()
    store.put("acme/order-1/10/sampler", [b"of run 10"], "a/b")
    swept(store, after=timedelta(hours=26))
    assert {key_of(store, ref) for ref in kept.values()} <= place.keys()
    assert "acme/order-1/10" in {run_of(key) for key in place.keys()}  # noqa: SIM118


@pytest.mark.parametrize("key", ["outcome", "sampler/result.1", "painter/result.1"])
def test_a_fence_that_nobody_understands_keeps_all_of_its_run(
    key: str, place: Place, store: BlobStore
) -> None:
    job = Job(store)
    job.blob("sampler", b"latents")
    store.create(f"acme/order-7/1/{key}", b"written by a later version")
    counts = swept(store, after=timedelta(days=400))
    count = counts["blobs of runs not understood"]
    assert (count.objects, count.removed) == (1, 0)


def test_a_store_under_another_address_loses_nothing(place: Place, store: BlobStore) -> None:
    """Else every blob would seem unnamed, finished videos first of all."""
    job = Job(store)
    video = job.blob("finisher", b"MP4")
    job.outcome(video=replace(video, uri=video.uri.replace("://", "://elsewhere/")))
    assert "blobs of runs not understood" in swept(store, after=timedelta(days=400))
    assert store.verify(video)


def test_dead_letters_and_probes_go_by_age_and_strangers_stay(
    place: Place, store: BlobStore
) -> None:
    place.plant(f"dead-letters/requests/3/{SHA256}", b"letter")
    place.plant(f"dead-letters/{SHA256}", b"letter")
    place.plant(f"reel-probe/host-1/1/sampler/{SHA256}", b"probe")
    strangers = {
        "notes.txt",
        "acme/order-7/1/sampler/notes.txt",
        "acme/order-7/01/sampler/" + SHA256,
        "acme/order-7/1/sampler/" + SHA256.upper(),
        "dead-letters/readme",
        "with blanks/ä/" + SHA256,
    }
    for key in strangers:
        place.plant(key, b"x")
    early = swept(store, after=timedelta(hours=25))
    assert early["blobs of probes"].removed == 1
    assert early["blobs of dead letters"].removed == 0
    late = swept(store, after=timedelta(days=9))
    assert late["blobs of dead letters"].removed == 2
    assert (late["unknown"].objects, late["unknown"].removed) == (len(strangers), 0)
    assert place.keys() == strangers


def test_many_pages_are_swept_while_they_are_walked(place: Place, store: BlobStore) -> None:
    keys = {f"acme/job-{n % 50}/1/decoder/{n:064x}" for n in range(1_500)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: place.plant(key, b"x"), keys))
    counts = swept(store, after=timedelta(days=9))
    assert counts["blobs of open runs"].removed == len(keys)
    assert place.keys() == set()


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("acme/order-7/request", "record"),
        ("acme/order-7/runs/2", "record"),
        ("reel-probe/job/1/outcome", "record"),
        ("dead-letters/job/1/prompt/result.12", "record"),
        (f"acme/order-7/1/sampler/{SHA256}", "stage blob"),
        (f"acme/order-7/1/{SHA256}", "unknown"),
        ("acme/order-7/runs/0", "unknown"),
        ("acme/order-7/1/prompt/result.0", "unknown"),
        (f"acme/order-7/1/sampler/{SHA256}\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_key_says_what_it_holds(key: str, kind: str) -> None:
    assert kind_of(key).value == kind
