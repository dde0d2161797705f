"""Faults on real workers and three real brokers: a part of what `make chaos` does, in every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster, open_cluster
from tests.chaos.faults import FAULTS
from tests.chaos.scene import open_scene

pytestmark = [pytest.mark.kafka, pytest.mark.s3]

SEED = 7


@pytest.fixture(scope="module")
def cluster(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all faults here, as in `make chaos`."""
    with open_cluster(tmp_path_factory.mktemp("chaos"), kafka_home) as cluster:
        yield cluster


@pytest.mark.parametrize("name", ["F1", "F2", "F3", "F6-reset", "F10"])
def test_nothing_is_lost_and_nothing_ends_twice(
    cluster: Cluster, name: str, tmp_path: Path
) -> None:
    fault = FAULTS[name]
    with open_scene(cluster, tmp_path / name, name, SEED, orders_of=fault.orders_of) as scene:
        verdict = scene.run(fault.num_jobs, fault.inflict)
    assert not verdict.findings, "\n".join((*map(str, verdict.findings), *verdict.notes))
    assert verdict.figures.num_outcomes >= fault.num_jobs
