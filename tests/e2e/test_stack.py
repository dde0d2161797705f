"""The local stack's supervision, with workers that need no torch."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.records import VideoDone
from streams.cli.context import make_client
from streams.errors import SettingsError
from streams.local.stack import LocalStack, StackPlan
from streams.local.stack_file import running_stack
from streams.settings import Settings

pytestmark = pytest.mark.kafka

GIVE_UP_S = 60.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def a_plan(home: Path) -> StackPlan:
    settings = Settings(home=home, session_timeout_ms=6_000, partitions=6)
    return StackPlan(
        settings,
        cache=home,
        workers={"sampler": 2},
        worker_argv=(sys.executable, "-m", "tests.echo"),
    )


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def stack(home: Path, said: list[str]) -> Iterator[LocalStack]:
    with LocalStack(a_plan(home), said.append) as stack:
        yield stack


def step_until(stack: LocalStack, reached: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + GIVE_UP_S
    while not reached():
        assert time.monotonic() < give_up_s
        stack.step()
        time.sleep(0.05)


def one_job(stack: LocalStack) -> VideoDone:
    async def run() -> VideoDone:
        async with asyncio.timeout(GIVE_UP_S), make_client(stack.settings) as client:
            deadline = datetime.now(UTC) + timedelta(hours=1)
            job_id = await client.submit("a ball", deadline=deadline)
            async with aclosing(client.watch(job_id)) as events:
                async for event in events:
                    if isinstance(event, VideoDone):
                        return event
        raise AssertionError("watch ends with a VideoDone")

    return asyncio.run(run())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_goes_through_every_stage(stack: LocalStack) -> None:
    done = one_job(stack)
    assert done.status == "completed"
    stages = ["prompt", "sampler", "decoder", "finisher"]
    assert [timing.stage for timing in done.timings] == stages


def test_the_stack_file_tells_how_to_reach_it(stack: LocalStack, home: Path) -> None:
    found = running_stack(home)
    assert found is not None
    assert (found.bootstrap, found.group_protocol) == (stack.settings.bootstrap, "classic")
    stages = {"prompt", "sampler-1", "sampler-2", "decoder", "finisher"}
    assert found.workers.keys() == {*stages, "expirer"}


@pytest.mark.usefixtures("stack")
def test_a_second_stack_at_the_same_home_is_refused(home: Path) -> None:
    with pytest.raises(SettingsError, match="a stack runs already in"):
        LocalStack(a_plan(home), print).start()


def test_a_killed_worker_is_back_soon_and_works(
    stack: LocalStack, home: Path, said: list[str]
) -> None:
    before = running_stack(home)
    assert before is not None
    os.kill(before.workers["decoder"], signal.SIGKILL)
    step_until(stack, lambda: not stack.is_ready)
    assert said[-1] == "decoder died (exit -9), starts again in 0.5 s"
    step_until(stack, lambda: stack.is_ready)
    assert one_job(stack).status == "completed"


def test_nothing_is_left_when_it_was_stopped(tmp_path: Path) -> None:
    stack = LocalStack(a_plan(tmp_path), print)
    stack.start()
    found = running_stack(tmp_path)
    stack.stop()
    assert found is not None
    assert [pid for pid in found.workers.values() if is_alive(pid)] == []
    assert running_stack(tmp_path) is None
    stack.stop()  # once more does no harm
