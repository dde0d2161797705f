"""What the headers of a dead letter say, whoever wrote it, and whose letter it is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Codec, UndecodableRecord
from schemas.records import BlobRef
from streams.blobs.base import open_store
from streams.client import WrongRequest
from streams.client.dead_letters import (
    DeadLetter,
    JobName,
    as_text,
    job_of,
    original_record,
    parse_address,
    read_findings,
)
from streams.core.events import DeadLetter as DeadLetterCommand
from streams.engine import Task
from streams.letters import ORIGINAL_MEDIA_TYPE, dead_letter, pack_original
from streams.topology import stage
from tests.builders import a_cleaned_prompt, a_fault, a_job, a_request, a_task, a_ticket, a_work

CODEC = Codec()


def a_letter(
    value: bytes | None = b"", *headers: tuple[str, bytes | None], at: str = "sampler"
) -> DeadLetter:
    return DeadLetter(stage(at).dead_letters, 3, 17, 0, b"job-1", value, headers)


def test_our_findings_are_read_by_their_names() -> None:
    headers = [("ce_id", b"x"), ("reel-dlt-reason-code", b"input_lost"), ("reel-dlt-try", b"3")]
    assert read_findings(headers) == {"reason-code": "input_lost", "try": "3"}


def test_what_a_worker_writes_is_read_back() -> None:
    task = a_task(a_cleaned_prompt(job=a_job(run=2)), offset=17, headers=(("ce_id", b"x"),))
    command = DeadLetterCommand(
        a_ticket(17), a_work(payload=task, run=2), a_fault(reason_code="oom")
    )
    written = dead_letter(stage("sampler"), task, command, "worker-1", "torch 9.9")
    letter = a_letter(written.value, *written.headers)
    found = letter.findings
    assert (found["reason-code"], found["run"], found["offset"]) == ("oom", "2", "17")
    assert not any(name.startswith("original-") for name in found)  # Spring's twins say the same
    assert job_of(letter, CODEC, None) == JobName("acme", "job-1", 2)


def test_springs_numbers_are_binary() -> None:
    found = read_findings(
        [
            ("kafka_dlt-original-topic", b"prompts.cleaned"),
            ("kafka_dlt-original-partition", struct.pack(">i", 3)),
            ("kafka_dlt-original-offset", struct.pack(">q", 17)),
            ("kafka_dlt-original-timestamp", struct.pack(">q", 1_700_000_000_000)),
            ("kafka_dlt-original-consumer-group", b"reel.sampler"),
            ("kafka_dlt-exception-fqcn", b"org.springframework.Wrapped"),
            ("kafka_dlt-exception-cause-fqcn", b"java.lang.IllegalStateException"),
            ("kafka_dlt-exception-message", b"no such\nthing"),
        ]
    )
    assert {name: found[name] for name in ("topic", "partition", "offset", "timestamp-ms")} == {
        "topic": "prompts.cleaned",
        "partition": "3",
        "offset": "17",
        "timestamp-ms": "1700000000000",
    }
    assert found["reason-code"] == "java.lang.IllegalStateException"
    assert found["message"] == "no such thing"
    assert found["original-consumer-group"] == "reel.sampler"


def test_connects_numbers_are_text() -> None:
    found = read_findings(
        [
            ("__connect.errors.topic", b"prompts.cleaned"),
            ("__connect.errors.partition", b"3"),
            ("__connect.errors.offset", b"17"),
            ("__connect.errors.stage", b"VALUE_CONVERTER"),
            ("__connect.errors.exception.class.name", b"org.apache.kafka.DataException"),
            ("__connect.errors.exception.message", b"no"),
        ]
    )
    assert (found["topic"], found["partition"], found["offset"]) == ("prompts.cleaned", "3", "17")
    assert (found["reason-code"], found["message"]) == ("org.apache.kafka.DataException", "no")


def test_what_we_said_counts_before_what_others_said() -> None:
    headers = [("reel-dlt-offset", b"5"), ("kafka_dlt-original-offset", struct.pack(">q", 17))]
    assert read_findings(headers)["offset"] == read_findings(headers[::-1])["offset"] == "5"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reel-dlt-", "kafka_dlt-original-", "__connect.errors."]).flatmap(
                lambda prefix: st.sampled_from([prefix + "offset", prefix, prefix + "blob-uri"])
            ),
            st.none() | st.binary(max_size=12),
        )
    )
)
def test_any_headers_read_as_printable_lines(headers: list[tuple[str, bytes | None]]) -> None:
    letter = a_letter(None, *headers)
    assert all(text.isprintable() for text in letter.findings.values())
    assert letter.blob is None  # none of these says all that a ref needs


@given(st.none() | st.binary())
def test_any_value_is_one_printable_line(value: bytes | None) -> None:
    assert as_text(value).isprintable()


@pytest.mark.parametrize("text", ["sampler/3", "sampler/-1/3", "a b/1/2", "sampler/1/x", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(WrongRequest):
        parse_address(text)


def test_an_address_names_one_letter() -> None:
    assert parse_address(a_letter().address) == ("prompts.cleaned.dlt", 3, 17)


# ---- whose it is


def test_a_letter_is_its_jobs() -> None:
    prompt = CODEC.encode(a_cleaned_prompt(job=a_job(run=2)))
    assert job_of(a_letter(prompt), CODEC, None) == JobName("acme", "job-1", 2)
    request = CODEC.encode(a_request())
    assert job_of(a_letter(request, at="prompt"), CODEC, None) == JobName("acme", "job-1", 1)


CLIMBER = a_cleaned_prompt(job=a_job(job_id="../up"))
NO_RUN = a_cleaned_prompt(job=a_job(run=0))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"no record",
        CODEC.encode(a_request()),
        CODEC.encode(CLIMBER),
        CODEC.encode(NO_RUN),
    ],
)
def test_a_letter_without_a_usable_job_is_nobodys(value: bytes | None) -> None:
    assert job_of(a_letter(value), CODEC, None) is None


@pytest.mark.parametrize("reason", [b"idempotency_conflict", b"unclaimed_run"])
def test_a_letter_under_anothers_job_id_is_not_its(reason: bytes) -> None:
    letter = a_letter(CODEC.encode(a_request()), ("reel-dlt-reason-code", reason), at="prompt")
    assert job_of(letter, CODEC, None) is None


def test_an_original_that_was_moved_is_read_from_its_blob(tmp_path: Path) -> None:
    store = open_store((tmp_path / "blobs").as_uri())
    record = a_cleaned_prompt()
    task = Task(None, 3, CODEC.encode(record), "prompts.cleaned", 17)
    blob = store.put("dead-letters/sampler/3", [pack_original(task)], ORIGINAL_MEDIA_TYPE)
    letter = a_letter(b"", *moved_to(blob))
    assert letter.blob == blob
    assert original_record(letter, CODEC, store) == record
    with pytest.raises(UndecodableRecord):
        original_record(letter, CODEC, None)
    other = store.put("dead-letters/sampler/3", [b"{}"], ORIGINAL_MEDIA_TYPE)
    assert job_of(a_letter(b"", *moved_to(other)), CODEC, store) is None
    foreign = BlobRef("file:///etc/passwd", blob.sha256, blob.size_bytes, blob.media_type)
    assert job_of(a_letter(b"", *moved_to(foreign)), CODEC, store) is None


def moved_to(blob: BlobRef) -> list[tuple[str, bytes | None]]:
    said = {
        "uri": blob.uri,
        "sha256": blob.sha256,
        "size-bytes": str(blob.size_bytes),
        "media-type": blob.media_type,
    }
    return [(f"reel-dlt-blob-{name}", text.encode()) for name, text in said.items()]
