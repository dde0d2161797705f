"""ExpiryBook: what its property tests are too short to see."""

from __future__ import annotations

from streams.core.expiry import ExpiryBook
from streams.core.runs import RunOfJob


def test_runs_that_end_long_before_their_deadline_leave_nothing_behind() -> None:
    book = ExpiryBook(grace_s=5, keep_s=1000, marker_s=10)
    for number in range(5_000):
        key = RunOfJob("acme", f"job-{number}", 1)
        book.requested(key, deadline_s=86_400, payload=b"request", now_s=number)
        book.ended(key, now_s=number)
        assert book.num_places <= 66
    assert len(book) == 0


def a_book() -> ExpiryBook:
    return ExpiryBook(grace_s=5, keep_s=100, marker_s=10)


def test_what_is_told_of_runs_that_are_gone_changes_nothing() -> None:
    book, key = a_book(), RunOfJob("acme", "order-7", 2)
    book.again(key, at_s=7)
    book.rearmed(key, deadline_s=70)
    book.redriven(key)
    assert (len(book), book.due(1_000, limit=10)) == (0, [])


def test_a_wish_for_a_run_that_nobody_requests_is_forgotten() -> None:
    book, key = a_book(), RunOfJob("acme", "order-7", 1)
    book.cancel_wished(key, now_s=0)
    assert (len(book), book.due(99, limit=10)) == (1, [])
    assert book.due(101, limit=10) == []
    assert len(book) == 0


def test_a_redrive_that_was_seen_to_keeps_what_else_was_wished_of_the_run() -> None:
    book, key = a_book(), RunOfJob("acme", "order-7", 2)
    book.redrive_wished(key, "wish", now_s=0)
    book.cancel_wished(key, now_s=0)
    assert [(due.kind, due.payload) for due in book.due(6, limit=10)] == [("redrive", "wish")]
    book.redriven(key)
    assert len(book) == 1
    book.requested(key, deadline_s=500, payload="request", now_s=7)
    assert [due.kind for due in book.due(8, limit=10)] == ["cancelled"]
