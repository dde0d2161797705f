"""One cluster of three brokers for all tests here that break it, as in `make chaos`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster, open_cluster


@pytest.fixture(scope="package")
def cluster(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Healthy when a test begins: whoever breaks it mends it."""
    with open_cluster(tmp_path_factory.mktemp("chaos"), kafka_home) as cluster:
        yield cluster
