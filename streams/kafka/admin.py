"""The topics on the brokers against `streams/topology.py`, and a group's starting offsets.

`apply` creates what is missing and sets retention and sizes. A difference that it may not mend (a
partition count, a cleanup policy) is an error that says what to do, and then nothing is changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from streams import topology
from streams.errors import SettingsError, SickHost
from streams.settings import Settings
from streams.topology import Topic

log = logging.getLogger(__name__)

#: How long after a job's last try somebody may still redrive it (DESIGN 2, retention).
REDRIVE_WINDOW_MS = 3 * topology.DAY_MS
#: What `apply` may change on a topic that exists: nothing of a record's place or order.
SETTABLE = ("retention.ms", "max.message.bytes")

_ANSWER_S = 10.0  # one question to the brokers
_VISIBLE_S = 30.0  # creation, until every partition has a leader
_CONFIG_BATCH = 100  # topics in one DescribeConfigs

# Anything else that a broker answers is about what we asked for, not about its health.
_HOST_FAULTS = {
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_CONTROLLER,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.THROTTLING_QUOTA_EXCEEDED,
}
_NOT_ALLOWED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_CANNOT_TELL = _NOT_ALLOWED | {KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE}
# What a commit from outside meets while a group has members.
_IN_USE = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
}


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was done; `text` is one line for people."""

    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it must be; `text` is one line that says what to do."""

    topic: str
    text: str


def apply_topics(settings: Settings, topics: Sequence[Topic] | None = None) -> list[Change]:
    """Create what is missing, set retention and sizes; on return every partition has a leader.

    Idempotent; two may run at once. `topics` None means the whole topology.

    Raises:
        SettingsError: something differs that may not be set; nothing was changed, unless another
            created a topic just now.
        SickHost: the brokers do not answer.
    """
    wanted = _wanted(settings, topics)
    cluster = _Cluster(settings)
    found = cluster.topics(wanted)
    _refuse([*_conflicts(wanted, found, settings), *_retention(wanted, settings, cluster)])
    missing = [topic for topic in wanted if topic.name not in found]
    changes = cluster.create(missing, settings.replication_factor)
    found = cluster.await_topics(wanted)
    _refuse([*_conflicts(wanted, found, settings)])
    for topic in wanted:
        for key, is_, want in _differences(topic, found[topic.name]):
            cluster.set_config(topic.name, key, want)
            changes.append(Change(topic.name, f"topic {topic.name}: {key} was {is_}, now {want}"))
    return changes


def check_topics(settings: Settings, topics: Sequence[Topic] | None = None) -> list[Problem]:
    """Everything that is not as the topology says, in its order; changes nothing.

    Raises:
        SickHost: the brokers do not answer.
    """
    wanted = _wanted(settings, topics)
    cluster = _Cluster(settings)
    found = cluster.topics(wanted)
    problems = [
        Problem(topic.name, f"topic {topic.name} is missing: run `reel topics apply`")
        for topic in wanted
        if topic.name not in found
    ]
    problems += _conflicts(wanted, found, settings)
    for topic in wanted:
        for key, is_, want in _differences(topic, found.get(topic.name)):
            text = f"topic {topic.name}: {key} is {is_}, want {want}: run `reel topics apply`"
            problems.append(Problem(topic.name, text))
    places = {topic.name: place for place, topic in enumerate(wanted)}
    problems.sort(key=lambda problem: places[problem.topic])
    return problems + list(_retention(wanted, settings, cluster))


def reset_to_start(settings: Settings, stage: str) -> list[Change]:
    """Let the stage's group begin at the log's start wherever its committed offset is no place.

    That is: missing, below the log's start (retention overtook it), or beyond its end (the topic
    was made anew). Other partitions keep their offset and its map. Records between the old place
    and the log's start are gone; what this does is to say so and go on.

    Raises:
        SettingsError: no such stage, a topic is missing, or the group has members.
        SickHost: the brokers do not answer.
    """
    names = [each.name for each in topology.STAGES]
    if stage not in names:
        raise SettingsError(f"no stage {stage!r}: one of {', '.join(names)}")
    group = topology.stage(stage).group
    partitions = list(_partitions_of(stage, _Cluster(settings).partition_counts()))
    consumer = _consumer(settings, group)
    try:
        lost = list(_lost_places(consumer, partitions))
        if lost:
            starts = [TopicPartition(name, number, start) for name, number, start, _ in lost]
            answers = consumer.commit(offsets=starts, asynchronous=False) or []
            if error := next((each.error for each in answers if each.error), None):
                raise KafkaException(error)
    except KafkaException as fault:
        error = _error_of(fault)
        if error.code() in _IN_USE:
            raise SettingsError(
                f"group {group} has members: stop the workers of stage {stage} first (a killed one"
                " leaves when its session ends)"
            ) from fault
        _raise(f"offsets of group {group}", error, settings)
    finally:
        consumer.close()
    return [
        Change(name, f"group {group}: {name}[{number}] begins at {start}, {why}")
        for name, number, start, why in lost
    ]


def _partitions_of(stage: str, counts: Mapping[str, int]) -> Iterator[TopicPartition]:
    spec = topology.stage(stage)
    for name in (spec.reads, *(spec.retries if spec.is_worker else ())):
        if name not in counts:
            raise SettingsError(f"topic {name} is missing: run `reel topics apply`")
        yield from (TopicPartition(name, number) for number in range(counts[name]))


def _lost_places(
    consumer: Consumer, partitions: list[TopicPartition]
) -> Iterator[tuple[str, int, int, str]]:
    # A Consumer asks, not the AdminClient: its list_consumer_group_offsets (2.16.1) crashes the
    # process when the coordinator is not up yet, which on a new cluster is always so.
    for place in consumer.committed(partitions, timeout=_ANSWER_S):
        if place.error:
            raise KafkaException(place.error)
        bounds = consumer.get_watermark_offsets(
            TopicPartition(place.topic, place.partition), timeout=_ANSWER_S
        )
        if bounds is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        start, end = bounds
        if place.offset == OFFSET_INVALID:
            yield place.topic, place.partition, start, "had no committed offset"
        elif place.offset < start:
            why = f"was {place.offset}, below the log's start"
            yield place.topic, place.partition, start, why
        elif place.offset > end:
            yield place.topic, place.partition, start, f"was {place.offset}, beyond the log's end"


# ---- what is wanted, what is wrong


@dataclass(frozen=True, slots=True)
class _Found:
    """A topic as the brokers describe it; a setting that they don't report is not in `config`."""

    num_partitions: int
    replication_factor: int
    has_leaders: bool
    config: Mapping[str, str]


