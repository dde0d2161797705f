"""Topics and starting offsets, on every broker that we support."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from schemas.records import CleanedPrompt
from streams import topology
from streams.errors import SettingsError, SickHost
from streams.kafka.admin import (
    apply_topics,
    check_topics,
    group_protocol_supported,
    reset_to_start,
)
from streams.kafka.cluster import Cluster
from streams.kafka.migration import Remainder, unfinished
from streams.settings import Settings, read_settings
from streams.topology import DAY_MS, Stage, Topic

pytestmark = pytest.mark.kafka

DEADLINE_S = 30.0
RETENTION_MS = 7 * DAY_MS
RETRIES = ("requests.retry.10s",)


@dataclass(frozen=True)
class Place:
    """A broker, and a name that nobody else uses there."""

    settings: Settings
    name: str
    admin: AdminClient
    speaks_kip848: bool

    def topics(self) -> list[Topic]:
        """Some of each sort, of our own names."""
        return [
            replace(topic, name=f"{self.name}.{topic.name}")
            for topic in topology.topics(RETENTION_MS, (10,))
            if topic.name in ("requests", *RETRIES, "requests.dlt", "jobs.control", "jobs.state")
        ]

    def create(self, name: str, count: int, **config: str) -> None:
        """Create one by hand."""
        dotted = {key.replace("_", "."): value for key, value in config.items()}
        for future in self.admin.create_topics([NewTopic(name, count, 1, config=dotted)]).values():
            future.result(DEADLINE_S)
        give_up_s = time.monotonic() + DEADLINE_S
        while name not in self.admin.list_topics(timeout=DEADLINE_S).topics:
            assert time.monotonic() < give_up_s

    def config(self, name: str) -> dict[str, str]:
        """The settings of a topic as the broker tells them."""
        (found,) = Cluster(self.settings).topics([Topic(name, "stage")]).values()
        return dict(found.config)


@pytest.fixture(params=["apache", "embedded"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each broker in turn."""
    broker = request.getfixturevalue(f"{request.param}_kafka")
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    settings = read_settings(bootstrap=broker.bootstrap, partitions=6)
    name = f"admin-{uuid.uuid4().hex[:8]}"
    yield Place(settings, name, admin, broker.speaks_kip848)
    mine = [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith(name)]
    if mine:
        for future in admin.delete_topics(mine).values():
            future.result(DEADLINE_S)


# ---- topics


def test_apply_creates_every_topic_once_as_the_topology_says(place: Place) -> None:
    changes = apply_topics(place.settings, place.topics())
    assert [change.text for change in changes] == [
        f"topic {place.name}.requests: created with 6 partitions",
        f"topic {place.name}.requests.retry.10s: created with 6 partitions",
        f"topic {place.name}.requests.dlt: created with 6 partitions",
        f"topic {place.name}.jobs.control: created with 1 partitions",
        f"topic {place.name}.jobs.state: created with 6 partitions",
    ]
    for topic in place.topics():
        config = place.config(topic.name)
        assert {key: config[key] for key in topic.config} == topic.config
    assert check_topics(place.settings, place.topics()) == []
    assert apply_topics(place.settings, place.topics()) == []


def test_check_names_what_is_missing_and_creates_nothing(place: Place) -> None:
    for _ in range(2):
        problems = check_topics(place.settings, place.topics())
        assert [problem.text for problem in problems] == [
            f"topic {topic.name} is missing: run `reel topics apply`" for topic in place.topics()
        ]


