"""The client's readers are stuck before no batch that a broker takes, and lose no record near it.

aiokafka reads no batch in which a header's name is no UTF-8, and none that is compressed by lz4,
snappy or zstd.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException
from confluent_kafka import Producer

from schemas.records import GenerationRequest, VideoDone
from streams.client import Client
from streams.client import consumer as clients_consumer
from streams.client.connection import Connection
from streams.client.dead_letters import read_dead_letter, read_dead_letters
from streams.client.log_reader import open_consumer, poll_gently
from streams.kafka.admin import apply_topics
from streams.local.apache import ApacheKafka
from streams.local.embedded import EmbeddedKafka
from streams.settings import Settings
from streams.topology import REQUESTS, VIDEOS_DONE
from tests.contract.client_rig import CODEC, NOON, NUM_PARTITIONS, a_done, produce, run
from tests.contract.foreign_batches import Headers, Unreadable, write_batches

SOUND: Headers = [("good", b"h")]
BAD: Headers = [("before", b"b"), (Unreadable("bad"), b"h")]
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["embedded", "apache"])
def bootstrap(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A broker of its own, with all topics."""
    folder = tmp_path_factory.mktemp("broker")
    broker: EmbeddedKafka | ApacheKafka
    if request.param == "embedded":
        broker = EmbeddedKafka(folder)
    else:
        broker = ApacheKafka(folder, home=request.getfixturevalue("kafka_home"))
    with broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        yield broker.bootstrap


def new_ids(num: int) -> list[str]:
    return [f"job-{next(_numbers)}" for _ in range(num)]


def a_request(job_id: str) -> GenerationRequest:
    return GenerationRequest(job_id, "acme", "a ball", NOON)


def written(
    record: GenerationRequest | VideoDone, headers: Headers
) -> tuple[bytes, bytes, Headers]:
    return record.job_id.encode(), CODEC.encode(record), headers


async def first(num: int, endings: AsyncGenerator[VideoDone, None]) -> list[str]:
    """The jobs of the first so many; the last of them is not taken."""
    found: list[str] = []
    async with aclosing(endings):
        async for done in endings:
            found.append(done.job_id)
            if len(found) == num:
                return found
    raise AssertionError("they never end")


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_jobs_of_a_producer_that_compresses_are_told(bootstrap: str, codec: str) -> None:
    client, jobs = Client(bootstrap), new_ids(3)
    with closing(Producer({"bootstrap.servers": bootstrap, "compression.type": codec})) as producer:
        for job in jobs:
            key, value, _ = written(a_request(job), [])
            producer.produce(REQUESTS, value, key, 1)
        assert producer.flush(30.0) == 0

    async def test() -> None:
        assert {row.job_id for row in await client.jobs()} >= set(jobs)

    run(test, client, 60.0)


def test_jobs_beside_one_with_an_unreadable_header_are_told(
    bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, jobs = Client(bootstrap), new_ids(NUM_PARTITIONS + 4)
    before, bad, after, behind, *others = jobs

    async def test() -> None:
        for partition, job in enumerate(others):
            await produce(bootstrap, REQUESTS, a_request(job), partition=partition)
        mixed = [(before, SOUND), (bad, BAD), (after, SOUND)]
        batches = [
            [written(a_request(job), headers) for job, headers in batch]
            for batch in (mixed, [(behind, SOUND)])
        ]
        await write_batches(bootstrap, REQUESTS, 2, batches)
        assert {row.job_id for row in await client.jobs()} >= set(jobs)
        for job in (before, bad, after, behind):
            found = await client.find(job)
            assert found is not None
            assert found.status == "queued"

    run(test, client, 60.0)
    assert f"headers not readable of {REQUESTS}[2]@2" in caplog.text


def test_a_group_hears_all_outcomes_once_over_a_restart(bootstrap: str) -> None:
    client, jobs = Client(bootstrap), new_ids(6)
    first_done, *batch = [
        written(a_done(job), headers)
        for job, headers in zip(jobs[:3], (SOUND, BAD, SOUND), strict=True)
    ]

    async def test() -> None:
        # The embedded broker finds no time in a batch with such a name, so one before it has none.
        await write_batches(bootstrap, VIDEOS_DONE, 1, [[first_done], batch])
        assert await first(3, client.outcomes("some")) == jobs[:3]
        # The third was not taken: it comes again, and what was, among it the bad one, does not.
        twins = [written(a_done(job), []) for job in (*jobs[:2], *jobs[3:])]
        await write_batches(bootstrap, VIDEOS_DONE, 1, [twins])
        assert await first(4, client.outcomes("some")) == jobs[2:]
        assert await first(6, client.outcomes()) == jobs
        assert await first(4, client.completions("all")) == [*jobs[:3], jobs[0]]

    run(test, client, 60.0)


def test_a_dead_letter_with_an_unreadable_header_is_listed_and_shown_without_headers(
    bootstrap: str,
) -> None:
    topic = "prompts.cleaned.dlt"

    async def test() -> None:
        await write_batches(
            bootstrap, topic, 0, [[(b"k", b"v", each) for each in (SOUND, BAD, [])]]
        )
        connection = Connection(bootstrap)
        letters = [letter async for letter in read_dead_letters(connection, [topic])]
        assert [letter.offset for letter in letters] == [0, 1, 2]
        assert [letter.headers for letter in letters] == [tuple(SOUND), (), ()]
        for letter in letters:
            assert await read_dead_letter(connection, topic, 0, letter.offset) == letter

    run(test, Client(bootstrap), 60.0)


def test_what_was_read_of_a_partition_that_has_moved_meanwhile_is_not_handed_on(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, place = "latents.ready.dlt", TopicPartition("latents.ready.dlt", 0)
    seen: list[int] = []

    async def test() -> None:
        await write_batches(bootstrap, topic, 0, [[(b"k", b"v", SOUND)], 3 * [(b"k", b"v", BAD)]])
        loop, read = asyncio.get_running_loop(), clients_consumer._read

        def read_while_it_moves(*args: object) -> object:
            found = read(*args)  # type: ignore[arg-type]
            if len(asked) == 0:
                loop.call_soon_threadsafe(consumer.seek, place, 0)
            asked.append(args)
            return found

        asked: list[object] = []
        monkeypatch.setattr(clients_consumer, "_read", read_while_it_moves)
        async with open_consumer(Connection(bootstrap)) as consumer:
            consumer.assign([place])
            consumer.seek(place, 2)
            while len(seen) < 4:
                for record in (await poll_gently(consumer, 0.1)).get(place, ()):
                    seen.append(record.offset)

    run(test, Client(bootstrap), 60.0)
    assert seen == [0, 1, 2, 3]


def test_what_librdkafka_cannot_read_either_is_an_error_that_names_its_place(
    bootstrap: str,
) -> None:
    place = TopicPartition("frames.decoded.dlt", 0)
    with pytest.raises(CorruptRecordException, match=r"frames\.decoded\.dlt\[0\]: .*out of range"):
        clients_consumer._read(Connection(bootstrap), place, 1_000, 1)
