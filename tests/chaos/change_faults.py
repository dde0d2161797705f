"""Two releases, two clocks, two group protocols at work in one group."""

from __future__ import annotations

from collections.abc import Mapping

from streams.topology import worker_stages
from tests.chaos.rollout import replace_member
from tests.chaos.scene import Scene

WITHIN_S = 300.0  # as of other jobs that must fail (tests/chaos/job_faults.py)
NUM_WEIRD = 3


def each_second(numbered: str, orders: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """These orders for the worker of that number in every stage."""
    return {f"{stage.name}-{numbered}": orders for stage in worker_stages()}


#: One worker of each stage is five minutes fast, the other five minutes slow.
APART = {
    **each_second("1", {"CHAOS_CLOCK_S": "300"}),
    **each_second("2", {"CHAOS_CLOCK_S": "-300"}),
}
#: One worker of each stage writes as the first release did.
OLD_WRITERS = each_second("1", {"CHAOS_SCHEMA": "1"})


def fail_and_die(scene: Scene) -> None:
    """Jobs that are tried again and again, and deaths, so that records change hands."""
    weird: list[str] = []
    stages = [stage.name for stage in worker_stages()]
    for number in range(NUM_WEIRD):
        weird += [scene.submit(f"weird.{each}.{number}", "failed") for each in stages]
        scene.die_at(dict.fromkeys(stages, "after-upload"))
    assert scene.until(lambda: scene.has_ended(weird), WITHIN_S), "tries are not used up"


def roll_protocols(scene: Scene) -> None:
    """All workers to the classic group protocol, one after the other, and back to KIP-848."""
    for protocol in ("classic", "consumer"):
        for member in scene.crew.workers:
            scene.crew.reconfigure(member, group_protocol=protocol)
            replace_member(scene, member)
