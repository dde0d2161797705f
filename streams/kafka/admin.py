"""The topics on the brokers against `streams/topology.py`, and where a group goes on.

`apply_topics` creates what is missing and sets retention and sizes. What it may not mend (a
partition count, a cleanup policy) is an error that says what to do, and then nothing is changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from streams import topology
from streams.errors import SettingsError, SickHost
from streams.kafka.api_versions import group_protocol_supported
from streams.kafka.cluster import (
    ANSWER_S,
    PAUSE_S,
    Cluster,
    FoundTopic,
    admin_config,
    error_of,
    raise_refused,
    raise_unfit,
    will_pass,
)
from streams.kafka.committed import committed_offsets
from streams.settings import Settings
from streams.topology import Stage, Topic

__all__ = [
    "Change",
    "Problem",
    "apply_topics",
    "bounds_of",
    "check_topics",
    "group_protocol_supported",
    "outsider",
    "partitions_of",
    "require_topics",
    "reset_to_start",
    "wanted_topics",
]

log = logging.getLogger(__name__)

SETTABLE = ("retention.ms", "retention.bytes", "max.message.bytes", "message.timestamp.type")
"""What `apply_topics` may change on a topic that exists: nothing of a record's place or order."""

_COORDINATOR_S = 30.0  # the first question about offsets makes a new cluster create their topic

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
    """Create what is missing, set retention and sizes; then every partition has a leader.

    Idempotent, and two may run at once. `topics` None means the whole topology.

    Raises:
        SettingsError: something differs that may not be set here; nothing was changed (but for
            topics created just now, if another created theirs at the same moment).
        SickHost: the brokers do not answer.
    """
    wanted = wanted_topics(settings, topics)
    cluster = Cluster(settings)
    found = cluster.topics(wanted)
    _refuse([*_conflicts(wanted, found, settings), *_retention(settings, cluster)])
    created = set(cluster.create([topic for topic in wanted if topic.name not in found]))
    found = cluster.await_topics(wanted)
    _refuse(list(_conflicts(wanted, found, settings)))  # another may have created them otherwise
    changes = []
    for topic in wanted:
        if topic.name in created:
            text = f"topic {topic.name}: created with {topic.num_partitions} partitions"
            changes.append(Change(topic.name, text))
        if different := _settable(topic, found[topic.name]):
            cluster.set_config(topic.name, {key: want for key, _, want in different})
            changes += [
                Change(topic.name, f"topic {topic.name}: {key} was {is_}, is now {want}")
                for key, is_, want in different
            ]
    return changes


def check_topics(settings: Settings, topics: Sequence[Topic] | None = None) -> list[Problem]:
    """Everything that is not as the topology says, in its order; changes nothing.

    Raises:
        SickHost: the brokers do not answer.
    """
    wanted = wanted_topics(settings, topics)
    cluster = Cluster(settings)
    found = cluster.topics(wanted)
    problems = []
    for topic in wanted:
        there = found.get(topic.name)
        if there is None:
            text = f"topic {topic.name} is missing: run `reel topics apply`"
            problems.append(Problem(topic.name, text))
            continue
        problems += _conflicts([topic], found, settings)
        for key, is_, want in _settable(topic, there):
            why = _too_short(settings) if key == "retention.ms" and _is_short(is_, settings) else ""
            text = f"topic {topic.name}: {key} is {is_}, want {want}{why}: run `reel topics apply`"
            problems.append(Problem(topic.name, text))
    return [*problems, *_retention(settings, cluster)]


def reset_to_start(settings: Settings, stage: Stage) -> list[Change]:
    """Let the stage's group begin at the log's start wherever its committed offset is no place.

    That is: missing, below the log's start (retention overtook it), or beyond its end (the topic
    was made anew). Other partitions keep their offset and its metadata. Idempotent.

    Raises:
        SettingsError: a topic is missing, or the group has members.
        SickHost: the brokers do not answer.
    """
    partitions = partitions_of(stage, settings)
    group = stage.group
    consumer = outsider(settings, group)
    try:
        moves = list(_moves(consumer, group, partitions))
        if moves:
            for answer in (
                consumer.commit(offsets=[place for place, _ in moves], asynchronous=False) or ()
            ):
                _raise_if(answer.error)
    except KafkaException as fault:
        error = error_of(fault)
        if error.code() in _IN_USE:
            raise SettingsError(
                f"group {group} has members: stop the workers of stage {stage.name} first "
                "(a killed one leaves when its session times out)"
            ) from fault
        raise_refused(f"offsets of group {group}", error, settings)
    finally:
        consumer.close()
    return [change for _, change in moves]


