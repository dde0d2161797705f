"""What an operator sees of the loop's state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from streams.core.events import Failed, Fate, Fault, HostSick, HostWell, Probed
from streams.monitor.health import Health
from streams.monitor.metrics import WorkerMetrics
from streams.monitor.watch import WorkerWatch
from tests.builders import a_delivery
from tests.unit.staging import LIMITS, T0, TURN, Stage

BREAKING = replace(LIMITS, breaker_limit=1, batch_max=1)


class Seen:
    """A stage, and what its watch exports."""

    def __init__(self, watch: WorkerWatch, metrics: WorkerMetrics) -> None:
        self.stage = Stage(limits=BREAKING)
        self._watch, self._metrics, self._now_s = watch, metrics, 0.0

    def breakers(self) -> dict[str, float | None]:
        """Of each breaker, whether it is open; after a turn that tells of it."""
        self._now_s += 60.0
        self._watch.turned(self.stage.state, self._now_s)
        sample = self._metrics.registry.get_sample_value
        return {
            name: sample("reel_breaker_open", {"stage": "sampler", "breaker": name})
            for name in ("engine", "jobs")
        }


class CaughtUp:
    """Controls that were read."""

    is_caught_up = True


@pytest.fixture
def seen() -> Iterator[Seen]:
    metrics = WorkerMetrics("sampler")
    health = Health(metrics.registry, "127.0.0.1", 0)
    yield Seen(WorkerWatch(metrics, health, CaughtUp(), join_timeout_s=1e9), metrics)
    health.stop()


def test_a_breaker_that_opens_is_seen_and_one_that_closes_too(seen: Seen) -> None:
    assert seen.breakers() == {"engine": 0, "jobs": 0}
    seen.stage(HostSick("store_away", "no answer", is_local=False))
    assert seen.breakers() == {"engine": 1, "jobs": 0}
    seen.stage(HostWell(), a_delivery(0), TURN, Failed(T0, Fault(Fate.LATER, "flaky", "")))
    assert seen.breakers() == {"engine": 0, "jobs": 1}
    seen.stage(TURN, Probed(True))
    assert seen.breakers() == {"engine": 0, "jobs": 0}
