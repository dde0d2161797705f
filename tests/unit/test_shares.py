"""What requests ask of their tenants' quotas, by the settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas.codec import Codec
from schemas.records import GenerationRequest, Job, Record
from streams.core.admission import Quotas
from streams.core.cost import Shape
from streams.core.runs import RunOfJob
from streams.core.shares import Bulk, JobSeen, Level, Payer, Share, Source
from streams.core.tiers import DEFAULT_TIERS, OFF_PEAK, partition_of_job
from streams.engine import Task
from streams.errors import Rejected
from streams.settings import Settings
from streams.topology import REQUESTS, REQUESTS_DEFERRED, VIDEOS_DONE, retry_topic
from tests.builders import DEADLINE, a_cleaned_prompt, a_job, a_request, a_video_done
from workers.prompt.shares import RequestShares, quotas_of

CODEC = Codec()
HOME = partition_of_job("pro", "acme", "job-1", 24)
RUN = RunOfJob("acme", "job-1", 1)
BULK = Bulk(a_job().model_version, Shape(5, 64, 64), 2)


def as_job(task: Task) -> Job:
    if task.record.prompt == "refused":
        raise Rejected("no", reason_code="no")
    request = task.record
    scale = request.guidance_scale or 1.0
    return a_job(
        job_id=request.job_id, run=request.run, guidance_scale=scale,
        is_deferrable=request.is_deferrable,
    )  # fmt: skip


SHARES = RequestShares(Settings(), CODEC, as_job)


def share(topic: str = REQUESTS, partition: int = HOME, **changes: Any) -> Share | None:
    return SHARES(Task(a_request(**changes), partition, b"", topic))


def seen(topic: str, record: Record | bytes, partition: int = HOME) -> JobSeen | None:
    value = record if isinstance(record, bytes) else CODEC.encode(record)
    return SHARES.seen(Task(None, partition, value, topic))


def test_a_request_asks_for_the_work_that_its_job_would_be() -> None:
    assert share() == Share(Payer(HOME, "pro", "acme"), BULK, Source.NEW, True)
    guided = share(guidance_scale=5.0)
    assert guided is not None
    assert guided.bulk.num_units == 4


def test_a_misplaced_request_and_one_that_is_no_job_ask_for_nothing() -> None:
    assert share(partition=HOME + 1) is None
    assert share(prompt="refused") is None
    closed = RequestShares(Settings(tenants={"bolt": "pro"}), CODEC, as_job)
    assert closed(Task(a_request(), HOME, b"", REQUESTS)) is None


@pytest.mark.parametrize(
    ("topic", "source"),
    [
        (REQUESTS, Source.NEW),
        (REQUESTS_DEFERRED, Source.PARKED),
        (retry_topic(REQUESTS, 10), Source.TRIED),
    ],
)
def test_the_topic_tells_what_has_become_of_it_before(topic: str, source: Source) -> None:
    found = share(topic)
    assert found is not None
    assert found.source is source


def test_a_redrive_is_not_charged_and_a_deferrable_job_has_a_quota_of_its_own() -> None:
    redriven, deferrable = share(run=2), share(is_deferrable=True)
    assert redriven is not None
    assert deferrable is not None
    assert not redriven.is_charged
    assert deferrable.payer.tier == OFF_PEAK


def test_the_log_tells_what_is_parked_admitted_and_ended() -> None:
    request: GenerationRequest = a_request()
    parked = seen(REQUESTS_DEFERRED, request)
    assert parked == JobSeen(
        HOME, RUN, Level.PARKED,
        Share(Payer(HOME, "pro", "acme"), BULK, Source.PARKED, False), DEADLINE.timestamp(),
    )  # fmt: skip
    admitted = seen("prompts.cleaned", a_cleaned_prompt())
    assert admitted == replace(
        parked, level=Level.ADMITTED,
        share=Share(Payer(HOME, "pro", "acme"), BULK, Source.TRIED, False),
    )  # fmt: skip
    done = a_video_done(cost_gpu_s=3.5)
    assert seen(VIDEOS_DONE, done) == JobSeen(HOME, RUN, Level.ENDED, cost_s=3.5)
    others = seen(VIDEOS_DONE, replace(done, tenant_id="bolt"))
    assert others is not None
    assert others.run_of_job == RunOfJob("bolt", "job-1", 1), "another job, of the same id"
    failed = seen(VIDEOS_DONE, replace(done, status="failed"))
    assert failed is not None
    assert failed.cost_s == 0.0, "what was not finished tells nothing of what such a job costs"


@pytest.mark.parametrize("topic", [VIDEOS_DONE, "prompts.cleaned", REQUESTS_DEFERRED])
def test_what_nobody_understands_says_nothing(topic: str) -> None:
    assert seen(topic, b"garbage") is None
    assert seen(topic, a_request(prompt="refused")) is None


def test_quotas_come_from_the_settings() -> None:
    assert quotas_of(Settings()).jobs == dict.fromkeys((*DEFAULT_TIERS, OFF_PEAK), 256.0)
    assert quotas_of(Settings(tier_jobs={"free": 4.0})).jobs["free"] == 4.0
    assert not quotas_of(Settings(tenant_jobs=0)).is_any
    settings = Settings(
        tenant_jobs=0,
        tier_jobs={"free": 4.0}, tier_gpu_seconds={OFF_PEAK: 60.0}, tier_parked={"free": 9.0},
        tier_rates={"pro": 6.0}, deadline_margin=1.5,
    )  # fmt: skip
    found = quotas_of(settings)
    assert found.is_any
    assert found == Quotas(
        {"free": 4.0}, {OFF_PEAK: 60.0}, {"free": 9.0}, {"pro": 6.0}, 1.5, 2, found.prior
    )
    assert quotas_of(Settings(partitions=3)).num_parts == 1, "its only partition has all of it"


def test_the_parked_copy_of_what_asked_here_says_the_same_without_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = CODEC.encode(a_request(guidance_scale=5.0))
    read = RequestShares(Settings(), CODEC, as_job).seen(Task(None, HOME, value, REQUESTS_DEFERRED))

    def decode(*_: object) -> None:
        raise AssertionError("it was read once already")

    monkeypatch.setattr(Codec, "decode", decode)
    asked = RequestShares(Settings(), CODEC, as_job)
    assert asked(Task(a_request(guidance_scale=5.0), HOME, value, REQUESTS)) is not None
    assert asked.seen(Task(None, HOME, value, REQUESTS_DEFERRED)) == read is not None
    with pytest.raises(AssertionError, match="already"):
        asked.seen(Task(None, HOME, value, REQUESTS_DEFERRED))


@pytest.mark.parametrize("name", ["tier_rates", "tier_jobs", "tier_gpu_seconds", "tier_parked"])
@pytest.mark.parametrize("text", ["gold=1", "free=0", "free=-1", "free=nan"])
def test_a_quota_that_is_none_is_refused_at_start(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"REEL_{name.upper()}"):
        Settings.model_validate({"tier_jobs": "free=1", name: text})


def test_a_bound_on_what_is_parked_without_a_quota_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nothing would ever be parked"):
        Settings.model_validate({"tier_parked": "free=1", "tenant_jobs": 0})
    with pytest.raises(ValueError, match="unknown tier off-peak"):
        Settings.model_validate({"tier_rates": "off-peak=1"})
