"""A worker's process under supervision, with small programs in place of workers."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streams.errors import SettingsError
from streams.local.processes import StartFailed
from streams.local.worker_process import WorkerProcess

READY = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
HTTPServer(("127.0.0.1", int(os.environ["REEL_METRICS_PORT"])), Ready).serve_forever()
"""

Start = Callable[[str], WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start_it(code: str) -> WorkerProcess:
            worker = WorkerProcess(
                "sampler", "reel.sampler", [sys.executable, "-c", code], {}, tmp_path, 5.0
            )
            stack.callback(worker.stop)
            worker.step(0.0)
            return worker

        yield start_it


def step_until(worker: WorkerProcess, reached: Callable[[], bool], now_s: float) -> list[str]:
    """Steps at one and the same time; what was said meanwhile."""
    said = []
    give_up_s = time.monotonic() + 20.0
    while not reached():
        assert time.monotonic() < give_up_s
        if line := worker.step(now_s):
            said.append(line)
            return said
        time.sleep(0.01)
    return said


def never() -> bool:
    return False


def test_a_worker_is_ready_when_it_says_so(start: Start) -> None:
    worker = start(READY)
    assert not worker.is_ready
    step_until(worker, lambda: worker.is_ready, 1.0)
    assert worker.is_ready


def test_a_killed_worker_is_started_again_after_the_delay_and_said_so(start: Start) -> None:
    worker = start(READY)
    step_until(worker, lambda: worker.is_ready, 1.0)
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    said = step_until(worker, never, 2.0)
    assert said == ["sampler died (exit -9), starts again in 0.5 s"]
    assert not worker.is_ready
    worker.step(2.4)
    assert worker.pid == first
    worker.step(2.5)
    assert worker.pid != first
    step_until(worker, lambda: worker.is_ready, 3.0)


def test_a_worker_that_keeps_dying_ends_it_with_the_end_of_its_log(start: Start) -> None:
    worker = start("print('the last words'); raise SystemExit(1)")

    def die_until_given_up() -> None:
        for number in range(20):
            step_until(worker, never, 100.0 * number)
            worker.step(100.0 * number + 50.0)

    with pytest.raises(StartFailed, match=r"(?s)keeps dying \(5 times, exit 1\).*the last words"):
        die_until_given_up()


def test_a_worker_that_is_used_wrongly_is_not_started_again(start: Start) -> None:
    worker = start("import sys; print('REEL_X: no such thing', file=sys.stderr); sys.exit(2)")
    with pytest.raises(SettingsError, match=r"^REEL_X: no such thing$") as caught:
        step_until(worker, never, 1.0)
    assert not isinstance(caught.value, StartFailed)
