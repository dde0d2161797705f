"""Requests as a producer of its own, which knows of each whether it is in, is not, or may be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from confluent_kafka import KafkaError, Message, Producer

from schemas.codec import Codec
from schemas.records import GenerationRequest
from streams.core.tiers import partition_of_job
from streams.kafka.config import producer_config
from streams.settings import Settings
from streams.topology import REQUESTS
from tests.chaos.oracle import Submission

NUM_TENANTS = 7
_FLUSH_S = 15.0


class Submitter:
    """Hands in jobs; `submissions` says what became of each request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = Producer(producer_config(settings, "chaos-submitter"))
        self._codec = Codec()
        self._placed: dict[str, tuple[bytes, int]] = {}  # what was sent for a job, and where to
        self.submissions: dict[str, Submission] = {}

    def submit(
        self,
        job_id: str,
        status: str | None = "completed",
        *,
        deadline_s: float = 3_600.0,
        tier: str | None = None,
    ) -> None:
        """Send a request whose job should end so; its answer comes later.

        `tier` None: the tiers take turns.
        """
        settings, now = self._settings, datetime.now(UTC)
        tier = tier or settings.tiers[len(self.submissions) % len(settings.tiers)]
        tenant = tenant_of(job_id)
        deadline = now + timedelta(seconds=deadline_s)
        request = GenerationRequest(job_id, tenant, "a ball", now, tier=tier, deadline=deadline)
        partition = partition_of_job(tier, tenant, job_id, settings.partitions, settings.tiers)
        self.submissions[job_id] = Submission("unknown", status, at_s=time.monotonic())
        self._placed[job_id] = self._codec.encode(request), partition
        self.send_again(job_id)

    def send_again(self, job_id: str) -> None:
        """The same bytes to the same place, as a producer does who was not answered."""
        value, partition = self._placed[job_id]
        self._producer.produce(REQUESTS, value, job_id, partition, self._heard(job_id))
        self._producer.poll(0)

    def partition(self, job_id: str) -> int:
        """Where a job's records lie, on every topic."""
        return self._placed[job_id][1]

    def acknowledged_since(self, since_s: float) -> set[int]:
        """Partitions on which a request was acknowledged after that moment (monotonic)."""
        return {
            self.partition(job_id)
            for job_id, each in self.submissions.items()
            if each.answer == "acknowledged" and each.at_s > since_s
        }

    def put(self, topic: str, partition: int, key: str, value: bytes | None) -> None:
        """Any bytes on any topic."""
        self._producer.produce(topic, value, key, partition)
        self._producer.poll(0)

    def poll(self) -> None:
        """Hear answers."""
        self._producer.poll(0)

    def finish(self) -> None:
        """Wait for the last answers; what has none then stays unknown."""
        self._producer.flush(_FLUSH_S)

    def _heard(self, job_id: str) -> Callable[[KafkaError | None, Message], None]:
        def heard(error: KafkaError | None, _message: Message) -> None:
            # An error does not say that the record is not on the log: only an answer is one.
            if error is None:
                known = self.submissions[job_id]
                now_s = time.monotonic()
                self.submissions[job_id] = replace(known, answer="acknowledged", at_s=now_s)

        return heard


def tenant_of(job_id: str) -> str:
    """The tenant for whom a job was handed in: one of its row's, which no other row has."""
    return tenants(job_id)[sum(job_id.encode()) % NUM_TENANTS]


def tenants(suffix: str) -> list[str]:
    """All those of the row whose jobs' ids end so."""
    row = suffix.rpartition(".")[2]
    return [f"t{number}.{row}" for number in range(NUM_TENANTS)]
