"""Which rows share a cluster; one that comes to no verdict costs the others nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streams.local.processes import StartFailed
from tests.chaos import rows
from tests.chaos.__main__ import run_all
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.scene import Verdict

Clusters = list[tuple[Path, bool]]
Rows = list[tuple[str, Path]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> tuple[Clusters, Rows]:
    """Clusters, with or without proxies between brokers, and rows; F4 breaks its servers."""
    clusters: Clusters = []
    opened: Rows = []

    @contextmanager
    def open_cluster(folder: Path, home: Path, *, has_peer_proxies: bool) -> Iterator[Any]:
        clusters.append((folder, has_peer_proxies))
        yield SimpleNamespace(settings=SimpleNamespace(home=folder))

    @contextmanager
    def open_row(cluster: Any, place: Path, fault: Fault, seed: int) -> Iterator[Any]:
        opened.append((fault.name, place.parent))

        def run(num_jobs: int, inflict: Any) -> Verdict:
            if fault.name == "F4":
                raise StartFailed("broker-2 was not ready in time")
            return Verdict(fault.name, seed, rows.NO_FIGURES, (), (), 1.0, {})

        yield SimpleNamespace(run=run)

    monkeypatch.setattr(rows, "open_cluster", open_cluster)
    monkeypatch.setattr(rows, "open_row", open_row)
    return clusters, opened


def test_a_server_that_does_not_come_back_is_a_finding_and_the_next_row_has_another_cluster(
    opened: tuple[Clusters, Rows], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all([FAULTS[name] for name in ("F1", "F4", "F8", "F9")], 1, tmp_path) == 1
    (first, _), (second, _) = opened[0]
    assert opened[1] == [("F1", first), ("F4", first), ("F8", second), ("F9", second)]
    told = capsys.readouterr().out
    assert "broker-2 was not ready in time" in told
    assert "goal findings_of_all_kinds 1 <= 0 missed" in told


def test_what_breaks_links_between_brokers_has_a_cluster_of_its_own(
    opened: tuple[Clusters, Rows], tmp_path: Path
) -> None:
    assert run_all([FAULTS[name] for name in ("F1", "F6-brokers", "F8")], 1, tmp_path) == 0
    assert [has_peer_proxies for _, has_peer_proxies in opened[0]] == [False, True, False]
    assert [name for name, _ in opened[1]] == ["F1", "F6-brokers", "F8"]