def test_retention_and_sizes_of_an_existing_topic_are_set(place: Place) -> None:
    name = f"{place.name}.requests"
    place.create(name, 6, retention_ms="1000", max_message_bytes="2000", segment_ms="123456789")
    want_ms, want_bytes = str(RETENTION_MS), str(topology.TOPIC_MAX_BYTES)
    too_short = "REEL_DEADLINE_S, REEL_RETRY_DELAYS_S and REEL_REDRIVE_WINDOW_S take 346270 s"
    wanted = place.topics()[:1]
    assert [problem.text for problem in check_topics(place.settings, wanted)] == [
        f"topic {name}: retention.ms is 1000, want {want_ms}, but {too_short}: run "
        "`reel topics apply`",
        f"topic {name}: max.message.bytes is 2000, want {want_bytes}: run `reel topics apply`",
    ]
    assert [change.text for change in apply_topics(place.settings, wanted)] == [
        f"topic {name}: retention.ms was 1000, is now {want_ms}",
        f"topic {name}: max.message.bytes was 2000, is now {want_bytes}",
    ]
    config = place.config(name)
    assert (config["retention.ms"], config["max.message.bytes"]) == (want_ms, want_bytes)
    assert config["segment.ms"] == "123456789", "what is not ours stays"
    assert check_topics(place.settings, wanted) == []


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (12, "a partition count cannot shrink: set REEL_PARTITIONS=12, or drain and delete"),
        (
            3,
            "jobs must keep their partition: set REEL_PARTITIONS=3, or `reel topics grow 6` with "
            "REEL_PARTITIONS=3, or drain and delete",
        ),
        (1, "jobs must keep their partition: drain and delete"),
    ],
)
def test_another_partition_count_is_an_error_and_nothing_is_changed(
    count: int, why: str, place: Place
) -> None:
    name = f"{place.name}.requests"
    place.create(name, count)
    text = (
        f"topic {name} has {count} partitions, want 6; {why} the topic, "
        "then run `reel topics apply`"
    )
    with pytest.raises(SettingsError) as refused:
        apply_topics(place.settings, place.topics())
    assert str(refused.value) == text
    problems = check_topics(place.settings, place.topics())
    assert [problem.text for problem in problems if " is " not in problem.text] == [text]
    assert len([problem for problem in problems if "is missing" in problem.text]) == 4


def test_another_cleanup_policy_is_an_error_that_says_how_to_set_it(place: Place) -> None:
    name = f"{place.name}.jobs.control"
    place.create(name, 1, cleanup_policy="delete")
    with pytest.raises(SettingsError) as refused:
        apply_topics(place.settings, place.topics())
    assert str(refused.value) == (
        f"topic {name}: cleanup.policy is delete, want compact,delete: set it with "
        f"`kafka-configs --alter --topic {name} --add-config 'cleanup.policy=[compact,delete]'`"
    )


def test_the_order_in_a_cleanup_policy_does_not_matter(place: Place) -> None:
    place.create(f"{place.name}.jobs.control", 1, cleanup_policy="delete,compact")
    apply_topics(place.settings, place.topics())
    assert check_topics(place.settings, place.topics()) == []


def test_more_replicas_than_brokers_is_told_in_words(place: Place) -> None:
    settings = place.settings.model_copy(update={"replication_factor": 3})
    with pytest.raises(SettingsError, match="REEL_REPLICATION_FACTOR=3 needs as many brokers"):
        apply_topics(settings, place.topics())
    apply_topics(place.settings, place.topics())
    texts = [problem.text for problem in check_topics(settings, place.topics())]
    assert f"topic {place.name}.requests has replication factor 1, want 3" in texts[0]
    assert "set REEL_REPLICATION_FACTOR=1, or move it" in texts[0]
    assert any("min.insync.replicas is 1, want 2" in text for text in texts)


