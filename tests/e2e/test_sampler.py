"""The real sampler in the middle of its steps: killed, and given a job that is not a number."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from PIL import Image

from schemas.records import JobEvent, VideoDone
from streams.blobs.base import BlobStore
from streams.blobs.fences import blob_prefix
from streams.cli.context import make_client, make_store
from streams.client.client import Client
from tests.e2e.conftest import Pipeline
from tests.e2e.reading import Tail
from tests.poisoned import POISONED_SEED

pytestmark = [pytest.mark.kafka, pytest.mark.torch]

GIVE_UP_S = 240.0
TENANT = "local"


def run(pipeline: Pipeline, main: Callable[[Client, BlobStore], Coroutine[Any, Any, None]]) -> None:
    """Run that with a client; the stack starts again what dies meanwhile."""

    async def supervised() -> None:
        store = make_store(pipeline.settings)
        async with asyncio.timeout(GIVE_UP_S), make_client(pipeline.settings, store) as client:
            work = asyncio.create_task(main(client, store))
            while not work.done():
                pipeline.stack.step()
                await asyncio.wait([work], timeout=0.05)
            await work

    asyncio.run(supervised())


async def submit_long(client: Client) -> str:
    return await client.submit(
        "a red circle moving right", num_inference_steps=100, num_frames=33, seed=5
    )


async def ended(client: Client, job_ids: set[str]) -> dict[str, VideoDone]:
    found: dict[str, VideoDone] = {}
    async for done in client.completions():
        if done.job_id in job_ids:
            found[done.job_id] = done
        if found.keys() == job_ids:
            break
    return found


def checkpoints(store: BlobStore, job_id: str) -> set[str]:
    prefix = blob_prefix(TENANT, job_id, 1, "sampler.checkpoint")
    found = store.walk(prefix.rpartition("/")[0])
    return {each.key for each in found if each.key.startswith(prefix)}


def latents(store: BlobStore, job_id: str) -> set[str]:
    """SHA-256 of the latents of a job's run."""
    prefix = blob_prefix(TENANT, job_id, 1, "sampler")
    found = store.walk(prefix)
    return {each.key.rpartition("/")[2] for each in found if not each.key.endswith(".json")}


def test_a_sampler_killed_in_the_middle_goes_on_from_its_checkpoint_to_the_same_bits(
    pipeline: Pipeline,
) -> None:
    async def main(client: Client, store: BlobStore) -> None:
        killed = await submit_long(client)
        seen: set[str] = set()
        while len(seen) < 2:  # the second says that the first step is far behind
            seen |= checkpoints(store, killed)
            await asyncio.sleep(0.01)
        os.kill(pipeline.stack.pids()["sampler"], signal.SIGKILL)
        (done,) = (await ended(client, {killed})).values()
        assert done.status == "completed"
        undisturbed = await submit_long(client)
        await ended(client, {undisturbed})
        assert latents(store, killed) & latents(store, undisturbed)

    run(pipeline, main)
    log = (pipeline.stack.logs / "sampler.log").read_text()
    assert '"event": "goes on from its checkpoint"' in log


def test_one_poisoned_job_of_eight_is_a_dead_letter_and_seven_complete(pipeline: Pipeline) -> None:
    async def main(client: Client, _store: BlobStore) -> None:
        seeds = [*range(7), POISONED_SEED]
        jobs = {await client.submit("a blue square moving up", seed=seed): seed for seed in seeds}
        status = {jobs[job_id]: done for job_id, done in (await ended(client, set(jobs))).items()}
        bad = status.pop(POISONED_SEED)
        assert (bad.status, bad.reason_code) == ("failed", "non_finite_latents")
        assert {done.status for done in status.values()} == {"completed"}
        with Tail(pipeline.bootstrap, ["prompts.cleaned.dlt"]) as tail:
            letters: list[str] = []
            while bad.job_id not in letters:
                letters += [key.decode() for each in tail.read() if (key := each.key())]
                await asyncio.sleep(0)
        assert [job_id for job_id in letters if job_id in jobs] == [bad.job_id]

    run(pipeline, main)


def test_whoever_watches_a_job_sees_it_before_it_is_done(pipeline: Pipeline) -> None:
    async def main(client: Client, store: BlobStore) -> None:
        job_id = await submit_long(client)
        seen: list[tuple[int, bytes]] = []
        async for event in client.watch(job_id):
            if isinstance(event, JobEvent) and event.preview is not None:
                assert event.kind == "preview"
                assert event.step is not None
                seen.append((event.step, store.read(event.preview, 1 << 20)))
        steps = [step for step, _ in seen]
        assert steps == sorted(steps)
        assert 0 < steps[0] < 100
        for _, data in seen:
            with Image.open(io.BytesIO(data)) as picture:
                assert (picture.format, picture.size) == ("PNG", (8, 8))

    run(pipeline, main)
