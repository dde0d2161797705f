"""Each effective outcome once, by the Python client against a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from schemas.records import VideoDone
from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.client import Client
from streams.kafka.admin import apply_topics
from streams.local.apache import ApacheKafka
from streams.local.embedded import EmbeddedKafka
from streams.settings import Settings
from streams.topology import VIDEOS_DONE
from tests.contract.client_rig import NUM_PARTITIONS, a_done, produce, run

pytestmark = pytest.mark.kafka

Seen = tuple[str, int, str]


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    """A broker of its own: what a group reads here is what the test wrote."""
    with EmbeddedKafka(tmp_path / "broker") as broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        yield broker.bootstrap


@pytest.fixture
def client(bootstrap: str) -> Client:
    return Client(bootstrap)


async def end(bootstrap: str, *endings: VideoDone) -> None:
    """All in one partition, so that their order is known."""
    await produce(bootstrap, VIDEOS_DONE, *endings, partition=1)


async def up_to(stop: str, outcomes: AsyncGenerator[VideoDone, None]) -> list[Seen]:
    """What is handed on and taken before the outcome of a job `stop...`, which is not taken."""
    found: list[Seen] = []
    async with aclosing(outcomes) as endings:
        async for done in endings:
            if done.job_id.startswith(stop):
                return found
            found.append((done.job_id, done.run, done.status))
    raise AssertionError("outcomes never end")


@pytest.mark.parametrize("group", [None, "listeners"])
def test_duplicates_and_superseded_runs_are_passed_over(
    client: Client, bootstrap: str, group: str | None
) -> None:
    async def listen() -> list[Seen]:
        failed, again = a_done("a", "failed"), a_done("a", "completed", run=2)
        await end(bootstrap, failed, a_done("b"), failed, again, failed, again, a_done("stop"))
        return await up_to("stop", client.outcomes(group))

    assert run(listen, client) == [("a", 1, "failed"), ("b", 1, "completed"), ("a", 2, "completed")]


def test_what_was_taken_before_a_restart_never_comes_again(client: Client, bootstrap: str) -> None:
    async def twice() -> tuple[list[Seen], list[Seen]]:
        early = [a_done("a", "failed"), a_done("b"), a_done("c", "failed")]
        await end(bootstrap, *early, a_done("stop"))
        first = await up_to("stop", client.outcomes("listeners"))
        await end(bootstrap, *early, a_done("c", run=2), a_done("d"), *early, a_done("stop-2"))
        return first, await up_to("stop-2", client.outcomes("listeners"))

    first, second = run(twice, client)
    assert first == [("a", 1, "failed"), ("b", 1, "completed"), ("c", 1, "failed")]
    assert second == [
        ("stop", 1, "completed"),  # was handed on, and not taken
        ("c", 2, "completed"),
        ("d", 1, "completed"),
    ]


def test_what_lies_further_back_than_the_lookback_is_forgotten(
    client: Client, bootstrap: str
) -> None:
    async def twice() -> list[Seen]:
        await end(bootstrap, a_done("a"), a_done("stop"))
        await up_to("stop", client.outcomes("listeners"))
        await end(bootstrap, a_done("a"), a_done("stop-2"))
        return await up_to("stop-2", client.outcomes("listeners", lookback_s=0.0))

    assert run(twice, client) == [("stop", 1, "completed"), ("a", 1, "completed")]


def test_a_group_that_begins_with_what_comes_knows_what_came_before(
    client: Client, bootstrap: str
) -> None:
    async def listen() -> list[Seen]:
        await end(bootstrap, a_done("a"))
        listening = asyncio.ensure_future(
            up_to("stop", client.outcomes("late", from_beginning=False))
        )
        number = 0
        while not listening.done():  # nobody can see when it begins to listen
            await end(bootstrap, a_done("a"), a_done(f"new-{number}"), a_done(f"stop-{number}"))
            await asyncio.wait({listening}, timeout=0.2)
            number += 1
        return listening.result()

    found = run(listen, client)
    assert all(job.startswith("new-") for job, _, _ in found)  # and not `a` again
    assert len(found) <= 1  # it may have begun between a new one and its stop


def test_a_run_that_a_redrive_has_replaced_is_not_handed_on(bootstrap: str, tmp_path: Path) -> None:
    store = open_store((tmp_path / "blobs").as_uri())
    client = Client(bootstrap, store)
    Fences(store).claim_run("acme", "a", 2, b"record")

    async def listen() -> list[Seen]:
        await end(bootstrap, a_done("a", "failed"), a_done("b", "failed"), a_done("a", run=2))
        await end(bootstrap, a_done("stop"))
        return await up_to("stop", client.outcomes("listeners"))

    assert run(listen, client) == [("b", 1, "failed"), ("a", 2, "completed")]


def test_a_record_that_is_none_stops_nobody(client: Client, bootstrap: str) -> None:
    async def listen() -> list[Seen]:
        await produce(bootstrap, VIDEOS_DONE, b"no record", partition=1)
        await end(bootstrap, a_done("../climber", "failed"), a_done("stop"))
        return await up_to("stop", client.outcomes("listeners"))

    assert run(listen, client) == [("../climber", 1, "failed")]


def test_members_that_come_and_go_hand_on_every_outcome_once(
    kafka_home: Path, tmp_path: Path
) -> None:
    """On Apache Kafka, which takes a commit while a rebalance begins."""
    with ApacheKafka(tmp_path, home=kafka_home) as broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        run(lambda: come_and_go(broker.bootstrap), Client(broker.bootstrap), 120.0)


async def come_and_go(bootstrap: str) -> None:
    jobs = {f"job-{number}" for number in range(60)}
    found: list[str] = []
    have_all, first_half = asyncio.Event(), asyncio.Event()

    async def member(client: Client) -> None:
        async with client, aclosing(client.outcomes("listeners")) as endings:
            async for done in endings:
                found.append(done.job_id)
                await asyncio.sleep(0)  # others' turn
                if len(found) >= 20:
                    first_half.set()
                if jobs <= set(found):
                    have_all.set()

    async def wave() -> None:
        """Every ending again, in every partition order, while members move."""
        for number in range(NUM_PARTITIONS):
            mine = [a_done(f"job-{each}") for each in range(number, 60, NUM_PARTITIONS)]
            await produce(bootstrap, VIDEOS_DONE, *mine, partition=number)

    await wave()
    members = [asyncio.create_task(member(Client(bootstrap))) for _ in range(2)]
    await first_half.wait()
    members.append(asyncio.create_task(member(Client(bootstrap))))
    await wave()
    await have_all.wait()
    members.pop(0).cancel()
    await wave()
    last = {f"last-{number}" for number in range(NUM_PARTITIONS)}
    for number in range(NUM_PARTITIONS):  # behind everything else of their partitions
        await produce(bootstrap, VIDEOS_DONE, a_done(f"last-{number}"), partition=number)
    while not last <= set(found):
        await asyncio.wait(members, timeout=0.1)
        for each in members:
            assert not each.done()
    for each in members:
        each.cancel()
    await asyncio.wait(members)
    assert sorted(found) == sorted(jobs | last)
