"""The whole pipeline on one machine: broker, topics, supervised workers, the expirer."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from streams.errors import SettingsError
from streams.local.broker import Broker
from streams.local.models import ModelFolder
from streams.local.processes import StartFailed, is_listening, require_space
from streams.local.stack_file import HomeLock, StackFile, own_pid
from streams.local.worker_process import WorkerProcess
from streams.settings import Settings
from streams.topology import worker_stages

BrokerKind = Literal["embedded", "apache"]

_SPACE_BYTES = 300_000_000
_STEP_S = 0.1
_TORCH_STAGES = 3  # at work at a time: prompt, sampler, decoder
_BROKER_GONE_S = 10.0
_STILL_WAITING_S = 30.0


@dataclass(frozen=True, slots=True)
class StackPlan:
    """What to run. `settings.home` holds the stack's data and logs.

    `broker` None uses the one at `settings.bootstrap`. `port` None takes a free one; three brokers
    take three from it on. `cache` keeps what outlives a stack: Kafka's jars.
    """

    settings: Settings
    cache: Path
    broker: BrokerKind | None = "embedded"
    num_brokers: int = 1
    port: int | None = None
    workers: Mapping[str, int] = field(default_factory=dict)
    worker_argv: Sequence[str] = (sys.executable, "-m", "workers.main")  # the stage comes last
    expirer_argv: Sequence[str] = (sys.executable, "-m", "streams.expirer")

    def num_workers(self, stage: str) -> int:
        """How many workers a stage gets: one, unless `workers` says otherwise."""
        return self.workers.get(stage, 1)


class LocalStack:
    """A running stack; a context manager. `start`, `step` and `stop` belong to one thread.

    Its workers stop before its broker, and nothing of it runs after `stop`, or after this process
    was killed. `say` gets lines for people.
    """

    def __init__(self, plan: StackPlan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.settings = plan.settings
        self._say = say
        self._home = plan.settings.home.absolute()
        self._logs = self._home / "logs"
        self._stack = ExitStack()
        self._workers: list[WorkerProcess] = []
        self._broker_seen_s = 0.0

    @property
    def logs(self) -> Path:
        """The folder of all log files."""
        return self._logs

    @property
    def is_ready(self) -> bool:
        """Whether every worker takes records, and the expirer watches."""
        return bool(self._workers) and all(worker.is_ready for worker in self._workers)

    def start(self, stop: threading.Event | None = None) -> None:
        """Start everything; returns when every worker is ready, or `stop` is set.

        Raises:
            SettingsError: wrong or missing: model, package, Java, port, space, topics, setting.
            StartFailed: something ended that must not.
            SickHost: the given broker does not answer.
        """
        self._check_workers()
        require_space(self._home, _SPACE_BYTES)
        lock = HomeLock(self._home)
        self._stack.callback(lock.release)
        try:
            self._start(stop or threading.Event())
        except BaseException:
            self.stop()
            raise

    def step(self) -> None:
        """Look after everything once: start dead workers again, say so.

        Raises:
            SettingsError, StartFailed: it makes no sense to go on.
        """
        now_s = time.monotonic()
        for worker in self._workers:
            pid = worker.pid
            if line := worker.step(now_s):
                self._say(line)
                self._sign_off(worker.group, pid)
        self._require_broker(now_s)

    def run(self, stop: threading.Event) -> None:
        """Look after everything until `stop` is set; raises as `step`."""
        pids = self.pids()
        while not stop.wait(_STEP_S):
            self.step()
            if self.pids() != pids:
                pids = self.pids()
                self._write_file()

    def stop(self) -> None:
        """Stop the workers, with the grace to drain, then the broker."""
        if self._workers:
            with ThreadPoolExecutor(len(self._workers)) as pool:
                list(pool.map(WorkerProcess.stop, self._workers))
            self._workers = []
        self._stack.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, stop: threading.Event) -> None:
        # The model is checked while the broker starts.
        model = ModelFolder(self.settings.model, self._logs)
        self._stack.callback(model.cancel)
        model.begin()
        updates: dict[str, object] = {"home": self._home}
        if (distilled := self.settings.distilled_model) is not None:
            updates["distilled_model"] = distilled.absolute()  # workers have folders of their own
        if (broker := self._make_broker()) is not None:
            self._stack.callback(broker.stop)
            broker.start()
            updates["bootstrap"] = broker.bootstrap
            updates["group_protocol"] = "consumer" if broker.speaks_kip848 else "classic"
            updates["replication_factor"] = self.plan.num_brokers
        self.settings = self.settings.model_copy(update=updates)
        self._apply_topics()
        path = model.wait(stop)
        self.settings = self.settings.model_copy(
            update={"model": path, "blobs": self.settings.blobs_uri}
        )
        if not stop.is_set():
            self._start_workers(stop)

    def _start_workers(self, stop: threading.Event) -> None:
        self._broker_seen_s = time.monotonic()
        # Each torch would take all cores, and its threads wait by spinning: ten times as slow.
        threads = self.settings.torch_threads or max(1, (os.cpu_count() or 1) // _TORCH_STAGES)
        environment = as_environment(self.settings) | {"torch_threads": threads}
        grace_s = self.settings.grace_ms / 1000
        for stage in worker_stages():
            for number in range(1, self.plan.num_workers(stage.name) + 1):
                one = self.plan.num_workers(stage.name) == 1
                name = stage.name if one else f"{stage.name}-{number}"
                argv = [*self.plan.worker_argv, stage.name]
                self._workers.append(
                    WorkerProcess(name, stage.group, argv, environment, self._logs, grace_s)
                )
        argv = [*self.plan.expirer_argv]
        self._workers.append(WorkerProcess("expirer", None, argv, environment, self._logs, grace_s))
        said_s = time.monotonic()
        while not (self.is_ready or stop.wait(_STEP_S)):
            self.step()
            if time.monotonic() - said_s > _STILL_WAITING_S:
                said_s = time.monotonic()
                late = [worker.name for worker in self._workers if not worker.is_ready]
                self._say(f"still waiting for {', '.join(late)}; logs: {self._logs}")
        if self.is_ready:
            self._write_file()

    def _make_broker(self) -> Broker | None:
        plan = self.plan
        match plan.broker:
            case "embedded":
                from streams.local.embedded import EmbeddedKafka

                return EmbeddedKafka(self._home / "embedded", port=plan.port)
            case "apache":
                from streams.local.apache import ApacheKafka

                ports = plan.port and range(plan.port, plan.port + plan.num_brokers)
                folder = self._home / f"apache-{plan.num_brokers}"
                return ApacheKafka(
                    folder, home=plan.cache, num_brokers=plan.num_brokers, ports=ports or None
                )
            case None:
                return None

    def _apply_topics(self) -> None:
        from streams.kafka.admin import apply_topics  # brings confluent_kafka

        apply_topics(self.settings)

    def _sign_off(self, group: str | None, pid: int | None) -> None:
        """Let the dead worker's partitions go to others now."""
        if group is None or pid is None or self.settings.group_protocol != "classic":
            return
        from streams.client.connection import Connection
        from streams.local.departed import leave_for

        leave_for(Connection(self.settings.bootstrap, self.settings.kafka_extra), group, pid)

    def _require_broker(self, now_s: float) -> None:
        """StartFailed once none of our own brokers has been listening for a while."""
        if self.plan.broker is None or now_s < self._broker_seen_s + _BROKER_GONE_S / 5:
            return
        for address in self.settings.bootstrap.split(","):
            host, _, port = address.rpartition(":")
            if is_listening(host, int(port)):
                self._broker_seen_s = now_s
                return
        if now_s > self._broker_seen_s + _BROKER_GONE_S:
            raise StartFailed(f"the broker at {self.settings.bootstrap} is gone: see {self._home}")

    def _check_workers(self) -> None:
        names = [stage.name for stage in worker_stages()]
        for stage, count in self.plan.workers.items():
            if stage not in names:
                raise SettingsError(f"no stage {stage!r}: one of {', '.join(names)}")
            most = self.settings.partitions // len(self.settings.tiers)
            if not 1 <= count <= most:
                raise SettingsError(f"{stage}={count}: 1 to {most} workers share its partitions")

    def pids(self) -> dict[str, int]:
        """The process of each worker, by its name in the stack: the last one, dead or alive."""
        return {worker.name: worker.pid for worker in self._workers if worker.pid is not None}

    def _write_file(self) -> None:
        StackFile(
            pid=own_pid(),
            bootstrap=self.settings.bootstrap,
            blobs=self.settings.blobs_uri,
            group_protocol=self.settings.group_protocol,
            num_partitions=self.settings.partitions,
            replication_factor=self.settings.replication_factor,
            model=str(self.settings.model),
            logs=str(self._logs),
            workers=self.pids(),
        ).write(self._home)


def as_environment(settings: Settings) -> dict[str, object]:
    """What a child must be told, by the settings' names: all that was set, here or by the user."""
    told: dict[str, object] = {}
    for name in sorted(settings.model_fields_set):
        match getattr(settings, name):
            case None:
                continue
            case dict() as pairs:
                told[name] = ",".join(f"{key}={text}" for key, text in pairs.items())
            case tuple() as words:
                told[name] = ",".join(str(word) for word in words)
            case value:
                told[name] = value
    return told
