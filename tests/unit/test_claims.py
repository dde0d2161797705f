"""Whose job it is, and who began its later runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.records import GenerationRequest
from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.claims import (
    Author,
    RunClaim,
    claim_request,
    read_claim,
    read_run_claim,
    request_sha256,
    run_claim_body,
)
from streams.errors import FatalError, InvalidRecord

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WISH = GenerationRequest("order-7", "acme", "a red ball", NOON)
SECOND = replace(WISH, run=2, created_at=NOON.replace(hour=13))
RECORD = RunClaim("requests", 5, b"order-7", b"second", (("ce_id", b"x"), ("empty", None)))


@pytest.fixture
def fences(tmp_path: Path) -> Fences:
    return Fences(open_store((tmp_path / "blobs").as_uri()))


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidRecord) as caught:
        call()
    return caught.value.reason_code


def test_the_first_delivery_of_a_request_holds_the_job_for_good(fences: Fences) -> None:
    claim = claim_request(fences, WISH, b"first", 2)
    assert (claim.partition, claim.value) == (2, b"first")
    assert claim_request(fences, WISH, b"first", 2) == claim
    assert read_claim(fences.request("acme", "order-7") or b"") == claim


def test_a_job_keeps_the_partition_of_its_claim(fences: Fences) -> None:
    """As after its tenant has moved to another tier."""
    claim_request(fences, WISH, b"first", 2)
    assert claim_request(fences, WISH, b"first", 4).partition == 2


def test_the_same_request_at_another_time_is_the_same(fences: Fences) -> None:
    claim_request(fences, WISH, b"first", 2)
    later = replace(WISH, created_at=NOON.replace(hour=14), deadline=NOON.replace(hour=15))
    assert claim_request(fences, later, b"again", 2).value == b"first"


@pytest.mark.parametrize("change", [{"prompt": "a blue ball"}, {"seed": 0}, {"tier": "pro"}])
def test_another_request_under_a_used_id_is_a_conflict(
    fences: Fences, change: dict[str, object]
) -> None:
    claim_request(fences, WISH, b"first", 2)
    other = replace(WISH, **change)  # type: ignore[arg-type]
    assert request_sha256(other) != request_sha256(WISH)
    conflict = reason_of(lambda: claim_request(fences, other, b"other", 2))
    assert conflict == "idempotency_conflict"
    assert claim_request(fences, WISH, b"first", 2).value == b"first"


def test_a_claim_from_before_a_field_existed_still_is_the_same_requests() -> None:
    """The digest as it was when requests had fewer fields; it stands in stores."""
    younger = {
        "is_deferrable": True, "is_step_cached": True, "allowed_degradations": ("smaller",),
    }  # fmt: skip
    fields = {
        name: getattr(WISH, name)
        for name in WISH.__slots__
        if name not in ("created_at", "deadline", "run") and name not in younger
    }
    before = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    assert request_sha256(WISH) == before
    for name, value in younger.items():
        assert request_sha256(replace(WISH, **{name: value})) != before  # type: ignore[arg-type]


def test_a_run_that_no_redrive_began_is_refused_and_holds_nothing(fences: Fences) -> None:
    assert reason_of(lambda: claim_request(fences, SECOND, b"second", 2)) == "unclaimed_run"
    assert fences.request("acme", "order-7") is None


def test_a_run_is_worked_from_the_record_that_was_claimed_and_no_other(fences: Fences) -> None:
    claim_request(fences, WISH, b"first", 2)
    fences.claim_run("acme", "order-7", 2, run_claim_body(RECORD))
    assert claim_request(fences, SECOND, b"second", 4).partition == 2
    assert reason_of(lambda: claim_request(fences, SECOND, b"made up", 2)) == "unclaimed_run"
    third = replace(SECOND, run=3)
    assert reason_of(lambda: claim_request(fences, third, b"second", 2)) == "unclaimed_run"


def test_the_record_of_a_run_comes_back_as_it_was_claimed() -> None:
    assert read_run_claim(run_claim_body(RECORD)) == RECORD
    assert run_claim_body(RECORD) == run_claim_body(read_run_claim(run_claim_body(RECORD)))
    signed = replace(RECORD, author=Author("alice@ops", NOON, "more memory", "order-1"))
    assert read_run_claim(run_claim_body(signed)) == signed


def test_a_claim_older_than_authors_has_none() -> None:
    fields = json.loads(run_claim_body(RECORD))
    del fields["author"]
    assert read_run_claim(json.dumps(fields).encode()) == RECORD
    with pytest.raises(FatalError):
        read_run_claim(json.dumps(fields | {"author": {"by": "me"}}).encode())


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"7", b"\xff", b'{"value": 3}'])
def test_a_fence_that_holds_no_claim_is_our_own_fault(body: bytes) -> None:
    for read in (read_claim, read_run_claim):
        with pytest.raises(FatalError):
            read(body)
