"""More partitions while jobs are under way, on Apache Kafka: none is lost, none ends twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streams.errors import SettingsError
from streams.kafka.admin import check_topics
from streams.kafka.migration import grow_topics, unfinished
from streams.local.stack import LocalStack, as_environment
from streams.local.worker_process import python_environment
from streams.topology import VIDEOS_DONE, stage
from tests.command_line import Reel, command_line, environment_of
from tests.e2e.reading import Tail
from tests.e2e.scene import Scene, open_scene

SAMPLER = stage("sampler")
BEFORE, AFTER = 6, 24


@pytest.fixture
def growing(kafka_home: Path, tmp_path: Path) -> Iterator[Scene]:
    """A scene of its own, with six partitions."""
    with open_scene(tmp_path, kafka_home) as scene:
        yield scene


@pytest.fixture
def reel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Reel:
    """The command line."""
    return command_line(monkeypatch, capsys, tmp_path)


def test_a_pipeline_grows_under_load_and_every_job_ends_once(growing: Scene, reel: Reel) -> None:
    small = growing.stack.settings
    large = small.model_copy(update={"partitions": AFTER})
    early = [f"early-{number}" for number in range(40)]
    growing.submit_without_sampler(early)
    drained = reel("topics", "drained", **environment_of(small))
    assert drained.returncode == 1
    assert "group reel.sampler has not finished" in drained.stdout

    grow = reel("topics", "grow", str(AFTER))
    assert (grow.returncode, "REEL_PARTITIONS=24" in grow.stderr) == (0, True)
    # Nobody may ask for a partition that later topics lack.
    assert grow.stdout.splitlines()[-1] == "topic requests: 6 partitions became 24"
    assert reel("topics", "grow", str(AFTER)).stderr == "nothing to do\n"
    assert check_topics(large) == []
    worker = subprocess.run(
        [sys.executable, "-m", "tests.echo", SAMPLER.name],
        env=python_environment(as_environment(small)),
        capture_output=True, text=True, timeout=60.0, check=False,
    )  # fmt: skip
    assert worker.returncode == 2, "a worker of the old count does not join"
    assert "has 24 partitions, want 6" in worker.stderr
    with pytest.raises(SettingsError, match="cannot shrink"):
        grow_topics(large, BEFORE)

    # Producers that know of the new partitions already; the workers that run forward what they
    # write there to the partitions of before.
    between = [f"between-{number}" for number in range(40)]
    growing.submit(between)
    growing.wait_for_arrival("prompts.cleaned", between)
    growing.stack.stop()
    plan = replace(growing.stack.plan, settings=large)
    with (
        LocalStack(plan, growing.said.append) as stack,
        Tail(large.bootstrap, [VIDEOS_DONE]) as tail,
    ):
        grown = Scene(stack, tail, growing.said, growing.broker, growing.store)
        late = [f"late-{number}" for number in range(40)]
        grown.submit(late)
        grown.wait_for(*early, *between, *late)
        assert {grown.ended(job_id) for job_id in grown.done} == {("completed", None)}
        assert grown.done.keys() == {*early, *between, *late}
        assert max(done.partition for each in grown.done.values() for done in each) >= BEFORE
        grown.wait(lambda: not unfinished(large))
    assert reel("topics", "drained").returncode == 0


def test_growing_is_refused_before_anything_is_changed(growing: Scene) -> None:
    settings = growing.stack.settings
    with pytest.raises(SettingsError, match="multiple of the 3 tiers"):
        grow_topics(settings, 8)
    wrong = settings.model_copy(update={"partitions": 9})
    with pytest.raises(SettingsError, match=r"neither 9 \(REEL_PARTITIONS\) nor 12"):
        grow_topics(wrong, 12)
    with pytest.raises(SettingsError, match=r"\.retry\.5s is missing"):
        grow_topics(settings.model_copy(update={"retry_delays_s": (5,)}), 12)
    assert check_topics(settings) == []
