"""Audit records of redrives on every blob store: what is written when, and what is read back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from schemas.codec import Codec
from streams.audit import (
    RUNS_A_PAGE,
    Done,
    Ended,
    Order,
    OrderLog,
    read_done,
    read_order,
    read_orders,
)
from streams.blobs.base import BlobStore
from streams.blobs.sweep import Ages, Sweep
from streams.errors import FatalError, InvalidRecord, SickHost
from tests.contract.places import Place

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def an_order(order_id: str = "order-1") -> Order:
    return Order(order_id, "alice@ops", NOON, {"reason": "oom", "rate": "5/s"}, "more memory")


def note(log: OrderLog, number: int) -> Done:
    is_begun = number % 2 == 0
    done = Done("acme", f"job-{number}", 2 if is_begun else None, f"what came of {number}")
    log.note(done, is_begun=is_begun)
    return done


def test_an_order_is_on_record_before_anything_is_done(store: BlobStore) -> None:
    OrderLog(store, an_order())
    assert read_orders(store) == [(an_order(), None)]
    assert list(read_done(store, "order-1")) == []


@pytest.mark.parametrize("num_jobs", [0, 1, RUNS_A_PAGE, 2 * RUNS_A_PAGE + 1])
def test_every_job_of_an_order_is_read_back(store: BlobStore, num_jobs: int) -> None:
    log = OrderLog(store, an_order())
    noted = [note(log, number) for number in range(num_jobs)]
    log.end(NOON + timedelta(minutes=1))
    num_begun = (num_jobs + 1) // 2
    ended = Ended(NOON + timedelta(minutes=1), num_begun, num_jobs - num_begun, None)
    assert read_order(store, "order-1") == (an_order(), ended)
    assert list(read_done(store, "order-1")) == noted


def test_of_one_that_was_killed_the_full_pages_stand(store: BlobStore) -> None:
    log = OrderLog(store, an_order())
    noted = [note(log, number) for number in range(RUNS_A_PAGE + 7)]
    assert read_order(store, "order-1") == (an_order(), None)
    assert list(read_done(store, "order-1")) == noted[:RUNS_A_PAGE]


@pytest.mark.parametrize("is_there", [False, True], ids=["not written", "written, not answered"])
def test_a_page_that_the_store_did_not_answer_for_is_written_again(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    log = OrderLog(store, an_order())
    noted = [note(log, number) for number in range(RUNS_A_PAGE - 1)]
    create = store.create

    def away(key: str, body: bytes) -> bytes:
        if is_there:
            create(key, body)
        raise SickHost("no answer", reason_code="store_away")

    monkeypatch.setattr(store, "create", away)
    with pytest.raises(SickHost):
        note(log, RUNS_A_PAGE - 1)
    monkeypatch.undo()
    later = [note(log, number) for number in range(RUNS_A_PAGE, RUNS_A_PAGE + 7)]
    log.end(NOON)
    done = list(read_done(store, "order-1"))
    assert [done[: len(noted)], done[len(noted) + 1 :]] == [noted, later]


def test_orders_come_by_name_which_is_by_time(store: BlobStore) -> None:
    for name in ("order-2", "order-3", "order-1"):
        OrderLog(store, an_order(name)).end(NOON)
    assert [order.order_id for order, _ in read_orders(store)] == ["order-1", "order-2", "order-3"]


def test_no_sweep_takes_them(place: Place, store: BlobStore) -> None:
    log = OrderLog(store, an_order())
    note(log, 1)
    log.end(NOON)
    before = place.keys()
    ages = Ages(*[timedelta(hours=1)] * 3)
    sweep = Sweep(store, Codec(), datetime.now(UTC) + timedelta(days=4000), ages)
    sweep.run(is_applied=True)
    assert place.keys() == before
    assert sweep.counts["records"].objects == len(before) == 3


def test_what_is_no_order_is_passed_by_or_told(place: Place, store: BlobStore) -> None:
    place.plant("redrives/odd name/order", b"{}")
    place.plant("redrives/notes.txt", b"hello")
    assert read_orders(store) == []
    assert read_order(store, "order-1") is None
    with pytest.raises(InvalidRecord):
        read_order(store, "../order-1")
    place.plant("redrives/order-1/order", b"[]")
    with pytest.raises(FatalError, match="redrives/order-1 holds no order"):
        read_orders(store)
    place.plant("redrives/order-1/runs.1", b'[["acme"]]')
    with pytest.raises(FatalError, match="holds no runs"):
        list(read_done(store, "order-1"))