def require_topics(settings: Settings, stage: Stage) -> None:
    """Refuse to work a stage whose topics are not all there with the partitions of the settings.

    A job keeps its partition number: with another count somewhere it could not, and were its tier's
    stripe another, no worker would notice.

    Raises:
        SettingsError: a topic that the stage reads or writes is missing, or has another count.
        SickHost: the brokers do not answer.
    """
    retries = stage.also_reads(settings.retry_delays_s)
    names = {stage.reads, *retries, stage.dead_letters, stage.writes, topology.VIDEOS_DONE}
    counts = Cluster(settings).partition_counts()
    for topic in wanted_topics(settings):
        if topic.name not in names:
            continue
        if topic.name not in counts:
            raise SettingsError(f"topic {topic.name} is missing: run `reel topics apply`")
        if counts[topic.name] != topic.num_partitions:
            raise SettingsError(_count_text(topic, counts[topic.name], settings))


# ---- what is wanted, and what is wrong


def wanted_topics(settings: Settings, topics: Sequence[Topic] | None = None) -> tuple[Topic, ...]:
    """These topics, or all, with the counts and the safety that the settings want."""
    safe = {"min.insync.replicas": "2"} if settings.replication_factor >= 3 else {}
    return tuple(
        replace(
            topic,
            num_partitions=topic.num_partitions or settings.partitions,
            config={**topic.config, **safe},
        )
        for topic in (_all(settings) if topics is None else topics)
    )


def _all(settings: Settings) -> tuple[Topic, ...]:
    return topology.topics(1000 * settings.retention_s, settings.retry_delays_s)


def _settable(topic: Topic, found: FoundTopic) -> list[tuple[str, str, str]]:
    """(key, is, want) of each setting that differs and may be set."""
    return [
        (key, found.config[key], topic.config[key])
        for key in SETTABLE
        if key in topic.config and key in found.config and found.config[key] != topic.config[key]
    ]


def _conflicts(
    wanted: Iterable[Topic], found: Mapping[str, FoundTopic], settings: Settings
) -> Iterator[Problem]:
    """What only a person may change."""
    for topic in wanted:
        there = found.get(topic.name)
        if there is None:
            continue
        if there.num_partitions != topic.num_partitions:
            yield Problem(topic.name, _count_text(topic, there.num_partitions, settings))
        if there.replication_factor != settings.replication_factor:
            text = (
                f"topic {topic.name} has replication factor {there.replication_factor}, want "
                f"{settings.replication_factor}: set REEL_REPLICATION_FACTOR="
                f"{there.replication_factor}, or move it with `kafka-reassign-partitions`"
            )
            yield Problem(topic.name, text)
        for key, want in topic.config.items():
            is_ = there.config.get(key)
            if key in SETTABLE or is_ is None or _parts(is_) == _parts(want):
                continue
            text = (
                f"topic {topic.name}: {key} is {is_}, want {want}: set it with `kafka-configs "
                f"--alter --topic {topic.name} --add-config '{key}=[{want}]'`"
            )
            yield Problem(topic.name, text)


def _parts(value: str) -> set[str]:
    return {part.strip() for part in value.split(",")}  # a cleanup policy has no order


def _count_text(topic: Topic, count: int, settings: Settings) -> str:
    want = topic.num_partitions or settings.partitions
    why = "a partition count cannot shrink" if count > want else "jobs must keep their partition"
    way = "drain and delete the topic, then run `reel topics apply`"
    is_n = want == settings.partitions
    if is_n and count % len(settings.tiers) == 0:
        if count < want:
            way = f"`reel topics grow {want}` with REEL_PARTITIONS={count}, or {way}"
        way = f"set REEL_PARTITIONS={count}, or {way}"
    return f"topic {topic.name} has {count} partitions, want {want}; {why}: {way}"


