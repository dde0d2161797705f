"""The Python client against a real broker, played by the embedded one."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.cloudevents import parse_headers
from schemas.records import (
    BlobRef,
    GenerationRequest,
    StageControl,
    VideoDone,
    derive_job_id,
)
from streams.blobs.base import open_store
from streams.client import (
    BrokerUnreachable,
    Client,
    ClientError,
    JobRow,
    NotDone,
    UnknownJob,
    WrongRequest,
)
from streams.client.ids import new_job_id
from streams.core.tiers import partition_of_job
from streams.errors import BlobCorrupt
from streams.kafka.admin import apply_topics
from streams.local.embedded import EmbeddedKafka
from streams.settings import Settings
from streams.topology import JOB_EVENTS, REQUESTS, STAGE_CONTROL, VIDEOS_DONE
from tests.contract.client_rig import (
    CODEC,
    NOON,
    NUM_PARTITIONS,
    a_done,
    an_event,
    last_record,
    produce,
    run,
)

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedKafka(tmp_path_factory.mktemp("broker")) as broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        yield broker.bootstrap


@pytest.fixture
def client(bootstrap: str, tmp_path: Path) -> Client:
    return Client(bootstrap, open_store((tmp_path / "blobs").as_uri()))


def test_a_submitted_request_lies_in_its_own_partition_with_its_headers(
    client: Client, bootstrap: str
) -> None:
    async def submit() -> tuple[str, Any]:
        job_id = await client.submit("a ball", tenant_id="acme", tier="pro", seed=7, width_px=64)
        place = partition_of_job("pro", "acme", job_id, NUM_PARTITIONS)
        return job_id, await last_record(bootstrap, REQUESTS, place)

    job_id, found = run(submit, client)
    request = CODEC.decode(found.value, GenerationRequest)
    assert (request.job_id, request.prompt, request.tier) == (job_id, "a ball", "pro")
    assert (request.seed, request.width_px, request.height_px) == (7, 64, None)
    assert found.key == job_id.encode()
    headers = parse_headers(found.headers)
    assert (headers.subject, headers.type) == (job_id, "reelstream.GenerationRequest.v1")
    assert headers.trace_parent is not None


def test_the_same_idempotency_key_is_the_same_job(client: Client) -> None:
    async def submit() -> list[str]:
        keys = ["one", "one", "two"]
        return [await client.submit("x", tenant_id="acme", idempotency_key=key) for key in keys]

    first, second, third = run(submit, client)
    assert first == second == derive_job_id("acme", "one")
    assert third != first


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"tier": "gold"}, "unknown tier 'gold'"),
        ({"tenant_id": "../etc"}, "tenant"),
        ({"prompt": "x" * 70_000}, "more than 65536"),
        ({"num_frames": 2**40}, "GenerationRequest"),
        ({"deadline": datetime(2026, 1, 1)}, "time zone"),
    ],
)
def test_what_no_request_can_hold_is_refused_and_nothing_is_sent(
    wish: dict[str, Any], said: str, client: Client
) -> None:
    async def submit() -> None:
        with pytest.raises(WrongRequest, match=said):
            await client.submit(**{"prompt": "x", **wish})

    run(submit, client)


def test_missing_topics_are_named_and_not_created(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path) as broker:
        client = Client(broker.bootstrap)

        async def submit() -> None:
            for _ in range(2):
                with pytest.raises(ClientError, match="no topic requests"):
                    await client.submit("x")

        run(submit, client)


def test_a_request_that_nobody_acknowledges_is_given_up_and_the_next_one_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedKafka(tmp_path) as broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        client = Client(broker.bootstrap)

        async def submit() -> None:
            await client.submit("x")
            broker.stop()
            with monkeypatch.context() as impatient:
                impatient.setattr("streams.client.outbox.ACKNOWLEDGED_S", 1.0)
                with pytest.raises(BrokerUnreachable, match="whether it is on the log is unknown"):
                    await client.submit("x")
            with pytest.raises(BrokerUnreachable, match="no Kafka broker answers"):
                await client.submit("x")
            broker.start()
            job_id = await client.submit("x", tenant_id="acme", tier="pro")
            place = partition_of_job("pro", "acme", job_id, NUM_PARTITIONS)
            found = await last_record(broker.bootstrap, REQUESTS, place)
            assert found.key == job_id.encode()

        run(submit, client, limit_s=60.0)


def test_watching_shows_every_event_and_ends_with_the_ending(
    client: Client, bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id, other = new_job_id(), new_job_id()

    async def watch() -> list[Any]:
        await produce(bootstrap, JOB_EVENTS, an_event(job_id, "prompt"), b"no record")
        await produce(bootstrap, JOB_EVENTS, an_event(other, "prompt"))
        seen = []
        async with aclosing(client.watch(job_id)) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == 1:
                    await produce(bootstrap, VIDEOS_DONE, a_done(other))
                    await produce(bootstrap, JOB_EVENTS, an_event(job_id, "sampler"))
                    await produce(bootstrap, VIDEOS_DONE, a_done(job_id))
        return seen

    with caplog.at_level(logging.WARNING):
        seen = run(watch, client)
    assert seen == [an_event(job_id, "prompt"), an_event(job_id, "sampler"), a_done(job_id)]
    assert "skipped jobs.events" in caplog.text


def test_watching_a_job_in_its_second_run_waits_for_that_run(
    client: Client, bootstrap: str
) -> None:
    job_id = new_job_id()

    async def watch() -> VideoDone | None:
        await produce(bootstrap, VIDEOS_DONE, a_done(job_id, "failed"))
        await produce(bootstrap, JOB_EVENTS, an_event(job_id, "prompt", run=2))
        async with aclosing(client.watch(job_id)) as events:
            async for event in events:
                if isinstance(event, VideoDone):
                    return event
                await produce(bootstrap, VIDEOS_DONE, a_done(job_id, run=2))
        return None

    assert run(watch, client) == a_done(job_id, run=2)


def test_watching_a_job_that_was_just_redriven_waits_for_the_new_run(
    client: Client, bootstrap: str
) -> None:
    job_id = new_job_id()

    async def watch() -> list[Any]:
        await produce(bootstrap, VIDEOS_DONE, a_done(job_id, "expired"))
        await produce(bootstrap, REQUESTS, GenerationRequest(job_id, "acme", "x", NOON, run=2))
        seen = []
        async with aclosing(client.watch(job_id)) as events:
            first = asyncio.ensure_future(anext(events))
            await asyncio.wait({first}, timeout=2.0)
            assert not first.done()  # run 1's ending is not the end
            await produce(bootstrap, VIDEOS_DONE, a_done(job_id, run=2))
            seen.append(await first)
        return seen

    assert run(watch, client) == [a_done(job_id, run=2)]


def test_a_job_that_has_not_ended_is_not_got(client: Client, bootstrap: str) -> None:
    async def get() -> None:
        job_id = await client.submit("x", tenant_id="acme")
        with pytest.raises(NotDone, match=r"is queued$"):
            await client.get(job_id)
        await produce(bootstrap, JOB_EVENTS, an_event(job_id, "sampler"))
        with pytest.raises(NotDone, match=r"is running, in stage sampler$"):
            await client.get(job_id)
        with pytest.raises(UnknownJob, match="no job nobody-knows"):
            await client.get("nobody-knows")
        await produce(bootstrap, VIDEOS_DONE, a_done(job_id, "expired"))
        assert (await client.get(job_id)).status == "expired"

    run(get, client)


def test_all_jobs_are_listed_oldest_first(client: Client, bootstrap: str) -> None:
    async def jobs() -> tuple[list[str], list[JobRow]]:
        ids = [await client.submit("x", tenant_id="lister") for _ in range(3)]
        await produce(
            bootstrap,
            VIDEOS_DONE,
            replace(a_done(ids[1], "rejected"), created_at=datetime.now(UTC)),
        )
        return ids, await client.jobs()

    ids, rows = run(jobs, client)
    ours = [(row.job_id, row.status) for row in rows if row.job_id in ids]
    assert ours == [(ids[0], "queued"), (ids[1], "rejected"), (ids[2], "queued")]


def a_stored_video(tmp_path: Path) -> BlobRef:
    store = open_store((tmp_path / "blobs").as_uri())
    return store.put("acme/job/1/finisher", [b"moving ", b"pictures"], "video/mp4")


def test_a_video_is_downloaded_whole(client: Client, tmp_path: Path) -> None:
    done = a_done("job", video=a_stored_video(tmp_path))
    target = tmp_path / "out.mp4"
    run(lambda: client.download(done, target), client)
    assert target.read_bytes() == b"moving pictures"


def test_a_video_whose_bytes_are_wrong_leaves_no_file(client: Client, tmp_path: Path) -> None:
    video = a_stored_video(tmp_path)
    Path(video.uri.removeprefix("file://")).chmod(0o644)
    Path(video.uri.removeprefix("file://")).write_bytes(b"moving picturez")
    before = set(tmp_path.iterdir())
    with pytest.raises(BlobCorrupt):
        run(lambda: client.download(a_done("job", video=video), tmp_path / "out.mp4"), client)
    assert set(tmp_path.iterdir()) == before


def test_a_job_without_a_video_says_why(client: Client, tmp_path: Path) -> None:
    done = a_done("job", "failed", reason_code="input_lost", reason="latents are gone")
    with pytest.raises(ClientError, match=r"job job was failed \(input_lost: latents are gone\)"):
        run(lambda: client.download(done, tmp_path / "out.mp4"), client)


def test_a_group_goes_on_behind_what_it_has_taken(client: Client, bootstrap: str) -> None:
    mine = {new_job_id() for _ in range(4)}
    group = f"listeners-{min(mine)}"

    async def take(number: int) -> set[str]:
        """Ask for `number` records of ours, and for one more, which is not taken."""
        taken: list[str] = []
        async with aclosing(client.completions(group)) as endings:
            async for done in endings:
                if done.job_id in mine:
                    if len(taken) == number:
                        break
                    taken.append(done.job_id)
        return set(taken)

    async def twice() -> tuple[set[str], set[str]]:
        await produce(bootstrap, VIDEOS_DONE, *(a_done(job_id) for job_id in sorted(mine)))
        first = await take(2)
        late = new_job_id()
        mine.add(late)
        await produce(bootstrap, VIDEOS_DONE, a_done(late))
        second = await take(2)
        return first, second

    first, second = run(twice, client)
    assert len(first) == len(second) == 2
    assert not first & second


def test_a_reader_without_a_group_may_begin_with_what_comes(client: Client, bootstrap: str) -> None:
    early, late = new_job_id(), new_job_id()

    async def listen() -> str:
        await produce(bootstrap, VIDEOS_DONE, a_done(early))
        async with aclosing(client.completions(from_beginning=False)) as endings:
            first = asyncio.ensure_future(anext(endings))
            while not first.done():  # nobody can see when it begins to listen
                await produce(bootstrap, VIDEOS_DONE, a_done(late))
                await asyncio.wait({first}, timeout=0.2)
            return first.result().job_id

    assert run(listen, client) == late


def test_a_stage_is_paused_under_its_own_key(client: Client, bootstrap: str) -> None:
    async def pause() -> Any:
        await client.control_stage("sampler", "paused", "cleaning")
        return await last_record(bootstrap, STAGE_CONTROL, 0)

    found = run(pause, client)
    control = CODEC.decode(found.value, StageControl)
    assert found.key == b"sampler"
    assert (control.stage, control.state, control.reason) == ("sampler", "paused", "cleaning")
    assert control.issued_at > datetime.now(UTC) - timedelta(minutes=1)


def test_a_stage_that_does_not_exist_cannot_be_paused(client: Client) -> None:
    async def pause() -> None:
        with pytest.raises(WrongRequest, match="no stage 'painter'"):
            await client.control_stage("painter", "paused")

    run(pause, client)
