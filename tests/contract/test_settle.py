"""What the expirer makes of a run's fences, on every blob store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from schemas.cloudevents import parse_headers
from schemas.codec import Codec
from schemas.records import GenerationRequest, JobControl, VideoDone
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.claims import claim_request, read_claim, read_run_claim
from streams.core.expiry import Due, Kind
from streams.core.runs import RunOfJob
from streams.errors import FatalError, Rejected, SickHost
from streams.expirer.settle import Nothing, NotYet, Seen, Settler, Tell
from tests.builders import CREATED_AT, a_cleaned_prompt, a_job, a_latents_ready, a_request
from tests.contract.places import LocalPlace

CODEC = Codec()
LONGEST_S, GRACE_S = 3600.0, 5.0
REQUEST = a_request(deadline=CREATED_AT + timedelta(seconds=60))
AFTER = CREATED_AT + timedelta(seconds=66)


def home(request: GenerationRequest) -> int:
    """Partition 13, but for a tenant that nobody knows."""
    if request.tenant_id == "who":
        raise Rejected("no such tenant", reason_code="unknown_tenant")
    return 13


def a_settler(store: BlobStore, now: datetime = AFTER) -> Settler:
    return Settler(store, CODEC, home, lambda: now, LONGEST_S, GRACE_S)


def a_due(request: GenerationRequest = REQUEST, kind: Kind = "expired", **changes: Any) -> Due:
    """Its record was read from partition 4, where a foreign partitioner had put it."""
    seen = Seen(CODEC.encode(request), 4, ())
    key = RunOfJob(request.tenant_id, request.job_id, request.run)
    return replace(Due(key, kind, seen), **changes)


def told(verdict: object) -> VideoDone:
    assert isinstance(verdict, Tell)
    (output,) = verdict.outputs
    assert output.topic == "videos.done"
    done = CODEC.decode(output.value, VideoDone)
    assert (output.partition, output.key) == (done.partition, done.job_id.encode())
    name = f"{done.job_id}.{done.run}.{done.ended_by}.{done.status}"
    assert parse_headers(output.headers).id == name
    return done


def test_a_request_that_no_stage_has_seen_is_claimed_and_expired(store: BlobStore) -> None:
    done = told(a_settler(store).settle(a_due()))
    assert (done.status, done.reason_code, done.partition) == ("expired", "deadline_passed", 13)
    assert done.finished_at == AFTER
    standing = read_claim(Fences(store).request("acme", "job-1") or b"")
    assert (standing.partition, standing.value) == (13, CODEC.encode(REQUEST))
    # The prompt stage, back again, finds the claim its own and the run ended.
    assert claim_request(Fences(store), REQUEST, CODEC.encode(REQUEST), 13) == standing
    assert Fences(store).outcome("acme", "job-1", 1) == CODEC.encode(done)


def test_the_outcome_that_stands_is_told_by_all(store: BlobStore) -> None:
    settlers = [a_settler(store, AFTER + timedelta(seconds=n)) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda settler: settler.settle(a_due()), settlers))
    assert len({told(verdict) for verdict in verdicts}) == 1
    cancelled = told(settlers[0].settle(a_due(kind="cancelled")))
    assert cancelled.status == "expired", "it came too late"


def test_a_cancel_does_not_wait_for_the_deadline(store: BlobStore) -> None:
    done = told(a_settler(store, CREATED_AT).settle(a_due(kind="cancelled")))
    assert (done.status, done.reason_code) == ("cancelled", "cancelled")


def test_a_tenant_that_nobody_knows_ends_where_its_request_lay(store: BlobStore) -> None:
    assert told(a_settler(store).settle(a_due(replace(REQUEST, tenant_id="who")))).partition == 4


def test_what_the_stages_made_is_told_of(store: BlobStore) -> None:
    fences = Fences(store)
    value = CODEC.encode(REQUEST)
    claim_request(fences, REQUEST, value, 13)
    fences.publish_result("acme", "job-1", 1, "prompt", 1, CODEC.encode(a_cleaned_prompt()))
    latents = a_latents_ready(job=a_job(model_version="ab" * 32))
    fences.publish_result("acme", "job-1", 1, "sampler", 1, CODEC.encode(latents))
    done = told(a_settler(store).settle(a_due(payload=Seen(None, 13, ()))))
    assert (done.model_version, done.timings) == ("ab" * 32, latents.timings)


def test_the_request_that_holds_the_job_decides_not_the_one_that_was_read(
    store: BlobStore,
) -> None:
    holder = replace(REQUEST, prompt="another one", deadline=CREATED_AT + timedelta(seconds=100))
    claim_request(Fences(store), holder, CODEC.encode(holder), 13)
    until_s = CREATED_AT.timestamp() + 100
    assert a_settler(store).settle(a_due()) == NotYet(until_s)
    assert Fences(store).outcome("acme", "job-1", 1) is None
    late = CREATED_AT + timedelta(seconds=105)
    assert told(a_settler(store, late).settle(a_due())).status == "expired"


def test_a_deadline_that_was_wished_is_taken_as_it_is(store: BlobStore) -> None:
    due = a_due(replace(REQUEST, deadline=None), is_moved=True)
    assert told(a_settler(store).settle(due)).status == "expired"


def test_a_run_that_no_redrive_began_is_nobodys(store: BlobStore) -> None:
    forged = a_due(replace(REQUEST, run=2))
    assert isinstance(a_settler(store).settle(forged), Nothing)
    told(a_settler(store).settle(a_due()))
    assert isinstance(a_settler(store).settle(forged), Nothing)
    assert Fences(store).outcome("acme", "job-1", 2) is None


def test_a_wish_to_redrive_gives_the_record_and_after_that_nothing_more(store: BlobStore) -> None:
    wish = JobControl("job-1", 2, "redrive", AFTER, "alice@ops", tenant_id="acme")
    settler, due = a_settler(store), Due(RunOfJob("acme", "job-1", 2), "redrive", wish)
    assert isinstance(settler.settle(due), Nothing), "unknown job"
    told(settler.settle(a_due()))
    verdict = settler.settle(due)
    assert isinstance(verdict, Tell)
    assert not verdict.is_ending
    (output,) = verdict.outputs
    request = CODEC.decode(output.value, GenerationRequest)
    assert (output.topic, output.partition, request.run) == ("requests", 13, 2)
    assert request.deadline == AFTER + timedelta(seconds=LONGEST_S)
    author = read_run_claim(Fences(store).claimed_run("acme", "job-1", 2) or b"").author
    assert author is not None
    assert (author.by, author.order_id) == ("alice@ops", None)
    assert author.why == f"wished at {AFTER.isoformat()}; begun by the expirer"
    assert settler.settle(due) == verdict, "nothing shows that it was produced"
    second = a_due(request)
    assert isinstance(settler.settle(second), NotYet)
    assert told(a_settler(store, request.deadline + timedelta(days=1)).settle(second)).run == 2
    assert isinstance(settler.settle(due), Nothing)


def test_a_fence_that_is_none_of_ours_ends_nothing(store: BlobStore) -> None:
    store.create("acme/job-1/request", b"not ours")
    with pytest.raises(FatalError):
        a_settler(store).settle(a_due())
    assert store.load("acme/job-1/1/outcome") is None


def test_a_store_that_is_away_is_a_sick_host(local_place: LocalPlace) -> None:
    settler = a_settler(local_place.open())
    local_place.root.rename(local_place.root.with_name("elsewhere"))
    with pytest.raises(SickHost):
        settler.settle(a_due())
