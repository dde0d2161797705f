"""Workers replaced one after the other, as a rollout does."""

from __future__ import annotations

from tests.chaos.crew import Member
from tests.chaos.ledger import in_hand
from tests.chaos.scene import Scene

ENDS_WITHIN_S = 60.0
JOINS_WITHIN_S = 180.0  # a real sampler imports torch first; as FIRES_WITHIN_S


def drain_each(scene: Scene) -> None:
    """SIGTERM to each worker in turn; each must end with 0."""
    for member in scene.crew.workers:
        replace_member(scene, member)


def replace_member(scene: Scene, member: Member) -> None:
    """It drains, in the middle of a batch, which it ends; returns when its successor has joined."""
    num_lives, num_joins = len(member.pids), member.num_joins
    jobs = scene.until_busy(member)
    scene.aside(member.terminate)
    scene.until(lambda: len(member.exits) == num_lives, ENDS_WITHIN_S)
    assert member.exits[-1] == 0, f"{member.name} did not drain: exit {member.exits[-1]}"
    left = jobs & in_hand(scene.ledger.entries(), member.pids[num_lives - 1])
    assert not left, f"{member.name} drained and left what it had begun: {sorted(left)}"
    wait_for_join(scene, member, num_joins)


def wait_for_join(scene: Scene, member: Member, num_joins: int) -> None:
    """Until it has been given partitions once more than so often."""
    has_joined = scene.until(lambda: member.num_joins > num_joins, JOINS_WITHIN_S)
    assert has_joined, f"{member.name} has not joined within {JOINS_WITHIN_S:g} s"
