"""Where a record came from, as Spring Kafka and Kafka Connect write it into a dead letter."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Codec
from schemas.records import VideoDone
from streams.audit import note_put_back
from streams.blobs.base import BlobStore, open_store
from streams.blobs.fences import Fences
from streams.claims import Author, claim_request
from streams.client.dead_letters import DeadLetter, job_of, read_findings
from streams.client.foreign_letters import BadHeaders, CameFrom, as_before, came_from
from streams.client.put_back import PutBack, identity, plan_put_back
from streams.redrive import BeginRun, NothingToDo
from streams.topology import stage
from tests.builders import a_cleaned_prompt, a_request, a_video_done

CODEC = Codec()
Header = tuple[str, bytes | None]


def springs(
    topic: str = "prompts.cleaned", partition: int = 13, offset: int = 1_000_000
) -> list[Header]:
    """As DeadLetterPublishingRecoverer writes them: numbers by ByteBuffer, big-endian."""
    return [
        ("kafka_dlt-exception-fqcn", b"org.springframework.kafka.listener.ListenerExecutionFailed"),
        ("kafka_dlt-exception-cause-fqcn", b"java.lang.IllegalStateException"),
        ("kafka_dlt-exception-message", b"no such colour"),
        ("kafka_dlt-exception-stacktrace", b"java.lang.IllegalStateException\n\tat a.B.c"),
        ("kafka_dlt-original-topic", topic.encode()),
        ("kafka_dlt-original-partition", struct.pack(">i", partition)),
        ("kafka_dlt-original-offset", struct.pack(">q", offset)),
        ("kafka_dlt-original-timestamp", struct.pack(">q", 1_700_000_000_000)),
        ("kafka_dlt-original-timestamp-type", b"CreateTime"),
        ("kafka_dlt-original-consumer-group", b"an-application"),
        ("retry_topic-attempts", struct.pack(">i", 3)),
        ("retry_topic-original-timestamp", (1_700_000_000_000).to_bytes(6, "big")),  # BigInteger
    ]


def connects(
    topic: str = "videos.done", partition: int = 13, offset: int = 1_000_000
) -> list[Header]:
    """As DeadLetterQueueReporter writes them: all text."""
    return [
        ("__connect.errors.topic", topic.encode()),
        ("__connect.errors.partition", str(partition).encode()),
        ("__connect.errors.offset", str(offset).encode()),
        ("__connect.errors.connector.name", b"warehouse"),
        ("__connect.errors.task.id", b"0"),
        ("__connect.errors.stage", b"TASK_PUT"),
        ("__connect.errors.class.name", b"org.apache.kafka.connect.sink.SinkTask"),
        ("__connect.errors.exception.class.name", b"org.apache.kafka.connect.errors.DataException"),
        ("__connect.errors.exception.message", b"no such column"),
        ("__connect.errors.exception.stacktrace", b"DataException: no such column\n\tat a.B"),
    ]


def but(headers: list[Header], name: str, value: bytes | None) -> list[Header]:
    return [(each, value if each == name else said) for each, said in headers]


def without(headers: list[Header], name: str) -> list[Header]:
    return [header for header in headers if header[0] != name]


def a_letter(
    value: bytes, *headers: Header, topic: str = "prompts.cleaned-dlt", offset: int = 17
) -> DeadLetter:
    return DeadLetter(topic, 0, offset, 0, b"job-1", value, headers)


# ---- where it came from


def test_springs_numbers_are_big_endian() -> None:
    assert came_from(springs()) == CameFrom(stage("sampler"), "prompts.cleaned", 13, 1_000_000)


def test_connects_numbers_are_text() -> None:
    assert came_from(connects()) == CameFrom(stage("subscriber"), "videos.done", 13, 1_000_000)


def test_a_retry_topic_is_its_stages() -> None:
    found = came_from(springs("frames.decoded.retry.60s"))
    assert (found.stage.name, found.topic) == ("finisher", "frames.decoded.retry.60s")


def test_of_appended_headers_the_first_is_the_true_origin() -> None:
    """Spring appends by default, each time that it reads a letter of its own and fails again."""
    again = [*springs(offset=5), *springs("prompts.cleaned-dlt", offset=99)]
    assert came_from(again).offset == 5
    found = read_findings(again)
    assert (found["topic"], found["offset"]) == ("prompts.cleaned", "5")


def test_both_may_have_written_if_they_agree() -> None:
    both = [*springs("videos.done"), *connects()]
    assert came_from(both).topic == "videos.done"
    with pytest.raises(BadHeaders, match=r"Spring says .*/7, Connect from .*/1000000"):
        came_from([*springs("videos.done", offset=7), *connects()])


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "context.headers.enable=true"),
        ([("ce_id", b"x")], "no header says where it came from"),
        (without(springs(), "kafka_dlt-original-topic"), "kafka_dlt-original-topic is missing"),
        (but(springs(), "kafka_dlt-original-offset", None), "original-offset is missing"),
        (but(springs(), "kafka_dlt-original-partition", b"13"), "want 4 bytes, got 2"),
        (but(springs(), "kafka_dlt-original-offset", b"\0" * 4), "want 8 bytes, got 4"),
        (but(springs(), "kafka_dlt-original-offset", b"\xff" * 8), "-1 is below 0"),
        (but(springs(), "kafka_dlt-original-topic", b"\xff"), "original-topic: want UTF-8"),
        (springs("orders"), "'orders' is no topic that a stage reads"),
        (springs("prompts.cleaned.dlt"), "'prompts.cleaned.dlt' is no topic"),
        (without(connects(), "__connect.errors.partition"), "errors.partition is missing"),
        (but(connects(), "__connect.errors.offset", b"-1"), "want digits up to"),
        (but(connects(), "__connect.errors.offset", b"9" * 19), "want digits up to"),
        (but(connects(), "__connect.errors.partition", b"\0\0\0\x0d"), "want digits up to"),
        (but(connects(), "__connect.errors.topic", b""), "'' is no topic"),
    ],
)
def test_bad_headers_say_what_is_wrong(headers: list[Header], said: str) -> None:
    with pytest.raises(BadHeaders, match=said):
        came_from(headers)
    letter = a_letter(b"no record", *headers)
    assert letter.stage is None
    assert job_of(letter, CODEC, None) is None


NAMES = st.sampled_from([name for name, _ in [*springs(), *connects()]])


@given(st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=9)), max_size=12))
def test_any_headers_are_read_or_refused(headers: list[Header]) -> None:
    try:
        found = came_from(headers)
    except BadHeaders:
        return
    assert found.partition >= 0
    assert found.offset >= 0


# ---- the record as it was


def test_the_headers_of_the_original_are_left() -> None:
    own: list[Header] = [("ce_id", b"job-1.1.prompt.done"), ("traceparent", b"00-1"), ("x", None)]
    added: list[Header] = [
        ("springDeserializerExceptionValue", b"\xac\xed"),
        ("reel-retry-try", b"2"),
    ]
    assert list(as_before([*own[:1], *springs(), *added, *own[1:], *connects()])) == own


# ---- what a redrive does


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """Run 1 of job-1 is requested, and open."""
    store = open_store((tmp_path / "blobs").as_uri())
    claim_request(Fences(store), a_request(), CODEC.encode(a_request()), 13)
    return store


def plan(store: BlobStore, letter: DeadLetter) -> object:
    job = job_of(letter, CODEC, store)
    assert job is not None
    return plan_put_back(store, CODEC, letter, job)


def end(store: BlobStore, status: str) -> None:
    done = a_video_done(status=status, video=None, thumbnail=None)
    Fences(store).end("acme", "job-1", 1, CODEC.encode(done))


PROMPT = CODEC.encode(a_cleaned_prompt())


def test_a_record_whose_run_is_open_goes_back_where_it_came_from(store: BlobStore) -> None:
    letter = a_letter(PROMPT, ("ce_id", b"x"), *springs("prompts.cleaned.retry.10s"))
    assert plan(store, letter) == PutBack(
        "prompts.cleaned", 13, b"job-1", PROMPT, (("ce_id", b"x"),)
    )


def test_a_run_that_failed_since_is_followed_by_the_next(store: BlobStore) -> None:
    end(store, "failed")
    found = plan(store, a_letter(PROMPT, *springs()))
    assert isinstance(found, BeginRun)
    assert found.run == 2


def test_a_run_that_completed_since_is_left_alone(store: BlobStore) -> None:
    end(store, "completed")
    assert plan(store, a_letter(PROMPT, *springs())) == NothingToDo("final", "completed is final")


def test_a_run_that_another_has_followed_is_left_alone(store: BlobStore) -> None:
    end(store, "failed")
    Fences(store).claim_run("acme", "job-1", 2, b"{}")
    Fences(store).publish_result("acme", "job-1", 2, "prompt", 1, b"pointer")
    found = plan(store, a_letter(PROMPT, *springs()))
    assert found == NothingToDo("open", "run 2 is under way")


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_sink_hears_again_how_a_run_ended(store: BlobStore, status: str) -> None:
    end(store, status)
    done = CODEC.encode(a_video_done(status=status))
    assert CODEC.decode(done, VideoDone).partition == 13
    letter = a_letter(done, *connects(), topic="warehouse-dlq")
    assert plan(store, letter) == PutBack("videos.done", 13, b"job-1", done, ())


def test_what_was_put_back_is_left_alone_and_another_letter_is_not(store: BlobStore) -> None:
    letter = a_letter(PROMPT, *springs())
    author = Author("alice@ops", a_request().created_at, "mended", "order-1")
    note_put_back(store, identity(letter), author)
    found = plan(store, letter)
    assert isinstance(found, NothingToDo)
    assert found.reason.startswith("it was put back before, by alice@ops at ")
    assert isinstance(plan(store, replace(letter, offset=18)), PutBack)


def test_a_partition_that_is_not_the_jobs_is_refused(store: BlobStore) -> None:
    with pytest.raises(BadHeaders, match="headers say partition 2, its record 13"):
        plan(store, a_letter(PROMPT, *springs(partition=2)))
    request = CODEC.encode(a_request())  # a request may lie anywhere: it is forwarded
    assert isinstance(plan(store, a_letter(request, *springs("requests", partition=2))), PutBack)


def test_our_own_letters_are_none_of_these() -> None:
    own = [("reel-dlt-reason-code", b"oom"), ("reel-dlt-topic", b"prompts.cleaned")]
    assert not a_letter(PROMPT, *own, *springs(), topic="prompts.cleaned.dlt").is_foreign
    assert not a_letter(PROMPT, topic="prompts.cleaned.dlt").is_foreign
    assert a_letter(PROMPT, *springs(), topic="prompts.cleaned.dlt").is_foreign
    assert a_letter(PROMPT).is_foreign
    mirrored = a_letter(PROMPT, *own, topic="mirror.prompts.cleaned.dlt")
    assert (mirrored.is_foreign, mirrored.stage) == (False, stage("sampler"))
