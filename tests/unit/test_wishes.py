"""Wishes, case by case."""

from __future__ import annotations

from streams.core.wishes import Wishes

RUN = ("j", 1)


def test_a_wish_is_of_one_run() -> None:
    wishes = Wishes(life_s=60.0)
    wishes.cancel(RUN, issued_s=0.0)
    assert [wishes.is_cancelled(each) for each in (RUN, ("j", 2), ("k", 1))] == [True, False, False]


def test_the_last_deadline_wished_counts_instead_of_the_records_own() -> None:
    wishes = Wishes(life_s=60.0)
    assert (wishes.deadline_s(RUN, 5.0), wishes.deadline_s(RUN, None)) == (5.0, None)
    wishes.set_deadline(RUN, 20.0, issued_s=0.0)
    wishes.set_deadline(RUN, 10.0, issued_s=1.0)
    assert wishes.deadline_s(RUN, 5.0) == 10.0


def test_a_cancel_is_kept_as_long_as_a_run_may_last() -> None:
    wishes = Wishes(life_s=60.0)
    wishes.cancel(RUN, issued_s=10.0)
    wishes.forget_old(now_s=69.9)
    assert len(wishes) == 1
    wishes.forget_old(now_s=70.0)
    assert len(wishes) == 0


def test_a_deadline_is_kept_until_it_has_passed() -> None:
    wishes = Wishes(life_s=60.0)
    wishes.set_deadline(RUN, 100.0, issued_s=0.0)
    wishes.forget_old(now_s=99.9)
    assert len(wishes) == 1
    wishes.forget_old(now_s=100.0)
    assert wishes.deadline_s(RUN, 5.0) == 5.0
