"""One suite for the Kafka edges, on every broker and group protocol that we support."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from schemas.codec import Codec
from schemas.records import JobControl, StageControl
from streams.core.events import (
    Acknowledged,
    Assigned,
    CommitPoint,
    Committed,
    Delivered,
    Event,
    JobCancelled,
    JobDeadline,
    NotAcknowledged,
    Output,
    Revoked,
    StagePaused,
    StartOffset,
    Ticket,
    TopicPartition,
    Work,
)
from streams.core.offset_map import MAX_SPAN, Crashes, OffsetMap, encode_offset_map
from streams.engine import Task
from streams.errors import StoreAway
from streams.kafka.admin import apply_topics
from streams.kafka.config import consumer_config, controls_config, producer_config
from streams.kafka.consumer import KafkaSource
from streams.kafka.controls import KafkaControls
from streams.kafka.producer import KafkaSink
from streams.settings import Settings
from streams.topology import JOB_CONTROL, RECORD_MAX_BYTES, STAGE_CONTROL, TOPIC_MAX_BYTES
from tests.builders import CREATED_AT as NOW

DEADLINE_S = 30.0
NEW = StartOffset(OffsetMap(0), is_committed=False)


@dataclass
class Place:
    """A broker, a protocol and a topic of its own."""

    settings: Settings
    topic: str
    is_apache: bool
    admin: AdminClient
    events: list[Event] = field(default_factory=list)
    stalled: list[TopicPartition] = field(default_factory=list)

    def source(self, group: str = "g") -> KafkaSource:
        """A member of a group on this place's topic."""
        return KafkaSource(
            consumer_config(self.settings, f"{self.topic}.{group}", "test"),
            [self.topic],
            _delivered,
            lambda partition, _reason: self.stalled.append(partition),
        )

    def sink(self) -> KafkaSink:
        """A producer."""
        return KafkaSink(producer_config(self.settings, "test"))

    def produce(self, count: int) -> None:
        """Put `count` records on each of the topic's three partitions."""
        sink = self.sink()
        outputs = tuple(
            Output(self.topic, number, b"k", b"%d" % each, (("h", b"v"), ("none", None)))
            for each in range(count)
            for number in range(3)
        )
        sink.produce(_ticket(0), outputs)
        answers: list[Event] = []
        _until(lambda: bool(answers), lambda: sink.poll(answers.append))
        assert answers == [Acknowledged(_ticket(0))]
        sink.close()