def _retention(settings: Settings, cluster: Cluster) -> Iterator[Problem]:
    """DESIGN 2: longest deadline + retries + redrive window < retention of records and offsets.

    The third part, that outcome and result records outlive the topics, needs no check: nothing of
    ours ever removes them (streams/blobs/sweep.py).
    """
    if settings.retention_s <= settings.needed_s:
        text = (
            f"REEL_RETENTION_S is {settings.retention_s}{_too_short(settings)}: "
            "raise it or lower one of these"
        )
        yield Problem("", text)
    offsets_min = cluster.offsets_retention_min()
    if offsets_min is None:
        log.info("the brokers do not tell offsets.retention.minutes: it is not checked")
    elif offsets_min * 60 <= settings.needed_s:
        text = (
            f"brokers: offsets.retention.minutes is {offsets_min}{_too_short(settings)}: "
            "raise it on the brokers or lower one of these"
        )
        yield Problem("__consumer_offsets", text)


def _is_short(retention_ms: str, settings: Settings) -> bool:
    return 0 <= int(retention_ms) <= 1000 * settings.needed_s  # -1 is for ever


def _too_short(settings: Settings) -> str:
    return (
        f", but REEL_DEADLINE_S, REEL_RETRY_DELAYS_S and REEL_REDRIVE_WINDOW_S take "
        f"{settings.needed_s:.0f} s"
    )


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        more = f" ({len(problems) - 1} more: `reel topics check`)" if len(problems) > 1 else ""
        raise SettingsError(problems[0].text + more)


# ---- a group's offsets


def partitions_of(stage: Stage, settings: Settings) -> list[TopicPartition]:
    """All that the stage's group reads.

    Raises:
        SettingsError: a topic is missing.
    """
    counts = Cluster(settings).partition_counts()
    topics = (stage.reads, *stage.also_reads(settings.retry_delays_s))
    if missing := [topic for topic in topics if topic not in counts]:
        raise SettingsError(f"topic {missing[0]} is missing: run `reel topics apply`")
    return [TopicPartition(topic, number) for topic in topics for number in range(counts[topic])]


def outsider(settings: Settings, group: str) -> Consumer:
    """A consumer that reads and writes a group's offsets without joining it.

    Not the AdminClient: its list_consumer_group_offsets (confluent-kafka 2.16.1) crashes the
    process when the group's coordinator is not up yet, as on a new cluster.
    """
    config = admin_config(settings, "reel.admin") | {
        "group.id": group,
        "group.protocol": "classic",
        "enable.auto.commit": False,
    }
    try:
        return Consumer(config)
    except (KafkaException, TypeError, ValueError) as fault:
        raise_unfit(fault)


def _moves(
    consumer: Consumer, group: str, partitions: list[TopicPartition]
) -> Iterator[tuple[TopicPartition, Change]]:
    for place in committed_offsets(consumer, partitions, _COORDINATOR_S):
        name, number, is_ = place.topic, place.partition, place.offset
        start, end = bounds_of(consumer, name, number)
        if is_ == OFFSET_INVALID:
            why = "had no committed offset"
        elif is_ < start:
            why = f"was at {is_}, below the log's start"
        elif is_ > end:
            why = f"was at {is_}, beyond the log's end"
        else:
            continue
        text = f"group {group}: {name}[{number}] begins at {start}, {why}"
        yield TopicPartition(name, number, start), Change(name, text)


def bounds_of(consumer: Consumer, topic: str, number: int) -> tuple[int, int]:
    """The log's start and end; a leader that was chosen just now may need a moment."""
    give_up_s = time.monotonic() + ANSWER_S
    while True:
        try:
            bounds = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=ANSWER_S)
        except KafkaException as fault:
            if not will_pass(error_of(fault)) or time.monotonic() > give_up_s:
                raise
            time.sleep(PAUSE_S)
            continue
        if bounds is None:
            raise SickHost(f"the leader of {topic}[{number}] does not answer")
        return bounds


def _raise_if(error: KafkaError | None) -> None:
    if error is not None:
        raise KafkaException(error)
