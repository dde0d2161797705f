"""Redrive and cancel by the Python client: what lies on the topics, whoever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.cloudevents import parse_headers
from schemas.records import GenerationRequest, JobControl
from streams.blobs.base import BlobStore, open_store
from streams.blobs.fences import Fences
from streams.blobs.local import LocalStore
from streams.claims import Author, RunClaim, claim_request, read_run_claim
from streams.client import Client, ClientError, UnknownJob, WrongRequest
from streams.client.ids import issuer, new_job_id
from streams.kafka.admin import apply_topics
from streams.local.embedded import EmbeddedKafka
from streams.redrive import BeginRun, NothingToDo, SendAgain, complete_redrive
from streams.settings import Settings
from streams.topology import JOB_CONTROL, JOB_EVENTS, REQUESTS, VIDEOS_DONE
from tests.builders import a_request
from tests.contract.client_rig import (
    CODEC,
    NUM_PARTITIONS,
    a_done,
    an_event,
    produce,
    records_of,
    run,
)

pytestmark = pytest.mark.kafka

PLACE = 4


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedKafka(tmp_path_factory.mktemp("broker")) as broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        yield broker.bootstrap


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = open_store((tmp_path / "blobs").as_uri())
    assert isinstance(store, LocalStore)
    return store


class Died(Exception):
    """The redriver's process."""


class LastWords:
    """A store whose user dies at the first create: before it, or with its answer unread."""

    def __init__(self, store: LocalStore, when: str) -> None:
        self._store, self._when = store, when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, key: str, body: bytes) -> bytes:
        if self._when == "after the claim":
            self._store.create(key, body)
        raise Died


def a_failed_job(store: BlobStore, status: str = "failed") -> str:
    """Run 1 of a job of `acme` in partition PLACE, ended."""
    job_id, fences = new_job_id(), Fences(store)
    request = a_request(job_id=job_id)
    claim_request(fences, request, CODEC.encode(request), PLACE)
    fences.end("acme", job_id, 1, CODEC.encode(a_done(job_id, status)))
    return job_id


async def requests_of(bootstrap: str, job_id: str) -> list[Any]:
    found = await records_of(bootstrap, REQUESTS, PLACE)
    return [record for record in found if record.key == job_id.encode()]


async def wishes_of(bootstrap: str, job_id: str) -> list[tuple[bytes, JobControl]]:
    found = [
        (record.key, CODEC.decode(record.value, JobControl))
        for record in await records_of(bootstrap, JOB_CONTROL, 0)
    ]
    return [(key, wish) for key, wish in found if wish.job_id == job_id]


def test_a_redrive_leaves_a_wish_a_claim_and_a_request(bootstrap: str, store: LocalStore) -> None:
    job_id = a_failed_job(store)
    client = Client(bootstrap, store)

    async def redrive() -> None:
        done = await client.redrive(
            job_id, tenant_id="acme", deadline_s=3600.0, why="disk was full", order_id="order-1"
        )
        assert isinstance(done, BeginRun)
        author = read_run_claim(Fences(store).claimed_run("acme", job_id, 2) or b"").author
        assert author is not None
        assert (author.by, author.why, author.order_id) == (issuer(), "disk was full", "order-1")
        ((key, wish),) = await wishes_of(bootstrap, job_id)
        assert key == f"{job_id}/2/redrive".encode()
        assert (wish.run, wish.kind, wish.tenant_id) == (2, "redrive", "acme")
        (record,) = await requests_of(bootstrap, job_id)
        request = CODEC.decode(record.value, GenerationRequest)
        assert request.deadline == request.created_at + timedelta(hours=1)
        assert datetime.now(UTC) - request.created_at < timedelta(minutes=1)
        first = a_request(job_id=job_id)
        assert replace(first, run=2) == replace(
            request, created_at=first.created_at, deadline=first.deadline
        )
        assert parse_headers(record.headers).id == f"{job_id}.2.redrive.submitted"

    run(redrive, client)


@pytest.mark.parametrize("status", ["completed", "cancelled", "rejected"])
def test_a_final_job_is_left_alone(bootstrap: str, store: LocalStore, status: str) -> None:
    job_id = a_failed_job(store, status)
    client = Client(bootstrap, store)

    async def redrive() -> None:
        done = await client.redrive(job_id, tenant_id="acme")
        assert done == NothingToDo("final", f"{status} is final")
        assert await wishes_of(bootstrap, job_id) == await requests_of(bootstrap, job_id) == []

    run(redrive, client)


def test_twice_at_once_makes_one_run(bootstrap: str, store: LocalStore) -> None:
    job_id = a_failed_job(store)
    client = Client(bootstrap, store)

    async def redrive() -> None:
        async with Client(bootstrap, store) as other:
            done = await asyncio.gather(
                *(each.redrive(job_id, tenant_id="acme") for each in (client, other) * 4)
            )
        assert sum(isinstance(each, BeginRun) for each in done) == 1  # the others say it was not
        assert sum(isinstance(each, SendAgain) for each in done) == 7
        assert Fences(store).latest_run("acme", job_id) == 2
        assert len({record.value for record in await requests_of(bootstrap, job_id)}) == 1

    run(redrive, client)


