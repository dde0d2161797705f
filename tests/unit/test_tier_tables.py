"""Tables of one, two and four tiers, wherever a table of tiers is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from streams.core.admission import Quotas
from streams.core.events import Assigned, TopicPartition
from streams.core.limits import StageLimits
from streams.core.stage import StageState
from streams.core.tiers import OFF_PEAK, partition_of_job
from streams.errors import Rejected
from streams.monitor.health import Health
from streams.monitor.metrics import WorkerMetrics
from streams.monitor.watch import WorkerWatch
from streams.placement import home_partition, tier_of_request
from streams.settings import Settings
from tests.builders import a_request, a_start_offset
from workers.prompt.shares import quotas_of

TABLES = [("all",), ("paid", "free"), ("a", "b", "c", "d")]


class CaughtUp:
    """Control topics that are read."""

    is_caught_up = True


def settings_of(tiers: tuple[str, ...], **changes: Any) -> Settings:
    two_each = {"tiers": tiers, "default_tier": tiers[-1], "partitions": 2 * len(tiers)}
    return Settings.model_validate({**two_each, **changes})


@pytest.fixture(params=TABLES, ids=len)
def tiers(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """A table."""
    found: tuple[str, ...] = request.param
    return found


def test_a_partition_for_each_tier_is_enough(tiers: tuple[str, ...]) -> None:
    assert settings_of(tiers, partitions=len(tiers)).partitions == len(tiers)


def test_a_count_that_is_no_multiple_is_refused(tiers: tuple[str, ...]) -> None:
    if len(tiers) > 1:
        with pytest.raises(ValidationError, match=f"multiple of the {len(tiers)} tiers"):
            settings_of(tiers, partitions=2 * len(tiers) + 1)


def test_a_table_without_the_default_tier_says_which_setting_to_set() -> None:
    with pytest.raises(ValidationError, match=r"unknown tier free.*REEL_DEFAULT_TIER"):
        Settings.model_validate({"tiers": ("all",)})


def test_a_request_is_placed_in_its_tiers_stripe(tiers: tuple[str, ...]) -> None:
    settings = settings_of(tiers)
    for position, tier in enumerate(tiers):
        request = a_request(tier=tier)
        partition = home_partition(request, settings)
        assert partition % len(tiers) == position
        where = request.tenant_id, request.job_id
        assert partition == partition_of_job(tier, *where, settings.partitions, tiers)
    assert tier_of_request(a_request(tier=None), settings) == tiers[-1]


def test_a_tier_of_another_table_is_refused_and_counted_as_the_default(
    tiers: tuple[str, ...],
) -> None:
    settings, request = settings_of(tiers), a_request(tier="platinum")
    with pytest.raises(Rejected) as refused:
        home_partition(request, settings)
    assert refused.value.reason_code == "unknown_tier"
    assert tier_of_request(request, settings) == tiers[-1]


@pytest.mark.parametrize("name", ["tier_weights", "tier_rates", "tier_jobs", "tier_gpu_seconds"])
def test_quotas_and_weights_are_for_tiers_of_the_table(tiers: tuple[str, ...], name: str) -> None:
    settings_of(tiers, **{name: dict.fromkeys(tiers, 2.0)})
    with pytest.raises(ValidationError, match="unknown tier"):
        settings_of(tiers, **{name: {"platinum": 2.0}})


def test_every_tier_has_the_tenants_quota_and_deferrable_jobs_have_it_too(
    tiers: tuple[str, ...],
) -> None:
    quotas = quotas_of(settings_of(tiers, tenant_jobs=8))
    assert isinstance(quotas, Quotas)
    assert quotas.jobs == dict.fromkeys((*tiers, OFF_PEAK), 8)


def test_a_worker_shows_how_many_partitions_of_each_tier_it_has(tiers: tuple[str, ...]) -> None:
    metrics = WorkerMetrics("sampler")
    health = Health(metrics.registry, "127.0.0.1", 0)
    watch = WorkerWatch(metrics, health, CaughtUp(), join_timeout_s=1e9, tiers=tiers)
    state = StageState(StageLimits())
    own = [TopicPartition("prompts.cleaned", number) for number in range(2 * len(tiers) - 1)]
    state.handle(Assigned(dict.fromkeys(own, a_start_offset())), 0.0)
    watch.turned(state, 0.0)
    health.stop()
    sample = metrics.registry.get_sample_value
    held = {
        tier: sample("reel_tier_partitions", {"stage": "sampler", "tier": tier}) for tier in tiers
    }
    assert held == {tier: 2 - (tier == tiers[-1]) for tier in tiers}