def test_several_may_apply_at_once(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        changes = list(pool.map(lambda _: apply_topics(place.settings, place.topics()), range(4)))
    assert sorted(change.topic for each in changes for change in each) == sorted(
        topic.name for topic in place.topics()
    )


def test_a_bound_by_size_and_a_retry_topic_on_another_clock_are_mended(place: Place) -> None:
    name = f"{place.name}.requests.retry.10s"
    place.create(name, 6, retention_bytes="1000000", message_timestamp_type="CreateTime")
    wanted = place.topics()[1:2]
    texts = [problem.text for problem in check_topics(place.settings, wanted)]
    assert f"topic {name}: retention.bytes is 1000000, want -1: run `reel topics apply`" in texts
    stamp = "message.timestamp.type is CreateTime, want LogAppendTime"
    assert f"topic {name}: {stamp}: run `reel topics apply`" in texts
    apply_topics(place.settings, wanted)
    assert check_topics(place.settings, wanted) == []


def test_retention_must_outlast_deadline_retries_and_redrive(place: Place) -> None:
    apply_topics(place.settings, place.topics())
    too_long = {
        "deadline_s": 4 * 86_400.0,
        "redrive_window_s": 6 * 86_400,
        "retry_delays_s": (10, 3 * 86_400),
    }
    for name, value in too_long.items():
        settings = place.settings.model_copy(update={name: value})
        texts = [problem.text for problem in check_topics(settings, place.topics())]
        short = (
            f", but REEL_DEADLINE_S, REEL_RETRY_DELAYS_S and REEL_REDRIVE_WINDOW_S take "
            f"{settings.needed_s:.0f} s"
        )
        assert texts[0] == f"REEL_RETENTION_S is 604800{short}: raise it or lower one of these"
        assert len(texts) == 1
        with pytest.raises(SettingsError, match="REEL_RETENTION_S is 604800"):
            apply_topics(settings, place.topics())
    just = place.settings.model_copy(update={"retention_s": int(place.settings.needed_s) + 1})
    assert check_topics(just, place.topics()) == []


def test_offsets_must_be_kept_as_long_where_the_brokers_tell(place: Place) -> None:
    """Apache Kafka tells how long it keeps offsets (60 days here), the embedded broker does not."""
    apply_topics(place.settings, place.topics())
    longest = place.settings.model_copy(
        update={"deadline_s": 90 * 86_400.0, "retention_s": 200 * 86_400}
    )
    texts = [problem.text for problem in check_topics(longest, place.topics())]
    assert (len(texts) == 1) == place.speaks_kip848
    assert all(
        "brokers: offsets.retention.minutes is 86400, but REEL_DEA" in each for each in texts
    )


def test_several_brokers_are_asked_one_by_one() -> None:
    """librdkafka's stand-in for brokers can't describe itself: asked as it must be, it says so."""
    stand_in = Producer({"bootstrap.servers": "nobody", "test.mock.num.brokers": 3})
    brokers = stand_in.list_topics(timeout=DEADLINE_S).brokers.values()
    assert len(brokers) == 3
    bootstrap = ",".join(f"{each.host}:{each.port}" for each in brokers)
    assert Cluster(Settings(bootstrap=bootstrap)).offsets_retention_min() is None


def test_only_apache_kafka_speaks_kip_848(place: Place) -> None:
    assert group_protocol_supported(place.settings) is place.speaks_kip848


# ---- brokers that are not there


def test_no_broker_is_one_line_that_names_the_setting() -> None:
    def complaint(ask: Callable[[Settings], object]) -> str:
        with pytest.raises(SickHost) as no:
            ask(settings)
        return str(no.value)

    with socket.socket() as taken, ThreadPoolExecutor(3) as pool:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = read_settings(bootstrap=address)
        for text in pool.map(complaint, (apply_topics, check_topics, reset_sampler)):
            assert text.startswith(f"no Kafka broker answers at {address} (REEL_BOOTSTRAP): ")
            assert "Connection refused" in text


def reset_sampler(settings: Settings) -> object:
    """Reset a stage of the topology."""
    return reset_to_start(settings, topology.stage("sampler"))


def test_where_the_protocol_cannot_be_asked_for_it_counts_as_supported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings = read_settings(bootstrap=f"127.0.0.1:{taken.getsockname()[1]},nonsense:x")
        assert group_protocol_supported(settings)
    assert group_protocol_supported(read_settings(kafka_extra={"security.protocol": "SASL_SSL"}))


def test_a_setting_that_librdkafka_does_not_know_is_told() -> None:
    settings = read_settings(kafka_extra={"sasl.pasword": "canary"})
    for ask in (check_topics, reset_sampler):
        with pytest.raises(SettingsError, match=r"REEL_KAFKA_EXTRA: .*sasl\.pasword") as no:
            ask(settings)
        assert "canary" not in str(no.value)


# ---- starting offsets


@dataclass(frozen=True)
class Group:
    """A stage of a test's own, with six records on each of its topic's three partitions."""

    place: Place
    stage: Stage

    def commit(self, **offsets: int) -> None:
        """Commit as a member that has left; `p0=3` means partition 0 at 3."""
        consumer = self._consumer()
        places = [
            TopicPartition(self.stage.reads, int(name[1:]), offset)
            for name, offset in offsets.items()
        ]
        consumer.commit(offsets=places, asynchronous=False)
        consumer.close()

    def committed(self) -> list[int]:
        """What the group has committed, by partition of the stage topic."""
        consumer = self._consumer()
        places = [TopicPartition(self.stage.reads, number) for number in range(3)]
        offsets = [each.offset for each in consumer.committed(places, timeout=DEADLINE_S)]
        consumer.close()
        return offsets

    def forget_records(self, before: int) -> None:
        """What retention does in time."""
        places = [TopicPartition(self.stage.reads, number, before) for number in range(3)]
        for future in self.place.admin.delete_records(places).values():
            future.result(DEADLINE_S)

    def member(self) -> Consumer:
        """A worker, assigned and reading."""
        consumer = self._consumer()
        consumer.subscribe([self.stage.reads])
        give_up_s = time.monotonic() + DEADLINE_S
        while consumer.poll(0.2) is None:
            assert time.monotonic() < give_up_s
        return consumer

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.place.settings.bootstrap,
                "group.id": self.stage.group,
                "group.protocol": "consumer" if self.place.speaks_kip848 else "classic",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )


