"""Who had what redriven, when and why: audit records that last as long as the runs they began.

    redrives/<order>/order     what was ordered, written before the first wish of it
    redrives/<order>/runs.<n>  what became of its jobs, RUNS_A_PAGE at a time
    redrives/<order>/ended     when, and how many runs it began; missing: under way, or interrupted
    redrives/put-back/<sha256> who put the record of a foreign dead letter back on its topic

They lie in the object store beside the outcomes that they changed. A topic would forget them after
its retention, and `jobs.control` keeps but the last wish of a run. The claim of each run names its
author and order besides (`streams.claims.Author`), so that a redriver who was killed leaves no run
that nobody ordered: what its last page would have said stands in the claims.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from streams.blobs.base import REDRIVES, BlobStore, check_segment
from streams.claims import Author, author_fields, read_author
from streams.errors import FatalError

RUNS_A_PAGE = 100

_ORDER = re.compile(rf"{REDRIVES}/([A-Za-z0-9_-][A-Za-z0-9._-]{{0,127}})/order")


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody ordered. `what`: a letter, a job, or a filter's options, by name."""

    order_id: str
    by: str
    at: datetime
    what: Mapping[str, str]
    why: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How an order ended. `interrupted_by` None: it was carried out."""

    at: datetime
    num_begun: int
    num_others: int  # sent again, or left alone
    interrupted_by: str | None


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one job of an order, in words; `run` None: none was begun or sent."""

    tenant_id: str
    job_id: str
    run: int | None
    what: str


class OrderLog:
    """The audit record of one order, by whoever carries it out. Blocking; not thread-safe."""

    def __init__(self, store: BlobStore, order: Order) -> None:
        """Writes the order down.

        Raises:
            SickHost: the object store is away, so nothing may be redriven yet.
        """
        self._store, self.order = store, order
        self._page: list[Done] = []
        self._num_pages = self._num_begun = self._num_others = 0
        fields = {"by": order.by, "at": order.at.isoformat(), "why": order.why}
        self._write("order", {**fields, "what": dict(order.what)})

    def note(self, done: Done, *, is_begun: bool) -> None:
        """Take note of one job; written when a page is full.

        Raises:
            SickHost: the object store is away.
        """
        self._page.append(done)
        self._num_begun += is_begun
        self._num_others += not is_begun
        if len(self._page) >= RUNS_A_PAGE:
            self._turn_page()

    def end(self, at: datetime, interrupted_by: str | None = None) -> None:
        """Write down the rest, and that it is over.

        Raises:
            SickHost: the object store is away.
        """
        while self._page:
            self._turn_page()
        self._write(
            "ended",
            {
                "at": at.isoformat(),
                "num_begun": self._num_begun,
                "num_others": self._num_others,
                "interrupted_by": interrupted_by,
            },
        )

    def _turn_page(self) -> None:
        """Write a page; one that was not answered for may be there, so it stays as it is."""
        page = self._page[:RUNS_A_PAGE]
        rows = [[each.tenant_id, each.job_id, each.run, each.what] for each in page]
        self._write(f"runs.{self._num_pages + 1}", rows)
        self._num_pages += 1
        del self._page[: len(page)]

    def _write(self, name: str, body: Any) -> None:
        key = f"{REDRIVES}/{check_segment(self.order.order_id)}/{name}"
        self._store.create(key, json.dumps(body).encode())


def put_back_by(store: BlobStore, letter: bytes) -> Author | None:
    """Who put the record of a dead letter back on its topic; None: nobody yet. Blocking.

    `letter` is what makes it itself: its place and its bytes.

    Raises:
        SickHost: the object store is away.
        FatalError: something else lies there.
    """
    key = _put_back(letter)
    if (body := store.load(key)) is None:
        return None
    try:
        return read_author(json.loads(body))
    except (KeyError, TypeError, ValueError) as error:
        raise FatalError(f"{key} names nobody: {type(error).__name__}") from error


def note_put_back(store: BlobStore, letter: bytes, author: Author) -> None:
    """Write that down, once it is acknowledged: who dies in between puts it back twice. Blocking.

    Raises:
        SickHost: the object store is away.
    """
    store.create(_put_back(letter), json.dumps(author_fields(author)).encode())


def _put_back(letter: bytes) -> str:
    return f"{REDRIVES}/put-back/{hashlib.sha256(letter).hexdigest()}"


def read_orders(store: BlobStore) -> list[tuple[Order, Ended | None]]:
    """Every order that was ever given, oldest first, and how it ended. Blocking.

    Raises:
        SickHost: the object store is away.
        FatalError: something else lies where an order should.
    """
    keys = (_ORDER.fullmatch(found.key) for found in store.walk(REDRIVES))
    names = sorted(key[1] for key in keys if key is not None)
    return [found for name in names if (found := read_order(store, name)) is not None]


def read_order(store: BlobStore, order_id: str) -> tuple[Order, Ended | None] | None:
    """One order and how it ended; None: there is none of that name. Blocking.

    Raises:
        InvalidRecord: that can be no name.
        SickHost, FatalError: as `read_orders`.
    """
    folder = f"{REDRIVES}/{check_segment(order_id)}"
    if (body := store.load(f"{folder}/order")) is None:
        return None
    try:
        fields = json.loads(body)
        at, what = datetime.fromisoformat(fields["at"]), dict(fields["what"])
        order = Order(order_id, fields["by"], at, what, fields["why"])
        if (body := store.load(f"{folder}/ended")) is None:
            return order, None
        fields = json.loads(body)
        at, interrupted_by = datetime.fromisoformat(fields["at"]), fields["interrupted_by"]
        return order, Ended(at, fields["num_begun"], fields["num_others"], interrupted_by)
    except (KeyError, TypeError, ValueError) as error:
        raise FatalError(f"{folder} holds no order: {type(error).__name__}") from error


def read_done(store: BlobStore, order_id: str) -> Iterator[Done]:
    """What became of an order's jobs, as far as it is written. Blocking.

    Raises:
        InvalidRecord, SickHost, FatalError: as `read_order`.
    """
    folder, number = f"{REDRIVES}/{check_segment(order_id)}", 1
    while (body := store.load(f"{folder}/runs.{number}")) is not None:
        try:
            rows = [Done(*row) for row in json.loads(body)]
        except (TypeError, ValueError) as error:
            raise FatalError(f"{folder} holds no runs: {type(error).__name__}") from error
        yield from rows
        number += 1