def _wanted(settings: Settings, topics: Sequence[Topic] | None) -> tuple[Topic, ...]:
    safe = {"min.insync.replicas": "2"} if settings.replication_factor >= 3 else {}
    return tuple(
        replace(
            topic,
            num_partitions=topic.num_partitions or settings.partitions,
            config={**topic.config, **safe},
        )
        for topic in (topology.topics() if topics is None else topics)
    )


def _differences(topic: Topic, found: _Found | None) -> Iterator[tuple[str, str, str]]:
    """(key, is, want) of each setting that `apply` may set."""
    for key in SETTABLE:
        want, is_ = topic.config.get(key), found.config.get(key) if found else None
        if want is not None and is_ is not None and is_ != want:
            yield key, is_, want


def _conflicts(
    wanted: Sequence[Topic], found: Mapping[str, _Found], settings: Settings
) -> Iterator[Problem]:
    """What only a person may change."""
    for topic in wanted:
        there = found.get(topic.name)
        if there is None:
            continue
        if there.num_partitions != topic.num_partitions:
            yield Problem(topic.name, _count_text(topic, there.num_partitions, settings))
        if there.replication_factor != settings.replication_factor:
            yield Problem(
                topic.name,
                f"topic {topic.name} has replication factor {there.replication_factor}, want "
                f"{settings.replication_factor}: set REEL_REPLICATION_FACTOR="
                f"{there.replication_factor}, or move it with kafka-reassign-partitions",
            )
        for key, want in topic.config.items():
            is_ = there.config.get(key)
            if key not in SETTABLE and is_ is not None and _parts(is_) != _parts(want):
                yield Problem(
                    topic.name,
                    f"topic {topic.name}: {key} is {is_}, want {want}: set {key}={want} with "
                    f"`kafka-configs --alter --topic {topic.name} --add-config '{key}=[{want}]'`",
                )


def _parts(value: str) -> set[str]:
    return {part.strip() for part in value.split(",")}


def _count_text(topic: Topic, count: int, settings: Settings) -> str:
    why = "it cannot shrink" if count > (topic.num_partitions or 0) else "jobs keep their partition"
    text = f"topic {topic.name} has {count} partitions, want {topic.num_partitions}, and {why}: "
    if topic.num_partitions == settings.partitions and count >= 3 and not (
        count % len(settings.tiers)
    ):
        text += f"set REEL_PARTITIONS={count}, or "
    return text + "drain it, delete it and run `reel topics apply`"


