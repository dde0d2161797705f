"""ExpiryBook: what its property tests are too short to see."""

from __future__ import annotations

from streams.core.expiry import ExpiryBook, RunKey


def test_runs_that_end_long_before_their_deadline_leave_nothing_behind() -> None:
    book = ExpiryBook(grace_s=5, keep_s=1000, marker_s=10)
    for number in range(5_000):
        key = RunKey("acme", f"job-{number}", 1)
        book.requested(key, deadline_s=86_400, payload=b"request", now_s=number)
        book.ended(key, now_s=number)
        assert book.num_places <= 66
    assert len(book) == 0


def a_book() -> ExpiryBook:
    return ExpiryBook(grace_s=5, keep_s=100, marker_s=10)


def test_what_is_told_of_runs_that_are_gone_changes_nothing() -> None:
    book, key = a_book(), RunKey("acme", "order-7", 2)
    book.again(key, at_s=7)
    book.rearmed(key, deadline_s=70)
    book.redriven(key)
    assert (len(book), book.due(1_000, limit=10)) == (0, [])
