"""Stages scaled to zero: the expirer alone ends what is overdue or unwanted, on Apache Kafka.

A broker of its own: here nobody else may work the topics.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from schemas.cloudevents import parse_headers
from schemas.codec import Codec
from schemas.records import GenerationRequest, JobControl, VideoDone
from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.cli.context import make_client
from streams.client.ids import new_job_id
from streams.kafka.admin import apply_topics
from streams.local.apache import ApacheKafka
from streams.local.processes import free_port
from streams.local.worker_process import python_environment
from streams.settings import Settings
from streams.topology import JOB_CONTROL, VIDEOS_DONE
from tests.builders import a_request

GIVE_UP_S = 60.0
CODEC = Codec()


@dataclass
class Stage:
    """A broker, a store, and as many expirers as a test wants."""

    settings: Settings
    logs: Path
    expirers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def fences(self) -> Fences:
        return Fences(open_store(self.settings.blobs_uri))

    def start(self, **changes: Any) -> int:
        """Start another expirer; the port of its page, once it is ready."""
        port = free_port()
        told = {
            "bootstrap": self.settings.bootstrap,
            "blobs": self.settings.blobs_uri,
            "partitions": self.settings.partitions,
            "expiry_grace_ms": self.settings.expiry_grace_ms,
            "metrics_port": port,
            **changes,
        }
        log = self.logs / f"expirer-{len(self.expirers)}.log"
        with log.open("wb") as file:
            self.expirers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "streams.expirer"],
                    env=python_environment(told), cwd=self.logs, stderr=file,
                )
            )  # fmt: skip
        wait_until(lambda: page(port, "/readyz")[0] == 200)
        return port

    def end(self, number: int) -> int:
        """Kill (SIGKILL) or stop (SIGTERM) all of them; the last exit code."""
        code = 0
        for each in self.expirers:
            each.send_signal(number)
            code = each.wait(GIVE_UP_S)
        self.expirers.clear()
        return code

    def submit(self, **changes: Any) -> GenerationRequest:
        """A request on its topic, acknowledged."""
        request = a_request(
            **{"job_id": new_job_id(), "created_at": datetime.now(UTC), "deadline": None, **changes}
        )

        async def send() -> None:
            async with make_client(self.settings) as client:
                await client.send(request)

        asyncio.run(send())
        return request

    def control(self, control: JobControl) -> None:
        """A wish on its topic, acknowledged."""
        producer = Producer({"bootstrap.servers": self.settings.bootstrap})
        key = f"{control.job_id}/{control.run}/{control.kind}"
        producer.produce(JOB_CONTROL, CODEC.encode(control), key)
        assert producer.flush(GIVE_UP_S) == 0

    def told(self, job_id: str, at_least: int = 1) -> list[tuple[str | None, VideoDone]]:
        """Event id and record of every VideoDone of a job, once there are that many."""
        found: list[tuple[str | None, VideoDone]] = []

        def enough() -> bool:
            found[:] = self.all_told().get(job_id, [])
            return len(found) >= at_least

        wait_until(enough)
        return found

    def all_told(self) -> dict[str, list[tuple[str | None, VideoDone]]]:
        """Event id and record of every VideoDone there is, by job."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings.bootstrap,
                "group.id": "reader",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
            }
        )
        numbers = range(self.settings.partitions)
        consumer.assign([TopicPartition(VIDEOS_DONE, number, 0) for number in numbers])
        found: dict[str, list[tuple[str | None, VideoDone]]] = {}
        num_ends = 0
        while num_ends < len(numbers):
            message: Any = consumer.poll(GIVE_UP_S)
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF
                num_ends += 1
                continue
            done = CODEC.decode(message.value(), VideoDone)
            assert (message.partition(), message.key()) == (done.partition, done.job_id.encode())
            event_id = parse_headers(message.headers()).id
            found.setdefault(done.job_id, []).append((event_id, done))
        consumer.close()
        return found


