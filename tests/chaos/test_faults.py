"""Faults on real workers and three real brokers: a part of what `make chaos` does, in every run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.faults import FAULTS, open_row

pytestmark = [pytest.mark.kafka, pytest.mark.s3]

SEED = 7


#: 2,000 jobs under faults of workers, links, devices and jobs; then a rollout, and redrives.
SELECTION = {"F1": 800, "F3": 300, "F6-reset": 300, "F9": 300, "F11": 300, "F2": 150, "F10": 200}


@pytest.mark.parametrize("name", SELECTION)
def test_nothing_is_lost_and_nothing_ends_twice(
    cluster: Cluster, name: str, tmp_path: Path
) -> None:
    fault, num_jobs = FAULTS[name], SELECTION[name]
    with open_row(cluster, tmp_path / name, fault, SEED) as scene:
        verdict = scene.run(num_jobs, fault.inflict)
    assert not verdict.findings, "\n".join((*map(str, verdict.findings), *verdict.notes))
    assert verdict.figures.num_outcomes >= num_jobs
