"""ExpiryBook beside a model that is a table of what was said, searched whole every time."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.expiry import Due, ExpiryBook, Kind
from streams.core.runs import RunOfJob

GRACE_S, KEEP_S, MARKER_S = 5.0, 300.0, 40.0
KEYS = st.builds(RunOfJob, st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 2))
SPANS = st.floats(0, 60)


@dataclass
class Row:
    """What was said of a run that has not ended."""

    born_s: float
    requested: bool = False
    claimed: bool = False
    payload: object = None
    own_s: float | None = None
    moved_s: float | None = None
    cancel_s: float | None = None
    redrive_s: float | None = None
    wish: int | None = None
    rest_until_s: float = float("-inf")
    handed: bool = False

    def wants(self) -> list[tuple[float, Kind]]:
        """Every reason to see to it, and when."""
        wants: list[tuple[float, Kind]] = []
        deadline_s = self.moved_s if self.moved_s is not None else self.own_s
        if self.requested and deadline_s is not None:
            wants.append((deadline_s + GRACE_S, "expired"))
        if self.requested and self.cancel_s is not None:
            wants.append((self.cancel_s + GRACE_S, "cancelled"))
        if not self.requested and self.redrive_s is not None:
            wants.append((self.redrive_s + GRACE_S, "redrive"))
        return wants


class ExpiryMachine(RuleBasedStateMachine):
    """Records in any order, time that goes on, and an expirer that answers late or never."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ExpiryBook(GRACE_S, KEEP_S, MARKER_S)
        self.rows: dict[RunOfJob, Row] = {}
        self.markers: dict[RunOfJob, float] = {}
        self.now_s = 1000.0
        self.num_payloads = 0

    def row(self, key: RunOfJob) -> Row | None:
        if key in self.markers:
            return None
        return self.rows.setdefault(key, Row(self.now_s))

    @rule(key=KEYS, span_s=SPANS, is_claimed=st.booleans())
    def see(self, key: RunOfJob, span_s: float, is_claimed: bool) -> None:
        self.num_payloads += 1
        deadline_s, payload = self.now_s + span_s, self.num_payloads
        if is_claimed:
            self.book.claimed(key, deadline_s, payload, self.now_s)
        else:
            self.book.requested(key, deadline_s, payload, self.now_s)
        if (row := self.row(key)) is None:
            return
        if is_claimed or not (row.requested or row.claimed):
            row.payload = payload
        row.own_s = deadline_s if row.own_s is None else min(row.own_s, deadline_s)
        row.requested, row.claimed, row.redrive_s = True, row.claimed or is_claimed, None

    @rule(key=KEYS)
    def end(self, key: RunOfJob) -> None:
        self.book.ended(key, self.now_s)
        self.rows.pop(key, None)
        self.markers[key] = self.now_s + MARKER_S

    @rule(key=KEYS)
    def let_go(self, key: RunOfJob) -> None:
        self.book.let_go(key)
        self.rows.pop(key, None)

    @rule(key=KEYS, kind=st.sampled_from(("cancel", "redrive")))
    def wish(self, key: RunOfJob, kind: str) -> None:
        row = self.row(key)
        if kind == "cancel":
            self.book.cancel_wished(key, self.now_s)
            if row is not None and row.cancel_s is None:
                row.cancel_s = self.now_s
        else:
            self.num_payloads += 1
            self.book.redrive_wished(key, self.num_payloads, self.now_s)
            if row is not None and row.redrive_s is None:
                row.redrive_s, row.wish = self.now_s, self.num_payloads

    @rule(key=KEYS, span_s=SPANS)
    def move(self, key: RunOfJob, span_s: float) -> None:
        self.book.deadline_wished(key, self.now_s + span_s, self.now_s)
        if (row := self.row(key)) is not None:
            row.moved_s = self.now_s + span_s

    @rule(span_s=SPANS)
    def time_passes(self, span_s: float) -> None:
        self.now_s += span_s

    @rule(limit=st.integers(0, 4))
    def ask(self, limit: int) -> None:
        self.markers = {key: until for key, until in self.markers.items() if until > self.now_s}
        owed: dict[RunOfJob, tuple[float, Kind]] = {}
        for key, row in self.rows.items():
            if row.wants() and not row.handed:
                at_s, kind = min(row.wants())
                if max(at_s, row.rest_until_s) <= self.now_s:
                    owed[key] = (max(at_s, row.rest_until_s), kind)
        handed = self.book.due(self.now_s, limit)
        assert len(handed) == min(limit, len(owed))
        for due in handed:
            row = self.rows[due.key]
            at_s, kind = owed.pop(due.key)
            payload = row.wish if kind == "redrive" else row.payload
            assert due == Due(due.key, kind, payload, row.moved_s is not None)
            assert all(at_s <= other_s for other_s, _ in owed.values()), "the longest overdue first"
            row.handed = True

    @rule(data=st.data(), how=st.sampled_from(("again", "rearmed", "redriven")), span_s=SPANS)
    def answer(self, data: st.DataObject, how: str, span_s: float) -> None:
        handed = [key for key, row in self.rows.items() if row.handed]
        if not handed:
            return
        key = data.draw(st.sampled_from(handed))
        row = self.rows[key]
        row.handed = False
        match how:
            case "again":
                self.book.again(key, self.now_s + span_s)
                row.rest_until_s = self.now_s + span_s
            case "rearmed":
                self.book.rearmed(key, self.now_s + span_s)
                row.own_s = self.now_s + span_s
            case "redriven":
                self.book.redriven(key)
                row.redrive_s = None
                if not (row.requested or row.cancel_s is not None or row.moved_s is not None):
                    del self.rows[key]

    @invariant()
    def it_holds_what_has_not_ended(self) -> None:
        # Wishes for runs that nobody requested are forgotten when it is next asked, at the earliest
        # after KEEP_S; the model forgets when the book may have.
        for key, row in list(self.rows.items()):
            is_old = row.born_s + KEEP_S <= self.now_s and not row.wants() and not row.handed
            if is_old and key not in self.book:
                del self.rows[key]
        assert len(self.book) == len(self.rows)
        assert self.book.num_places <= 2 * len(self.rows) + 64 + 1


TestExpiry = ExpiryMachine.TestCase
TestExpiry.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
