"""Three Apache Kafka brokers and an object store, each behind a proxy that can break its links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.kafka.admin import apply_topics
from streams.local.apache import ApacheKafka, KafkaNode
from streams.local.broker import active_controller
from streams.local.object_store import S3Server
from streams.local.processes import LOOPBACK, free_ports
from streams.settings import Settings
from tests.chaos.proxy import FaultProxy

NUM_BROKERS = 3
PARTITIONS = 6

#: Found and replaced in seconds: the defaults are for machines that fail once a month.
BROKER_PROPERTIES = {
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "1000",
    "replica.lag.time.max.ms": "5000",
    "num.replica.fetchers": "1",
    "group.coordinator.threads": "2",
}


#: Through the settings table alone: what a minute's outage shows in production shows here in ten
#: seconds.
SHORT: dict[str, Any] = {
    "retry_delays_s": (1, 3),
    "batch_max": 8,
    "batch_age_ms": 50,
    "commit_interval_ms": 500,
    "session_timeout_ms": 6_000,
    "heartbeat_ms": 1_000,
    "max_poll_interval_ms": 10_000,
    "delivery_timeout_ms": 8_000,
    "join_timeout_ms": 60_000,
    "drain_ms": 3_000,
    "grace_ms": 40_000,
    "store_connect_ms": 1_000,
    "store_read_ms": 2_000,
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Running servers. `settings` lead through the proxies; `bootstrap` passes them by.

    `peer_proxies` stand before what brokers ask of each broker, where there are any.
    """

    kafka: ApacheKafka
    store: S3Server
    broker_proxies: tuple[FaultProxy, ...]
    peer_proxies: tuple[FaultProxy, ...]
    store_proxy: FaultProxy
    settings: Settings

    @property
    def bootstrap(self) -> str:
        """The brokers' own ports."""
        return self.kafka.bootstrap

    @property
    def direct(self) -> Settings:
        """The same servers by their own ports: what the test itself reads must not be broken."""
        return self.settings.model_copy(
            update={"bootstrap": self.bootstrap, "s3_endpoint": self.store.endpoint}
        )

    @property
    def controller(self) -> KafkaNode:
        """The broker that leads the controllers.

        Raises:
            LookupError: nobody does, just now.
        """
        for node in self.kafka.nodes:
            leader = active_controller(LOOPBACK, node.port)
            if leader is not None:
                return self.kafka.nodes[leader - 1]
        raise LookupError("no broker knows of an active controller")

    def heal(self) -> None:
        """Links are sound and all brokers run; returns when each of them lists all."""
        for proxy in (*self.broker_proxies, *self.peer_proxies, self.store_proxy):
            proxy.heal()
        down = [node for node in self.kafka.nodes if not node.process.is_running]
        for node in self.kafka.nodes:
            node.resume()
        for node in down:
            node.launch()
        for node in self.kafka.nodes:
            node.wait_until_lists(frozenset(each.node_id for each in self.kafka.nodes))


@contextmanager
def open_cluster(
    folder: Path, kafka_home: Path, *, has_peer_proxies: bool = False
) -> Iterator[Cluster]:
    """Servers of their own, with the pipeline's topics.

    Proxies between brokers cost each record a way through this process: for who breaks them.
    """
    behind, peers_behind = free_ports(NUM_BROKERS), free_ports(NUM_BROKERS * has_peer_proxies)
    with ExitStack() as stack:
        store = stack.enter_context(S3Server(folder / "s3"))
        store_proxy = stack.enter_context(FaultProxy(int(store.endpoint.rpartition(":")[2])))
        proxies, peer_proxies = (
            tuple(stack.enter_context(FaultProxy(port)) for port in ports)
            for ports in (behind, peers_behind)
        )
        kafka = ApacheKafka(
            folder / "kafka",
            home=kafka_home,
            num_brokers=NUM_BROKERS,
            properties=BROKER_PROPERTIES,
            proxied=_pairs(behind, proxies),
            peers_proxied=_pairs(peers_behind, peer_proxies),
            heap_mib=320,
        )
        stack.enter_context(kafka)
        settings = Settings(
            home=folder,
            bootstrap=",".join(f"{LOOPBACK}:{proxy.port}" for proxy in proxies),
            group_protocol="consumer",
            partitions=PARTITIONS,
            replication_factor=NUM_BROKERS,
            blobs=f"s3://{store.bucket}/chaos",
            s3_endpoint=f"http://{LOOPBACK}:{store_proxy.port}",
            s3_access_key=store.access_key,
            s3_secret_key=store.secret_key,
            **SHORT,
        )
        cluster = Cluster(kafka, store, proxies, peer_proxies, store_proxy, settings)
        apply_topics(cluster.direct)
        yield cluster


def _pairs(ports: Sequence[int], proxies: Sequence[FaultProxy]) -> list[tuple[int, int]]:
    return [(port, proxy.port) for port, proxy in zip(ports, proxies, strict=True)]
