"""`reel dlt` on the dead-letter topics of a Spring application and of a sink connector."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.claims import claim_request
from streams.kafka.admin import apply_topics
from streams.local.embedded import EmbeddedKafka
from streams.settings import Settings
from tests.builders import a_cleaned_prompt, a_job, a_request, a_video_done
from tests.command_line import Reel, command_line
from tests.contract.client_rig import CODEC, NUM_PARTITIONS, records_of
from tests.unit.test_foreign_letters import Header, connects, springs

pytestmark = pytest.mark.kafka

PLACE = 2
SPRINGS, CONNECTS = "prompts.cleaned-dlt", "warehouse.dlq"


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    with EmbeddedKafka(tmp_path / "broker") as broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        made = admin.create_topics([NewTopic(each, 1, 1) for each in (SPRINGS, CONNECTS)])
        for each in made.values():
            each.result(timeout=30.0)
        yield broker.bootstrap


@pytest.fixture
def fences(tmp_path: Path) -> Fences:
    return Fences(open_store((tmp_path / "blobs").as_uri()))


@pytest.fixture
def reel(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bootstrap: str,
) -> Reel:
    reel = command_line(monkeypatch, capsys, tmp_path / "home")
    monkeypatch.setenv("REEL_BOOTSTRAP", bootstrap)
    monkeypatch.setenv("REEL_BLOBS", (tmp_path / "blobs").as_uri())
    return reel


def bury(bootstrap: str, topic: str, *letters: tuple[bytes, bytes, list[Header]]) -> None:
    async def produce_them() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
        await producer.start()
        try:
            for key, value, headers in letters:
                await producer.send_and_wait(topic, value, key, partition=0, headers=headers)
        finally:
            await producer.stop()

    asyncio.run(produce_them())


def a_prompt(fences: Fences, job_id: str, status: str | None = None) -> bytes:
    """What lies on prompts.cleaned of a job whose run is open, or has ended so."""
    request = a_request(job_id=job_id)
    claim_request(fences, request, CODEC.encode(request), PLACE)
    if status is not None:
        done = a_video_done(job_id=job_id, status=status, video=None, thumbnail=None)
        fences.end("acme", job_id, 1, CODEC.encode(done))
    return CODEC.encode(a_cleaned_prompt(job=a_job(job_id=job_id, partition=PLACE)))


def lying(bootstrap: str, topic: str) -> list[Any]:
    found = asyncio.run(records_of(bootstrap, topic, PLACE))
    return [(record.key, record.value, list(record.headers)) for record in found]


def test_letters_of_a_spring_application_are_listed_shown_and_put_back(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    opened = a_prompt(fences, "a")
    ce_id: list[Header] = [("ce_id", b"a.1.prompt.done")]
    bury(
        bootstrap,
        SPRINGS,
        (b"a", opened, [*ce_id, *springs(partition=PLACE)]),
        (b"b", a_prompt(fences, "b", "failed"), springs(partition=PLACE)),
        (b"c", a_prompt(fences, "c", "completed"), springs(partition=PLACE)),
        (b"d", a_prompt(fences, "d"), springs(partition=PLACE)[:5]),
        (b"e", a_prompt(fences, "e"), springs(partition=NUM_PARTITIONS + 1)),
    )
    rows = [
        line.split("\t") for line in reel("dlt", "list", "--topic", SPRINGS).stdout.splitlines()
    ]
    assert [[row[0], *row[2:4], row[-1]] for row in rows[1:]] == [
        [f"{SPRINGS}/0/0", "java.lang.IllegalStateException", "a", "open"],
        [f"{SPRINGS}/0/1", "java.lang.IllegalStateException", "b", "open"],
        [f"{SPRINGS}/0/2", "java.lang.IllegalStateException", "c", "completed"],
        [f"{SPRINGS}/0/3", "java.lang.IllegalStateException", "-", "no job"],
        [f"{SPRINGS}/0/4", "java.lang.IllegalStateException", "e", "open"],
    ]
    shown = reel("dlt", "show", f"{SPRINGS}/0/0").stdout
    assert f"redrive: puts it back on prompts.cleaned, partition {PLACE}\n" in shown
    assert "CleanedPrompt:\n" in shown
    bad = reel("dlt", "show", f"{SPRINGS}/0/3").stdout
    assert "redrive: not possible: kafka_dlt-original-partition is missing\n" in bad

    words = ("dlt", "redrive", "--topic", SPRINGS, "--why", "the application is mended")
    would = reel(*words, "--dry-run").stdout.splitlines()
    assert would[0] == f"a\tacme\twould be put back on prompts.cleaned, partition {PLACE}"
    assert lying(bootstrap, "prompts.cleaned") == []
    run = reel(*words)
    assert (run.returncode, run.stderr) == (0, "2 redriven\n")
    assert run.stdout.splitlines() == [
        f"a\tacme\tput back on prompts.cleaned, partition {PLACE}",
        "b\tacme\trun 2 begun",
        "c\tacme\tleft alone: completed is final",
        f"{SPRINGS}/0/3\t-\tleft alone: kafka_dlt-original-partition is missing",
        f"e\tacme\tleft alone: its headers say partition {NUM_PARTITIONS + 1}, its record {PLACE}:"
        " it would go where nobody expects it",
    ]
    assert lying(bootstrap, "prompts.cleaned") == [(b"a", opened, ce_id)]
    assert [key for key, _, _ in lying(bootstrap, "requests")] == [b"b"]

    again = reel(*words).stdout.splitlines()
    assert again[0].startswith("a\tacme\tleft alone: it was put back before, by ")
    assert len(lying(bootstrap, "prompts.cleaned")) == 1
    listed = reel("dlt", "list", "--topic", SPRINGS, "--stage", "sampler").stdout.splitlines()
    assert listed[1].endswith("\tput back")
    orders = reel("dlt", "orders").stdout.splitlines()[1:]
    assert [line.split("\t")[4:6] for line in orders] == [["2", "2"], ["0", "4"]]


def test_a_record_that_a_sink_could_not_take_is_put_back_on_videos_done(
    reel: Reel, bootstrap: str
) -> None:
    done = CODEC.encode(a_video_done(job_id="a", partition=PLACE))
    silent: list[Header] = []
    bury(
        bootstrap,
        CONNECTS,
        (b"a", done, connects(partition=PLACE)),
        (b"a", done, silent),
        (b"a", b"no record", connects(partition=PLACE)),
    )
    one = reel("dlt", "redrive", f"{CONNECTS}/0/0", "--why", "the column is there now")
    assert (one.returncode, one.stdout) == (
        0,
        f"a\tacme\tput back on videos.done, partition {PLACE}\n",
    )
    assert lying(bootstrap, "videos.done") == [(b"a", done, [])]
    lost = reel("dlt", "redrive", f"{CONNECTS}/0/1")
    assert lost.returncode == 1
    assert "errors.deadletterqueue.context.headers.enable=true" in lost.stdout
    nobody = reel("dlt", "redrive", f"{CONNECTS}/0/2")
    assert nobody.stdout == f"{CONNECTS}/0/2\t-\tleft alone: no job of its own\n"
    gone = reel("dlt", "redrive", "no-such-topic/0/2")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("reel: no topic no-such-topic at ")


def test_a_partition_that_the_topic_does_not_have_is_refused(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    request = a_request(job_id="a")
    claim_request(fences, request, CODEC.encode(request), PLACE)
    bury(bootstrap, SPRINGS, (b"a", CODEC.encode(request), springs("requests", partition=99)))
    run = reel("dlt", "redrive", f"{SPRINGS}/0/0")
    assert (run.returncode, run.stdout) == (
        1,
        "a\tacme\tleft alone: requests has no partition 99\n",
    )
