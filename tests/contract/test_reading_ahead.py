"""What a source reads ahead: no partition is behind another's flood, and nothing is lost."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from streams.core.events import Delivered, Event, TopicPartition, Work
from streams.engine import Task
from streams.errors import StoreAway
from streams.kafka.config import consumer_config, producer_config
from streams.kafka.consumer import KafkaSource
from streams.settings import Settings

DEADLINE_S = 60.0
NUM_FLOOD, VALUE = 3_000, b"x" * 300
FLOODED, QUIET = 0, 1


class Log:
    """A topic, and a reader of it that notes what came, and may be in doubt about records."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.topic = settings, f"ahead-{uuid.uuid4().hex[:8]}"
        self.came: list[tuple[int, int]] = []  # partition, offset
        self.take: Callable[[Task], None] = lambda task: None
        self._producer = Producer(producer_config(settings, "test"))

    @contextmanager
    def source(self) -> Iterator[KafkaSource]:
        def delivered(task: Task) -> Event:
            self.take(task)
            partition = TopicPartition(task.topic, task.partition)
            return Delivered(partition, task.offset, Work("job", 1, None, None, task))

        config = consumer_config(self.settings, f"{self.topic}.group", "test")
        source = KafkaSource(config, [self.topic], delivered, lambda partition, reason: None)
        try:
            yield source
        finally:
            source.close()

    def write(self, partition: int, num: int) -> None:
        for _ in range(num):
            self._producer.produce(self.topic, VALUE, b"k", partition)
        assert self._producer.flush(DEADLINE_S) == 0

    def note(self, event: Event) -> None:
        if isinstance(event, Delivered):
            self.came.append((event.partition.partition, event.offset))

    def read(self, source: KafkaSource, is_done: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while not is_done():
            assert time.monotonic() < give_up_s, f"{len(self.came)} records came"
            source.poll(0.1, self.note)

    def num(self, partition: int) -> int:
        return sum(each == partition for each, _ in self.came)

    def check_order(self) -> None:
        offsets: dict[int, list[int]] = defaultdict(list)
        for partition, offset in self.came:
            offsets[partition].append(offset)
        for found in offsets.values():
            assert found == list(range(len(found))), "once each, in order"


@pytest.fixture(params=["apache-consumer", "apache-classic"])
def log(request: pytest.FixtureRequest) -> Log:
    name, protocol = request.param.split("-")
    broker = request.getfixturevalue(f"{name}_kafka")
    # So little that lanes become full again and again.
    log = Log(Settings(bootstrap=broker.bootstrap, group_protocol=protocol, prefetch_kb=64))
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for future in admin.create_topics([NewTopic(log.topic, 3, 1)]).values():
        future.result(DEADLINE_S)
    return log


def test_a_record_of_a_quiet_partition_does_not_stand_behind_a_flood(log: Log) -> None:
    log.write(FLOODED, NUM_FLOOD)
    log.write(QUIET, 1)
    with log.source() as source:
        log.read(source, lambda: log.num(FLOODED) > 0)
        log.read(source, lambda: log.num(QUIET) == 1)
        num_before = log.came.index((QUIET, 0))
        log.read(source, lambda: log.num(FLOODED) == NUM_FLOOD)
    log.check_order()
    assert num_before < 700, "what one fetch brings"
    with log.source() as source:  # nothing was committed: all of it comes again
        log.came.clear()
        log.read(source, lambda: len(log.came) == NUM_FLOOD + 1)
    log.check_order()


def test_what_comes_while_it_is_read_is_handed_on_within_a_turn_or_two(log: Log) -> None:
    log.write(FLOODED, NUM_FLOOD)
    with log.source() as source:
        log.read(source, lambda: log.num(FLOODED) > 0)
        num_before = log.num(FLOODED)
        log.take = lambda task: time.sleep(0.002)  # as a worker that has more to do than to read
        log.write(QUIET, 1)
        log.read(source, lambda: log.num(QUIET) == 1)
        assert log.num(FLOODED) - num_before < 100
    log.check_order()


def test_a_held_partition_keeps_what_was_read_of_it(log: Log) -> None:
    log.write(FLOODED, NUM_FLOOD)
    log.write(QUIET, 50)
    flooded = (TopicPartition(log.topic, FLOODED),)
    with log.source() as source:
        log.read(source, lambda: log.num(FLOODED) > 0)
        source.pause(flooded)
        num_before = log.num(FLOODED)
        log.read(source, lambda: log.num(QUIET) == 50)
        assert log.num(FLOODED) == num_before
        source.resume(flooded)
        log.read(source, lambda: log.num(FLOODED) == NUM_FLOOD)
    log.check_order()


def test_what_cannot_be_decoded_yet_is_the_next_one_again(log: Log) -> None:
    log.write(FLOODED, 20)
    tries: list[int] = []

    def doubt(task: Task) -> None:
        if task.offset == 5 and len(tries) < 3:
            tries.append(task.offset)
            raise StoreAway("the schema registry is away")

    log.take = doubt
    with log.source() as source:
        log.read(source, lambda: log.num(FLOODED) == 20)
    log.check_order()
    assert len(tries) == 3
