"""Redrive on a real store: which run begins, with what record, whoever dies in between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.cloudevents import event_id, parse_headers
from schemas.codec import Codec
from schemas.records import GenerationRequest, VideoDone
from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.claims import Author, RunClaim, claim_request
from streams.errors import FatalError, InvalidRecord
from streams.redrive import (
    BeginRun,
    NothingToDo,
    SendAgain,
    claim_redrive,
    complete_redrive,
    plan_redrive,
    plan_run,
)
from tests.builders import a_request
from workers.models.card import ModelCard
from workers.prompt.admit import AdmissionRules, admit

CODEC = Codec()
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
DAY_S = 86_400.0
JOB = ("acme", "job-1")


@pytest.fixture
def fences(tmp_path: Path) -> Fences:
    """A store in which run 1 of `a_request` is claimed, in partition 13."""
    fences = Fences(open_store((tmp_path / "blobs").as_uri()))
    claim_request(fences, a_request(), CODEC.encode(a_request()), 13)
    return fences


def end(fences: Fences, run: int, status: Any) -> None:
    done = VideoDone("job-1", run, "acme", status, 13, NOW, NOW, ended_by="sampler")
    fences.end(*JOB, run, CODEC.encode(done))


def complete(fences: Fences, run: int, now: datetime = NOW) -> RunClaim | NothingToDo:
    return complete_redrive(fences, CODEC, *JOB, run, author=Author("test", now), deadline_s=DAY_S)


def begun(fences: Fences, run: int, now: datetime = NOW) -> RunClaim:
    record = complete(fences, run, now)
    assert isinstance(record, RunClaim)
    return record


def why_not(fences: Fences) -> tuple[str, str]:
    plan = plan_redrive(fences, CODEC, *JOB)
    assert isinstance(plan, NothingToDo)
    return plan.why, plan.reason


@pytest.mark.parametrize("status", ["failed", "expired"])
def test_a_run_that_failed_or_expired_is_followed_by_the_next(fences: Fences, status: str) -> None:
    end(fences, 1, status)
    plan = plan_redrive(fences, CODEC, *JOB)
    assert isinstance(plan, BeginRun)
    assert (plan.tenant_id, plan.job_id, plan.run) == ("acme", "job-1", 2)


@pytest.mark.parametrize("status", ["completed", "cancelled", "rejected"])
def test_other_ends_are_final(fences: Fences, status: str) -> None:
    end(fences, 1, status)
    assert why_not(fences) == ("final", f"{status} is final")


def test_a_run_that_has_not_ended_is_left_alone(fences: Fences) -> None:
    assert why_not(fences) == ("open", "run 1 has not ended")


def test_a_job_that_nobody_requested_has_nothing_to_begin_with(tmp_path: Path) -> None:
    fences = Fences(open_store((tmp_path / "blobs").as_uri()))
    assert why_not(fences) == ("unknown", "no request holds this job id")
    end(fences, 1, "failed")
    assert why_not(fences) == ("unknown", "no request holds this job id")


def test_the_record_is_the_first_request_with_its_own_run_time_and_deadline(
    fences: Fences,
) -> None:
    end(fences, 1, "failed")
    record = begun(fences, 2)
    assert (record.topic, record.partition, record.key) == ("requests", 13, b"job-1")
    deadline = NOW + timedelta(days=1)
    assert CODEC.decode(record.value, GenerationRequest) == replace(
        a_request(), run=2, created_at=NOW, deadline=deadline
    )
    said = parse_headers(record.headers)
    assert (said.subject, said.time, said.expiry_time) == ("job-1", NOW, deadline)
    assert said.id == event_id("job-1", 2, "redrive", "submitted")
    assert said.id != event_id("job-1", 1, "client", "submitted")
    assert said.causation_id == event_id("job-1", 1, "sampler", "failed")


def test_the_prompt_stage_admits_what_it_gets(fences: Fences) -> None:
    end(fences, 1, "expired")
    request = CODEC.decode(begun(fences, 2).value, GenerationRequest)
    rules = AdmissionRules(("pro",), "pro", None, DAY_S)
    job = admit(request, 13, ModelCard("tiny-wan", "1"), rules)
    assert (job.run, job.deadline) == (2, NOW + timedelta(days=1))


def test_the_prompt_stage_finds_it_claimed(fences: Fences) -> None:
    end(fences, 1, "failed")
    record = begun(fences, 2)
    request = CODEC.decode(record.value, GenerationRequest)
    assert claim_request(fences, request, record.value, 13).partition == 13


def test_every_run_starts_from_the_first_request(fences: Fences) -> None:
    for run in (2, 3, 4):
        end(fences, run - 1, "failed")
        now = NOW + timedelta(hours=run)
        request = CODEC.decode(begun(fences, run, now).value, GenerationRequest)
        assert request == replace(
            a_request(), run=run, created_at=now, deadline=now + timedelta(days=1)
        )


# ---- death between the steps


def test_a_wish_whose_redriver_died_is_completed_by_its_reader(fences: Fences) -> None:
    end(fences, 1, "failed")
    assert fences.latest_run(*JOB) == 1  # the wish is on its topic, and nothing else was done
    assert begun(fences, 2).partition == 13
    assert fences.latest_run(*JOB) == 2


def test_a_claimed_run_whose_redriver_died_is_sent_again_as_it_was(fences: Fences) -> None:
    end(fences, 1, "failed")
    first = begun(fences, 2)
    later = NOW + timedelta(hours=5)
    assert begun(fences, 2, later) == first
    plan = plan_redrive(fences, CODEC, *JOB)
    assert plan == SendAgain(*JOB, 2, first)


def test_a_wish_that_is_read_late_does_nothing_more(fences: Fences) -> None:
    end(fences, 1, "failed")
    begun(fences, 2)
    fences.publish_result(*JOB, 2, "prompt", 1, b"pointer")
    assert complete(fences, 2) == NothingToDo("open", "run 2 is under way")
    end(fences, 2, "failed")
    assert complete(fences, 2) == NothingToDo("begun", "run 2 was begun before and failed")
    begun(fences, 3)
    end(fences, 3, "completed")
    assert complete(fences, 2) == NothingToDo("begun", "run 2 was begun before and failed")
    assert fences.latest_run(*JOB) == 3


def test_a_wish_for_a_run_out_of_order_begins_nothing(fences: Fences) -> None:
    end(fences, 1, "failed")
    assert complete(fences, 3) == NothingToDo("unknown", "there was no run 2")
    assert fences.latest_run(*JOB) == 1


@pytest.mark.parametrize("run", [-1, 0, 1])
def test_a_wish_for_a_first_run_is_refused(fences: Fences, run: int) -> None:
    with pytest.raises(InvalidRecord):
        complete(fences, run)


def test_two_that_planned_the_same_make_one_run(fences: Fences) -> None:
    end(fences, 1, "failed")
    plans = [plan_redrive(fences, CODEC, *JOB) for _ in range(2)]
    records = []
    for minutes, plan in enumerate(plans):
        assert isinstance(plan, BeginRun)
        now = NOW + timedelta(minutes=minutes)
        records.append(claim_redrive(fences, CODEC, plan, Author("test", now), DAY_S))
    assert records[0] == records[1]
    assert fences.latest_run(*JOB) == 2


def test_many_at_once_make_one_run(fences: Fences) -> None:
    with ThreadPoolExecutor(8) as pool:
        for run in range(2, 22):
            end(fences, run - 1, "failed")
            times = [NOW + timedelta(seconds=number) for number in range(8)]
            records = set(pool.map(lambda now, run=run: begun(fences, run, now).value, times))
            assert len(records) == 1
            assert fences.latest_run(*JOB) == run


# ---- what cannot be written or read


def test_a_request_that_has_grown_too_large_is_left_alone(tmp_path: Path) -> None:
    """Its deadline adds bytes: a request of a foreign producer may be full."""
    fences = Fences(open_store((tmp_path / "blobs").as_uri()))
    wish = a_request(deadline=None, prompt="x")
    room = 64 * 1024 - len(CODEC.encode(wish)) - 2
    wish = replace(wish, prompt="x" * (room + 1))
    claim_request(fences, wish, CODEC.encode(wish), 13)
    end(fences, 1, "failed")
    nothing = complete(fences, 2)
    assert isinstance(nothing, NothingToDo)
    assert nothing.why == "unfit"
    assert fences.latest_run(*JOB) == 1


def test_an_outcome_that_is_none_is_our_own_fault(fences: Fences) -> None:
    fences.end(*JOB, 1, b"no VideoDone")
    with pytest.raises(FatalError):
        plan_run(fences, CODEC, *JOB, 2)
