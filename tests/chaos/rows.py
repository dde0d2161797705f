"""Rows of the fault table, one after the other, whatever a row does to its servers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from streams.local.processes import StartFailed
from streams.settings import read_settings
from tests.chaos.cluster import Cluster, open_cluster
from tests.chaos.faults import Fault, open_row
from tests.chaos.oracle import Figures, Finding
from tests.chaos.scene import Verdict

NO_FIGURES = Figures(0, 0, 0, 0, 0, 0.0, 0.0)


def run_rows(faults: Sequence[Fault], seed: int, folder: Path) -> Iterator[Verdict]:
    """Each has a crew of its own; they share a cluster while that does for another row."""
    left = list(faults)
    while left:
        place, is_for_peers = folder / f"from-{left[0].name}", left[0].is_for_peers
        with open_cluster(place, read_settings().home, has_peer_proxies=is_for_peers) as cluster:
            is_sound = True
            while left and is_sound and left[0].is_for_peers == is_for_peers:
                verdict, is_sound = _run_row(cluster, left.pop(0), seed)
                yield verdict


def _run_row(cluster: Cluster, fault: Fault, seed: int) -> tuple[Verdict, bool]:
    """How it went; and whether the cluster does for another: not if a server does not come back."""
    print(f"{fault.name}, seed {seed}: {fault.what}", flush=True)
    started_at_s = time.monotonic()
    try:
        with open_row(cluster, cluster.settings.home / fault.name, fault, seed) as scene:
            return scene.run(fault.num_jobs, fault.inflict), True
    except (AssertionError, StartFailed) as error:
        finding = Finding("row", None, None, f"it came to no verdict: {error}")
        seconds = time.monotonic() - started_at_s
        return Verdict(fault.name, seed, NO_FIGURES, (finding,), (), seconds, {}), False
