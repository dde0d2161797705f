"""Where a job belongs: the vectors that producers in other languages are held to, and the rule."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import SCHEMAS
from streams.core.tiers import (
    DEFAULT_TIERS,
    partition_of_job,
    stable_hash,
    tenant_partitions,
    tier_of_partition,
)

VECTORS = json.loads((SCHEMAS / "vectors" / "partitions.json").read_text())

names = st.text(max_size=40)
tables = st.sampled_from([("all",), ("paid", "free"), DEFAULT_TIERS, ("a", "b", "c", "d")])
widths = st.integers(1, 200)  # partitions of a tier


def test_the_vectors_cover_every_tier_and_small_and_large_topics() -> None:
    assert tuple(VECTORS["tiers"]) == DEFAULT_TIERS
    assert {each["tier"] for each in VECTORS["vectors"]} == set(DEFAULT_TIERS)
    assert {3, 6, 24} <= {each["num_partitions"] for each in VECTORS["vectors"]}


def test_hashes_are_those_of_the_vectors() -> None:
    for each in VECTORS["hashes"]:
        assert stable_hash(each["text"]) == int(each["hash"])


def test_partitions_are_those_of_the_vectors() -> None:
    for each in VECTORS["vectors"]:
        expected = each["partition"]
        where = {name: value for name, value in each.items() if name != "partition"}
        assert partition_of_job(**where) == expected, where


@given(st.data(), tables, names, names, widths)
def test_a_job_stays_in_its_tiers_stripe_and_in_its_tenants_shard(
    data: st.DataObject, tiers: tuple[str, ...], tenant_id: str, job_id: str, width: int
) -> None:
    tier, num_partitions = data.draw(st.sampled_from(tiers)), len(tiers) * width
    partition = partition_of_job(tier, tenant_id, job_id, num_partitions, tiers)
    assert 0 <= partition < num_partitions
    assert tier_of_partition(partition, tiers) == tier
    assert partition in tenant_partitions(tier, tenant_id, num_partitions, tiers)


@given(st.data(), tables, names, widths)
def test_a_tenant_has_two_partitions_where_its_tier_has_two(
    data: st.DataObject, tiers: tuple[str, ...], tenant_id: str, width: int
) -> None:
    tier = data.draw(st.sampled_from(tiers))
    own = tenant_partitions(tier, tenant_id, len(tiers) * width, tiers)
    assert len(set(own)) == min(2, width)


@given(tables, st.integers(1, 40), st.integers(1, 12))
def test_under_range_every_worker_holds_every_tier(
    tiers: tuple[str, ...], width: int, num_workers: int
) -> None:
    # Kafka's `range`: of n partitions each of m members gets n // m or one more, side by side.
    num_partitions = len(tiers) * width
    if num_workers * len(tiers) > num_partitions:
        return  # more workers than `reel topics check` asks for
    share, rest = divmod(num_partitions, num_workers)
    first = 0
    for number in range(num_workers):
        own = range(first, first + share + (number < rest))
        first = own.stop
        assert {tier_of_partition(each, tiers) for each in own} == set(tiers)


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True), names)
def test_any_list_of_tiers_works(tiers: list[str], tenant_id: str) -> None:
    for tier in tiers:
        partition = partition_of_job(tier, tenant_id, "job", 4 * len(tiers), tiers)
        assert tier_of_partition(partition, tiers) == tier


def test_many_tenants_fill_a_stripe_evenly() -> None:
    jobs = Counter(
        partition_of_job("pro", f"tenant-{tenant}", f"job-{job}", 24)
        for tenant in range(1000)
        for job in range(8)
    )
    assert sorted(jobs) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert min(jobs.values()) > 800
    assert max(jobs.values()) < 1200


def test_a_tenants_jobs_fill_both_of_its_partitions_evenly() -> None:
    jobs = Counter(partition_of_job("free", "acme", f"job-{job}", 24) for job in range(4000))
    assert set(jobs) == set(tenant_partitions("free", "acme", 24))
    assert max(jobs.values()) < 2200


def test_few_tenants_share_both_partitions_with_a_noisy_one() -> None:
    noisy = set(tenant_partitions("free", "noisy", 48))
    shards = [set(tenant_partitions("free", f"tenant-{each}", 48)) for each in range(2000)]
    assert sum(shard == noisy for shard in shards) < 40  # 1 in 120 is expected


@pytest.mark.parametrize("num_partitions", [0, -3, 1, 25])
def test_a_count_that_is_no_multiple_of_the_tiers_is_refused(num_partitions: int) -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        partition_of_job("pro", "acme", "job", num_partitions)


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown tier 'gold'"):
        partition_of_job("gold", "acme", "job", 24)
