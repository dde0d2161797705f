"""Wishes and the schema registry: what cannot be decoded yet is waited for."""

from __future__ import annotations

import time
import uuid

import pytest
from confluent_kafka import Producer

from schemas.codec import Codec
from schemas.records import JobControl
from streams.core.events import Event, JobCancelled, JobDeadline
from streams.kafka.admin import apply_topics
from streams.kafka.config import controls_config, producer_config
from streams.kafka.controls import KafkaControls
from streams.settings import Settings
from streams.topology import JOB_CONTROL
from tests.builders import CREATED_AT as NOW
from tests.registry import Registry

DEADLINE_S = 30.0


@pytest.fixture(params=["apache", "embedded"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Each broker in turn."""
    broker = request.getfixturevalue(f"{request.param}_kafka")
    settings = Settings(bootstrap=broker.bootstrap)
    apply_topics(settings)
    return settings


def test_a_wish_that_cannot_be_decoded_yet_is_handed_on_later_and_in_order(
    settings: Settings,
) -> None:
    registry, job_id = Registry(), uuid.uuid4().hex
    cancel = JobControl(job_id, 1, "cancel", NOW, "test", tenant_id="acme")
    later = JobControl(job_id, 1, "deadline", NOW, "test", deadline=NOW)
    producer = Producer(producer_config(settings, "test"))
    for value in (Codec(registry).encode(cancel), Codec().encode(later)):
        producer.produce(JOB_CONTROL, value, b"k", 0)
    assert producer.flush(DEADLINE_S) == 0
    events: list[Event] = []
    controls = KafkaControls(controls_config(settings, "test"), "decoder", Codec(registry))

    def poll() -> list[Event]:
        controls.poll(events.append)
        ours = (JobCancelled, JobDeadline)
        return [each for each in events if isinstance(each, ours) and each.job_id == job_id]

    give_up_s = time.monotonic() + DEADLINE_S
    registry.is_away = True
    while registry.num_refused < 3:
        assert time.monotonic() < give_up_s
        assert (poll(), controls.is_caught_up) == ([], False)
    registry.is_away = False
    while not controls.is_caught_up:
        assert time.monotonic() < give_up_s
        poll()
    at_s = NOW.timestamp()
    assert poll() == [JobCancelled(job_id, 1, at_s, "acme"), JobDeadline(job_id, 1, at_s, at_s)]
    controls.close()
