"""Questions and orders to the brokers' administration, each ended in time, with our errors.

    ours is ill, or does not answer     -> SickHost
    what we asked for is wrong          -> SettingsError

Topics are always asked for all at once: asking for one by name may create it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from confluent_kafka import KafkaError, KafkaException

# Its public names, though it does not mark them as such for type checkers.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from streams.errors import SettingsError, SickHost
from streams.kafka.config import ClientConfig
from streams.settings import Settings
from streams.topology import Topic

ANSWER_S = 10.0  # one question to the brokers
_VISIBLE_S = 30.0  # from creation until every partition has a leader
PAUSE_S = 0.1
_NO_CONNECTION_S = 5.0  # how long the first contact may take

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
_CANNOT_TELL = _NOT_ALLOWED | {
    KafkaError.UNKNOWN_TOPIC_OR_PART,  # created a moment ago, and this broker has not heard yet
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._UNSUPPORTED_FEATURE,
}


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic as the brokers describe it. A setting that they don't report is not in `config`."""

    num_partitions: int
    replication_factor: int
    has_leaders: bool
    config: Mapping[str, str]


def admin_config(settings: Settings, client_id: str) -> ClientConfig:
    """librdkafka settings of a short-lived client; its own log is off, errors come as errors."""
    return {
        "client.id": client_id,
        "log_level": 0,
        **settings.kafka_extra,
        "bootstrap.servers": settings.bootstrap,
    }


def error_of(fault: KafkaException) -> KafkaError:
    """The error inside."""
    return cast(KafkaError, fault.args[0])


def will_pass(error: KafkaError) -> bool:
    """Whether a broker is only not so far yet: ask again."""
    return error.code() in _HOST_FAULTS | {KafkaError.UNKNOWN_TOPIC_OR_PART}


def raise_refused(what: str, error: KafkaError, settings: Settings) -> NoReturn:
    """Turn what a broker or librdkafka said about `what` into ours, in one line."""
    code, text = error.code(), error.str().removeprefix("Broker: ").rstrip(".")
    if code == KafkaError._AUTHENTICATION:
        raise SettingsError(f"{what}: {text}: check the credentials in REEL_KAFKA_EXTRA")
    if code < 0 or code in _HOST_FAULTS:
        raise SickHost(f"{what}: Kafka at {settings.bootstrap}: {text}")
    if code in _NOT_ALLOWED:
        raise SettingsError(f"{what}: {text}: give this principal the ACL")
    if code == KafkaError.INVALID_REPLICATION_FACTOR:
        text += f": REEL_REPLICATION_FACTOR={settings.replication_factor} needs as many brokers"
    raise SettingsError(f"{what}: {text}")


def raise_unfit(fault: Exception) -> NoReturn:
    """librdkafka refuses a client's settings; what may be wrong with them comes from outside."""
    error = fault.args[0] if fault.args else fault
    text = error.str() if isinstance(error, KafkaError) else str(error)
    raise SettingsError(f"REEL_KAFKA_EXTRA: {text}") from fault


