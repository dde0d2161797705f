"""A worker that is told to stop before it has begun does not begin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streams.kafka.admin import apply_topics
from streams.local.embedded import EmbeddedKafka
from streams.local.worker_process import python_environment
from streams.settings import Settings
from tests.echo import echo
from workers.main import Worker, main

pytestmark = pytest.mark.kafka

STAGE = "decoder"
ENDS_WITHIN_S = 30.0


class StoppedWorker(Worker):
    """SIGTERM comes while it asks brokers for its topics and makes its clients."""

    def _join(self, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return super()._join(*arguments)


def test_sigterm_that_comes_while_the_group_is_joined_is_heeded(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path / "broker") as broker:
        wishes = {
            "bootstrap": broker.bootstrap,
            "blobs": tmp_path.as_uri(),
            "home": str(tmp_path),
            "group_protocol": "classic",
        }
        apply_topics(Settings(home=tmp_path, bootstrap=broker.bootstrap))
        ended = subprocess.run(
            [sys.executable, "-m", "tests.contract.test_stopping"],
            env=python_environment(wishes),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=ENDS_WITHIN_S, text=True,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert '"event": "drained"' in ended.stdout
    assert '"event": "partitions assigned"' not in ended.stdout


if __name__ == "__main__":
    sys.exit(main([STAGE], echo(0.0), StoppedWorker))
