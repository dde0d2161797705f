"""The local stack's servers really start, answer, keep their data and say what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import boto3
import pytest
from botocore.exceptions import ClientError
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams.errors import SettingsError
from streams.kafka.admin import apply_topics
from streams.local.apache import KAFKA_VERSION, ApacheKafka, find_java, resolve_jars
from streams.local.broker import (
    Broker,
    active_controller,
    api_keys,
    listed_brokers,
    speaks_kip848,
)
from streams.local.embedded import EmbeddedKafka
from streams.local.object_store import VOLUME_BYTES, S3Server
from streams.local.processes import StartFailed, free_port
from streams.settings import Settings
from streams.topology import Topic
from tests.chaos.proxy import FaultProxy


def wait_for(predicate: Callable[[], bool], deadline_s: float = 30.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not predicate():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.05)


def create_topic(broker: Broker, replicas: int = 1) -> str:
    topic = f"local-{uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(topic, 1, replicas)])[topic].result(20)
    return topic


def produce(broker: Broker, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True})
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(20) == 0


def consume(broker: Broker, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": f"of-{topic}"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [record.value() for record in consumer.consume(count, 20)]
    finally:
        consumer.close()


def join(broker: Broker, topic: str, protocol: str) -> list[TopicPartition]:
    """The partitions that a new group's only member is given."""
    settings = {"bootstrap.servers": broker.bootstrap, "group.id": f"of-{topic}"}
    consumer = Consumer(settings | {"group.protocol": protocol})
    try:
        consumer.subscribe([topic])
        wait_for(lambda: consumer.poll(0.1) is None and bool(consumer.assignment()))
        return list(consumer.assignment())
    finally:
        consumer.close()


def replicas_in_sync(broker: Broker, topic: str) -> int:
    found = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(topic, 10)
    return len(found.topics[topic].partitions[0].isrs)


def test_apache_kafka_carries_records_and_groups_of_both_protocols(
    apache_kafka: ApacheKafka,
) -> None:
    host, port = "127.0.0.1", apache_kafka.nodes[0].port
    assert apache_kafka.speaks_kip848
    assert speaks_kip848(host, port)
    assert listed_brokers(host, port) == {1}
    topic = create_topic(apache_kafka)
    produce(apache_kafka, topic, [b"1", b"2"])
    assert consume(apache_kafka, topic, 2) == [b"1", b"2"]
    for protocol in ("classic", "consumer"):
        assert len(join(apache_kafka, create_topic(apache_kafka), protocol)) == 1


def test_apache_kafka_makes_no_topic_by_itself(apache_kafka: ApacheKafka) -> None:
    admin = AdminClient({"bootstrap.servers": apache_kafka.bootstrap})
    admin.list_topics("local-typo", 10)
    assert "local-typo" not in admin.list_topics(timeout=10).topics


def test_the_embedded_broker_carries_records_and_keeps_them_over_a_restart(
    embedded_kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    host, port = embedded_kafka.bootstrap.split(":")
    assert not embedded_kafka.speaks_kip848
    assert not speaks_kip848(host, int(port))
    assert len(join(embedded_kafka, create_topic(embedded_kafka), "classic")) == 1
    with EmbeddedKafka(tmp_path) as broker:
        topic = create_topic(broker)
        produce(broker, topic, [b"kept"])
        broker.stop()
        broker.start()
        assert consume(broker, topic, 1) == [b"kept"]
    with EmbeddedKafka(tmp_path) as later:
        assert consume(later, topic, 1) == [b"kept"]


@pytest.mark.slow
def test_one_of_three_brokers_is_killed_and_comes_back_with_its_data(
    kafka_home: Path, tmp_path: Path
) -> None:
    # The default takes nine seconds to give a dead leader's partitions to another.
    soon = {"broker.session.timeout.ms": "4000", "broker.heartbeat.interval.ms": "1000"}
    with ApacheKafka(tmp_path, home=kafka_home, num_brokers=3, properties=soon) as cluster:
        assert all(listed_brokers("127.0.0.1", n.port) == {1, 2, 3} for n in cluster.nodes)
        told = {active_controller("127.0.0.1", node.port) for node in cluster.nodes}
        assert len(told) == 1
        assert told <= {1, 2, 3}
        settings = Settings(bootstrap=cluster.bootstrap, replication_factor=3, partitions=3)
        assert apply_topics(settings, [Topic("applied", "event")])
        assert apply_topics(settings, [Topic("applied", "event")]) == []
        topic = create_topic(cluster, replicas=3)
        produce(cluster, topic, [b"all up"])
        victim = cluster.nodes[1]
        victim.kill()
        produce(cluster, topic, [b"one down"])
        victim.start()
        wait_for(lambda: replicas_in_sync(cluster, topic) == 3)
        cluster.nodes[0].stop()
        produce(cluster, topic, [b"another down"])
        assert consume(cluster, topic, 3) == [b"all up", b"one down", b"another down"]


def test_clients_that_come_by_a_proxy_stay_with_it(kafka_home: Path, tmp_path: Path) -> None:
    behind = free_port()
    with FaultProxy(behind) as proxy:
        broker = ApacheKafka(
            tmp_path, home=kafka_home, proxied=[(behind, proxy.port)], heap_mib=256
        )
        with broker:
            topic = create_topic(broker)
            assert proxy.reset_all() == 0, "clients of the broker's own port pass it by"
            producer = Producer({"bootstrap.servers": f"127.0.0.1:{proxy.port}"})
            producer.produce(topic, b"by the proxy", partition=0)
            assert producer.flush(20) == 0
            assert proxy.reset_all() >= 1
            addresses = {str(each) for each in producer.list_topics(topic, 20).brokers.values()}
            assert addresses == {f"127.0.0.1:{proxy.port}/1"}
            assert consume(broker, topic, 1) == [b"by the proxy"]
            assert active_controller("127.0.0.1", broker.nodes[0].port) == 1


def test_a_later_broker_goes_on_with_the_data_on_another_port(
    kafka_home: Path, tmp_path: Path
) -> None:
    with ApacheKafka(tmp_path, home=kafka_home) as first:
        topic = create_topic(first)
        produce(first, topic, [b"kept"])
    with ApacheKafka(tmp_path, home=kafka_home) as second:
        assert second.bootstrap != first.bootstrap
        assert consume(second, topic, 1) == [b"kept"]


def test_s3_stores_for_its_user_only_and_keeps_objects_over_a_restart(tmp_path: Path) -> None:
    with S3Server(tmp_path, bucket="a-bucket") as server:
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
        )
        client.put_object(Bucket="a-bucket", Key="k", Body=b"kept")
        server.stop()
        server.start()
        assert client.get_object(Bucket="a-bucket", Key="k")["Body"].read() == b"kept"
        client.close()
        stranger = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.access_key,
            aws_secret_access_key="guessed",
        )
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            stranger.get_object(Bucket="a-bucket", Key="k")
        stranger.close()


