"""Who waits, beside a model that sorts all that was said of a run."""

from __future__ import annotations

import random
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given

from streams.client.tenant_rows import ENDED, Sighting, TenantRow, fold_tenants
from streams.core.cost import Prior, Shape
from streams.core.shares import Bulk

PRIOR = Prior(fixed_s=1.0)
NOW_S = 1000.0
BULK = Bulk("v1", Shape(17, 64, 64), 10)
SEEN = Sighting("acme", "job-1", 1, 0, tier="free", requested_s=900.0)

sightings = st.builds(
    Sighting,
    tenant_id=st.sampled_from(["acme", "bolt"]),
    job_id=st.sampled_from(["job-1", "job-2"]),
    run=st.integers(1, 2),
    position=st.integers(0, ENDED),
    tier=st.sampled_from([None, "free", "pro"]),
    requested_s=st.sampled_from([None, 900.0, 950.0]),
    is_deferrable=st.booleans(),
    bulk=st.sampled_from([None, BULK]),
    over=st.sampled_from([None, "concurrent_jobs"]),
    due_s=st.sampled_from([0.0, 990.0, 1010.0]),
    is_begun=st.booleans(),
    cost_s=st.sampled_from([0.0, 20.0]),
)


def rows(*seen: Sighting, paused: tuple[str, ...] = ()) -> list[TenantRow]:
    return fold_tenants(seen, paused, PRIOR, NOW_S)


def why(*seen: Sighting, paused: tuple[str, ...] = ()) -> str:
    (row,) = rows(*seen, paused=paused)
    return row.why


@given(st.lists(sightings, max_size=12), st.integers(0, 2**16))
def test_neither_order_nor_duplicates_matter(seen: list[Sighting], seed: int) -> None:
    shuffled = [*seen, *seen[::2]]
    random.Random(seed).shuffle(shuffled)
    assert rows(*shuffled) == rows(*seen)


@given(st.lists(sightings, max_size=12))
def test_every_run_that_has_not_ended_is_in_one_row(seen: list[Sighting]) -> None:
    latest = {(each.tenant_id, each.job_id): 0 for each in seen}
    for each in seen:
        key = each.tenant_id, each.job_id
        latest[key] = max(latest[key], each.run)
    ended = {
        (each.tenant_id, each.job_id)
        for each in seen
        if each.position == ENDED and each.run == latest[each.tenant_id, each.job_id]
    }
    found = rows(*seen)
    assert sum(row.num_jobs for row in found) == len(latest) - len(ended)
    assert [row.waited_s for row in found] == sorted((row.waited_s for row in found), reverse=True)
    assert len({(row.tenant_id, row.tier, row.why) for row in found}) == len(found)


def test_why_it_waits() -> None:
    parked = replace(SEEN, over="queued_gpu_seconds")
    assert why(SEEN) == "queued for prompt"
    assert why(SEEN, parked) == "parked: queued_gpu_seconds"
    assert why(parked, replace(SEEN, position=1)) == "queued for sampler"
    assert why(replace(SEEN, position=1, is_begun=True)) == "running in sampler"
    begun, cleaned = replace(SEEN, is_begun=True), replace(SEEN, position=1)
    assert why(begun, cleaned) == "queued for sampler", "what began was the stage before"
    retried = replace(SEEN, position=1, due_s=NOW_S + 5.0)
    assert why(replace(SEEN, position=1, is_begun=True), retried) == (
        "delayed: sampler tries it again"
    )
    assert why(replace(retried, due_s=NOW_S - 1.0)) == "queued for sampler"
    assert why(replace(SEEN, is_deferrable=True)) == "off-peak: prompt has others"
    assert why(cleaned, paused=("sampler",)) == "sampler is paused"


def test_how_long_and_how_much() -> None:
    jobs = [
        replace(SEEN, job_id=f"job-{number}", position=1, requested_s=900.0 + number, bulk=BULK)
        for number in range(3)
    ]
    (row,) = rows(*jobs)
    assert (row.num_jobs, row.waited_s, row.gpu_s) == (3, 100.0, 30.0)
    done = replace(jobs[0], position=ENDED, cost_s=40.0)
    (row,) = rows(*jobs, done)
    assert row.num_jobs == 2
    assert row.gpu_s is not None
    assert row.gpu_s > 40.0, "what ended has taught what such jobs cost"
    unknown = replace(SEEN, job_id="job-9")
    assert rows(unknown)[0].gpu_s is None
    by_why = {row.why: row.gpu_s for row in rows(*jobs, unknown)}
    assert by_why["queued for prompt"] == 10.0, "as much as the others"
    assert rows(replace(jobs[0], position=2))[0].gpu_s == 0.0, "it is sampled"