def page(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def open_runs(port: int) -> float:
    (line,) = re.findall(r"^reel_open_runs\{.*\} (.+)$", page(port, "/metrics")[1], re.MULTILINE)
    return float(line)


def wait_until(reached: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + GIVE_UP_S
    while not reached():
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


@pytest.fixture(scope="module")
def broker(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path_factory.mktemp("kafka"), home=kafka_home) as broker:
        settings = Settings(bootstrap=broker.bootstrap, partitions=3)
        apply_topics(settings)
        yield broker


@pytest.fixture
def stage(broker: ApacheKafka, tmp_path: Path) -> Iterator[Stage]:
    settings = Settings(
        bootstrap=broker.bootstrap,
        partitions=3,
        blobs=(tmp_path / "blobs").as_uri(),
        expiry_grace_ms=300,
    )
    stage = Stage(settings, tmp_path)
    yield stage
    stage.end(signal.SIGKILL)


def soon(seconds: float = 1.0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def a_wish(request: GenerationRequest, kind: str, **changes: Any) -> JobControl:
    return JobControl(
        **{
            "job_id": request.job_id,
            "run": 1,
            "kind": kind,
            "issued_at": datetime.now(UTC),
            "issued_by": "test",
            "tenant_id": request.tenant_id,
            **changes,
        }
    )


def test_overdue_and_unwanted_jobs_end_though_no_stage_runs(stage: Stage) -> None:
    before = stage.submit(deadline=soon(0.1))  # on the log before the expirer is
    port = stage.start()
    overdue, unwanted, patient = stage.submit(deadline=soon()), stage.submit(), stage.submit()
    stage.control(a_wish(unwanted, "cancel"))
    stage.control(a_wish(patient, "cancel", tenant_id="another"))
    for request, status, reason in (
        (before, "expired", "deadline_passed"),
        (overdue, "expired", "deadline_passed"),
        (unwanted, "cancelled", "cancelled"),
    ):
        ((ce_id, done),) = stage.told(request.job_id)
        assert (done.status, done.reason_code, done.ended_by) == (status, reason, "expirer")
        assert ce_id == f"{request.job_id}.1.expirer.{status}"
        assert done.finished_at >= (request.deadline or request.created_at)
        outcome = stage.fences.outcome("acme", request.job_id, 1)
        assert outcome is not None
        assert CODEC.decode(outcome, VideoDone) == done
        assert stage.fences.request("acme", request.job_id) is not None
    assert stage.fences.outcome("acme", patient.job_id, 1) is None
    lines = {
        'reel_expirer_told_total{kind="expired",stage="expirer"} 2.0',
        'reel_expirer_told_total{kind="cancelled",stage="expirer"} 1.0',
        'reel_open_runs{stage="expirer"} 2.0',  # `patient`, and the foreign wish
    }
    wait_until(lambda: lines <= set(page(port, "/metrics")[1].splitlines()))
    assert page(port, "/healthz")[0] == 200
    assert stage.end(signal.SIGTERM) == 0


def test_killed_and_started_again_it_tells_the_same(stage: Stage) -> None:
    jobs = [stage.submit(deadline=soon(4 + n / 20)).job_id for n in range(20)]
    stage.start()
    stage.told(jobs[0])
    os.kill(stage.expirers[0].pid, signal.SIGKILL)  # somewhere among them
    stage.expirers.pop().wait(GIVE_UP_S)
    stage.start()
    stage.start()  # two at once
    wait_until(lambda: set(jobs) <= stage.all_told().keys())
    stage.end(signal.SIGTERM)
    told = stage.all_told()
    for job in jobs:
        assert len(set(told[job])) == 1, "what is told twice is the same event"
        assert len(told[job]) <= 3
    stage.start()  # which finds every run ended on the log
    stage.told(stage.submit(deadline=soon(0.1)).job_id)
    again = stage.all_told()
    assert {job: again[job] for job in jobs} == {job: told[job] for job in jobs}


def test_an_outcome_that_nobody_told_of_is_told(stage: Stage) -> None:
    """Its writer died between the outcome and the VideoDone."""
    request = stage.submit(deadline=soon())
    done = VideoDone(
        request.job_id, 1, "acme", "failed", 2, request.created_at, datetime.now(UTC),
        reason_code="input_lost", ended_by="decoder",
    )  # fmt: skip
    stage.fences.end("acme", request.job_id, 1, CODEC.encode(done))
    stage.start()
    assert stage.told(request.job_id) == [(f"{request.job_id}.1.decoder.failed", done)]


def test_a_wish_to_redrive_whose_writer_died_begins_the_run(stage: Stage) -> None:
    request = stage.submit(deadline=soon(0.1))
    stage.start(deadline_s=5)
    stage.told(request.job_id)
    stage.control(a_wish(request, "redrive", run=2))
    wait_until(lambda: stage.fences.claimed_run("acme", request.job_id, 2) is not None)
    # The record it produced is a request like any other: it gets a deadline, and passes it.
    (first, second) = stage.told(request.job_id, at_least=2)
    assert (first[1].run, second[1].run, second[1].status) == (1, 2, "expired")
    assert second[1].created_at > first[1].created_at


def test_a_store_that_is_away_is_waited_for(stage: Stage, tmp_path: Path) -> None:
    open_store(stage.settings.blobs_uri)
    port = stage.start()
    (tmp_path / "blobs").rename(tmp_path / "elsewhere")
    request = stage.submit(deadline=soon(0.1))
    wait_until(lambda: "object store" in page(port, "/readyz")[1])
    assert page(port, "/healthz")[0] == 200
    (tmp_path / "elsewhere").rename(tmp_path / "blobs")
    assert stage.told(request.job_id)[0][1].status == "expired"
    wait_until(lambda: page(port, "/readyz")[0] == 200)


def test_a_broker_that_is_away_is_waited_for(stage: Stage, broker: ApacheKafka) -> None:
    """Its deadline passes while there is nobody to tell."""
    port = stage.start(delivery_timeout_ms=2_000)
    num_open = open_runs(port)
    request = stage.submit(deadline=soon(3.0))
    wait_until(lambda: open_runs(port) > num_open)  # it may take half a second to be read
    broker.stop()
    wait_until(lambda: stage.fences.outcome("acme", request.job_id, 1) is not None)
    assert page(port, "/healthz")[0] == 200
    broker.start()
    ((ce_id, done),) = stage.told(request.job_id)
    assert (ce_id, done.status) == (f"{request.job_id}.1.expirer.expired", "expired")
    assert stage.expirers[0].poll() is None
