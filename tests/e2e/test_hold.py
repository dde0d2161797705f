"""The object store, or the brokers, go away in the middle of work: that costs patience, no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.scene import Scene

pytestmark = pytest.mark.kafka


@pytest.fixture
def undisturbed(scene: Scene) -> Iterator[Scene]:
    """Afterwards no job was dead-lettered, and none has spent a try."""
    dead, retries = set(scene.dead), scene.count_in_logs("again later")
    yield scene
    assert set(scene.dead) == dead
    assert scene.count_in_logs("again later") == retries


def jobs_of(scene: Scene, name: str, count: int) -> list[str]:
    jobs = [f"{name}.{number}" for number in range(count)]
    scene.submit(jobs)
    return jobs


def test_a_store_that_is_away_is_waited_for(undisturbed: Scene) -> None:
    scene = undisturbed
    before = jobs_of(scene, "store-before", 8)
    scene.wait_for(before[0])
    sick, well = scene.count_in_logs("host sick"), scene.count_in_logs("host well")
    scene.store.stop()
    meanwhile = jobs_of(scene, "store-meanwhile", 8)
    scene.wait(lambda: scene.count_in_logs("host sick") > sick)
    scene.wait(lambda: scene.count_in_logs("holding") >= 4)
    scene.store.start()
    scene.wait_for(*before, *meanwhile)
    scene.wait(lambda: scene.count_in_logs("host well") > well)
    assert {scene.ended(job_id) for job_id in (*before, *meanwhile)} == {("completed", None)}


def test_brokers_that_are_away_are_waited_for(undisturbed: Scene) -> None:
    scene = undisturbed
    jobs = jobs_of(scene, "broker", 16)
    scene.wait_for(jobs[0])
    (node,) = scene.broker.nodes
    node.kill()
    node.start()
    later = jobs_of(scene, "broker-later", 4)
    scene.wait_for(*jobs, *later)
    assert {scene.ended(job_id) for job_id in (*jobs, *later)} == {("completed", None)}
