"""Apache Kafka itself on loopback, one broker or three, without Docker: needs Java 17 and Maven.

Maven resolves the pinned POM beside this file once, into `<home>/kafka-4.3.0/libs`; after that
neither Maven nor a network is needed. Every broker is a controller too (combined mode).
"""

from __future__ import annotations

import base64
import fcntl
import re
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.errors import SettingsError
from streams.local.broker import listed_brokers
from streams.local.processes import (
    LOOPBACK,
    ManagedProcess,
    StartFailed,
    find_program,
    free_ports,
    require_free,
    require_space,
)

KAFKA_VERSION = "4.3.0"
MIN_JAVA = 17
_SPACE_BYTES = 1_000_000_000
_START_S = 180.0  # three JVMs beside nine busy workers on two cores: one was not up after 60
_RESOLVE_S = 900.0
_FORMAT_S = 60.0
_PEERS = "PEERS"


class ApacheKafka:
    """One broker, or three with replication 3 and min.insync.replicas 2; a `Broker`.

    `nodes` are the brokers one by one: tests kill, stop and start them again. The data stays in
    `folder`, and a later ApacheKafka on the same folder goes on with it, on other ports too.
    """

    speaks_kip848 = True

    def __init__(
        self,
        folder: Path,
        *,
        home: Path,
        num_brokers: int = 1,
        ports: Sequence[int] | None = None,
        properties: Mapping[str, str] | None = None,
        proxied: Sequence[tuple[int, int]] = (),
        peers_proxied: Sequence[tuple[int, int]] = (),
        heap_mib: int | None = None,
    ) -> None:
        """`home` holds the cached jars; `ports` are the clients', one a broker (None: free ones);
        `properties` are broker settings on top of ours.

        `proxied` has, for each broker, a second port that it listens on and the port of a proxy
        before that: clients who come that way are told the proxy's. Brokers among themselves, and
        clients of `ports`, pass by the proxies. `peers_proxied` is the same for what brokers ask
        of each other, replication above all; controllers are always asked directly.

        Raises:
            SettingsError: neither one nor three brokers, or not one port or proxy for each.
        """
        if num_brokers not in (1, 3):
            raise SettingsError(f"one broker or three, not {num_brokers}")
        client_ports = tuple(ports) if ports is not None else free_ports(num_brokers)
        if len(client_ports) != num_brokers:
            raise SettingsError(f"{num_brokers} brokers need as many ports, not {client_ports}")
        for each in (proxied, peers_proxied):
            if len(each) not in (0, num_brokers):
                raise SettingsError(f"{num_brokers} brokers need as many proxies, not {len(each)}")
        self._folder = folder.absolute()
        self._home = home.absolute()
        controller_ports = free_ports(num_brokers)
        shared = _shared_properties(controller_ports) | dict(properties or {})
        self.nodes = tuple(
            KafkaNode(
                self._folder / f"broker-{node_id}",
                node_id,
                (client, controller),
                shared,
                _libs(self._home),
                heap_mib=heap_mib or (512 if num_brokers == 1 else 384),
                proxied={
                    name: pairs[node_id - 1]
                    for name, pairs in (("PROXIED", proxied), (_PEERS, peers_proxied))
                    if pairs
                },
            )
            for node_id, (client, controller) in enumerate(
                zip(client_ports, controller_ports, strict=True), start=1
            )
        )

    @property
    def bootstrap(self) -> str:
        """`host:port` of every broker, separated by commas."""
        return ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Start all brokers; returns when each of them lists all of them.

        Raises:
            SettingsError: no Java 17, no Maven, no space, a busy port, jars that can't be fetched.
            StartFailed: a broker ended, or was not ready in time.
        """
        find_java()
        require_space(self._folder, _SPACE_BYTES)
        resolve_jars(self._home)
        cluster_id = self._cluster_id()
        everyone = frozenset(node.node_id for node in self.nodes)
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(lambda node: node.format(cluster_id), self.nodes))
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait_until_lists(everyone)
        except BaseException:
            for node in self.nodes:
                node.kill()
            raise

    def stop(self) -> None:
        """Stop all brokers; the data stays."""
        # All at once: the last of three has no quorum left to say goodbye to.
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(KafkaNode.stop, self.nodes))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def _cluster_id(self) -> str:
        path = self._folder / "cluster.id"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            # Kafka's own form, 22 characters; a leading minus would look like an option.
            name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii")[:22]
            path.write_text(name.replace("-", "_"), encoding="ascii")
        return path.read_text(encoding="ascii")


class KafkaNode:
    """One broker of an `ApacheKafka`, which makes it and starts it for the first time."""

    def __init__(
        self,
        folder: Path,
        node_id: int,
        ports: tuple[int, int],
        properties: Mapping[str, str],
        libs: Path,
        *,
        heap_mib: int,
        proxied: Mapping[str, tuple[int, int]],
    ) -> None:
        self.node_id = node_id
        self.port, self._controller_port = ports
        self._folder = folder
        listeners = {"PLAINTEXT": self.port, "CONTROLLER": self._controller_port}
        advertised = {"PLAINTEXT": self.port}
        for name, (own_port, told_port) in proxied.items():
            listeners[name], advertised[name] = own_port, told_port
        self._properties = dict(properties) | {
            "node.id": str(node_id),
            "listeners": _addresses(listeners),
            "advertised.listeners": _addresses(advertised),
            "listener.security.protocol.map": ",".join(f"{each}:PLAINTEXT" for each in listeners),
            "inter.broker.listener.name": _PEERS if _PEERS in proxied else "PLAINTEXT",
            # Relative to the working folder: a folder's name may hold what this file's syntax,
            # a list by commas in Latin-1, can't.
            "log.dirs": "data",
        }
        # The first compiler alone: a local broker lives for minutes and is started often. Until it
        # is ready it takes 4.7 s of CPU, with both compilers 6.3 to 8.3 (Java 17, in turns).
        brief = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
        self._classpath = [*brief, "-cp", f"{libs}/*"]
        java = ["java", f"-Xmx{heap_mib}m", "-XX:+ExitOnOutOfMemoryError", "-Dlog4j2.level=WARN"]
        self.process = ManagedProcess(
            f"Kafka broker {node_id}",
            [*java, *self._classpath, "kafka.Kafka", "server.properties"],
            log_path=folder / "broker.log",
            cwd=folder,
        )

    def start(self) -> None:
        """Start it again with its data; returns when it lists itself as alive."""
        self.launch()
        self.wait_until_lists(frozenset({self.node_id}))

    def stop(self) -> None:
        """Stop it as an operator would, giving its leaderships away; at most ten seconds."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: its clients' connections stay open, and nothing answers on them."""
        self.process.pause()

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        self.process.resume()

    def format(self, cluster_id: str) -> None:
        """Write the settings, and the storage's first files unless they are there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name}={value}\n" for name, value in self._properties.items())
        (self._folder / "server.properties").write_text(text, encoding="latin-1")
        if (self._folder / "data" / "meta.properties").exists():
            return
        # It lives for half a second: not worth optimised code.
        java = ["java", "-Xmx128m", *self._classpath]
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", "server.properties"]
        run = _run([*java, *tool], self._folder, _FORMAT_S)
        if run.returncode:
            raise StartFailed(f"Kafka's storage could not be formatted: {_last_line(run.stdout)}")

    def launch(self) -> None:
        """Start it and return at once."""
        require_free(self.port, f"Kafka broker {self.node_id}")
        require_free(self._controller_port, f"Kafka controller {self.node_id}")
        self.process.start()

    def wait_until_lists(self, node_ids: frozenset[int]) -> None:
        """Return once clients that ask this broker are told of all these.

        Raises:
            StartFailed: it ended, or a minute has passed.
        """
        self.process.wait_until(lambda: node_ids <= listed_brokers(LOOPBACK, self.port), _START_S)


def find_java() -> Path:
    """The `java` on PATH, 17 or newer.

    Raises:
        SettingsError: there is none, or it is older.
    """
    try:
        java = find_program("java")
    except SettingsError as error:
        raise SettingsError(f"Apache Kafka needs Java {MIN_JAVA} or newer: {error}") from error
    said = _run([str(java), "-version"], Path.cwd(), 30.0).stdout
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < MIN_JAVA:
        found = version[1] if version else f"unknown ({_last_line(said)})"
        raise SettingsError(f"Apache Kafka needs Java {MIN_JAVA} or newer: {java} is {found}")
    return java


def require_tools(home: Path) -> None:
    """Return if this machine can run Apache Kafka: Java 17, and Maven or jars fetched before.

    Raises:
        SettingsError: it can't; the message says what to install.
    """
    find_java()
    if not _libs(home).is_dir():
        try:
            find_program("mvn")
        except SettingsError as error:
            raise SettingsError(f"Apache Kafka is fetched once by Maven: {error}") from error


def resolve_jars(home: Path) -> Path:
    """The folder of Kafka's jars, fetched if they are not there yet; whole or not there at all.

    Several processes may ask at once: one fetches, the others wait for it.

    Raises:
        SettingsError: no Maven, no space, or Maven failed.
    """
    libs = _libs(home)
    if libs.is_dir():
        return libs
    require_tools(home)
    require_space(home, _SPACE_BYTES)
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"kafka-{KAFKA_VERSION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file closes, or its owner dies
        if not libs.is_dir():
            partial = home / f"kafka-{KAFKA_VERSION}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _fetch(partial)
            partial.rename(libs.parent)
    return libs


def _fetch(folder: Path) -> None:
    pom = folder / "pom.xml"
    pom.write_bytes(files("streams.local").joinpath("kafka-pom.xml").read_bytes())
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime"]
    goal += [f"-DoutputDirectory={folder / 'libs'}"]
    run = _run(["mvn", "-q", "-B", "--strict-checksums", "-f", str(pom), *goal], folder, _RESOLVE_S)
    if run.returncode or not list(folder.glob(f"libs/kafka_*-{KAFKA_VERSION}.jar")):
        first = re.search(r"^\[ERROR\] (.+)$", run.stdout, re.MULTILINE)
        why = first[1] if first else _last_line(run.stdout)
        raise SettingsError(f"Maven could not fetch Apache Kafka {KAFKA_VERSION}: {why}")


def _run(words: Sequence[str], folder: Path, limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run to the end; both outputs in `stdout`. SettingsError if it takes longer than `limit_s`."""
    program = str(find_program(words[0]))
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(
            [program, *words[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            text=True,
            errors="replace",
            check=False,
        )
    raise SettingsError(f"{words[0]} did not end within {limit_s:g} s")


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _libs(home: Path) -> Path:
    return home / f"kafka-{KAFKA_VERSION}" / "libs"


def _shared_properties(controller_ports: Sequence[int]) -> dict[str, str]:
    """What all brokers of a cluster have in common; small numbers, for a machine of two cores."""
    num_brokers = len(controller_ports)
    replicas = str(num_brokers)
    insync = str(max(1, num_brokers - 1))
    voters = (f"{n}@{LOOPBACK}:{port}" for n, port in enumerate(controller_ports, start=1))
    return {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "default.replication.factor": replicas,
        "min.insync.replicas": insync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": insync,
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": insync,
        "share.coordinator.state.topic.num.partitions": "1",
        # Topics come from `reel topics apply` alone: one made by a typo would have wrong settings.
        "auto.create.topics.enable": "false",
        # A group's offsets outlive a long holiday: without them a stage can't tell where to begin.
        "offsets.retention.minutes": str(60 * 24 * 60),
        "group.initial.rebalance.delay.ms": "0",
        # On one machine a worker is killed more often than its network is: find it in 6 s, not 45.
        "group.consumer.min.heartbeat.interval.ms": "1000",
        "group.consumer.heartbeat.interval.ms": "1000",
        "group.consumer.min.session.timeout.ms": "6000",
        "group.consumer.session.timeout.ms": "6000",
        # The default takes a quarter of this heap for compaction's map.
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
        "num.network.threads": "2",
        "num.io.threads": "4",
    }
