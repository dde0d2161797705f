"""The fault table: what is done to a running pipeline, each under the name of the issue's list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from streams.topology import worker_stages
from tests.chaos.ledger import FAILPOINTS, arm, is_armed
from tests.chaos.scene import Scene

FIRES_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. `num_jobs` is the least; more flow while the fault does its work."""

    name: str
    what: str
    inflict: Callable[[Scene], None]
    num_jobs: int = 200


def die_at_failpoints(scene: Scene) -> None:
    """Every stage at every failpoint, in a seeded order, one after the other."""
    points = [(stage.name, point) for stage in worker_stages() for point in FAILPOINTS]
    scene.random.shuffle(points)
    for stage, point in points:
        arm(scene.folder, stage, point)
        has_fired = scene.until(
            lambda at=(stage, point): not is_armed(scene.folder, *at),  # type: ignore[misc]
            FIRES_WITHIN_S,
        )
        assert has_fired, f"no {stage} worker came by {point} within {FIRES_WITHIN_S:g} s"


FAULTS: Mapping[str, Fault] = {
    each.name: each
    for each in (Fault("F1", "SIGKILL at each failpoint of each stage", die_at_failpoints, 400),)
}
