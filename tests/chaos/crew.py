"""Real worker processes that a test kills, stops, pauses and starts again, as it likes."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.local.processes import ManagedProcess
from streams.local.stack import as_environment
from streams.local.worker_process import python_environment
from streams.settings import Settings
from streams.topology import worker_stages

RESTART_S = 0.2
_GIVEN = re.compile(r'"event": "partitions assigned".*"num_partitions": [1-9]')
_RAISED = re.compile(
    r"^(?:Exception ignored in|Fatal Python error|Traceback \(most).*\n(?:[ \t].*\n)*(.*)",
    re.MULTILINE,
)
EXPIRER = "expirer"


class Member:
    """One process of the crew. What dies is started again, unless it is meant to be down."""

    def __init__(self, name: str, stage: str, process: ManagedProcess) -> None:
        self.name, self.stage, self._process = name, stage, process
        self.is_wanted = True
        self.exits: list[int] = []  # codes of the lives that have ended
        self.pids: list[int] = []
        self._start_at_s = 0.0
        self._successor: ManagedProcess | None = None

    @property
    def is_running(self) -> bool:
        """Whether it runs; a paused one does."""
        return self._process.is_running

    @property
    def log_path(self) -> Path:
        """Where it logs, all lives in one file."""
        return self._process.log_path

    def step(self, now_s: float) -> None:
        """Start it where it should run and does not."""
        if self.is_running:
            return
        if len(self.exits) < len(self.pids):
            assert self._process.returncode is not None, "it has ended"
            self.exits.append(self._process.returncode)
            self._start_at_s = now_s + RESTART_S
        if self.is_wanted and now_s >= self._start_at_s:
            self._process, self._successor = self._successor or self._process, None
            self._process.start()
            assert self._process.pid is not None, "it has started"
            self.pids.append(self._process.pid)

    @property
    def num_joins(self) -> int:
        """How often it was given partitions, one at least, all lives together."""
        if not self.log_path.exists():
            return 0
        return len(_GIVEN.findall(self.log_path.read_text()))

    def succeed(self, process: ManagedProcess) -> None:
        """When it starts again, it is as that."""
        self._successor = process

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM and the grace to drain, then SIGKILL; returns when it has ended."""
        self._process.stop()

    def pause(self) -> None:
        """SIGSTOP."""
        self._process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self._process.resume()


class Crew:
    """Workers of every stage, and the expirer; a context manager."""

    def __init__(
        self,
        settings: Settings,
        logs: Path,
        orders: Mapping[str, str],
        *,
        num_workers: int = 2,
        orders_of: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`orders` are the environment of tests/chaos/worker.py; `orders_of` more for one name.

        Logs, the ledger and failpoints lie in the folder `logs`.
        """
        logs = logs.resolve()  # workers run in it
        self._settings, self._logs, self._grace_s = settings, logs, settings.grace_ms / 1000
        orders = {"CHAOS_FOLDER": str(logs), **orders}
        named = {
            f"{stage.name}-{number}": stage.name
            for stage in worker_stages()
            for number in range(1, num_workers + 1)
        }
        self._orders = {
            name: {**orders, **(orders_of or {}).get(name, {})} for name in (*named, EXPIRER)
        }
        self.members = {
            name: Member(name, stage, self._process(name, stage, settings))
            for name, stage in {**named, EXPIRER: EXPIRER}.items()
        }

    @property
    def workers(self) -> list[Member]:
        """All but the expirer."""
        return [each for each in self.members.values() if each.stage != EXPIRER]

    def of(self, stage: str) -> list[Member]:
        """A stage's workers."""
        return [each for each in self.workers if each.stage == stage]

    def step(self) -> None:
        """Start what should run and does not."""
        now_s = time.monotonic()
        for member in self.members.values():
            member.step(now_s)

    def stand_down(self, stage: str | None = None) -> None:
        """SIGKILL to a stage, or to all stages; they stay down."""
        for member in self.workers if stage is None else self.of(stage):
            member.is_wanted = False
            member.kill()
        self.step()

    def heal(self) -> None:
        """Everybody runs again."""
        for member in self.members.values():
            member.resume()
            member.is_wanted = True
        self.step()

    def crashes(self) -> list[str]:
        """Lives that ended by a signal that nobody sends, and what was raised and never caught."""
        sent = (-signal.SIGKILL, -signal.SIGTERM)
        signalled = [
            f"{member.name} died of {signal.Signals(-code).name}: {member.log_path}"
            for member in self.members.values()
            for code in member.exits
            if code < 0 and code not in sent
        ]
        raised = [
            f"{member.name} did not catch {what}: {member.log_path}"
            for member in self.members.values()
            if member.log_path.exists()
            for what in _RAISED.findall(member.log_path.read_text(errors="replace"))
        ]
        return signalled + raised

    def unforeseen_exits(self) -> list[str]:
        """Lives that ended neither by SIGKILL nor drained."""
        return [
            f"{member.name} ended with exit code {code}: {member.log_path}"
            for member in self.members.values()
            for code in member.exits
            if code not in (0, -9)
        ]

    def __enter__(self) -> Self:
        self.step()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for member in self.members.values():
            member.resume()
        self.dismiss()

    def dismiss(self) -> list[str]:
        """SIGTERM to everybody, and nobody comes back; who of those that ran did not drain."""
        running = [each for each in self.members.values() if each.is_running]
        for member in self.members.values():
            member.is_wanted = False
        with ThreadPoolExecutor(len(self.members)) as pool:
            list(pool.map(Member.terminate, running))
        self.step()
        # By its own signal ends who has not come so far as to heed it.
        slow = [each for each in running if each.exits[-1] not in (0, -signal.SIGTERM)]
        return [f"{each.name} did not drain: exit code {each.exits[-1]}" for each in slow]

    def reconfigure(self, member: Member, **changes: object) -> None:
        """When that member starts again, these settings are other than the crew's."""
        settings = self._settings.model_copy(update=changes)
        member.succeed(self._process(member.name, member.stage, settings))

    def _process(self, name: str, stage: str, settings: Settings) -> ManagedProcess:
        module = "streams.expirer" if stage == EXPIRER else "tests.chaos.worker"
        arguments = [] if stage == EXPIRER else [stage]
        return ManagedProcess(
            name,
            [sys.executable, "-m", module, *arguments],
            log_path=self._logs / f"{name}.log",
            cwd=self._logs,
            env={**python_environment(as_environment(settings)), **self._orders[name]},
            grace_s=self._grace_s,
        )
