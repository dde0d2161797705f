"""Intake: what becomes of a delivered record before anything works on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pytest

from schemas.codec import Codec
from streams import topology
from streams.core.events import Delivered, Fate, Fault, TopicPartition, Work
from streams.core.fair_queue import Charge
from streams.core.offset_map import Crashes
from streams.engine import Task
from streams.errors import InvalidRecord, Rejected
from streams.intake import Intake
from tests.builders import (
    DEADLINE,
    a_cleaned_prompt,
    a_job,
    a_latents_ready,
    a_request,
    a_task,
)


def same_key(_: Task) -> Hashable:
    return "64x64"


def take(
    raw: Task, stage: str = "sampler", batch_key: Callable[[Task], Hashable] = same_key
) -> Delivered:
    return Intake(topology.stage(stage), Codec(), batch_key)(raw)


def test_a_record_is_decoded_and_told_with_its_job_key_and_deadline() -> None:
    raw = a_task(record=None, offset=7)
    work = Work("job-1", 1, "64x64", DEADLINE.timestamp(), raw, identity="acme")
    expected = Delivered(TopicPartition("prompts.cleaned", 13), 7, work)
    assert take(raw) == expected
    assert work.payload == a_task(a_cleaned_prompt(), offset=7)


def test_a_record_is_charged_to_whoever_the_stage_says() -> None:
    intake = Intake(
        topology.stage("sampler"), Codec(), same_key,
        charge=lambda task: Charge(task.record.job.tier, task.record.job.tenant_id, 3.5),
    )  # fmt: skip
    assert intake(a_task()).work.charge == Charge("pro", "acme", 3.5)


def test_what_the_raw_task_claims_to_hold_is_not_looked_at() -> None:
    raw = a_task(a_cleaned_prompt())
    delivered = take(Task(None, raw.partition, raw.value, raw.topic, 0, raw.key))
    assert isinstance(delivered.work.payload, Task)
    assert delivered.work.payload.record == a_cleaned_prompt()


def test_a_request_without_a_deadline_has_none() -> None:
    delivered = take(a_task(a_request(deadline=None)), "prompt")
    assert (delivered.work.deadline_s, delivered.verdict) == (None, None)


def test_a_redriven_run_is_told_apart() -> None:
    assert take(a_task(a_cleaned_prompt(job=a_job(run=3)))).work.run == 3


@pytest.mark.parametrize("value", [b"", b"not a record", b"\xc3\x01" + 8 * b"x"])
def test_bytes_that_are_no_record_are_a_dead_letter_that_ends_no_job(value: bytes) -> None:
    delivered = take(a_task(value=value))
    assert delivered.work.job_id is None
    assert isinstance(delivered.verdict, Fault)
    assert (delivered.verdict.fate, delivered.verdict.reason_code) == (
        Fate.DEAD_LETTER,
        "undecodable",
    )
    assert not delivered.verdict.ends_job


def test_another_stages_record_is_a_dead_letter() -> None:
    delivered = take(a_task(a_latents_ready()))
    assert isinstance(delivered.verdict, Fault)
    assert delivered.verdict.reason_code == "undecodable"


@pytest.mark.parametrize("bad", ["", "..", ".hidden", "a/b", "a b", "ä", "x" * 129])
@pytest.mark.parametrize("name", ["tenant_id", "job_id"])
def test_an_id_that_cannot_name_a_blob_is_a_dead_letter_that_ends_no_job(
    name: str, bad: str
) -> None:
    for record, stage in (
        (a_request(**{name: bad}), "prompt"),
        (a_cleaned_prompt(job=a_job(**{name: bad})), "sampler"),
    ):
        delivered = take(a_task(record), stage)
        assert delivered.work.job_id is None
        assert isinstance(delivered.verdict, Fault)
        assert delivered.verdict.reason_code == f"invalid_{name}"
        assert not delivered.verdict.ends_job


def test_an_invalid_record_is_a_dead_letter_that_ends_its_job() -> None:
    def refuse(_: Task) -> Hashable:
        raise InvalidRecord("there is a gap", reason_code="bad_chunks")

    delivered = take(a_task(), batch_key=refuse)
    assert delivered.work.job_id == "job-1"
    assert delivered.verdict == Fault(Fate.DEAD_LETTER, "bad_chunks", "there is a gap")


def test_a_rejected_request_is_left_to_the_engine_which_claims_it_first() -> None:
    def refuse(_: Task) -> Hashable:
        raise Rejected("too many frames")

    delivered = take(a_task(a_request()), "prompt", refuse)
    assert (delivered.work.batch_key, delivered.verdict) == (None, None)


@pytest.mark.parametrize("name", ["dead-letters", "reel-probe"])
def test_no_tenant_has_the_name_of_a_folder_of_ours(name: str) -> None:
    delivered = take(a_task(a_request(tenant_id=name)), "prompt")
    assert isinstance(delivered.verdict, Fault)
    assert delivered.verdict.reason_code == "invalid_tenant_id"


@pytest.mark.parametrize("run", [0, -3])
def test_a_run_below_one_is_a_dead_letter_that_ends_no_job(run: int) -> None:
    delivered = take(a_task(a_cleaned_prompt(job=a_job(run=run))))
    assert delivered.work.job_id is None
    assert isinstance(delivered.verdict, Fault)
    assert (delivered.verdict.reason_code, delivered.verdict.ends_job) == ("invalid_run", False)


def test_a_retry_copy_is_due_so_long_after_it_was_appended() -> None:
    headers = (("reel-retry-try", b"3"), ("reel-retry-crashes", b"2"))
    raw = a_task(topic="prompts.cleaned.retry.60s", timestamp_ms=5_000, headers=headers)
    work = Intake(topology.stage("sampler"), Codec(), same_key, (10, 60))(raw).work
    assert (work.due_s, work.delay_s) == (65.0, 60.0)
    assert (work.try_number, work.crashes) == (3, Crashes(2, 0))
    assert take(a_task()).work.due_s is None


def test_a_request_of_another_run_stands_for_no_other() -> None:
    def identity(**changes: object) -> Hashable:
        return take(a_task(a_request(**changes)), "prompt").work.identity

    assert identity(created_at=DEADLINE) == identity()
    assert identity(prompt="another") != identity()
    assert identity(run=7) != identity(), "nobody has seen yet that run 7 was claimed"


def test_another_tenants_job_of_the_same_id_is_no_copy() -> None:
    def identity(**changes: object) -> Hashable:
        return take(a_task(a_cleaned_prompt(job=a_job(**changes)))).work.identity

    assert identity(seed=7) == identity()
    assert identity(tenant_id="bolt") != identity()
