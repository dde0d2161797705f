"""Which runs are overdue: deadlines, cancels and redrives that nobody may have acted upon.

    requested, claimed, ended, wishes -> ExpiryBook.due(now) -> what the expirer has to see to

Records of different topics are read in no order, so whatever comes first opens an entry. An entry
leaves with its run's ending; what is due is handed out once, and again only when told so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streams.core.runs import RunOfJob
from streams.core.timers import Timers

Kind = Literal["cancelled", "expired", "redrive"]


@dataclass(frozen=True, slots=True)
class Due:
    """Something to see to. `is_moved`: the deadline is one that was wished, not the request's.

    `payload` is that of the request, or the wish to redrive.
    """

    key: RunOfJob
    kind: Kind
    payload: object
    is_moved: bool = False


@dataclass(slots=True)
class _Entry:
    """What is known of a run that has not ended. All times in seconds."""

    forget_s: float  # while only wishes are known
    payload: object = None
    is_requested: bool = False
    is_claimed: bool = False
    deadline_s: float | None = None  # the request's own
    moved_s: float | None = None  # a later wish
    cancel_s: float | None = None
    redrive_s: float | None = None
    wish: object = None  # to redrive it
    not_before_s: float = float("-inf")
    is_handed_out: bool = False

    def next(self, grace_s: float) -> tuple[float, Kind] | None:
        """When it is due, and as what; None where nothing is due until it is forgotten."""
        times: list[tuple[float, Kind]] = []
        if self.is_requested:
            deadline_s = self.deadline_s if self.moved_s is None else self.moved_s
            assert deadline_s is not None, "a request has one, its own or the longest"
            times.append((deadline_s + grace_s, "expired"))
            if self.cancel_s is not None:
                times.append((self.cancel_s + grace_s, "cancelled"))
        elif self.redrive_s is not None:
            times.append((self.redrive_s + grace_s, "redrive"))
        return min(times, default=None)


class ExpiryBook:
    """The runs that have not ended, by when somebody must see to them. Not thread-safe.

    Times are seconds since the epoch by one clock. `grace_s` is left to running stages;
    `keep_s` is how long a wish for a run that nobody has requested is remembered, `marker_s` how
    long the ending of a run.

    >>> book, key = ExpiryBook(grace_s=5, keep_s=100, marker_s=10), RunOfJob("acme", "order-7", 1)
    >>> book.requested(key, deadline_s=60, payload="request", now_s=0)
    >>> book.due(64, limit=10), [due.kind for due in book.due(66, limit=10)]
    ([], ['expired'])
    >>> book.ended(key, now_s=67)
    >>> len(book), book.due(1000, limit=10)
    (0, [])
    """

    def __init__(self, grace_s: float, keep_s: float, marker_s: float) -> None:
        self._grace_s, self._keep_s, self._marker_s = grace_s, keep_s, marker_s
        self._entries: dict[RunOfJob, _Entry] = {}
        self._ended: dict[RunOfJob, float] = {}  # until when; in the order of these times
        self._next: Timers[RunOfJob] = Timers()  # of entries that are not handed out

    def __len__(self) -> int:
        """Runs that have not ended, as far as is known."""
        return len(self._entries)

    def __contains__(self, key: RunOfJob) -> bool:
        """Whether this run is one of them."""
        return key in self._entries

    @property
    def num_places(self) -> int:
        """What memory it costs besides the entries."""
        return self._next.num_places

    def requested(self, key: RunOfJob, deadline_s: float, payload: object, now_s: float) -> None:
        """A request was seen. `payload` is handed out again, unless the run is claimed by then."""
        if (entry := self._open(key, now_s)) is None:
            return
        if not entry.is_requested:
            entry.payload = payload
        self._seen(key, entry, deadline_s)

    def claimed(self, key: RunOfJob, deadline_s: float, payload: object, now_s: float) -> None:
        """The prompt stage has worked the request: its payload is kept no longer, this one is."""
        if (entry := self._open(key, now_s)) is None:
            return
        entry.payload, entry.is_claimed = payload, True
        self._seen(key, entry, deadline_s)

    def ended(self, key: RunOfJob, now_s: float) -> None:
        """The run's VideoDone was seen; what came before it in another topic may be read later."""
        self.let_go(key)
        self._ended.pop(key, None)
        self._ended[key] = now_s + self._marker_s

    def let_go(self, key: RunOfJob) -> None:
        """There is nothing to end, as far as is known."""
        self._entries.pop(key, None)
        self._next.discard(key)

    def cancel_wished(self, key: RunOfJob, now_s: float) -> None:
        """Somebody wants the run to end."""
        if (entry := self._open(key, now_s)) is not None and entry.cancel_s is None:
            entry.cancel_s = now_s
            self._place(key, entry)

    def deadline_wished(self, key: RunOfJob, deadline_s: float, now_s: float) -> None:
        """The run has another deadline; the last wish counts."""
        if (entry := self._open(key, now_s)) is not None:
            entry.moved_s = deadline_s
            self._place(key, entry)

    def redrive_wished(self, key: RunOfJob, wish: object, now_s: float) -> None:
        """Somebody wants the run to begin, and is about to request it; the first wish counts."""
        if (entry := self._open(key, now_s)) is not None and entry.redrive_s is None:
            entry.redrive_s, entry.wish = now_s, wish
            self._place(key, entry)

    def due(self, now_s: float, limit: int) -> list[Due]:
        """At most so many of what is due, the longest overdue first; each is handed out once.

        It comes back by `again`, `redriven` or `rearmed`, and is gone by `ended` or `let_go`.
        """
        self._forget(now_s)
        handed: list[Due] = []
        while len(handed) < limit and (key := self._next.pop_due(now_s)) is not None:
            entry = self._entries[key]
            found = entry.next(self._grace_s)
            if found is None:  # a wish for a run that nobody ever requested
                del self._entries[key]
                continue
            entry.is_handed_out = True
            payload = entry.wish if found[1] == "redrive" else entry.payload
            handed.append(Due(key, found[1], payload, entry.moved_s is not None))
        return handed

    def again(self, key: RunOfJob, at_s: float) -> None:
        """What was handed out could not be done: not before then."""
        if (entry := self._entries.get(key)) is not None:
            entry.is_handed_out, entry.not_before_s = False, at_s
            self._place(key, entry)

    def rearmed(self, key: RunOfJob, deadline_s: float) -> None:
        """The request that holds the job has this deadline, whatever was read."""
        if (entry := self._entries.get(key)) is not None:
            entry.is_handed_out, entry.deadline_s = False, deadline_s
            self._place(key, entry)

    def redriven(self, key: RunOfJob) -> None:
        """The wish to redrive has been seen to; the run's request is read like any other."""
        if (entry := self._entries.get(key)) is not None:
            entry.is_handed_out, entry.redrive_s = False, None
            if not entry.is_requested and entry.cancel_s is None and entry.moved_s is None:
                del self._entries[key]
                self._next.discard(key)
            else:
                self._place(key, entry)

    def _open(self, key: RunOfJob, now_s: float) -> _Entry | None:
        """The run's entry, a new one where there is none; None where the run has ended."""
        if key in self._ended:
            return None
        if key not in self._entries:
            self._entries[key] = _Entry(now_s + self._keep_s)
        return self._entries[key]

    def _seen(self, key: RunOfJob, entry: _Entry, deadline_s: float) -> None:
        entry.is_requested, entry.redrive_s = True, None
        known_s = deadline_s if entry.deadline_s is None else entry.deadline_s
        entry.deadline_s = min(known_s, deadline_s)
        self._place(key, entry)

    def _place(self, key: RunOfJob, entry: _Entry) -> None:
        """It has its turn when it is due next; what is handed out has none."""
        if entry.is_handed_out:
            return
        found = entry.next(self._grace_s)
        at_s = entry.forget_s if found is None else max(found[0], entry.not_before_s)
        self._next.set(key, at_s)

    def _forget(self, now_s: float) -> None:
        for key in list(self._outdated(now_s)):
            del self._ended[key]

    def _outdated(self, now_s: float) -> Iterator[RunOfJob]:
        for key, until_s in self._ended.items():
            if until_s > now_s:
                return
            yield key
