"""Which partitions deliver records: all but those that somebody holds closed, each for a reason."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from enum import Enum, auto
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Why(Enum):
    """Why a partition, or every partition, takes no more records."""

    WINDOW = auto()  # it holds as many as it may
    NOT_DUE = auto()  # its next record is to be worked later
    OFFSET_MAP = auto()  # its offset map is nearly full
    LEDGER_UNREAD = auto()  # who has what in the pipeline is not known yet
    STAGE_PAUSED = auto()  # an operator said so
    HOLDING = auto()  # the host, or what it needs, is sick
    DRAINING = auto()  # for good


class Gate(Generic[K]):
    """Keeps the reasons apart, so that one that ends never opens what another keeps closed.

    Every call returns the partitions whose state it changed.

    >>> gate = Gate()
    >>> gate.add(["p0", "p1"]), gate.close("p0", Why.WINDOW)
    ((), ('p0',))
    >>> gate.close_all(Why.HOLDING), gate.open("p0", Why.WINDOW), gate.open_all(Why.HOLDING)
    (('p1',), (), ('p0', 'p1'))
    """

    def __init__(self) -> None:
        self._closed: dict[K, set[Why]] = {}
        self._all: set[Why] = set()

    def is_closed_by(self, why: Why) -> bool:
        """Whether every partition is closed for that reason."""
        return why in self._all

    def is_closed(self, key: K, why: Why) -> bool:
        """Whether that one is closed for that reason of its own."""
        return why in self._closed.get(key, ())

    def add(self, keys: Iterable[K]) -> tuple[K, ...]:
        """New partitions, open unless all are closed; those that must be closed at once."""
        added = tuple(keys)
        self._closed.update((key, set()) for key in added)
        return added if self._all else ()

    def remove(self, key: K) -> None:
        """A partition went away."""
        self._closed.pop(key, None)

    def close(self, key: K, why: Why) -> tuple[K, ...]:
        """Close one partition."""
        reasons = self._closed[key]
        was_open = not (reasons or self._all)
        reasons.add(why)
        return (key,) if was_open else ()

    def open(self, key: K, why: Why) -> tuple[K, ...]:
        """Take one reason away from one partition, which may have gone."""
        reasons = self._closed.get(key, set())
        if why not in reasons:
            return ()
        reasons.remove(why)
        return () if reasons or self._all else (key,)

    def close_all(self, why: Why) -> tuple[K, ...]:
        """Close every partition, and those to come."""
        changed = () if self._all else tuple(key for key, own in self._closed.items() if not own)
        self._all.add(why)
        return changed

    def open_all(self, why: Why) -> tuple[K, ...]:
        """Take that reason away from all."""
        if why not in self._all:
            return ()
        self._all.remove(why)
        return () if self._all else tuple(key for key, own in self._closed.items() if not own)