def test_the_disk_alone_bounds_what_the_object_store_holds(s3_server: S3Server) -> None:
    with urlopen(f"http://127.0.0.1:{s3_server.master_port}/dir/status", timeout=10) as page:
        num_volumes = json.load(page)["Topology"]["Max"]
    free_bytes = shutil.disk_usage(s3_server.folder).free
    assert num_volumes * VOLUME_BYTES > 0.8 * free_bytes


def test_a_port_in_use_is_told_in_one_line_by_every_server(
    embedded_kafka: EmbeddedKafka, kafka_home: Path, tmp_path: Path
) -> None:
    port = int(embedded_kafka.bootstrap.split(":")[1])
    servers: list[Broker | S3Server] = [
        EmbeddedKafka(tmp_path / "embedded", port=port),
        ApacheKafka(tmp_path / "apache", home=kafka_home, ports=[port]),
        S3Server(tmp_path / "s3", port=port),
    ]
    for server in servers:
        with pytest.raises(SettingsError, match=rf"^port {port}, wanted for .+, is busy.*$"):
            server.start()


def test_a_broker_that_dies_at_start_is_told_with_the_end_of_its_log(
    kafka_home: Path, tmp_path: Path
) -> None:
    broken = {"authorizer.class.name": "no.such.Authorizer"}
    kafka = ApacheKafka(tmp_path, home=kafka_home, properties=broken)
    with pytest.raises(StartFailed, match=r"(?s)^Kafka broker 1 ended .*no\.such\.Authorizer"):
        kafka.start()
    assert not kafka.nodes[0].process.is_running


def test_a_probe_of_no_broker_is_an_os_error_or_an_empty_answer(s3_server: S3Server) -> None:
    nobody, not_kafka = free_port(), int(s3_server.endpoint.rpartition(":")[2])
    for port in (nobody, not_kafka):
        assert listed_brokers("127.0.0.1", port, timeout_s=0.5) == frozenset()
        assert active_controller("127.0.0.1", port, timeout_s=0.5) is None
        with pytest.raises(OSError, match=r"."):
            api_keys("127.0.0.1", port, timeout_s=0.5)


def test_a_number_of_brokers_that_makes_no_quorum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^one broker or three, not 2$"):
        ApacheKafka(tmp_path, home=tmp_path, num_brokers=2)
    with pytest.raises(SettingsError, match=r"^3 brokers need as many proxies, not 1$"):
        ApacheKafka(tmp_path, home=tmp_path, num_brokers=3, proxied=[(1, 2)])


def test_no_java_and_an_old_java_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"^Apache Kafka needs Java 17 or newer: java is not"):
        ApacheKafka(tmp_path, home=tmp_path).start()
    put_program(tmp_path / "java", """echo 'openjdk version "11.0.2" 2019-01-15' >&2""")
    with pytest.raises(SettingsError, match=r"^Apache Kafka needs Java 17 or newer: .* is 11$"):
        find_java()


def test_no_maven_and_a_failing_maven_are_told_in_one_line_and_leave_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    put_program(tmp_path / "java", """echo 'openjdk version "21.0.1" 2023-10-17' >&2""")
    with pytest.raises(SettingsError, match=r"^Apache Kafka is fetched once by Maven: mvn is not"):
        resolve_jars(tmp_path)
    put_program(tmp_path / "mvn", "echo '[ERROR] the network is down'; exit 1")
    with pytest.raises(
        SettingsError, match=f"^Maven could not fetch Apache Kafka {KAFKA_VERSION}: the network is"
    ):
        resolve_jars(tmp_path)
    assert not (tmp_path / f"kafka-{KAFKA_VERSION}").exists()


def test_of_several_that_want_the_jars_at_once_one_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("mkdir", "sleep", "touch"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or pytest.fail(tool))
    monkeypatch.setenv("PATH", str(tmp_path))
    put_program(tmp_path / "java", """echo 'openjdk version "17.0.1" 2021-10-19' >&2""")
    jar = f"libs/kafka_2.13-{KAFKA_VERSION}.jar"
    put_program(tmp_path / "mvn", f"echo run >> ../runs; sleep 0.3; mkdir libs; touch {jar}")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(resolve_jars, [tmp_path] * 4))
    assert found == {tmp_path / f"kafka-{KAFKA_VERSION}" / "libs"}
    assert re.fullmatch("run\n", (tmp_path / "runs").read_text())


def put_program(path: Path, script: str) -> None:
    """A stand-in for a program that a test's machine can't be without."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