class Cluster:
    """The brokers that `settings` name; one client, of the thread that made it.

    Every method raises SickHost where the brokers do not answer in time, SettingsError where they
    refuse.
    """

    def __init__(self, settings: Settings) -> None:
        """Connects at the first question.

        Raises:
            SettingsError: REEL_KAFKA_EXTRA holds what librdkafka does not know.
        """
        self._settings = settings
        self._cause: KafkaError | None = None
        config = admin_config(settings, "reel.admin") | {"error_cb": self._on_error}
        try:
            self._admin = AdminClient(config)
        except (KafkaException, TypeError, ValueError) as fault:
            raise_unfit(fault)

    def partition_counts(self) -> dict[str, int]:
        """Every topic that is there."""
        return {name: len(topic.partitions) for name, topic in self._metadata().topics.items()}

    def topics(self, wanted: Sequence[Topic]) -> dict[str, FoundTopic]:
        """Those of `wanted` that are there."""
        there = self._metadata().topics
        names = [topic.name for topic in wanted if topic.name in there]
        configs = self._describe(ResourceType.TOPIC, names)
        found = {}
        for name in names:
            partitions = there[name].partitions.values()
            found[name] = FoundTopic(
                num_partitions=len(partitions),
                replication_factor=min((len(each.replicas) for each in partitions), default=0),
                has_leaders=all(each.leader >= 0 for each in partitions),
                config=configs.get(name, {}),
            )
        return found

    def await_topics(self, wanted: Sequence[Topic]) -> dict[str, FoundTopic]:
        """All of `wanted`, as soon as they are there and led."""
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
            time.sleep(PAUSE_S)

    def create(self, topics: Sequence[Topic]) -> list[str]:
        """Create these, return the names of those created; another may have been faster."""
        if not topics:
            return []
        orders = [
            NewTopic(
                topic.name,
                num_partitions=topic.num_partitions or self._settings.partitions,
                replication_factor=self._settings.replication_factor,
                config=dict(topic.config),
            )
            for topic in topics
        ]
        answers = self._admin.create_topics(
            orders, operation_timeout=ANSWER_S, request_timeout=ANSWER_S
        )
        created = []
        for name, answer in answers.items():
            try:
                answer.result(2 * ANSWER_S)
            except KafkaException as fault:
                if error_of(fault).code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    continue
                raise_refused(f"topic {name}", error_of(fault), self._settings)
            created.append(name)
        return created

    def grow(self, topic: str, num_partitions: int) -> None:
        """Give a topic that has fewer so many partitions; return when the brokers tell so."""
        answers = self._admin.create_partitions(
            [NewPartitions(topic, num_partitions)],
            operation_timeout=ANSWER_S,
            request_timeout=ANSWER_S,
        )
        for answer in answers.values():
            try:
                answer.result(2 * ANSWER_S)
            except KafkaException as fault:
                raise_refused(f"topic {topic}", error_of(fault), self._settings)
        give_up_s = time.monotonic() + _VISIBLE_S
        while self.partition_counts().get(topic) != num_partitions:
            if time.monotonic() > give_up_s:
                raise SickHost(f"topic {topic}: the brokers do not tell of its new partitions")
            time.sleep(PAUSE_S)

    def set_config(self, topic: str, values: Mapping[str, str]) -> None:
        """Set these settings of a topic, leave its others alone; return when they hold."""
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in values.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        answers = self._admin.incremental_alter_configs([resource], request_timeout=ANSWER_S)
        for answer in answers.values():
            try:
                answer.result(2 * ANSWER_S)
            except KafkaException as fault:
                raise_refused(f"topic {topic}", error_of(fault), self._settings)
        # The controller has answered; the brokers learn of it a moment later.
        give_up_s = time.monotonic() + _VISIBLE_S
        while time.monotonic() < give_up_s:
            told = self._describe(ResourceType.TOPIC, [topic]).get(topic, {})
            if values.items() <= told.items():
                return
            time.sleep(PAUSE_S)
        raise SickHost(f"topic {topic}: the brokers do not take over {dict(values)}")

    def offsets_retention_min(self) -> int | None:
        """The least that any broker keeps an idle group's offsets; None: none of them tells."""
        names = [str(number) for number in sorted(self._metadata().brokers)]
        # Each broker speaks for itself alone: librdkafka refuses to ask for two in one call.
        found = [self._describe(ResourceType.BROKER, [name]).get(name, {}) for name in names]
        told = [config.get("offsets.retention.minutes") for config in found]
        return min((int(minutes) for minutes in told if minutes), default=None)

    def _describe(self, kind: ResourceType, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Settings by name; a resource that may not be described is left out."""
        if not names:
            return {}
        answers = self._admin.describe_configs(
            [ConfigResource(kind, name) for name in names], request_timeout=ANSWER_S
        )
        configs = {}
        for resource, answer in answers.items():
            try:
                entries = answer.result(2 * ANSWER_S)
            except KafkaException as fault:
                if error_of(fault).code() in _CANNOT_TELL:
                    continue
                raise_refused(f"settings of {resource.name}", error_of(fault), self._settings)
            configs[resource.name] = {
                entry.name: entry.value for entry in entries.values() if entry.value is not None
            }
        return configs

    def _metadata(self) -> Any:
        try:
            return self._admin.list_topics(timeout=_NO_CONNECTION_S)
        except KafkaException as fault:
            self._admin.poll(0)  # serves _on_error
            cause = self._cause or error_of(fault)
            if cause.code() == KafkaError._AUTHENTICATION:
                raise_refused("login", cause, self._settings)
            raise SickHost(
                f"no Kafka broker answers at {self._settings.bootstrap} (REEL_BOOTSTRAP): "
                f"{cause.str()}"
            ) from fault

    def _on_error(self, error: KafkaError) -> None:
        # Keep the cause, not what follows from it: "all brokers are down" tells nobody anything.
        if self._cause is None or error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._cause = error