def _retention(
    wanted: Sequence[Topic], settings: Settings, cluster: _Cluster
) -> Iterator[Problem]:
    """DESIGN 2: longest deadline + longest retry + redrive window < retention of topics, offsets."""
    needed_ms = round(settings.deadline_s * 1000) + max(topology.RETRY_DELAYS_S) * 1000
    needed_ms += REDRIVE_WINDOW_MS
    why = f"REEL_DEADLINE_S + longest retry + redrive window are {needed_ms} ms"
    for topic in wanted:
        kept_ms = topic.config.get("retention.ms")
        if kept_ms is not None and 0 <= int(kept_ms) <= needed_ms:
            yield Problem(
                topic.name,
                f"topic {topic.name} keeps records for {kept_ms} ms, but {why}: "
                "lower REEL_DEADLINE_S or raise RETENTION_MS in streams/topology.py",
            )
            break
    kept_min = cluster.offsets_retention_min()
    if kept_min is None:
        log.info("the broker does not tell its offsets.retention.minutes: left unchecked")
    elif kept_min * 60_000 <= needed_ms:
        yield Problem(
            "__consumer_offsets",
            f"the brokers forget offsets after {kept_min} min, but {why}: "
            "raise offsets.retention.minutes on the brokers or lower REEL_DEADLINE_S",
        )


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        rest = f" ({len(problems) - 1} more: `reel topics check`)" if len(problems) > 1 else ""
        raise SettingsError(problems[0].text + rest)


# ---- the brokers


class _Cluster:
    """AdminClient calls that end in time, with our errors."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._last: KafkaError | None = None
        try:
            self._admin = AdminClient(_config(settings) | {"error_cb": self._on_error})
        except (KafkaException, TypeError, ValueError) as fault:
            _raise_unfit(fault)

    def _on_error(self, error: KafkaError) -> None:
        # The cause, not what follows from it: "all brokers down" tells nobody anything.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self._last is None:
            self._last = error

    def partition_counts(self) -> dict[str, int]:
        """Every topic that is there; asks for all, as asking for one may create it."""
        return {name: len(topic.partitions) for name, topic in self._metadata().items()}

    def topics(self, wanted: Sequence[Topic]) -> dict[str, _Found]:
        """Those of `wanted` that are there."""
        metadata = self._metadata()
        names = [topic.name for topic in wanted if topic.name in metadata]
        configs = self._configs(names)
        return {
            name: _Found(
                num_partitions=len(metadata[name].partitions),
                replication_factor=min(
                    (len(each.replicas) for each in metadata[name].partitions.values()), default=0
                ),
                has_leaders=all(each.leader >= 0 for each in metadata[name].partitions.values()),
                config=configs.get(name, {}),
            )
            for name in names
        }

    def await_topics(self, wanted: Sequence[Topic]) -> dict[str, _Found]:
        """All of `wanted`, once they are there and led."""
        give_up_s = time.monotonic() + _VISIBLE_S
        while True:
            found = self.topics(wanted)
            late = [
                topic.name
                for topic in wanted
                if topic.name not in found or not found[topic.name].has_leaders
            ]
            if not late:
                return found
            if time.monotonic() > give_up_s:
                raise SickHost(f"topic {late[0]} has no leader {_VISIBLE_S:.0f} s after creation")
            time.sleep(0.1)

    def create(self, topics: Sequence[Topic], replication_factor: int) -> list[Change]:
        """Create these; one that another has just created is no change and no error."""
        if not topics:
            return []
        futures = self._admin.create_topics(
            [
                NewTopic(
                    topic.name,
                    num_partitions=topic.num_partitions or 1,
                    replication_factor=replication_factor,
                    config=dict(topic.config),
                )
                for topic in topics
            ],
            operation_timeout=_ANSWER_S,
            request_timeout=_ANSWER_S,
        )
        changes = []
        for topic in topics:
            try:
                futures[topic.name].result(_ANSWER_S + 1)
            except KafkaException as fault:
                if _error_of(fault).code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    continue
                self._raise(f"topic {topic.name}", fault)
            text = f"topic {topic.name}: created, {topic.num_partitions} partitions"
            changes.append(Change(topic.name, text))
        return changes

    def set_config(self, topic: str, key: str, value: str) -> None:
        """Set one setting of a topic, leaving its others alone."""
        entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        futures = self._admin.incremental_alter_configs([resource], request_timeout=_ANSWER_S)
        for future in futures.values():
            try:
                future.result(_ANSWER_S + 1)
            except KafkaException as fault:
                self._raise(f"topic {topic}: {key}", fault)

    def offsets_retention_min(self) -> int | None:
        """How long the brokers keep the offsets of an idle group; None: they don't tell."""
        try:
            broker = min(self._admin.list_topics(timeout=_ANSWER_S).brokers, default=None)
            found = self._describe([ConfigResource(ResourceType.BROKER, str(broker))])
        except KafkaException as fault:
            if _error_of(fault).code() in _CANNOT_TELL:
                return None
            self._raise("the brokers' settings", fault)
        minutes = next(iter(found.values()), {}).get("offsets.retention.minutes")
        return int(minutes) if minutes else None
