"""Requests a minute: who is refused, and what the refusal says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.codec import Codec
from schemas.records import GenerationRequest, VideoDone
from streams.blobs.base import open_store
from streams.core.tiers import tenant_partitions
from streams.engine import Task
from streams.errors import Rejected
from streams.settings import Settings
from streams.topology import REQUESTS, retry_topic, stage
from tests.echo import EchoWork
from workers.fenced import FencedWork
from workers.prompt.rates import RequestRates

NOW_S = 1_800_000_000.0
SETTINGS = Settings(tier_rates={"free": 4.0})
WISH = GenerationRequest(
    job_id="job-1", tenant_id="acme", created_at=datetime(2026, 11, 23, tzinfo=UTC), prompt="x",
    tier="free",
)  # fmt: skip


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def a_task(number: int, partition: int = 2, topic: str = REQUESTS, **changes: object) -> Task:
    wish = replace(WISH, **{"job_id": f"job-{number}", **changes})  # type: ignore[arg-type]
    return Task(wish, partition, b"", topic)


def test_over_half_its_rate_in_one_partition_a_tenant_is_told_when_to_come_again() -> None:
    clock = Clock()
    rates = RequestRates(SETTINGS, clock)
    for number in range(2):
        rates(a_task(number))
    with pytest.raises(Rejected) as caught:
        rates(a_task(3))
    assert caught.value.reason_code == "rate_limited"
    assert caught.value.retry_at_s == NOW_S + 30.0
    rates(a_task(4, partition=5))  # its other partition
    rates(a_task(5, tenant_id="bolt"))
    clock.now_s += 30.0
    rates(a_task(6))


def test_a_record_that_is_prepared_again_a_redrive_and_a_tier_without_a_rate_cost_nothing() -> None:
    rates = RequestRates(SETTINGS, Clock())
    for _ in range(9):
        rates(a_task(1))
        rates(a_task(2))
    for number in range(9):
        rates(a_task(number + 10, run=2))
        rates(a_task(number + 20, tier="pro"))


def test_a_job_that_was_taken_is_not_refused_when_it_is_tried_again_later() -> None:
    clock = Clock()
    rates = RequestRates(SETTINGS, clock)
    rates(a_task(1))
    clock.now_s += 600.0
    for number in (2, 3):
        rates(a_task(number))
    rates(a_task(1, topic=retry_topic(REQUESTS, 600)))


def test_where_a_tier_has_one_partition_a_tenant_has_its_whole_rate_there() -> None:
    settings = Settings(tier_rates={"free": 4.0}, partitions=3)
    assert len({*tenant_partitions("free", "acme", 3)}) == 1
    rates = RequestRates(settings, Clock())
    for number in range(4):
        rates(a_task(number))
    with pytest.raises(Rejected):
        rates(a_task(4))


@pytest.mark.parametrize("text", ["gold=1", "free=0", "free=-1", "free=nan"])
def test_a_rate_that_is_none_is_refused_at_start(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate of an unknown tier|REEL_TIER_RATES"):
        Settings.model_validate({"tier_rates": text})


def test_the_refusal_is_the_runs_outcome_and_one_that_was_taken_is_not_refused(
    tmp_path: Path,
) -> None:
    prompt, codec = stage("prompt"), Codec()
    store = open_store(tmp_path.as_uri())
    rates = RequestRates(SETTINGS, Clock())
    now = datetime.fromtimestamp(NOW_S, UTC)
    fenced = FencedWork(EchoWork(prompt, store, 0.0), prompt, store, codec, lambda: now, take=rates)

    def prepared(number: int) -> object:
        task = a_task(number)
        return fenced.prepare(replace(task, value=codec.encode(task.record)))

    for number in (1, 2):
        assert not isinstance(prepared(number), tuple)
    for _ in range(2):  # told again, as it was
        found = prepared(3)
        assert isinstance(found, tuple)
        done = codec.decode(found[0].value, VideoDone)
        assert (done.status, done.reason_code) == ("rejected", "rate_limited")
        assert done.retry_at == datetime.fromtimestamp(NOW_S + 30.0, UTC)
    assert not isinstance(prepared(2), tuple)
