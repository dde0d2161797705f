"""The whole pipeline, as real processes with the demo model, once per test run and broker."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streams.local.stack import LocalStack, StackPlan
from streams.settings import Settings
from tests.e2e.scene import Scene, open_scene

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """A running pipeline."""

    bootstrap: str
    blobs_uri: str
    settings: Settings
    stack: LocalStack


def _running(broker: Any, home: Path, cache: Path) -> Iterator[Pipeline]:
    settings = Settings(
        home=home,
        bootstrap=broker.bootstrap,
        group_protocol="consumer" if broker.speaks_kip848 else "classic",
        torch_threads=1,
        retry_delays_s=(1, 2, 4),
        checkpoint_ms=200,
        preview_ms=200,
    )
    plan = StackPlan(
        settings, cache=cache, broker=None, worker_argv=(sys.executable, "-m", "tests.poisoned")
    )
    with LocalStack(plan, log.info) as stack:
        yield Pipeline(broker.bootstrap, stack.settings.blobs_uri, stack.settings, stack)


@pytest.fixture(scope="session")
def apache_pipeline(
    apache_kafka: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """On Apache Kafka, with KIP-848 groups."""
    yield from _running(
        apache_kafka, tmp_path_factory.mktemp("apache-stack"), tmp_path_factory.getbasetemp()
    )


@pytest.fixture(scope="session")
def embedded_pipeline(
    embedded_kafka: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """On the embedded broker, with classic groups."""
    yield from _running(
        embedded_kafka, tmp_path_factory.mktemp("embedded-stack"), tmp_path_factory.getbasetemp()
    )


@pytest.fixture(scope="session")
def scene(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Echo workers on servers of their own: tests here kill, stop and start them."""
    with open_scene(tmp_path_factory.mktemp("scene"), kafka_home) as scene:
        yield scene


@pytest.fixture
def pipeline(apache_pipeline: Pipeline) -> Pipeline:
    """The one on Apache Kafka."""
    return apache_pipeline
