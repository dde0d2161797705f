"""Jobs that fail and jobs that kill, in real processes, on Apache Kafka with KIP-848 groups."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from schemas.codec import Codec
from schemas.records import GenerationRequest, VideoDone
from streams.cli.context import make_client
from streams.letters import DLT_PREFIX, texts
from streams.local.apache import ApacheKafka
from streams.local.stack import LocalStack, StackPlan
from streams.settings import Settings
from streams.topology import VIDEOS_DONE, stage, worker_stages
from tests import acts
from tests.e2e.reading import Tail

pytestmark = pytest.mark.kafka

GIVE_UP_S = 240.0
CODEC = Codec()


class Scene:
    """A running stack of echo workers and what its last topics hold. `wait` keeps it running."""

    def __init__(self, stack: LocalStack, tail: Tail, said: list[str]) -> None:
        self.stack, self._tail, self.said = stack, tail, said
        self.done: dict[str, list[VideoDone]] = {}
        self.dead: dict[str, list[dict[str, str]]] = {}  # dead letters' findings, by job

    def submit(self, job_ids: Sequence[str]) -> None:
        """Put requests on the log."""

        async def run() -> None:
            deadline = datetime.now(UTC) + timedelta(hours=1)
            async with make_client(self.stack.settings) as client:
                for job_id in job_ids:
                    await client.send(
                        GenerationRequest(
                            job_id, "acme", "a ball", datetime.now(UTC), deadline=deadline
                        )
                    )

        asyncio.run(run())

    def control(self, name: str, state: Literal["paused", "running"]) -> None:
        """Pause a stage or let it run."""

        async def run() -> None:
            async with make_client(self.stack.settings) as client:
                await client.control_stage(name, state)

        asyncio.run(run())

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Keep the stack running until that is so."""
        give_up_s = time.monotonic() + GIVE_UP_S
        while not is_so():
            assert time.monotonic() < give_up_s, (self.said, self.done, self.dead)
            self.stack.step()
            for message in self._tail.read():
                self._take(message)

    def wait_for(self, *job_ids: str) -> None:
        """Until each of these jobs has ended."""
        self.wait(lambda: self.done.keys() >= set(job_ids))

    def _take(self, message: Message) -> None:
        topic, value, key = message.topic() or "", message.value(), message.key()
        assert key is not None
        if topic == VIDEOS_DONE:
            assert value is not None
            done = CODEC.decode(value, VideoDone)
            self.done.setdefault(done.job_id, []).append(done)
        else:
            headers: Any = message.headers() or ()
            found = texts(headers, DLT_PREFIX)
            self.dead.setdefault(key.decode(), []).append(found)

    def ended(self, job_id: str) -> tuple[str, str | None]:
        """How a job ended: status and reason code; every VideoDone must say the same."""
        (ending,) = {(done.status, done.reason_code) for done in self.done[job_id]}
        return ending


