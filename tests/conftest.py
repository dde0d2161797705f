"""Real servers for the tests that ask for them: one of each per test run, started when first asked.

Under pytest-xdist every worker starts its own; only the cache of Kafka's jars is shared. Where a
server's prerequisites are missing its tests are skipped with the reason, except in CI, where a
missing server is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

from streams.errors import SettingsError
from streams.local.apache import ApacheKafka, require_tools
from streams.local.embedded import EmbeddedKafka
from streams.local.object_store import S3Server
from streams.settings import read_settings

# Workers, brokers and tests share few cores. torch's threads spin while they wait for one another:
# on a busy machine two of them take up to ten times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples have no time limit: a busy machine is no finding.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

#: Whoever asks for the fixture gets the marker.
MARKERS = {
    "kafka_home": "kafka",
    "apache_kafka": "kafka",
    "embedded_kafka": "kafka",
    "s3_server": "s3",
}


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the servers that it asks for, however indirectly."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])


@pytest.fixture(scope="session")
def kafka_home() -> Path:
    """REEL_HOME, whose cache holds Kafka's jars, on a machine that can run Apache Kafka."""
    home = read_settings().home
    try:
        require_tools(home)
    except SettingsError as error:
        _not_here(error)
    return home


@pytest.fixture(scope="session")
def apache_kafka(
    kafka_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApacheKafka]:
    """One Apache Kafka broker, shared: a test names its topics and groups so that none collide."""
    with ApacheKafka(tmp_path_factory.mktemp("kafka"), home=kafka_home) as broker:
        yield broker


@pytest.fixture(scope="session")
def embedded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """The embedded broker, shared; classic groups only."""
    try:
        broker = EmbeddedKafka(tmp_path_factory.mktemp("embedded"))
    except SettingsError as error:
        _not_here(error)
    with broker:
        yield broker


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS with one bucket, shared: a test takes a prefix of its own."""
    try:
        server = S3Server(tmp_path_factory.mktemp("s3"))
    except SettingsError as error:
        _not_here(error)
    with server:
        yield server


def _not_here(error: SettingsError) -> NoReturn:
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"CI runs every test: {error}", pytrace=False)
    pytest.skip(str(error))
