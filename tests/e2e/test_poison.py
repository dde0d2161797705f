"""Bad records meet their fates in a running pipeline, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.codec import Codec
from schemas.records import GenerationRequest, VideoDone
from streams.blobs.base import open_store
from streams.cli.context import make_client
from streams.core.events import Headers
from streams.core.tiers import partition_of_job
from streams.letters import DLT_PREFIX, texts
from streams.local.stack_file import running_stack
from streams.topology import REQUESTS, VIDEOS_DONE, dead_letter_topic
from tests.e2e.conftest import Pipeline
from tests.e2e.poison import ROWS, Bench, a_bench, readme_table
from tests.e2e.reading import Tail
from workers.models.card import read_card

pytestmark = [pytest.mark.kafka, pytest.mark.torch]

GIVE_UP_S = 120.0
CODEC = Codec()
Place = tuple[str, int, int]


def produce(
    producer: Producer,
    topic: str,
    partition: int,
    value: bytes | None,
    key: bytes,
    headers: Headers,
) -> Place:
    """Produce one record; where it lies."""
    answers: list[Place | KafkaError] = []

    def answered(error: KafkaError | None, message: object) -> None:
        offset = message.offset()  # type: ignore[attr-defined]
        answers.append((topic, partition, offset) if error is None else error)

    producer.produce(topic, value, key, partition, answered, headers=list(headers))
    producer.flush(30.0)
    (answer,) = answers
    if isinstance(answer, KafkaError):
        raise KafkaException(answer)
    return answer


def a_place(pipeline: Pipeline, bench: Bench) -> int:
    settings, job = pipeline.settings, bench.job
    return partition_of_job(
        job.tier, job.tenant_id, job.job_id, settings.partitions, settings.tiers
    )


def test_every_bad_record_meets_its_fate_and_good_jobs_go_on(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    assert settings.model is not None
    card, store = read_card(settings.model), open_store(pipeline.blobs_uri)
    producer = Producer({"bootstrap.servers": pipeline.bootstrap, "message.max.bytes": 2_000_000})
    workers = running_stack(settings.home)
    dlts = sorted({dead_letter_topic(row.topic) for row in ROWS})
    token = uuid.uuid4().hex[:8]
    places: dict[Place, int] = {}
    values: dict[int, bytes | None] = {}
    job_ids: dict[int, str] = {}
    with Tail(pipeline.bootstrap, [VIDEOS_DONE, *dlts]) as tail:
        for number, row in enumerate(ROWS):
            bench = a_bench(f"{token}-{number}", 0, card, store)
            partition = a_place(pipeline, bench)
            bench = a_bench(f"{token}-{number}", partition, card, store)
            values[number], job_ids[number] = row.make(bench), bench.job.job_id
            key = bench.job.job_id.encode()
            place = produce(producer, row.topic, partition, values[number], key, row.headers)
            places[place] = number
        good = asyncio.run(a_good_job(pipeline))

        letters: dict[int, tuple[bytes | None, dict[str, str]]] = {}
        ended: dict[str, VideoDone] = {}
        want_letters = {n for n, row in enumerate(ROWS) if "dead letter" in row.fate}
        want_ended = {job_ids[n] for n, row in enumerate(ROWS) if row.status} | {good}
        give_up_s = time.monotonic() + GIVE_UP_S
        while letters.keys() < want_letters or not want_ended <= ended.keys():
            missing = [ROWS[n].what for n in want_letters - letters.keys()]
            assert time.monotonic() < give_up_s, (missing, want_ended - ended.keys())
            for message in tail.read():
                value = message.value()
                if message.topic() == VIDEOS_DONE:
                    assert value is not None
                    done = CODEC.decode(value, VideoDone)
                    ended[done.job_id] = done
                    continue
                found = texts(tuple(message.headers() or ()), DLT_PREFIX)  # type: ignore[arg-type]
                where = (found["topic"], int(found["partition"]), int(found["offset"]))
                if where in places:
                    letters[places[where]] = value, found

    fates = {
        row.what: (letters[n][1]["reason-code"] if n in letters else None, letters.get(n, (0,))[0])
        for n, row in enumerate(ROWS)
    }
    assert fates == {
        row.what: (row.reason_code, values[n]) if n in want_letters else (None, 0)
        for n, row in enumerate(ROWS)
    }
    assert {row.what: ended[job_ids[n]].status for n, row in enumerate(ROWS) if row.status} == {
        row.what: row.status for row in ROWS if row.status
    }
    codes = {n: ended[job_ids[n]].reason_code for n, row in enumerate(ROWS) if row.status}
    assert codes == {n: row.reason_code for n, row in enumerate(ROWS) if row.status}
    without_job = {job_ids[n] for n, row in enumerate(ROWS) if row.status is None}
    assert not without_job & ended.keys()
    assert ended[good].status == "completed"
    assert running_stack(settings.home) == workers, "a worker died of it"


async def a_good_job(pipeline: Pipeline) -> str:
    async with make_client(pipeline.settings) as client:
        return await client.submit("a red circle", num_inference_steps=1, num_frames=5)


def test_a_header_of_a_megabyte_never_enters(pipeline: Pipeline) -> None:
    producer = Producer({"bootstrap.servers": pipeline.bootstrap, "message.max.bytes": 2_000_000})
    with pytest.raises(KafkaException) as refused:
        produce(producer, REQUESTS, 0, b"x", b"k", (("big", b"x" * 1_000_000),))
    assert refused.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


def test_another_request_under_a_used_key_is_a_dead_letter_and_the_first_completes(
    pipeline: Pipeline,
) -> None:
    job_id = uuid.uuid4().hex

    async def twice() -> None:
        deadline = datetime.now(UTC) + timedelta(hours=1)
        async with make_client(pipeline.settings) as client:
            for prompt in ("a red circle", "a blue square"):
                await client.send(
                    GenerationRequest(
                        job_id, "acme", prompt, datetime.now(UTC), num_frames=5,
                        num_inference_steps=1, deadline=deadline,
                    )
                )  # fmt: skip

    with Tail(pipeline.bootstrap, [VIDEOS_DONE, dead_letter_topic(REQUESTS)]) as tail:
        asyncio.run(twice())
        statuses: list[str] = []
        reasons: list[str] = []
        give_up_s = time.monotonic() + GIVE_UP_S
        while not (statuses and reasons):
            assert time.monotonic() < give_up_s, (statuses, reasons)
            for message in tail.read():
                if message.key() != job_id.encode():
                    continue
                if message.topic() == VIDEOS_DONE:
                    value = message.value()
                    assert value is not None
                    statuses.append(CODEC.decode(value, VideoDone).status)
                else:
                    found = texts(tuple(message.headers() or ()), DLT_PREFIX)  # type: ignore[arg-type]
                    reasons.append(found["reason-code"])
    assert (statuses, reasons) == (["completed"], ["idempotency_conflict"])


@pytest.mark.parametrize("large", ["key", "header"])
def test_a_misplaced_request_that_fits_its_topic_only_compressed_is_a_dead_letter_and_fails(
    pipeline: Pipeline, large: str
) -> None:
    """We compress nothing: it cannot be forwarded, and neither its key nor the rest be a letter."""
    settings = pipeline.settings
    assert settings.model is not None
    name, card, store = uuid.uuid4().hex, read_card(settings.model), open_store(pipeline.blobs_uri)
    bench = a_bench(name, 0, card, store)
    elsewhere = (a_place(pipeline, bench) + 1) % settings.partitions
    producer = Producer({
        "bootstrap.servers": pipeline.bootstrap, "message.max.bytes": 2_000_000,
        "compression.type": "gzip",
    })  # fmt: skip
    much = b"x" * 400_000
    key, headers = (much, ()) if large == "key" else (b"k", (("big", much),))
    request = CODEC.encode(bench.request())
    with Tail(pipeline.bootstrap, [VIDEOS_DONE, dead_letter_topic(REQUESTS)]) as tail:
        place = produce(producer, REQUESTS, elsewhere, request, key, headers)
        letters: list[dict[str, str]] = []
        ended: list[VideoDone] = []
        give_up_s = time.monotonic() + GIVE_UP_S
        while not (letters and ended):
            assert time.monotonic() < give_up_s, (letters, ended)
            for message in tail.read():
                if message.topic() == VIDEOS_DONE:
                    value = message.value()
                    assert value is not None
                    done = CODEC.decode(value, VideoDone)
                    ended += [done] if done.job_id == bench.job.job_id else []
                    continue
                found = texts(tuple(message.headers() or ()), DLT_PREFIX)  # type: ignore[arg-type]
                where = (found["topic"], int(found["partition"]), int(found["offset"]))
                letters += [found] if where == place else []
    assert [found["reason-code"] for found in letters] == ["record_too_large"]
    assert [(done.status, done.reason_code) for done in ended] == [("failed", "record_too_large")]


def test_the_readme_shows_the_table() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert readme_table() in readme