@pytest.fixture(scope="module")
def scene(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Four echo workers on a broker of their own: groups and topics have fixed names."""
    home = tmp_path_factory.mktemp("failure")
    model = home / "models" / "tiny"  # nobody loads it: the workers only echo
    model.mkdir(parents=True)
    (model / "model_index.json").touch()
    said: list[str] = []
    with ApacheKafka(tmp_path_factory.mktemp("failure-kafka"), home=kafka_home) as broker:
        settings = Settings(
            home=home,
            bootstrap=broker.bootstrap,
            group_protocol="consumer",
            partitions=6,
            batch_max=8,
            retry_delays_s=(1, 2, 3),
        )
        plan = StackPlan(
            settings, cache=home, broker=None, worker_argv=(sys.executable, "-m", "tests.echo")
        )
        with LocalStack(plan, said.append) as stack:
            topics = [VIDEOS_DONE, *(each.dead_letters for each in worker_stages())]
            with Tail(broker.bootstrap, topics) as tail:
                yield Scene(stack, tail, said)


def test_failures_take_their_fates_and_good_jobs_are_not_disturbed(scene: Scene) -> None:
    good = [f"good.{number}" for number in range(12)]
    jobs = ["fail2.sampler.1", "weird.decoder.1", "bad.finisher.1", "full.sampler.1"]
    scene.submit([*good[:6], *jobs, *good[6:]])
    scene.wait_for(*good, *jobs)
    assert {scene.ended(job_id) for job_id in good} == {("completed", None)}
    assert {job_id: scene.ended(job_id) for job_id in jobs} == {
        "fail2.sampler.1": ("completed", None),
        "weird.decoder.1": ("failed", "internal_error"),
        "bad.finisher.1": ("failed", "bad_shape"),
        "full.sampler.1": ("failed", "out_of_memory"),
    }
    assert scene.dead.keys() == {"weird.decoder.1", "bad.finisher.1", "full.sampler.1"}
    (weird,), (bad,), (full,) = (scene.dead[job_id] for job_id in jobs[1:])
    assert (weird["try"], weird["topic"]) == ("4", "latents.ready")
    assert "secret" not in str(weird)
    assert (bad["try"], bad["stage"]) == ("1", "finisher")
    assert {name: text for name, text in full.items() if name.startswith("evidence")} == {
        "evidence-shape": "17x64x64",
        "evidence-rows": "1",
        "evidence-free-bytes": "7",
    }


def test_killers_end_as_dead_letters_and_their_neighbours_complete(scene: Scene) -> None:
    killers = {"sampler": "sigkill", "decoder": "segfault"}
    if acts.can_limit_memory():  # else the kernel cannot be made to kill here
        killers["finisher"] = "oom"
    jobs = {place: f"{name}.{place}.1" for place, name in killers.items()}
    innocent = [f"innocent.{number}" for number in range(7)]
    end, _ = sampler_log(scene)
    others = [job_id for place, job_id in jobs.items() if place != "sampler"]
    scene.submit(others)
    scene.wait(lambda: sampler_log(scene) == (end + len(others), 0))
    scene.control("sampler", "paused")  # so that all eight are there when it begins
    scene.submit([jobs["sampler"], *innocent])
    scene.wait(lambda: sampler_log(scene)[1] == 8)
    scene.control("sampler", "running")
    scene.wait_for(*innocent, *jobs.values())
    acts.remove_memory_groups()

    assert {scene.ended(job_id) for job_id in innocent} == {("completed", None)}
    samplers = [each for job_id in innocent for each in scene.done[job_id][0].timings]
    alone = [each.batch_size for each in samplers if each.stage == "sampler"]
    assert alone == 7 * [1], "after two crashes with the killer each of them ran alone"
    for job_id in jobs.values():
        assert scene.ended(job_id) == ("failed", "killed_workers")
        (letter,) = scene.dead[job_id]
        assert letter["crashes-alone"] == "3"
        assert int(letter["crashes"]) >= 3
    assert scene.dead[jobs["sampler"]][0]["crashes"] == "5"
    assert not scene.dead.keys() & set(innocent)
    scene.submit(["good.after"])
    scene.wait_for("good.after")
    assert scene.ended("good.after") == ("completed", None)


def sampler_log(scene: Scene) -> tuple[int, int]:
    """How many records the sampler's topic has had, and how many its group has not committed."""
    sampler = stage("sampler")
    consumer = Consumer(
        {"bootstrap.servers": scene.stack.settings.bootstrap, "group.id": sampler.group}
    )
    try:
        partitions = [TopicPartition(sampler.reads, number) for number in range(6)]
        committed = consumer.committed(partitions, timeout=10.0)
        end = sum(consumer.get_watermark_offsets(each, timeout=10.0)[1] for each in partitions)
        return end, end - sum(max(0, each.offset) for each in committed)
    finally:
        consumer.close()
