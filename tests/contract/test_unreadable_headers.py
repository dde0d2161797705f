"""For a broker a header's name may be any bytes: a record with such a name disturbs no reader.

No client writes one, so it is put into a batch by hand.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from streams.core.events import Delivered, Event, TopicPartition, Work
from streams.engine import Task
from streams.errors import StoreAway
from streams.kafka.config import consumer_config, tail_config
from streams.kafka.consumer import KafkaSource
from streams.kafka.tail import KafkaTail
from streams.settings import Settings
from tests.contract.foreign_batches import Headers, Unreadable, write_batches

DEADLINE_S = 30.0


SOUND: Headers = [("good", b"h")]
BAD: Headers = [("before", b"b"), (Unreadable("bad"), b"h"), ("after", b"a")]
NUM_BEFORE = 50
"""Calls that were often made Python makes in another way, which looks less closely at results."""
WRITTEN = NUM_BEFORE * [SOUND] + [BAD, SOUND]
READ = [
    (number, b"v", () if headers is BAD else tuple(SOUND)) for number, headers in enumerate(WRITTEN)
]


@dataclass(frozen=True)
class Place:
    """A broker and a topic of one partition."""

    settings: Settings
    topic: str


@pytest.fixture(params=["apache", "embedded"])
def place(request: pytest.FixtureRequest) -> Place:
    """A record with an unreadable name among its headers, among sound ones."""
    broker = request.getfixturevalue(f"{request.param}_kafka")
    settings = Settings(bootstrap=broker.bootstrap, group_protocol="classic")
    place = Place(settings, f"headers-{uuid.uuid4().hex[:8]}")
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(place.topic, 1, 1)])[place.topic].result(DEADLINE_S)
    batches = [[(b"k", b"v", headers)] for headers in WRITTEN]
    asyncio.run(write_batches(broker.bootstrap, place.topic, 0, batches))
    return place


def told(tasks: list[Task]) -> list[tuple[int, bytes | None, tuple[Any, ...]]]:
    return [(task.offset, task.value, tuple(task.headers)) for task in tasks]


def test_a_worker_is_handed_it_without_headers_and_what_follows_as_ever(place: Place) -> None:
    came: list[Task] = []
    num_doubts = 0

    def intake(task: Task) -> Event:
        """Not at the first time: the same message is looked at again then."""
        nonlocal num_doubts
        if task.offset == NUM_BEFORE and not num_doubts:
            num_doubts += 1
            raise StoreAway("the schema registry is away")
        came.append(task)
        partition = TopicPartition(task.topic, task.partition)
        return Delivered(partition, task.offset, Work("job", 1, None, None, task))

    config = consumer_config(place.settings, f"{place.topic}.group", "test")
    source = KafkaSource(config, [place.topic], intake, lambda partition, reason: None)
    give_up_s = time.monotonic() + DEADLINE_S
    while len(came) < len(READ):
        assert time.monotonic() < give_up_s
        source.poll(0.1, lambda event: None)
    source.close()
    assert told(came) == READ


def test_a_reader_of_whole_topics_is_told_of_it_in_the_same_way(place: Place) -> None:
    tail = KafkaTail(tail_config(place.settings, "test-tail"), [place.topic], [], 0.0)
    came: list[Task] = []
    give_up_s = time.monotonic() + DEADLINE_S
    while not tail.is_caught_up:
        assert time.monotonic() < give_up_s
        came += tail.poll(0.1)
    tail.close()
    assert told(came) == READ
