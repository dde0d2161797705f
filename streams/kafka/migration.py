"""More partitions for a pipeline that runs, and whether one has nothing left to do.

Partition p keeps its tier when their number grows by whole stripes, and a job keeps its partition
on every topic, so growing moves nothing: later topics grow first, `requests` last, and only then
does anybody write to the new ones. Partitions cannot shrink: a smaller pipeline is another one,
with brokers and a store of its own (a job's `request` fence names a partition that it may not
have), and `unfinished` says when the old one may be turned off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import OFFSET_INVALID, KafkaException

from streams.errors import SettingsError
from streams.kafka.admin import (
    Change,
    apply_topics,
    bounds_of,
    outsider,
    partitions_of,
    wanted_topics,
)
from streams.kafka.cluster import Cluster, error_of, raise_refused
from streams.kafka.committed import committed_offsets
from streams.settings import Settings
from streams.topology import Stage, Topic, worker_stages

_COORDINATOR_S = 30.0


@dataclass(frozen=True, slots=True)
class Remainder:
    """What a group has not finished of a topic."""

    topic: str
    group: str
    num_records: int

    @property
    def text(self) -> str:
        """One line for people."""
        return f"topic {self.topic}: group {self.group} has not finished {self.num_records} records"


def grow_topics(settings: Settings, num_partitions: int) -> list[Change]:
    """Give every topic that has the pipeline's partition count so many; then all are led.

    Idempotent: one that was interrupted is run again. Workers, producers and clients go on
    meanwhile: requests that come in the new partitions are forwarded to those of before, until
    the workers are started anew with REEL_PARTITIONS at the new count.

    Raises:
        SettingsError: the count is no multiple of the tiers, or a topic is missing, has more
            partitions already, or a count between that is not ours; nothing was changed then.
        SickHost: the brokers do not answer.
    """
    num_tiers, before = len(settings.tiers), settings.partitions
    if num_partitions % num_tiers:
        raise SettingsError(
            f"{num_partitions} partitions: need a multiple of the {num_tiers} tiers, or jobs of "
            "one tier would meet another's"
        )
    cluster = Cluster(settings)
    counts = cluster.partition_counts()
    growing = [each for each in reversed(wanted_topics(settings)) if each.num_partitions == before]
    for topic in growing:
        _refuse_unfit(topic, counts.get(topic.name), before, num_partitions)
    changes = []
    for topic in growing:
        if counts[topic.name] == before != num_partitions:
            cluster.grow(topic.name, num_partitions)
            text = f"topic {topic.name}: {before} partitions became {num_partitions}"
            changes.append(Change(topic.name, text))
    # Waits for leaders, and compares everything else once more.
    return changes + apply_topics(settings.model_copy(update={"partitions": num_partitions}))


def _refuse_unfit(topic: Topic, count: int | None, before: int, after: int) -> None:
    if count is None:
        raise SettingsError(f"topic {topic.name} is missing: run `reel topics apply`")
    if after < count:
        raise SettingsError(
            f"topic {topic.name} has {count} partitions and a partition count cannot shrink: set "
            "up another pipeline (brokers, store), switch producers to it, and turn this one off "
            "when `reel topics drained` finds nothing left"
        )
    if count not in (before, after):
        raise SettingsError(
            f"topic {topic.name} has {count} partitions, neither {before} (REEL_PARTITIONS) nor "
            f"{after}: run `reel topics check`"
        )


def unfinished(settings: Settings, stages: Sequence[Stage] | None = None) -> list[Remainder]:
    """What these stages' groups, or all workers', have not finished of their inputs and retries.

    Empty means: no job is under way, whatever becomes of workers, provided that no producer writes
    any more. Dead letters and outcomes do not count: nobody has to work them.

    Raises:
        SettingsError: a topic is missing.
        SickHost: the brokers do not answer.
    """
    found = []
    for stage in worker_stages() if stages is None else stages:
        partitions = partitions_of(stage, settings)
        consumer = outsider(settings, stage.group)
        left: dict[str, int] = {}
        try:
            for place in committed_offsets(consumer, partitions, _COORDINATOR_S):
                start, end = bounds_of(consumer, place.topic, place.partition)
                next_offset = start if place.offset == OFFSET_INVALID else place.offset
                left[place.topic] = left.get(place.topic, 0) + max(0, end - next_offset)
        except KafkaException as fault:
            raise_refused(f"offsets of group {stage.group}", error_of(fault), settings)
        finally:
            consumer.close()
        found += [Remainder(topic, stage.group, num) for topic, num in left.items() if num]
    return found
