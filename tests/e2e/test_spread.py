"""Every worker holds every tier, however many there are, also while they come and go under load."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.codec import Codec
from schemas.records import LatentsReady
from streams.core.tiers import DEFAULT_TIERS, partition_of_job, tier_of_partition
from streams.kafka.admin import apply_topics
from streams.local.apache import ApacheKafka
from streams.settings import Settings, child_environment
from streams.topology import stage
from tests.builders import a_cleaned_prompt, a_job

pytestmark = pytest.mark.kafka

SAMPLER = stage("sampler")
NUM_PARTITIONS = 24
DEADLINE_S = 60.0


class Crew:
    """Workers of one stage as processes, on one group, with the load that they carry."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.admin = AdminClient({"bootstrap.servers": settings.bootstrap})
        self.producer = Producer({"bootstrap.servers": settings.bootstrap})
        self.sent: set[str] = set()
        self.files = ExitStack()

    def scale(self, count: int) -> None:
        """Start or drain workers until there are `count`."""
        environment = child_environment(
            {
                "bootstrap": self.settings.bootstrap,
                "blobs": self.folder.as_uri(),
                "group_protocol": self.settings.group_protocol,
            }
        )
        while len(self.workers) < count:
            log = self.files.enter_context((self.folder / f"{uuid.uuid4()}.log").open("wb"))
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.echo", SAMPLER.name],
                    env=environment, stdout=log, stderr=log,
                )
            )  # fmt: skip
        leaving = self.workers[count:]
        del self.workers[count:]
        for each in leaving:
            each.terminate()
        assert [each.wait(DEADLINE_S) for each in leaving] == [0] * len(leaving)

    def send(self, count: int) -> None:
        """Put work on the stage's topic, of all tiers alike."""
        codec = Codec()
        for each in range(count):
            job_id, tier = uuid.uuid4().hex, DEFAULT_TIERS[each % 3]
            partition = partition_of_job(tier, f"tenant-{each % 7}", job_id, NUM_PARTITIONS)
            job = a_job(job_id=job_id, tenant_id=f"tenant-{each % 7}", partition=partition)
            value = codec.encode(a_cleaned_prompt(job=job))
            self.producer.produce(SAMPLER.reads, value, job_id, partition)
            self.sent.add(job_id)
        assert self.producer.flush(DEADLINE_S) == 0

    def holdings(self) -> list[set[int]]:
        """Which partitions each member holds, as the coordinator says."""
        futures: dict[str, Future[Any]] = self.admin.describe_consumer_groups(
            [SAMPLER.group], request_timeout=2.0
        )
        try:
            members = futures[SAMPLER.group].result(5.0).members
        except (KafkaException, TimeoutError):  # no coordinator yet, or nobody has joined
            return []
        return [
            {each.partition for each in member.assignment.topic_partitions} for member in members
        ]

    def close(self) -> None:
        """End everything, however far it came."""
        for each in self.workers:
            each.terminate()
        try:
            for each in self.workers:
                each.wait(DEADLINE_S)
        finally:
            for each in self.workers:
                each.kill()
                each.wait()
            self.files.close()

    def settle(self, count: int) -> None:
        """Wait until `count` members hold every partition, each once, and each of them every tier.

        An assignor that gave a worker a single tier would never come to that.
        """
        deadline_s = time.monotonic() + DEADLINE_S
        while not _is_spread(held := self.holdings(), count):
            assert time.monotonic() < deadline_s, f"{count} workers did not settle: {held}"
            self.producer.poll(0.1)

    def answers(self) -> list[str]:
        """The job ids on the next topic, as soon as every job that was sent is among them."""
        reader = Consumer(
            {
                "bootstrap.servers": self.settings.bootstrap,
                "group.id": uuid.uuid4().hex,
                "auto.offset.reset": "earliest",
            }
        )
        assert SAMPLER.writes is not None
        reader.assign([TopicPartition(SAMPLER.writes, p, 0) for p in range(NUM_PARTITIONS)])
        codec, deadline_s = Codec(), time.monotonic() + DEADLINE_S
        seen: list[str] = []
        while not self.sent <= set(seen):
            assert time.monotonic() < deadline_s, f"{len(self.sent - set(seen))} jobs missing"
            message = reader.poll(0.5)
            if message is not None and message.error() is None:
                value = message.value()
                assert value is not None
                record = codec.decode(value, LatentsReady)
                assert record.job.partition == message.partition()
                seen.append(record.job.job_id)
        reader.close()
        return [job_id for job_id in seen if job_id in self.sent]


def _is_spread(held: list[set[int]], count: int) -> bool:
    everything = sorted(partition for each in held for partition in each)
    tiers = [{tier_of_partition(partition) for partition in each} for each in held]
    return (
        len(held) == count
        and everything == [*range(NUM_PARTITIONS)]
        and all(each == set(DEFAULT_TIERS) for each in tiers)
    )


@pytest.fixture(scope="module")
def lone_kafka(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A broker of this module's own: on the shared one the stage's group has other members."""
    with ApacheKafka(tmp_path_factory.mktemp("lone"), home=kafka_home) as broker:
        yield broker


@pytest.fixture(params=["consumer", "classic"])
def crew(request: pytest.FixtureRequest, lone_kafka: ApacheKafka, tmp_path: Path) -> Iterator[Crew]:
    """A crew on Apache Kafka, with either group protocol."""
    settings = Settings(bootstrap=lone_kafka.bootstrap, group_protocol=request.param)
    apply_topics(settings)
    crew = Crew(settings, tmp_path)
    yield crew
    crew.close()
    crew.admin.delete_consumer_groups([SAMPLER.group])[SAMPLER.group].result(DEADLINE_S)


@pytest.mark.parametrize("count", [1, 3, 6, 8])
def test_workers_started_at_once_hold_every_tier_each(crew: Crew, count: int) -> None:
    crew.scale(count)
    crew.settle(count)


def test_workers_hold_every_tier_while_they_come_and_go_under_load(crew: Crew) -> None:
    for count in (3, 4, 6, 3):
        crew.send(60)
        crew.scale(count)
        crew.send(60)
        crew.settle(count)
    answers = crew.answers()
    assert len(crew.sent) == 480
    assert set(answers) == crew.sent
