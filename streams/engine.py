"""What runs a stage's work beside the loop: the protocol between runner and workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from streams.core.events import Drop, End, Event, Headers, Offload, Start


@dataclass(frozen=True, slots=True)
class Task:
    """One delivered record: decoded, and as it came. The payload of a `Work`.

    `record` is None where the bytes could not be decoded, `value` None for a tombstone.
    `degradations`: what is let go of, as the request allows, so that it meets its deadline.
    """

    record: Any
    partition: int
    value: bytes | None
    topic: str = ""
    offset: int = -1
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int = 0
    degradations: tuple[str, ...] = ()


class Engine(Protocol):
    """Works records on threads of its own. Every method returns at once.

    Each `Start`ed ticket is answered by one `Emitted` or `Failed`, each `End`ed one by one `Ended`
    or `NotEnded`, unless it is dropped: then perhaps by nothing. A cancelled record is dropped and
    then ended; the drop concerns what was begun before it. `offload` is answered by `Offloaded`,
    `probe` by `Probed`. `HostSick` says that the engine waits for the host or the store, `HostWell`
    that it no longer does.
    """

    def start(self, command: Start) -> None:
        """Begin a batch."""

    def end(self, command: End) -> None:
        """Give a run its outcome."""

    def offload(self, command: Offload) -> None:
        """Put an original that is too large for the dead-letter topic into the object store."""

    def probe(self) -> None:
        """Work the built-in good job."""

    def drop(self, command: Drop) -> None:
        """Stop working these as soon as that is cheap; their answers interest nobody."""

    def completions(self) -> Iterable[Event]:
        """What has happened since the last call.

        Raises:
            FatalError, SettingsError: the engine cannot go on; the process must end.
        """

    def stop(self) -> None:
        """End the threads; work in progress is abandoned."""