@pytest.fixture(params=["apache-consumer", "apache-classic", "embedded-classic"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Every pair of broker and protocol."""
    broker_name, protocol = request.param.split("-")
    broker = request.getfixturevalue(f"{broker_name}_kafka")
    settings = Settings(bootstrap=broker.bootstrap, group_protocol=protocol)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    topic = f"edges-{uuid.uuid4().hex[:12]}"
    _create(admin, [NewTopic(topic, 3, 1)])
    yield Place(settings, topic, broker_name == "apache", admin)
    for future in admin.delete_topics([topic]).values():
        future.result(DEADLINE_S)


def test_records_come_with_key_headers_and_timestamp_in_offset_order(place: Place) -> None:
    place.produce(5)
    source = place.source()
    _until(lambda: len(_deliveries(place)) == 15, _polling(source, place))
    for number in range(3):
        mine = [each for each in _deliveries(place) if each.partition.partition == number]
        assert [each.offset for each in mine] == [0, 1, 2, 3, 4]
    task = _deliveries(place)[0].work.payload
    assert isinstance(task, Task)
    assert (task.key, task.headers) == (b"k", (("h", b"v"), ("none", None)))
    assert abs(task.timestamp_ms / 1000 - time.time()) < 600
    source.close()


def test_a_new_group_begins_at_zero_and_an_old_one_where_it_committed(place: Place) -> None:
    place.produce(4)
    first = place.source()
    _until(lambda: len(_deliveries(place)) == 12, _polling(first, place))
    assert list(_starts(place).values()) == 3 * [NEW]
    first.commit({TopicPartition(place.topic, 1): CommitPoint(3)}, must_finish=False)
    _until(lambda: Committed(is_ok=True) in place.events, _polling(first, place))
    first.commit({TopicPartition(place.topic, 2): CommitPoint(4)}, must_finish=True)
    first.close()
    place.events.clear()

    second = place.source()
    _until(lambda: len(_deliveries(place)) == 5, _polling(second, place))
    assert _starts(place) == {
        TopicPartition(place.topic, 0): NEW,
        TopicPartition(place.topic, 1): StartOffset(OffsetMap(3), is_committed=True),
        TopicPartition(place.topic, 2): StartOffset(OffsetMap(4), is_committed=True),
    }
    assert sorted((each.partition.partition, each.offset) for each in _deliveries(place)) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 3),
    ]  # fmt: skip
    second.close()


def test_a_paused_partition_delivers_nothing_until_it_is_resumed(place: Place) -> None:
    place.produce(6)
    source = place.source()
    paused = TopicPartition(place.topic, 0)

    def take(event: Event) -> None:
        place.events.append(event)
        if isinstance(event, Delivered) and event.partition == paused and event.offset == 1:
            source.pause((paused,))

    def deliveries(number: int) -> list[int]:
        return [d.offset for d in _deliveries(place) if d.partition.partition == number]

    _until(
        lambda: len(deliveries(1)) == len(deliveries(2)) == 6 and len(deliveries(0)) == 2,
        lambda: source.poll(0.1, take),
    )
    assert deliveries(0) == [0, 1]
    source.resume((paused,))
    _until(lambda: len(deliveries(0)) == 6, lambda: source.poll(0.1, take))
    assert deliveries(0) == [0, 1, 2, 3, 4, 5]
    source.close()


def test_a_second_member_gets_partitions_and_the_first_commits_before_it_loses_them(
    place: Place,
) -> None:
    place.produce(3)
    first = place.source()
    moved: list[TopicPartition] = []

    def take(event: Event) -> None:
        place.events.append(event)
        if isinstance(event, Revoked):
            moved.extend(event.partitions)
            first.commit(dict.fromkeys(event.partitions, CommitPoint(2)), must_finish=True)

    _until(lambda: len(_deliveries(place)) == 9, lambda: first.poll(0.1, take))
    second = place.source()
    seen: list[Event] = []

    def both() -> None:
        first.poll(0.05, take)
        second.poll(0.05, seen.append)

    _until(lambda: any(isinstance(each, Assigned) and each.partitions for each in seen), both)
    assert moved
    starts = {k: v for e in seen if isinstance(e, Assigned) for k, v in e.partitions.items()}
    # The embedded broker refuses a commit once a rebalance has begun: work is done twice there.
    refused = [] if place.is_apache else [NEW]
    handed_over = StartOffset(OffsetMap(2), is_committed=True)
    assert [each for each in starts.values() if each not in (handed_over, *refused)] == []
    assert set(starts) <= set(moved)
    first.close()
    second.close()


def test_a_partition_that_went_away_paused_is_read_when_it_comes_back(place: Place) -> None:
    source = place.source()
    all_three = {TopicPartition(place.topic, number) for number in range(3)}

    def held() -> set[TopicPartition]:
        found: set[TopicPartition] = set()
        for event in place.events:
            if isinstance(event, Assigned):
                found |= event.partitions.keys()
            elif isinstance(event, Revoked):
                found -= set(event.partitions)
        return found

    _until(lambda: held() == all_three, _polling(source, place))
    source.pause(tuple(all_three))
    other = place.source()
    _until(lambda: held() != all_three, lambda: _both(source, place, other, lambda _event: None))
    other.close()
    _until(lambda: held() == all_three, _polling(source, place))
    came_back = {each for each in all_three if _num_assigned(place, each) == 2}
    assert came_back
    place.produce(2)

    _until(
        lambda: came_back <= {each.partition for each in _deliveries(place)},
        _polling(source, place),
    )
    source.close()


def test_who_is_given_partitions_while_it_leaves_does_not_ask_where_to_begin(place: Place) -> None:
    """Nobody answers any more: asking would take as long as that is waited for, and then raise."""
    source = place.source()  # its client joins by itself; what it is given waits for a poll

    def is_given() -> bool:
        (group,) = place.admin.describe_consumer_groups([f"{place.topic}.g"]).values()
        try:
            members = group.result(DEADLINE_S).members
        except KafkaException:  # no coordinator yet
            return False
        return any(each.assignment.topic_partitions for each in members)

    _until(is_given, lambda: time.sleep(0.2))
    source.close()
    assert not place.events


def test_an_offset_that_the_log_no_longer_holds_is_an_alarm_and_never_a_skip(place: Place) -> None:
    place.produce(4)
    for future in place.admin.delete_records([KafkaPartition(place.topic, 0, 2)]).values():
        future.result(DEADLINE_S)
    source = place.source()
    _until(lambda: bool(place.stalled) and len(_deliveries(place)) >= 8, _polling(source, place))
    assert set(place.stalled) == {TopicPartition(place.topic, 0)}
    assert {each.partition.partition for each in _deliveries(place)} == {1, 2}
    source.close()


def test_one_answer_follows_for_all_the_records_of_a_ticket(place: Place) -> None:
    sink = place.sink()
    answers: list[Event] = []
    outputs = tuple(Output(place.topic, n, None, b"x", ()) for n in range(3))
    sink.produce(_ticket(1), outputs)
    sink.produce(_ticket(2), ())
    _until(lambda: len(answers) == 2, lambda: sink.poll(answers.append))
    assert set(answers) == {Acknowledged(_ticket(1)), Acknowledged(_ticket(2))}
    sink.close()


def test_a_record_that_no_broker_will_ever_take_is_refused_for_good(place: Place) -> None:
    sink = place.sink()
    answers: list[Event] = []
    good, huge = (Output(place.topic, 0, None, b"x" * size, ()) for size in (1, 2 * 1024 * 1024))
    sink.produce(_ticket(1), (good, huge))
    _until(lambda: bool(answers), lambda: sink.poll(answers.append))
    answer = answers[0]
    assert isinstance(answer, NotAcknowledged)
    assert answer.is_permanent
    sink.close()


def test_a_burst_is_never_refused_for_its_size(place: Place) -> None:
    """A broker refuses a batch larger than its topic's records may be, and all that is in it."""
    topic = f"{place.topic}-small"
    config = {"max.message.bytes": str(TOPIC_MAX_BYTES)}
    _create(place.admin, [NewTopic(topic, 1, 1, config=config)])
    sink = place.sink()
    sizes = [400] * 3_000 + [RECORD_MAX_BYTES] * 5 + [400] * 100
    for number, size in enumerate(sizes):
        sink.produce(_ticket(number), (Output(topic, 0, b"k", b"v" * size, ()),))
    answers: list[Event] = []
    _until(lambda: len(answers) == len(sizes), lambda: sink.poll(answers.append))
    assert {type(each) for each in answers} == {Acknowledged}
    sink.close()
    place.admin.delete_topics([topic])[topic].result(DEADLINE_S)


def test_controls_are_read_from_the_start_and_again_when_they_come(place: Place) -> None:
    codec = Codec()
    apply_topics(place.settings)
    job_id = uuid.uuid4().hex
    cancel = JobControl(job_id, 1, "cancel", NOW, "test")
    later = JobControl(job_id, 1, "deadline", NOW, "test", deadline=NOW, tenant_id="acme")
    pause = StageControl("decoder", "paused", NOW, "test")
    run = StageControl("decoder", "running", NOW, "test")
    sink = place.sink()

    def put(topic: str, value: bytes | None) -> None:
        answers: list[Event] = []
        sink.produce(_ticket(0), (Output(topic, 0, b"k", value, ()),))
        _until(lambda: bool(answers), lambda: sink.poll(answers.append))

    put(JOB_CONTROL, codec.encode(cancel))
    put(JOB_CONTROL, b"nonsense")
    put(JOB_CONTROL, None)
    put(STAGE_CONTROL, codec.encode(pause))
    controls = KafkaControls(controls_config(place.settings, "test"), "decoder", codec)
    _until(lambda: controls.is_caught_up, lambda: controls.poll(place.events.append))
    assert JobCancelled(job_id, 1, NOW.timestamp()) in place.events
    assert StagePaused(True) in place.events
    put(JOB_CONTROL, codec.encode(later))
    put(STAGE_CONTROL, codec.encode(run))
    _until(
        lambda: (
            JobDeadline(job_id, 1, NOW.timestamp(), NOW.timestamp(), "acme") in place.events
            and StagePaused(False) in place.events
        ),
        lambda: controls.poll(place.events.append),
    )
    controls.close()
    sink.close()


def test_an_offset_map_travels_with_its_commit_to_the_next_owner(place: Place) -> None:
    place.produce(2)
    known = OffsetMap(0, 0b10, {0: Crashes(2, 1)})
    full = OffsetMap(0, (1 << MAX_SPAN) - 1, {each: Crashes(300, 3) for each in range(9)})
    newer = CommitPoint(1, "9from the future")
    first = place.source()
    _until(lambda: len(_deliveries(place)) == 6, _polling(first, place))
    points = (CommitPoint(0, encode_offset_map(known)), CommitPoint(0, encode_offset_map(full)))
    first.commit(
        {TopicPartition(place.topic, n): p for n, p in enumerate((*points, newer))},
        must_finish=True,
    )
    first.close()
    place.events.clear()

    second = place.source()
    _until(lambda: bool(_starts(place)), _polling(second, place))
    assert _starts(place) == {
        TopicPartition(place.topic, 0): StartOffset(known, is_committed=True),
        TopicPartition(place.topic, 1): StartOffset(full, is_committed=True),
        TopicPartition(place.topic, 2): StartOffset(
            OffsetMap(1), is_committed=True, is_map_ignored=True
        ),
    }
    second.close()


def test_a_record_may_keep_the_time_of_another(place: Place) -> None:
    sink = place.sink()
    answers: list[Event] = []
    hour_ago_ms = int(time.time() * 1000) - 3_600_000
    output = Output(place.topic, 0, b"k", b"v", (), timestamp_ms=hour_ago_ms)
    sink.produce(_ticket(0), (output,))
    _until(lambda: bool(answers), lambda: sink.poll(answers.append))
    sink.close()
    source = place.source()
    _until(lambda: bool(_deliveries(place)), _polling(source, place))
    task = _deliveries(place)[0].work.payload
    assert isinstance(task, Task)
    assert task.timestamp_ms == hour_ago_ms
    source.close()


def test_a_record_that_cannot_be_decoded_yet_is_delivered_again_and_in_order(place: Place) -> None:
    place.produce(3)
    left = 2

    def intake(task: Task) -> Event:
        nonlocal left
        if task.partition == 0 and task.offset == 1 and left:
            left -= 1
            raise StoreAway("the schema registry is away")
        return _delivered(task)

    source = KafkaSource(
        consumer_config(place.settings, f"{place.topic}.again", "test"), [place.topic], intake,
        lambda *_: None,
    )  # fmt: skip
    _until(lambda: len(_deliveries(place)) == 9, _polling(source, place))
    assert left == 0
    mine = [each.offset for each in _deliveries(place) if each.partition.partition == 0]
    assert mine == [0, 1, 2]
    source.close()


# ---- how these tests wait and look


def _delivered(task: Task) -> Delivered:
    partition = TopicPartition(task.topic, task.partition)
    return Delivered(partition, task.offset, Work("job", 1, None, None, task))


def _ticket(offset: int) -> Ticket:
    return Ticket(TopicPartition("in", 0), offset, 1)


def _deliveries(place: Place) -> list[Delivered]:
    return [event for event in place.events if isinstance(event, Delivered)]


def _starts(place: Place) -> dict[TopicPartition, StartOffset]:
    return {
        partition: start
        for event in place.events
        if isinstance(event, Assigned)
        for partition, start in event.partitions.items()
    }


def _polling(source: KafkaSource, place: Place) -> Callable[[], None]:
    return lambda: source.poll(0.1, place.events.append)


def _until(is_done: Callable[[], bool], turn: Callable[[], None]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_done():
        assert time.monotonic() < deadline_s, "waited in vain"
        turn()


def _both(
    source: KafkaSource, place: Place, other: KafkaSource, take: Callable[[Event], None]
) -> None:
    source.poll(0.05, place.events.append)
    other.poll(0.05, take)


def _num_assigned(place: Place, partition: TopicPartition) -> int:
    return sum(isinstance(each, Assigned) and partition in each.partitions for each in place.events)


def _create(admin: AdminClient, topics: list[NewTopic]) -> None:
    for future in admin.create_topics(topics).values():
        future.result(DEADLINE_S)
    names = {topic.topic for topic in topics}
    _until(lambda: names <= set(admin.list_topics(timeout=DEADLINE_S).topics), lambda: None)
