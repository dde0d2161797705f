"""What the topics say of all runs of the last `longest_run_s`, for who wants to know who waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from schemas.codec import Codec, UndecodableRecord
from schemas.records import GenerationRequest, JobEvent, StageControl, VideoDone
from streams.client.tenant_rows import ENDED, Sighting
from streams.costs import bulk_of
from streams.engine import Task
from streams.errors import SickHost
from streams.kafka.config import tail_config
from streams.kafka.tail import KafkaTail
from streams.letters import PARKED_PREFIX, texts
from streams.placement import tier_of_request
from streams.settings import Settings
from streams.topology import (
    JOB_EVENTS,
    REQUESTS_DEFERRED,
    STAGE_CONTROL,
    VIDEOS_DONE,
    retry_topic,
    worker_stages,
)

_STALLED_S = 30.0
_BEGUN = frozenset({"started", "progress", "preview"})


class Backlog:
    """Reads whole topics and decodes them; a member of no group."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self._settings, self._codec = settings, codec
        self._stages = worker_stages()
        self._positions = {stage.name: number for number, stage in enumerate(self._stages)}
        # By topic: the stage's position, its type of record, how long a record waits there.
        self._topics: dict[str, tuple[int, type[Any], float | None]] = {}
        for number, stage in enumerate(self._stages):
            self._topics[stage.reads] = number, stage.reads_record, None
            for delay_s in settings.retry_delays_s:
                self._topics[retry_topic(stage.reads, delay_s)] = (
                    number, stage.reads_record, float(delay_s),
                )  # fmt: skip
        self._topics[REQUESTS_DEFERRED] = 0, GenerationRequest, None

    def paused(self) -> set[str]:
        """The stages that an operator has paused."""
        states = {}
        for task in self._read([STAGE_CONTROL], 0.0):
            if task.value is not None:
                control = self._codec.decode(task.value, StageControl)
                states[control.stage] = control.state
        return {stage for stage, state in states.items() if state == "paused"}

    def sightings(self, now_s: float) -> Iterator[Sighting]:
        """What each record says; those that nobody can decode say nothing.

        Raises:
            SickHost: the brokers do not answer.
            FatalError: a topic is missing.
        """
        topics = [VIDEOS_DONE, JOB_EVENTS, *self._topics]
        for task in self._read(topics, now_s - self._settings.longest_run_s):
            try:
                yield self._sighting(task)
            except UndecodableRecord:  # its stage dead-letters it
                continue

    def _read(self, topics: list[str], since_s: float) -> Iterator[Task]:
        tail = KafkaTail(tail_config(self._settings, "reel.tenants"), [], topics, since_s)
        try:
            give_up_s = time.monotonic() + _STALLED_S
            while not tail.is_caught_up:
                for task in tail.poll(0.1):
                    give_up_s = time.monotonic() + _STALLED_S
                    yield task
                if time.monotonic() > give_up_s:
                    raise SickHost("the brokers tell nothing more, and not all was read")
        finally:
            tail.close()

    def _sighting(self, task: Task) -> Sighting:
        if task.topic == VIDEOS_DONE:
            done = self._codec.decode(task.value, VideoDone)
            cost_s = done.cost_gpu_s if done.status == "completed" else 0.0
            return Sighting(done.tenant_id, done.job_id, done.run, ENDED, cost_s=cost_s)
        if task.topic == JOB_EVENTS:
            event = self._codec.decode(task.value, JobEvent)
            position = self._positions.get(event.stage, 0)
            is_begun = event.kind in _BEGUN
            return Sighting(event.tenant_id, event.job_id, event.run, position, is_begun=is_begun)
        position, record_type, delay_s = self._topics[task.topic]
        record = self._codec.decode(task.value, record_type)
        job = record if isinstance(record, GenerationRequest) else record.job
        is_request = isinstance(record, GenerationRequest)
        return Sighting(
            job.tenant_id,
            job.job_id,
            job.run,
            position,
            tier=tier_of_request(job, self._settings) if is_request else job.tier,
            requested_s=job.created_at.timestamp(),
            is_deferrable=job.is_deferrable,
            bulk=None if is_request else bulk_of(record.job),
            over=texts(task.headers, PARKED_PREFIX).get("why"),
            due_s=0.0 if delay_s is None else task.timestamp_ms / 1000 + delay_s,
        )
