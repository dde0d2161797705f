"""The fences on every store: who comes first decides, and everybody else goes on with that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences, blob_prefix
from streams.errors import InvalidRecord
from tests.contract.places import Place

JOB = ("acme", "order-7")


@pytest.fixture
def fences(store: BlobStore) -> Fences:
    return Fences(store)


def test_the_fences_lie_where_the_design_says(place: Place, fences: Fences) -> None:
    fences.claim_request(*JOB, b"request")
    fences.publish_result(*JOB, 1, "sampler", 1, b"pointer")
    fences.end(*JOB, 1, b"done")
    fences.claim_run(*JOB, 2, b"record")
    assert place.keys() == {
        "acme/order-7/request",
        "acme/order-7/runs/2",
        "acme/order-7/1/sampler/result.1",
        "acme/order-7/1/outcome",
    }
    assert blob_prefix(*JOB, 1, "sampler") == "acme/order-7/1/sampler"


def test_a_job_belongs_to_its_first_request(place: Place, fences: Fences) -> None:
    assert fences.claim_request(*JOB, b"first") == b"first"
    assert fences.claim_request(*JOB, b"second") == b"first"
    assert Fences(place.open()).claim_request(*JOB, b"third") == b"first"
    assert fences.claim_request("acme", "order-8", b"second") == b"second"
    assert fences.claim_request("umbrella", "order-7", b"second") == b"second"


def test_a_run_ends_once(fences: Fences) -> None:
    assert fences.outcome(*JOB, 1) is None
    assert fences.end(*JOB, 1, b"completed") == b"completed"
    assert fences.end(*JOB, 1, b"cancelled") == b"completed"
    assert fences.outcome(*JOB, 1) == b"completed"


def test_runs_end_apart(fences: Fences) -> None:
    fences.end(*JOB, 1, b"failed")
    assert fences.outcome(*JOB, 2) is None
    assert fences.end(*JOB, 2, b"completed") == b"completed"
    assert fences.outcome(*JOB, 1) == b"failed"


def test_a_redrive_begins_with_the_request_that_holds_the_job(fences: Fences) -> None:
    assert fences.request(*JOB) is None
    fences.claim_request(*JOB, b"first")
    fences.claim_request(*JOB, b"second")
    assert fences.request(*JOB) == b"first"


def test_a_later_run_belongs_to_who_claims_it_first(place: Place, fences: Fences) -> None:
    assert fences.claimed_run(*JOB, 2) is None
    assert fences.claim_run(*JOB, 2, b"one") == b"one"
    assert Fences(place.open()).claim_run(*JOB, 2, b"other") == b"one"
    assert fences.claimed_run(*JOB, 2) == b"one"
    assert fences.claimed_run(*JOB, 3) is None
    assert fences.claimed_run("umbrella", "order-7", 2) is None


def test_the_latest_run_is_the_highest_claimed(fences: Fences) -> None:
    assert fences.latest_run(*JOB) == 1
    for run in range(2, 13):
        fences.claim_run(*JOB, run, b"record")
        assert fences.latest_run(*JOB) == run


@pytest.mark.parametrize("run", [-1, 0, 1])
def test_the_first_run_is_nobodys_to_claim(fences: Fences, run: int) -> None:
    with pytest.raises(InvalidRecord):
        fences.claim_run(*JOB, run, b"")
    with pytest.raises(InvalidRecord):
        fences.claimed_run(*JOB, run)


def test_racing_redrivers_agree_on_one_record(place: Place) -> None:
    records = [b"mine", b"yours", b"the gateway's", b"the expirer's"]
    everyone = [Fences(place.open()) for _ in records]
    with ThreadPoolExecutor(len(records)) as pool:
        for run in range(2, 2 + place.num_races):
            claims = set(
                pool.map(lambda f, body: f.claim_run(*JOB, run, body), everyone, records)  # noqa: B023
            )
            assert len(claims) == 1
            assert {one.claimed_run(*JOB, run) for one in everyone} == claims


def test_a_stage_has_one_result_per_edition(fences: Fences) -> None:
    assert fences.result(*JOB, 1, "sampler") is None
    assert fences.publish_result(*JOB, 1, "sampler", 1, b"owner's") == b"owner's"
    assert fences.publish_result(*JOB, 1, "sampler", 1, b"zombie's") == b"owner's"
    assert fences.result(*JOB, 1, "sampler") == (1, b"owner's")
    assert fences.result(*JOB, 1, "decoder") is None
    assert fences.result(*JOB, 2, "sampler") is None


def test_the_newest_edition_is_the_result(fences: Fences) -> None:
    for edition in range(1, 12):
        body = b"%d" % edition
        assert fences.publish_result(*JOB, 1, "sampler", edition, body) == body
        assert fences.result(*JOB, 1, "sampler") == (edition, body)


def test_racing_enders_agree_on_one_end(place: Place) -> None:
    ways = [b"completed", b"cancelled", b"expired", b"failed"]
    everyone = [Fences(place.open()) for _ in ways]
    with ThreadPoolExecutor(len(ways)) as pool:
        for run in range(1, 1 + place.num_races):
            ends = set(pool.map(lambda f, way: f.end(*JOB, run, way), everyone, ways))  # noqa: B023
            assert len(ends) == 1
            assert {one.outcome(*JOB, run) for one in everyone} == ends


@pytest.mark.parametrize("bad", ["", ".", "..", ".hidden", "a/b", "a b", "x" * 129, "a\0"])
def test_names_that_could_climb_are_refused(place: Place, fences: Fences, bad: str) -> None:
    for use in (
        lambda: fences.claim_request(bad, "order-7", b""),
        lambda: fences.claim_request("acme", bad, b""),
        lambda: fences.request("acme", bad),
        lambda: fences.claim_run("acme", bad, 2, b""),
        lambda: fences.latest_run(bad, "order-7"),
        lambda: fences.end(bad, "order-7", 1, b""),
        lambda: fences.outcome("acme", bad, 1),
        lambda: fences.result("acme", "order-7", 1, bad),
        lambda: fences.publish_result("acme", "order-7", 1, bad, 1, b""),
        lambda: blob_prefix("acme", bad, 1, "sampler"),
    ):
        with pytest.raises(InvalidRecord):
            use()
    assert place.keys() == set()


@pytest.mark.parametrize("run", [0, -1])
def test_a_run_below_one_is_refused(fences: Fences, run: int) -> None:
    with pytest.raises(InvalidRecord):
        fences.outcome(*JOB, run)
