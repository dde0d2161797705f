"""A pipeline of echo workers on servers of its own, which tests kill, stop and start."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Message

from schemas.codec import Codec
from schemas.records import GenerationRequest, VideoDone
from streams.cli.context import make_client
from streams.letters import DLT_PREFIX, texts
from streams.local.apache import ApacheKafka
from streams.local.object_store import S3Server
from streams.local.stack import LocalStack, StackPlan
from streams.settings import Settings
from streams.topology import VIDEOS_DONE, worker_stages
from tests.e2e.reading import Tail

GIVE_UP_S = 240.0
CODEC = Codec()


class Scene:
    """A running stack of echo workers and what its last topics hold. `wait` keeps it running."""

    def __init__(
        self, stack: LocalStack, tail: Tail, said: list[str], broker: ApacheKafka, store: S3Server
    ) -> None:
        self.stack, self._tail, self.said = stack, tail, said
        self.broker, self.store = broker, store
        self.done: dict[str, list[VideoDone]] = {}
        self.dead: dict[str, list[dict[str, str]]] = {}  # dead letters' findings, by job
        self.reached: dict[str, set[str]] = defaultdict(set)  # jobs, by topic

    def submit(self, job_ids: Sequence[str], tenant_id: str = "acme") -> None:
        """Put requests on the log, without a deadline, as clients do that name none."""

        async def run() -> None:
            async with make_client(self.stack.settings) as client:
                for job_id in job_ids:
                    await client.send(
                        GenerationRequest(job_id, tenant_id, "a ball", datetime.now(UTC))
                    )

        asyncio.run(run())

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Keep the stack running until that is so."""
        self.watch(is_so, self.stack.step)

    def submit_without_sampler(self, job_ids: Sequence[str]) -> None:
        """Kill the sampler; when it starts again, all of these wait for it."""
        os.kill(self.stack.pids()["sampler"], signal.SIGKILL)
        self.submit(job_ids)
        self.wait_for_arrival("prompts.cleaned", job_ids)

    def wait_for_arrival(self, topic: str, job_ids: Sequence[str]) -> None:
        """Until these jobs are on that topic; what died stays dead meanwhile."""
        self.watch(lambda: self.reached[topic] >= set(job_ids), lambda: None)

    def watch(self, is_so: Callable[[], bool], step: Callable[[], None]) -> None:
        """Read until that is so, doing `step` between."""
        give_up_s = time.monotonic() + GIVE_UP_S
        while not is_so():
            assert time.monotonic() < give_up_s, (self.said, self.done, self.dead)
            step()
            for message in self._tail.read():
                self._take(message)

    def wait_for(self, *job_ids: str) -> None:
        """Until each of these jobs has ended."""
        self.wait(lambda: self.done.keys() >= set(job_ids))

    def _take(self, message: Message) -> None:
        topic, value, key = message.topic() or "", message.value(), message.key()
        assert key is not None
        if topic == VIDEOS_DONE:
            assert value is not None
            done = CODEC.decode(value, VideoDone)
            self.done.setdefault(done.job_id, []).append(done)
        elif topic.endswith(".dlt"):
            headers: Any = message.headers() or ()
            found = texts(headers, DLT_PREFIX)
            self.dead.setdefault(key.decode(), []).append(found)
        self.reached[topic].add(key.decode())

    def ended(self, job_id: str) -> tuple[str, str | None]:
        """How a job ended: status and reason code; every VideoDone must say the same."""
        (ending,) = {(done.status, done.reason_code) for done in self.done[job_id]}
        return ending

    def count_in_logs(self, event: str) -> int:
        """How often the workers have logged that."""
        logs = [path.read_text() for path in self.stack.logs.glob("*.log")]
        return sum(text.count(f'"event": "{event}"') for text in logs)


@contextmanager
def open_scene(folder: Path, kafka_home: Path, **changes: Any) -> Iterator[Scene]:
    """Apache Kafka with KIP-848 groups, SeaweedFS, four echo workers; short delays.

    `changes` are settings.
    """
    said: list[str] = []
    with (
        ApacheKafka(folder / "kafka", home=kafka_home) as broker,
        S3Server(folder / "s3") as store,
    ):
        settings = Settings(
            home=folder,
            bootstrap=broker.bootstrap,
            group_protocol="consumer",
            partitions=6,
            batch_max=8,
            batch_age_ms=1_500,
            retry_delays_s=(1, 2, 3),
            blobs=f"s3://{store.bucket}/scene",
            s3_endpoint=store.endpoint,
            s3_access_key=store.access_key,
            s3_secret_key=store.secret_key,
            store_connect_ms=1_000,
            store_read_ms=2_000,
        ).model_copy(update=changes)
        plan = StackPlan(
            settings, cache=folder, broker=None, worker_argv=(sys.executable, "-m", "tests.echo")
        )
        with LocalStack(plan, said.append) as stack:
            stages = worker_stages()
            topics = [str(each.writes) for each in stages]
            topics += [each.dead_letters for each in stages]
            with Tail(broker.bootstrap, topics) as tail:
                yield Scene(stack, tail, said, broker, store)
