"""`make kill-demo`: SIGKILL to every worker in turn, ten rounds, in the middle of real jobs.

Apache Kafka, real workers, the default model. Each round submits its share of the jobs, then kills
each worker once while they are being worked, waiting for it to be ready again in between.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from schemas.codec import Codec
from schemas.records import JobEvent, VideoDone
from streams.cli.context import make_client
from streams.local.stack import LocalStack, StackPlan
from streams.settings import Settings, read_settings
from streams.topology import JOB_EVENTS, VIDEOS_DONE, worker_stages
from tests.bench.goals import Goals, print_table
from tests.e2e.reading import Tail

ROUNDS, JOBS = 10, 200
READY_S, ALL_DONE_S = 120.0, 900.0
CODEC = Codec()


class Demo:
    """The stack, what its last topics say, and the kills so far."""

    def __init__(self, stack: LocalStack, tail: Tail) -> None:
        self._stack, self._tail = stack, tail
        self.submitted: list[str] = []
        self.done: dict[str, list[VideoDone]] = {}
        self.started: list[JobEvent] = []
        self.num_dead = 0
        self.kills: Counter[str] = Counter()

    def submit(self, count: int) -> None:
        """Hand in jobs: small, but real."""

        async def run() -> None:
            deadline = datetime.now(UTC) + timedelta(hours=2)
            async with make_client(self._stack.settings) as client:
                for number in range(count):
                    self.submitted.append(
                        await client.submit(
                            "a red circle moving right", num_frames=9, num_inference_steps=6,
                            tenant_id=f"tenant-{number % 7}", deadline=deadline,
                        )
                    )  # fmt: skip

        asyncio.run(run())

    def wait(self, is_so: Callable[[], bool], limit_s: float) -> None:
        """Look after the stack until that is so."""
        until_s = time.monotonic() + limit_s
        while not is_so():
            if time.monotonic() > until_s:
                raise TimeoutError(f"{len(self.done)} of {len(self.submitted)} jobs have ended")
            self._stack.step()
            for message in self._tail.read():
                self._take(message.topic() or "", message.value())

    def kill(self, name: str) -> None:
        """SIGKILL, then wait until the worker that takes its place is ready."""
        os.kill(self._stack.pids()[name], signal.SIGKILL)
        self.kills[name] += 1
        self.wait(lambda: not self._stack.is_ready, READY_S)
        self.wait(lambda: self._stack.is_ready, READY_S)

    def num_worked_twice(self) -> int:
        """Jobs that a stage began again after it had finished them."""
        finished = {
            (done.job_id, timing.stage): timing.finished_at
            for dones in self.done.values()
            for done in dones
            for timing in done.timings
        }
        late = {
            (event.job_id, event.stage)
            for event in self.started
            if (event.job_id, event.stage) in finished
            and event.at > finished[event.job_id, event.stage]
        }
        return len(late)

    def _take(self, topic: str, value: bytes | None) -> None:
        if topic == VIDEOS_DONE:
            assert value is not None
            done = CODEC.decode(value, VideoDone)
            self.done.setdefault(done.job_id, []).append(done)
        elif topic == JOB_EVENTS:
            assert value is not None
            event = CODEC.decode(value, JobEvent)
            if event.kind == "started":
                self.started.append(event)
        else:
            self.num_dead += 1


def main() -> int:
    """Run, print, and hold against the goals."""
    with tempfile.TemporaryDirectory(prefix="reel-kill-demo-") as folder:
        settings = Settings(home=Path(folder), torch_threads=1, retry_delays_s=(1, 5, 20))
        plan = StackPlan(settings, cache=read_settings().home, broker="apache")
        with LocalStack(plan, lambda line: print(line, flush=True)) as stack:
            topics = [VIDEOS_DONE, JOB_EVENTS, *(each.dead_letters for each in worker_stages())]
            with Tail(stack.settings.bootstrap, topics) as tail:
                return _run(Demo(stack, tail))


def _run(demo: Demo) -> int:
    began_s = time.monotonic()
    names = [stage.name for stage in worker_stages()]
    for number in range(1, ROUNDS + 1):
        demo.submit(JOBS // ROUNDS)
        for name in names:
            demo.kill(name)
        elapsed_s = time.monotonic() - began_s
        print(f"round {number}: {len(demo.done)} jobs ended, {elapsed_s:.0f} s", flush=True)
    demo.wait(lambda: len(demo.done) == JOBS, ALL_DONE_S)
    statuses = Counter(dones[0].status for dones in demo.done.values())
    endings = [{(done.run, done.status) for done in dones} for dones in demo.done.values()]
    duplicates = sum(len(dones) - 1 for dones in demo.done.values())
    print_table(["worker", "killed"], [[name, str(demo.kills[name])] for name in names])
    print_table(
        ["jobs", "figure"],
        [
            ["submitted", str(len(demo.submitted))],
            *([status, str(count)] for status, count in sorted(statuses.items())),
            ["VideoDone twice on the wire, the same", str(duplicates)],
            ["begun by a stage", str(len(demo.started))],
        ],
    )
    goals = Goals()
    goals.at_least("jobs_completed", statuses["completed"], JOBS)
    goals.at_most("jobs_that_ended_in_two_ways", sum(len(each) > 1 for each in endings), 0)
    goals.at_most("dead_letters", demo.num_dead, 0)
    goals.at_most("finished_stages_worked_again", demo.num_worked_twice(), 0)
    return goals.report()


if __name__ == "__main__":
    sys.exit(main())
