"""A reader of whole topics that joins no group, on every broker that we support."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from streams.engine import Task
from streams.errors import FatalError, SickHost
from streams.kafka.config import ClientConfig, patient_tail_config, tail_config
from streams.kafka.tail import KafkaTail
from streams.settings import Settings

DEADLINE_S = 30.0
DAY_S = 86_400

ConfigOf = Callable[[Settings, str], ClientConfig]


@dataclass(frozen=True)
class Place:
    """A broker with two topics of three partitions that nobody else uses."""

    settings: Settings
    endings: str
    beginnings: str

    def write(self, topic: str, *texts: str, age_s: float = 0.0) -> None:
        producer = Producer({"bootstrap.servers": self.settings.bootstrap})
        for number, text in enumerate(texts):
            stamp_ms = int(1000 * (time.time() - age_s))
            producer.produce(
                topic, text.encode(), b"key", partition=number % 3, timestamp=stamp_ms,
                headers=[("ce_id", text.encode())],
            )  # fmt: skip
        assert producer.flush(DEADLINE_S) == 0

    def tail(self, since_s: float = 0.0, config_of: ConfigOf = tail_config) -> KafkaTail:
        config = config_of(self.settings, "test-tail")
        return KafkaTail(config, [self.endings], [self.beginnings], since_s)


@pytest.fixture(params=["apache", "embedded"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each broker in turn."""
    broker = request.getfixturevalue(f"{request.param}_kafka")
    name = f"tail-{uuid.uuid4().hex[:8]}"
    place = Place(Settings(bootstrap=broker.bootstrap), f"{name}.endings", f"{name}.beginnings")
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    topics = [NewTopic(topic, 3, 1) for topic in (place.endings, place.beginnings)]
    for future in admin.create_topics(topics).values():
        future.result(DEADLINE_S)
    return place


def read(tail: KafkaTail, at_least: int = 0) -> Iterator[Task]:
    """What there is: to its end, and at least so many."""
    give_up_s = time.monotonic() + DEADLINE_S
    count = 0
    while count < at_least or not tail.is_caught_up:
        assert time.monotonic() < give_up_s
        for task in tail.poll(0.1):
            count += 1
            yield task


def texts(tasks: Iterable[Task]) -> list[str]:
    return sorted((task.value or b"").decode() for task in tasks)


def test_everything_is_read_the_first_topics_first(place: Place) -> None:
    place.write(place.beginnings, *"abcdefghi")
    place.write(place.endings, *"ABCDEFGHI")
    tail = place.tail()
    tasks = list(read(tail))
    assert texts(tasks[:9]) == [*"ABCDEFGHI"]
    assert texts(tasks[9:]) == [*"abcdefghi"]
    (first,) = [task for task in tasks if task.value == b"e"]
    assert (first.topic, first.partition, first.offset) == (place.beginnings, 1, 1)
    assert (first.key, first.headers) == (b"key", (("ce_id", b"e"),))
    assert abs(first.timestamp_ms / 1000 - time.time()) < DEADLINE_S
    tail.close()


def test_what_comes_later_is_read_too_by_every_reader(place: Place) -> None:
    tails = [place.tail(), place.tail(config_of=patient_tail_config)]
    for tail in tails:
        assert list(read(tail)) == []
    place.write(place.beginnings, "a", "b", "c")
    place.write(place.endings, "A")
    for tail in tails:
        assert texts(read(tail, 4)) == ["A", "a", "b", "c"]
        tail.close()


def test_what_is_older_is_left_out_and_nothing_younger(place: Place) -> None:
    place.write(place.beginnings, "old", "older", "oldest", age_s=3 * DAY_S)
    place.write(place.beginnings, "young", age_s=DAY_S)  # only partition 0 has any
    place.write(place.endings, "OLD", age_s=3 * DAY_S)
    tail = place.tail(time.time() - 2 * DAY_S)
    assert texts(read(tail)) == ["young"]
    place.write(place.beginnings, "x", "y", "z", age_s=2.5 * DAY_S)  # by a slow clock
    assert texts(read(tail, 3)) == ["x", "y", "z"], "what is appended from now on is new"
    tail.close()


def test_a_topic_that_is_not_there_is_told(place: Place) -> None:
    config = tail_config(place.settings, "test-tail")
    with pytest.raises(FatalError, match="run `reel topics apply`"):
        KafkaTail(config, [place.endings], [f"{place.endings}.none"], 0.0)


@pytest.mark.kafka
def test_no_broker_is_a_sick_host() -> None:
    config = tail_config(Settings(bootstrap="127.0.0.1:9"), "test-tail")
    with pytest.raises(SickHost, match="no answer from Kafka"):
        KafkaTail(config, ["a"], [], 0.0)
