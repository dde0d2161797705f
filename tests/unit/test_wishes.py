"""Wishes, case by case."""

from __future__ import annotations

from streams.core.wishes import Wishes

RUN = ("j", 1)


def test_a_new_deadline_counts_for_its_run_alone() -> None:
    wishes = Wishes(life_s=10.0)
    wishes.set_deadline(RUN, 5.0, issued_s=0.0)
    assert wishes.deadline_s(RUN, None) == 5.0
    assert wishes.deadline_s(("j", 2), 9.0) == 9.0
    assert wishes.deadline_s(("j", 2), None) is None


def test_the_last_deadline_counts() -> None:
    wishes = Wishes(life_s=10.0)
    wishes.set_deadline(RUN, 5.0, issued_s=0.0)
    wishes.set_deadline(RUN, 3.0, issued_s=1.0)
    assert wishes.deadline_s(RUN, 9.0) == 3.0


def test_a_wish_is_kept_for_as_long_as_a_run_may_last_since_it_was_made() -> None:
    wishes = Wishes(life_s=10.0)
    wishes.cancel(RUN, issued_s=5.0)
    wishes.set_deadline(RUN, 7.0, issued_s=5.0)
    wishes.forget_old(14.9)
    assert (wishes.is_cancelled(RUN), len(wishes)) == (True, 2)
    wishes.forget_old(15.0)
    assert (wishes.is_cancelled(RUN), wishes.deadline_s(RUN, 1.0), len(wishes)) == (False, 1.0, 0)


def test_a_later_deadline_keeps_its_wish_until_then() -> None:
    wishes = Wishes(life_s=10.0)
    wishes.set_deadline(RUN, 99.0, issued_s=0.0)
    wishes.forget_old(98.9)
    assert wishes.deadline_s(RUN, 1.0) == 99.0
