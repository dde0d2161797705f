"""An ending is written and told in one way, whoever does it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from schemas.cloudevents import parse_headers
from schemas.codec import Codec
from schemas.records import VideoDone
from streams.core.events import Ending
from streams.errors import FatalError, Rejected
from streams.outcomes import outcome_output, read_outcome, video_done
from streams.placement import home_partition
from streams.settings import Settings
from tests.builders import CREATED_AT, a_latents_ready, a_request, a_video_done

CODEC = Codec()
EXPIRED = Ending("expired", "deadline_passed", "the deadline passed before the work was done")
LATER = CREATED_AT + timedelta(hours=1)


def ended(record: Any, **changes: Any) -> VideoDone:
    how = {"partition": 5, "ended_by": "expirer", "finished_at": LATER, **changes}
    return video_done(record, EXPIRED, **how)


def test_a_request_tells_what_was_asked_for() -> None:
    done = ended(a_request(model="tiny-wan"))
    assert (done.job_id, done.run, done.tenant_id, done.partition) == ("job-1", 1, "acme", 5)
    assert (done.status, done.reason_code, done.ended_by) == (
        "expired",
        "deadline_passed",
        "expirer",
    )
    assert (done.model, done.model_version, done.cost_gpu_s, done.timings) == (
        "tiny-wan",
        None,
        0,
        (),
    )
    assert (done.created_at, done.finished_at) == (CREATED_AT, LATER)


def test_a_stages_record_tells_what_was_spent() -> None:
    record = a_latents_ready()
    done = ended(record)
    assert done.timings == record.timings
    assert done.cost_gpu_s == sum(timing.compute_s for timing in record.timings) > 0
    assert done.model_version == record.job.model_version


def test_a_long_reason_is_cut() -> None:
    ending = Ending("failed", "bad", "x" * 5000)
    done = video_done(a_request(), ending, partition=0, ended_by="prompt", finished_at=LATER)
    assert len(done.reason or "") == 1000


def test_names_of_any_length_that_were_asked_for_fit_into_the_outcome() -> None:
    done = ended(a_request(model="m" * 66_000, tier="t" * 60_000))
    assert (done.model, done.tier) == ("m" * 128, "t" * 128)
    assert CODEC.decode(CODEC.encode(done), VideoDone) == done
    assert ended(a_request(model=None, tier=None)).model is None


def test_whoever_tells_of_an_outcome_tells_the_same_event() -> None:
    body = CODEC.encode(ended(a_request()))
    cause = (("ce_id", b"job-1.1.client.submitted"), ("traceparent", b"nonsense"))
    outputs = [
        outcome_output(CODEC, body, teller, headers)
        for teller, headers in (("sampler", ()), ("expirer", cause), ("prompt", cause))
    ]
    for output in outputs:
        assert (output.topic, output.partition, output.key, output.value) == (
            "videos.done", 5, b"job-1", body
        )  # fmt: skip
        context = parse_headers(output.headers)
        assert context.id == "job-1.1.expirer.expired"
        assert context.source == "/reelstream/expirer"
    assert parse_headers(outputs[1].headers).causation_id == "job-1.1.client.submitted"


def test_an_outcome_without_an_author_is_its_tellers() -> None:
    output = outcome_output(CODEC, CODEC.encode(a_video_done(ended_by=None)), "finisher", ())
    assert parse_headers(output.headers).id == "job-1.1.finisher.completed"


def test_a_fence_that_holds_something_else_is_fatal() -> None:
    for body in (b"", b"{}", CODEC.encode(a_request())):
        with pytest.raises(FatalError, match="no VideoDone"):
            read_outcome(CODEC, body)


def test_a_request_belongs_where_its_tenants_tier_says() -> None:
    settings = Settings(partitions=24)
    assert home_partition(a_request(), settings) == 13
    closed = Settings(partitions=24, tenants={"acme": "free"})
    assert home_partition(a_request(), closed) % 3 == 2
    with pytest.raises(Rejected) as no:
        home_partition(a_request(tenant_id="who"), closed)
    assert no.value.reason_code == "unknown_tenant"
    with pytest.raises(Rejected) as no:
        home_partition(a_request(tier="gold"), settings)
    assert no.value.reason_code == "unknown_tier"
