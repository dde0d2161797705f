"""One worker of the local stack: its process, whether it is ready, when it is started again."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from pathlib import Path

from streams.errors import SettingsError
from streams.local.processes import LOOPBACK, ManagedProcess, StartFailed, free_port
from streams.local.supervision import Deaths, GiveUp
from streams.settings import child_environment

WRONG_USE = 2
"""The exit code of a worker that no restart can help."""
SOURCE = Path(__file__).resolve().parents[2]
"""The folder that holds `workers`, for children whose working folder is another."""


def python_environment(settings: Mapping[str, object]) -> dict[str, str]:
    """The environment of a Python child that imports our packages."""
    environment = child_environment(settings)
    paths = [str(SOURCE), environment.get("PYTHONPATH", "")]
    return environment | {
        "PYTHONPATH": ":".join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
    }


class WorkerProcess:
    """A worker under supervision. `name` is for people, `group` Kafka's; None: it joins none."""

    def __init__(
        self,
        name: str,
        group: str | None,
        argv: Sequence[str | Path],
        settings: Mapping[str, object],
        folder: Path,
        grace_s: float,
    ) -> None:
        """`argv` answers on `/readyz` of REEL_METRICS_PORT once ready; the log goes to `folder`."""
        self.name = name
        self.group = group
        port = free_port()
        self._port = port
        self._process = ManagedProcess(
            name,
            argv,
            log_path=folder / f"{name}.log",
            cwd=folder,
            env=python_environment({**settings, "metrics_port": port}),
            grace_s=grace_s,
        )
        self._deaths = Deaths()
        self._ready_since_s: float | None = None
        self._start_at_s: float | None = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether it runs, and said since its last start that it is ready."""
        return self._ready_since_s is not None

    @property
    def pid(self) -> int | None:
        """Its process id; None before the first start."""
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Where it logs, all lives in one file."""
        return self._process.log_path

    def step(self, now_s: float) -> str | None:
        """Do what is due; a line for people if something happened.

        Raises:
            StartFailed: it keeps dying; the message has the end of its log.
        """
        if self._start_at_s is not None:
            if now_s >= self._start_at_s:
                self._start_at_s = None
                self._process.start()
            return None
        if not self._process.is_running:
            return self._died(now_s)
        if self._ready_since_s is None and self._says_ready():
            self._ready_since_s = now_s
        return None

    def stop(self) -> None:
        """SIGTERM, the grace period to drain, then SIGKILL."""
        self._process.stop()

    def _died(self, now_s: float) -> str:
        ready_for_s = None if self._ready_since_s is None else now_s - self._ready_since_s
        code = self._process.returncode
        self._deaths = self._deaths.another(ready_for_s, by_signal=code is not None and code < 0)
        self._ready_since_s = None
        verdict = self._deaths.verdict
        if code == WRONG_USE:
            raise SettingsError(self._last_line())
        if isinstance(verdict, GiveUp):
            tail = "\n  ".join(self._process.log_tail(15).splitlines())
            raise StartFailed(
                f"{self.name} keeps dying ({self._deaths.num_unready} times, exit {code});"
                f" the end of its log, {self.log_path}:\n  {tail}"
            )
        self._start_at_s = now_s + verdict.delay_s
        return f"{self.name} died (exit {code}), starts again in {verdict.delay_s:g} s"

    def _last_line(self) -> str:
        lines = self._process.log_tail(1).splitlines()
        return lines[-1] if lines else f"{self.name} cannot start as it is set up: {self.log_path}"

    def _says_ready(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
