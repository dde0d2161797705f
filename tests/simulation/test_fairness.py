"""Floods, small: what a heavy tenant does to others beside plain FIFO."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streams.core.tiers import DEFAULT_TIERS, DEFAULT_WEIGHTS, tier_of_partition
from tests.bench.fairness_plots import Curve, plot_waits
from tests.bench.fairness_sweep import heavy_tenants
from tests.simulation.fairness import (
    Arrival,
    Cluster,
    arrivals_of,
    jain_index,
    merged,
    percentile,
    range_assignment,
    served_s,
    simulate,
    waits_s,
)

UNTIL_S = 100.0


def p99_s(arrivals: list[Arrival], is_fair: bool) -> float:
    served = simulate(Cluster(6, 2, is_fair), arrivals, UNTIL_S)
    assert len(served) == len(arrivals), "each arrival is told of once"
    quiet = [each for each in served if each.arrival.tier == "enterprise"]
    return percentile(waits_s(quiet, UNTIL_S), 0.99)


def test_a_free_tenant_that_floods_does_not_delay_enterprise_where_fifo_would() -> None:
    quiet = list(arrivals_of(random.Random(1), "enterprise", "acme", 0.3, 90.0, 1.0))
    flood = arrivals_of(random.Random(2), "free", "noisy", 20.0, UNTIL_S, 1.0)
    both = merged([quiet, flood])
    # A step, here a whole job of at most a second and a half, is never interrupted.
    assert p99_s(both, is_fair=True) <= 1.2 * p99_s(quiet, is_fair=True) + 1.5
    assert p99_s(both, is_fair=False) > 3 * p99_s(both, is_fair=True)


@pytest.mark.parametrize("is_fair", [True, False])
def test_when_all_want_too_much_each_tier_gets_its_weight_and_its_tenants_get_alike(
    is_fair: bool,
) -> None:
    rng, until_s = random.Random(3), 400.0
    arrivals = merged(
        arrivals_of(rng, tier, f"{tier}-{number}", per_s, until_s, 1.0)
        for tier in DEFAULT_TIERS
        for number, per_s in enumerate([0.5] * 9 + [5.0])
    )
    served = simulate(Cluster(3, 1, is_fair), arrivals, until_s)
    spent_s = {tier: served_s(served, tier) for tier in DEFAULT_TIERS}
    total_s = sum(sum(each.values()) for each in spent_s.values())
    weight = DEFAULT_WEIGHTS["free"] / sum(DEFAULT_WEIGHTS.values())
    is_by_weight = abs(sum(spent_s["free"].values()) / total_s - weight) < 0.1 * weight
    is_alike = jain_index(spent_s["enterprise"].values()) > 0.95
    assert (is_by_weight, is_alike) == (is_fair, is_fair)


@given(width=st.integers(1, 160), data=st.data())
def test_up_to_a_third_of_the_partitions_every_worker_holds_every_tier(
    width: int, data: st.DataObject
) -> None:
    num_workers = data.draw(st.integers(1, width))
    held = range_assignment(len(DEFAULT_TIERS) * width, num_workers)
    assert [partition for each in held for partition in each] == [*range(3 * width)]
    assert all({tier_of_partition(p) for p in each} == {*DEFAULT_TIERS} for each in held)


@given(width=st.integers(1, 160), num_workers=st.integers(1, 1000))
def test_beyond_that_tiers_still_have_nearly_as_many_workers_each(
    width: int, num_workers: int
) -> None:
    held = range_assignment(len(DEFAULT_TIERS) * width, num_workers)
    workers = [
        sum(any(tier_of_partition(p) == tier for p in each) for each in held)
        for tier in DEFAULT_TIERS
    ]
    assert min(workers) >= min(width, num_workers // 3)
    assert max(len(each) for each in held) - min(len(each) for each in held) <= 1


def test_a_tenant_that_only_waits_is_served_nothing() -> None:
    arrivals = [Arrival(0.0, "free", "first", "a", 9.0), Arrival(1.0, "free", "second", "b", 1.0)]
    served = simulate(Cluster(3, 1), arrivals, until_s=5.0)
    assert served_s(served, "free") == {"first": 9.0, "second": 0.0}
    assert served_s(served, "pro") == {}


def test_tenants_are_too_heavy_only_for_more_devices_than_they_ever_get() -> None:
    assert heavy_tenants(num_serving=1) == set()
    assert "free-0" in heavy_tenants(num_serving=480)
    assert heavy_tenants(96) < heavy_tenants(480)


def test_plots_are_png_files_by_name_with_each_curve_drawn(tmp_path: Path) -> None:
    curves = [Curve("free", "fair", [0.1, 1.0]), Curve("free", "FIFO", [1.0, 10.0])]
    (path,) = plot_waits(tmp_path / "new", curves)
    with Image.open(path) as image:
        assert (image.format, path.name) == ("PNG", "waits-free-floods.png")
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert {(0x1F, 0x5F, 0xA8), (0xC2, 0x45, 0x2D)} <= colours
