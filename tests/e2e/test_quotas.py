"""A tenant that sends ten times its quota, on Apache Kafka: it waits, and nobody else does."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.records import VideoDone
from streams.topology import REQUESTS_DEFERRED, stage
from tests.command_line import Reel, command_line, environment_of
from tests.e2e.reading import Tail
from tests.e2e.scene import Scene, open_scene

pytestmark = pytest.mark.kafka

PROMPTS_CLEANED = stage("sampler").reads
QUOTA = 4  # two in each of a tenant's two partitions


@pytest.fixture
def scene(kafka_home: Path, tmp_path: Path) -> Iterator[Scene]:
    """Of its own: whoever names no tier is of the free one."""
    changes = {"tier_jobs": {"free": float(QUOTA)}, "tier_parked": {"free": 100.0}}
    with open_scene(tmp_path, kafka_home, batch_age_ms=100, **changes) as scene:
        yield scene


@pytest.fixture
def reel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Reel:
    """The command line."""
    return command_line(monkeypatch, capsys, tmp_path)


def jobs(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


def entered(scene: Scene) -> dict[str, datetime]:
    """When each job came to lie on the log behind the prompt stage: from then on it is inside.

    Not when its prompt was encoded: whoever dies in between leaves its share to be counted anew.
    """
    found: dict[str, datetime] = {}
    with Tail(scene.broker.bootstrap, [PROMPTS_CLEANED]) as tail:
        while messages := tail.read(1.0):
            for message in messages:
                at = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
                job_id = (message.key() or b"").decode()
                found[job_id] = min(at, found.get(job_id, at))
    return found


def most_at_once(endings: list[VideoDone], since: dict[str, datetime]) -> int:
    """Jobs that were in the pipeline at a time."""
    moments: list[tuple[datetime, int]] = []
    for done in endings:
        moments += [(since[done.job_id], 1), (done.finished_at, -1)]
    count = most = 0
    for _, step in sorted(moments):
        count += step
        most = max(most, count)
    return most


def test_a_tenant_over_its_quota_waits_and_others_do_not_whoever_is_killed(scene: Scene) -> None:
    noisy, quiet = jobs("noisy", 60), jobs("quiet", 2)
    scene.submit(noisy, "noisy")
    scene.wait_for(noisy[0])
    scene.submit(quiet, "quiet")
    scene.wait_for(*quiet)
    assert len(scene.done) < 50, "what is quiet is not behind what is noisy"
    # Who has what in the pipeline, and what is parked, the next one reads from the log.
    os.kill(scene.stack.pids()["prompt"], signal.SIGKILL)
    scene.wait_for(*noisy)
    assert {scene.ended(job_id) for job_id in (*noisy, *quiet)} == {("completed", None)}
    by_partition = defaultdict(list)
    for job_id in noisy:
        done = scene.done[job_id][0]
        by_partition[done.partition].append(done)
    assert len(by_partition) == 2
    since = entered(scene)
    for endings in by_partition.values():
        assert 1 <= most_at_once(endings, since) <= QUOTA // 2
    with Tail(scene.broker.bootstrap, [REQUESTS_DEFERRED]) as parked:
        keys = {message.key() for message in parked.read()}
    assert len(keys) > 20, "it was parked"


def test_over_the_bound_on_what_is_parked_a_request_is_refused_with_the_time_to_retry(
    scene: Scene, reel: Reel
) -> None:
    scene.submit_without_sampler(jobs("first", QUOTA))
    more = jobs("more", 200)
    scene.submit(more)
    scene.watch(lambda: len(scene.done) >= 90, lambda: None)  # while the sampler is away
    shown = reel("tenants", "--json", **environment_of(scene.stack.settings))
    rows = {row["why"]: row for row in json.loads(shown.stdout)}
    assert set(rows) == {"parked: concurrent_jobs", "queued for sampler"}
    assert {(row["tenant_id"], row["tier"]) for row in rows.values()} == {("acme", "free")}
    assert abs(rows["parked: concurrent_jobs"]["num_jobs"] - 100) <= QUOTA
    assert abs(rows["queued for sampler"]["num_jobs"] - QUOTA) <= QUOTA // 2
    assert all(row["waited_s"] > 0 and row["gpu_s"] > 0 for row in rows.values())
    table = reel("tenants", "--tenant", "acme")
    assert table.stdout.splitlines()[0] == "tenant\ttier\tjobs\tlongest\tGPU s\twhy"
    assert len(table.stdout.splitlines()) == 3
    assert reel("tenants", "--tenant", "nobody").stderr == "nobody waits\n"
    scene.wait_for(*more)
    refused = [scene.done[job_id][0] for job_id in more if scene.ended(job_id)[0] != "completed"]
    assert {(each.status, each.reason_code) for each in refused} == {("rejected", "quota_exceeded")}
    assert all(each.retry_at and each.retry_at > each.finished_at for each in refused)
    # Half of the bound in each of its two partitions, and what the first ones left of the quota.
    assert abs(200 - len(refused) - 100) <= QUOTA


def test_over_its_rate_a_tenant_is_refused_with_the_time_to_retry_and_others_are_not(
    kafka_home: Path, tmp_path: Path
) -> None:
    changes = {"tier_rates": {"free": 6.0}}  # three a minute in each of a tenant's partitions
    with open_scene(tmp_path, kafka_home, batch_age_ms=100, **changes) as scene:
        noisy, quiet = jobs("noisy", 30), jobs("quiet", 2)
        scene.submit(noisy, "noisy")
        scene.submit(quiet, "quiet")
        scene.wait_for(*noisy, *quiet)
        # What was decided stands, whoever is asked again.
        os.kill(scene.stack.pids()["prompt"], signal.SIGKILL)
        scene.submit([*noisy, "later"], "noisy")
        scene.wait_for("later")
    assert {scene.ended(job_id) for job_id in quiet} == {("completed", None)}
    refused = [scene.done[each][0] for each in noisy if scene.ended(each)[0] != "completed"]
    assert {(each.status, each.reason_code) for each in refused} == {("rejected", "rate_limited")}
    assert all(each.retry_at and each.retry_at > each.finished_at for each in refused)
    assert 24 <= len(refused) < 30, "a minute's worth at once, of each partition that it sent to"
