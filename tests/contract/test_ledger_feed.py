"""What the log tells of runs, by partition number, on every broker that we support."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic  # type: ignore[attr-defined]

from streams.core.events import Event
from streams.core.runs import RunOfJob
from streams.core.shares import Follow, JobSeen, LedgerRead, Level
from streams.engine import Task
from streams.errors import FatalError, SickHost
from streams.kafka.config import tail_config
from streams.kafka.ledger_feed import KafkaLedgerFeed
from streams.settings import Settings

DEADLINE_S = 30.0
DAY_S = 86_400


@dataclass
class Place:
    """Two topics of three partitions, and a feed that reads them; job ids are the records."""

    settings: Settings
    topics: tuple[str, str]
    heard: list[tuple[int, str]] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    away: set[str] = field(default_factory=set)  # not to be decoded yet

    def write(self, topic: int, partition: int, text: str, age_s: float = 0.0) -> None:
        producer = Producer({"bootstrap.servers": self.settings.bootstrap})
        stamp_ms = int(1000 * (time.time() - age_s))
        producer.produce(self.topics[topic], text.encode(), partition=partition, timestamp=stamp_ms)
        assert producer.flush(DEADLINE_S) == 0

    def feed(self) -> KafkaLedgerFeed:
        config = tail_config(self.settings, "test-ledger")
        return KafkaLedgerFeed(config, self.topics, self.seen, 2 * DAY_S, time.time)

    def seen(self, task: Task) -> JobSeen | None:
        text = (task.value or b"").decode()
        if text in self.away:
            self.away.discard(text)
            raise SickHost("the registry is away")
        if text == "garbage":
            return None
        return JobSeen(task.partition, RunOfJob("acme", text, 1), Level.ENDED)

    def dispatch(self, event: Event) -> None:
        if isinstance(event, LedgerRead):
            self.read.append(event.partition)
        else:
            assert isinstance(event, JobSeen)
            self.heard.append((event.partition, event.run_of_job.job_id))

    def until(self, feed: KafkaLedgerFeed, is_done: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while not is_done():
            assert time.monotonic() < give_up_s, (self.heard, self.read)
            feed.poll(self.dispatch)


@pytest.fixture(params=["apache", "embedded"])
def place(request: pytest.FixtureRequest) -> Place:
    broker = request.getfixturevalue(f"{request.param}_kafka")
    name = f"ledger-{uuid.uuid4().hex[:8]}"
    place = Place(Settings(bootstrap=broker.bootstrap), (f"{name}.done", f"{name}.cleaned"))
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for future in admin.create_topics([NewTopic(each, 3, 1) for each in place.topics]).values():
        future.result(DEADLINE_S)
    return place


def test_a_partition_is_read_in_all_topics_before_it_is_told_so(place: Place) -> None:
    for number in range(3):
        place.write(0, number, f"done-{number}")
        place.write(1, number, f"cleaned-{number}")
    feed = place.feed()
    feed.follow(Follow((0, 2), ()))
    place.until(feed, lambda: sorted(place.read) == [0, 2])
    wanted = [(n, f"{what}-{n}") for n in (0, 2) for what in ("cleaned", "done")]
    assert sorted(place.heard) == sorted(wanted)
    place.write(1, 2, "later")
    place.until(feed, lambda: (2, "later") in place.heard)
    feed.close()


def test_partitions_come_and_go_and_one_that_comes_again_is_read_again(place: Place) -> None:
    place.write(0, 0, "a")
    place.write(0, 1, "b")
    feed = place.feed()
    feed.follow(Follow((0,), ()))
    place.until(feed, lambda: place.read == [0])
    feed.follow(Follow((1,), (0,)))
    place.until(feed, lambda: place.read == [0, 1])
    assert place.heard == [(0, "a"), (1, "b")]
    place.write(0, 0, "unheard")
    place.write(0, 1, "c")
    place.until(feed, lambda: (1, "c") in place.heard)
    assert (0, "unheard") not in place.heard
    feed.follow(Follow((0,), ()))
    place.until(feed, lambda: place.read == [0, 1, 0])
    assert place.heard[-2:] == [(0, "a"), (0, "unheard")]
    feed.close()


def test_what_is_older_than_any_run_is_left_out_and_nothing_younger(place: Place) -> None:
    place.write(0, 0, "old", age_s=3 * DAY_S)
    place.write(0, 0, "young", age_s=DAY_S)
    place.write(1, 0, "older", age_s=4 * DAY_S)
    feed = place.feed()
    feed.follow(Follow((0,), ()))
    place.until(feed, lambda: place.read == [0])
    assert place.heard == [(0, "young")]
    feed.close()


def test_a_record_that_says_nothing_is_passed_and_one_that_cannot_be_read_yet_is_not(
    place: Place,
) -> None:
    for text in ("a", "garbage", "b"):
        place.write(0, 0, text)
    place.away = {"a", "b"}
    feed = place.feed()
    feed.follow(Follow((0,), ()))
    place.until(feed, lambda: len(place.heard) == 2)
    assert place.heard == [(0, "a"), (0, "b")]
    place.until(feed, lambda: place.read == [0])
    feed.close()


def test_partitions_that_came_while_it_ran_are_read_too(place: Place) -> None:
    feed = place.feed()
    feed.follow(Follow((0,), ()))
    place.until(feed, lambda: place.read == [0])
    admin = AdminClient({"bootstrap.servers": place.settings.bootstrap})
    grown = admin.create_partitions([NewPartitions(topic, 6) for topic in place.topics])
    for future in grown.values():
        future.result(DEADLINE_S)
    feed.follow(Follow((5,), ()))
    place.until(feed, lambda: place.read == [0, 5])
    place.write(0, 5, "late")
    place.until(feed, lambda: (5, "late") in place.heard)
    feed.close()


def test_a_topic_that_is_not_there_is_told(place: Place) -> None:
    place.topics = (place.topics[0], f"{place.topics[0]}.none")
    feed = place.feed()
    feed.follow(Follow((0,), ()))
    with pytest.raises(FatalError, match="run `reel topics apply`"):
        place.until(feed, lambda: False)
    feed.close()


@pytest.mark.kafka
def test_without_a_broker_it_waits_and_no_call_takes_long() -> None:
    config = tail_config(Settings(bootstrap="127.0.0.1:9"), "test-ledger")
    feed = KafkaLedgerFeed(config, ("a", "b"), lambda _: None, DAY_S, time.time)
    feed.follow(Follow((0,), ()))
    events: list[Event] = []
    feed.poll(events.append)
    assert events == []
    feed.close()