@pytest.fixture
def group(place: Place) -> Group:
    stage = Stage(place.name, f"{place.name}.in", CleanedPrompt, None, None, "nothing")
    place.create(stage.reads, 3)
    producer = Producer({"bootstrap.servers": place.settings.bootstrap})
    for number in range(18):
        producer.produce(stage.reads, b"x", partition=number % 3)
    assert producer.flush(DEADLINE_S) == 0
    return Group(place, stage)


def test_a_group_without_offsets_begins_at_the_logs_start(group: Group) -> None:
    group.forget_records(before=4)
    changes = reset_to_start(group.place.settings, group.stage)
    assert [change.text for change in changes] == [
        f"group {group.stage.group}: {group.stage.reads}[{number}] begins at 4, "
        "had no committed offset"
        for number in range(3)
    ]
    assert group.committed() == [4, 4, 4]
    assert reset_to_start(group.place.settings, group.stage) == []


def test_only_offsets_that_the_log_does_not_hold_are_moved(group: Group) -> None:
    group.forget_records(before=4)
    group.commit(p0=3, p1=5, p2=99)
    changes = reset_to_start(group.place.settings, group.stage)
    assert [change.text.partition("] ")[2] for change in changes] == [
        "begins at 4, was at 3, below the log's start",
        "begins at 4, was at 99, beyond the log's end",
    ]
    assert group.committed() == [4, 5, 4]


def test_a_group_at_the_ends_of_its_log_is_left_alone(group: Group) -> None:
    group.commit(p0=0, p1=6, p2=1)
    assert reset_to_start(group.place.settings, group.stage) == []
    assert group.committed() == [0, 6, 1]


def test_what_a_group_has_not_finished_is_counted_also_where_it_never_read(group: Group) -> None:
    settings, stages, topic = group.place.settings, [group.stage], group.stage.reads
    assert unfinished(settings, stages) == [Remainder(topic, group.stage.group, 18)]
    group.commit(p0=2, p1=6)
    (left,) = unfinished(settings, stages)
    assert left.text == f"topic {topic}: group {group.stage.group} has not finished 10 records"
    group.commit(p0=6, p2=6)
    assert unfinished(settings, stages) == []


def test_a_group_with_members_is_refused(group: Group) -> None:
    member = group.member()
    with pytest.raises(SettingsError, match=f"group {group.stage.group} has members: stop the"):
        reset_to_start(group.place.settings, group.stage)
    member.close()
    assert len(reset_to_start(group.place.settings, group.stage)) == 3


def test_a_stage_without_its_topics_is_told_to_apply_first(place: Place) -> None:
    stage = Stage("lost", f"{place.name}.lost", CleanedPrompt, "x", CleanedPrompt, "nothing")
    with pytest.raises(SettingsError, match=r"\.lost is missing: run `reel topics apply`"):
        reset_to_start(place.settings, stage)