@pytest.mark.parametrize("when", ["before the claim", "after the claim"])
@pytest.mark.parametrize("rescuer", ["another redriver", "the reader of wishes"])
def test_a_redriver_that_dies_loses_nothing(
    bootstrap: str, store: LocalStore, when: str, rescuer: str
) -> None:
    job_id = a_failed_job(store)
    client = Client(bootstrap, store)

    async def redrive() -> None:
        async with Client(bootstrap, LastWords(store, when)) as dying:
            with pytest.raises(Died):
                await dying.redrive(job_id, tenant_id="acme")
        assert await requests_of(bootstrap, job_id) == []
        ((_, wish),) = await wishes_of(bootstrap, job_id)
        if rescuer == "another redriver":
            done = await client.redrive(job_id, tenant_id="acme")
            assert isinstance(done, SendAgain if when == "after the claim" else BeginRun)
            (record,) = await requests_of(bootstrap, job_id)
            assert CODEC.decode(record.value, GenerationRequest).run == 2
        else:
            claim = complete_redrive(
                Fences(store), CODEC, "acme", job_id, wish.run,
                author=Author("test", datetime.now(UTC)), deadline_s=60.0,
            )  # fmt: skip
            assert isinstance(claim, RunClaim)
        assert Fences(store).latest_run("acme", job_id) == 2

    run(redrive, client)


def test_a_run_under_way_is_not_begun_again(bootstrap: str, store: LocalStore) -> None:
    job_id = a_failed_job(store)
    client = Client(bootstrap, store)

    async def redrive() -> None:
        await client.redrive(job_id, tenant_id="acme")
        Fences(store).publish_result("acme", job_id, 2, "prompt", 1, b"pointer")
        done = await client.redrive(job_id, tenant_id="acme")
        assert done == NothingToDo("open", "run 2 is under way")
        assert len(await requests_of(bootstrap, job_id)) == 1

    run(redrive, client)


def test_a_named_run_is_begun_once_however_often_it_is_asked_for(
    bootstrap: str, store: LocalStore
) -> None:
    job_id = a_failed_job(store)
    client = Client(bootstrap, store)

    async def redrive() -> None:
        await client.redrive(job_id, tenant_id="acme", run=2)
        Fences(store).end("acme", job_id, 2, CODEC.encode(a_done(job_id, "failed", run=2)))
        done = await client.redrive(job_id, tenant_id="acme", run=2)
        assert done == NothingToDo("begun", "run 2 was begun before and failed")
        assert Fences(store).latest_run("acme", job_id) == 2

    run(redrive, client)


def test_the_tenant_is_found_on_the_topics(bootstrap: str, store: LocalStore) -> None:
    job_id = a_failed_job(store)
    client = Client(bootstrap, store)

    async def redrive() -> None:
        with pytest.raises(UnknownJob):
            await client.redrive(job_id)
        await produce(bootstrap, VIDEOS_DONE, a_done(job_id, "failed"))
        assert isinstance(await client.redrive(job_id), BeginRun)

    run(redrive, client)


def test_what_cannot_be_redriven_is_refused(bootstrap: str, store: LocalStore) -> None:
    client = Client(bootstrap, store)

    async def redrive() -> None:
        with pytest.raises(WrongRequest):
            await client.redrive("../etc", tenant_id="acme")
        async with Client(bootstrap) as blind:
            with pytest.raises(ClientError, match="no object store"):
                await blind.redrive("job", tenant_id="acme")

    run(redrive, client)


# ---- cancel


def test_a_cancel_names_tenant_and_latest_run(bootstrap: str) -> None:
    job_id = new_job_id()
    client = Client(bootstrap)

    async def cancel() -> None:
        await produce(bootstrap, VIDEOS_DONE, a_done(job_id, "failed"))
        await produce(bootstrap, JOB_EVENTS, an_event(job_id, "sampler", run=2))
        assert await client.cancel(job_id) == 2
        ((key, wish),) = await wishes_of(bootstrap, job_id)
        assert key == f"{job_id}/2/cancel".encode()
        assert (wish.run, wish.kind, wish.tenant_id) == (2, "cancel", "acme")

    run(cancel, client)


def test_of_two_tenants_jobs_of_one_id_the_named_ones_is_cancelled(bootstrap: str) -> None:
    job_id = new_job_id()
    client = Client(bootstrap)

    async def cancel() -> None:
        await produce(bootstrap, VIDEOS_DONE, replace(a_done(job_id, "failed"), tenant_id="bolt"))
        await produce(bootstrap, JOB_EVENTS, replace(an_event(job_id, "sampler"), tenant_id="acme"))
        assert await client.cancel(job_id, tenant_id="acme") == 1
        ((_, wish),) = await wishes_of(bootstrap, job_id)
        assert wish.tenant_id == "acme"
        with pytest.raises(ClientError, match="has ended already: failed"):
            await client.cancel(job_id, tenant_id="bolt")
        with pytest.raises(UnknownJob, match=f"no job {job_id} of tenant crew"):
            await client.cancel(job_id, tenant_id="crew")

    run(cancel, client)


def test_a_job_that_has_ended_is_cancelled_only_by_its_run(bootstrap: str) -> None:
    job_id = new_job_id()
    client = Client(bootstrap)

    async def cancel() -> None:
        with pytest.raises(UnknownJob):
            await client.cancel(job_id)
        await produce(bootstrap, VIDEOS_DONE, a_done(job_id, "failed"))
        with pytest.raises(ClientError, match="has ended already: failed"):
            await client.cancel(job_id)
        with pytest.raises(WrongRequest):
            await client.cancel(job_id, 0)
        assert await client.cancel(job_id, 2) == 2  # a redrive may be on its way

    run(cancel, client)
