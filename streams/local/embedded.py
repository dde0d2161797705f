"""The embedded broker of `reel up`: noida-db, one native program. Only this module knows it.

It speaks Kafka's classic groups only, keeps its data in a folder and starts in under a second. It
writes with a delay: what it acknowledged in its last half second is lost when it is killed (not
when it is stopped). What must hold under faults is tested on Apache Kafka.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.errors import SettingsError
from streams.local.broker import listed_brokers
from streams.local.processes import LOOPBACK, ManagedProcess, free_port, require_free, require_space

_START_S = 20.0
_SPACE_BYTES = 200_000_000


class EmbeddedKafka:
    """One embedded broker with its data in `folder`; a `Broker`, for trying out and for tests."""

    speaks_kip848 = False

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        """`port` on 127.0.0.1; None takes a free one.

        Raises:
            SettingsError: the package is not installed.
        """
        self._folder = folder.absolute()
        self._port = port or free_port()
        self.process = ManagedProcess(
            "the embedded broker",
            [_program(), "start", "--only", "kafka", "--kafka-port", str(self._port)],
            log_path=self._folder / "broker.log",
            cwd=self._folder,  # it keeps its data in the folder where it starts
        )

    @property
    def bootstrap(self) -> str:
        """`host:port`."""
        return f"{LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Start with the data of the last time, if any; returns when it answers clients.

        Raises:
            SettingsError: the port is busy or the disk full.
            StartFailed: it ended, or did not answer in time.
        """
        require_space(self._folder, _SPACE_BYTES)
        require_free(self._port, "the embedded broker")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.process.start()
        try:
            self.process.wait_until(lambda: bool(listed_brokers(LOOPBACK, self._port)), _START_S)
        except BaseException:
            self.process.kill()
            raise

    def stop(self) -> None:
        """Stop; the data stays."""
        self.process.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()


def _program() -> Path:
    # The native program itself: the package's own launcher would stay in between as its parent,
    # and then neither our signals nor our death would reach the broker.
    spec = find_spec("noida_db")
    if spec is None or spec.origin is None:
        raise SettingsError(
            "the embedded broker is not installed: pip install 'reelstream[embedded]',"
            " or use --broker apache"
        )
    program = Path(spec.origin).with_name("noida-db")
    if not os.access(program, os.X_OK):  # wheels don't always carry the bit
        program.chmod(0o755)
    return program
