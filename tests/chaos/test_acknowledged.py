"""What a producer of ours was told is on the log is there, whatever replicas did meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from streams.kafka.config import producer_config
from tests.chaos.cluster import Cluster
from tests.chaos.proxy import LinkFault
from tests.e2e.reading import Tail

pytestmark = [pytest.mark.kafka, pytest.mark.s3]

TOPIC, NUM_PARTITIONS = "acknowledged", 6
WITHIN_S = 60.0
#: What is sent meanwhile waits for what was sent before it: so two requests arrive so far apart.
APART_S = 2.0
DISTANT = LinkFault(latency_s=APART_S)


class Replicas:
    """Of a topic of which one replica in three is away: enough, or not, as the topic has it."""

    def __init__(self, bootstrap: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap})
        topic = NewTopic(TOPIC, NUM_PARTITIONS, replication_factor=3)
        self._admin.create_topics([topic])[TOPIC].result()

    def shrink(self) -> None:
        """Wait until the one that is away counts no more."""
        until_s = time.monotonic() + WITHIN_S
        while time.monotonic() < until_s:
            known = self._admin.list_topics(TOPIC, timeout=WITHIN_S).topics[TOPIC].partitions
            if all(len(each.isrs) == 2 and each.leader >= 0 for each in known.values()):
                return
        raise AssertionError("a broker is away, and still in sync")

    def be(self, enough: bool) -> None:
        """As if a second replica were back, or away."""
        entry = ConfigEntry(
            "min.insync.replicas",
            "2" if enough else "3",
            incremental_operation=AlterConfigOpType.SET,
        )
        wish = ConfigResource(ResourceType.TOPIC, TOPIC, incremental_configs=[entry])
        self._admin.incremental_alter_configs([wish])[wish].result()


class Sender:
    """A producer of ours, and what it was told."""

    def __init__(self, cluster: Cluster) -> None:
        settings = cluster.settings.model_copy(update={"delivery_timeout_ms": int(WITHIN_S * 1000)})
        self._producer = Producer(producer_config(settings, "sender"))
        self.told: set[bytes] = set()

    def send(self, name: str, partitions: range) -> None:
        for partition in partitions:
            self._producer.produce(TOPIC, b"", f"{name}-{partition}", partition, self._heard)

    def serve(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._producer.poll(left_s)

    def finish(self) -> None:
        assert not self._producer.flush(WITHIN_S), "records are still on their way"

    def _heard(self, error: KafkaError | None, message: Message) -> None:
        key = message.key()
        if error is None and isinstance(key, bytes):
            self.told.add(key)


@pytest.fixture
def replicas(cluster: Cluster) -> Iterator[Replicas]:
    """One broker is away."""
    replicas, controller = Replicas(cluster.bootstrap), cluster.controller
    next(node for node in cluster.kafka.nodes if node is not controller).kill()
    replicas.shrink()
    yield replicas
    cluster.heal()


def test_what_a_producer_is_told_is_there_though_too_few_replicas_were(
    cluster: Cluster, replicas: Replicas
) -> None:
    # A leader that knows nothing of a producer takes whatever sequence comes first (KAFKA-15591).
    # Were two requests of a partition under way, and the first refused for want of replicas, the
    # second would be taken; and the first, sent again, be told as delivered: its sequence is old.
    sender, known, new = Sender(cluster), range(0, NUM_PARTITIONS, 2), range(1, NUM_PARTITIONS, 2)
    replicas.be(enough=True)
    sender.send("before", known)  # all connections are open
    sender.finish()
    replicas.be(enough=False)
    for proxy in cluster.broker_proxies:
        proxy.set_fault(DISTANT)
    sender.send("first", new)
    sender.serve(APART_S / 4)
    sender.send("second", new)
    sender.serve(APART_S)  # the first has arrived, the second is halfway
    assert len(sender.told) == len(known)
    replicas.be(enough=True)
    sender.serve(2 * APART_S)
    for proxy in cluster.broker_proxies:
        proxy.heal()
    sender.finish()
    assert len(sender.told) == len(known) + 2 * len(new)
    found: set[bytes] = set()
    with Tail(cluster.bootstrap, [TOPIC]) as tail:
        until_s = time.monotonic() + WITHIN_S
        while not found >= sender.told and time.monotonic() < until_s:
            found |= {key for each in tail.read() if isinstance(key := each.key(), bytes)}
    assert not sender.told - found, "told as delivered, and lost"
