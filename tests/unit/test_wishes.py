"""Wishes, case by case."""

from __future__ import annotations

from streams.core.runs import RunOfJob
from streams.core.wishes import Wishes

RUN = RunOfJob("acme", "j", 1)


def test_a_new_deadline_counts_for_its_run_alone() -> None:
    wishes = Wishes(life_s=10.0)
    wishes.set_deadline(RUN, 5.0, issued_s=0.0)
    assert wishes.deadline_s(RUN, None) == 5.0
    assert wishes.deadline_s(RUN._replace(run=2), 9.0) == 9.0
    assert wishes.deadline_s(RUN._replace(run=2), None) is None


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


def test_of_two_tenants_jobs_of_one_id_a_wish_means_its_own() -> None:
    wishes, others = Wishes(life_s=10.0), RUN._replace(tenant_id="bolt")
    wishes.cancel(RUN, issued_s=0.0)
    wishes.set_deadline(RUN, 5.0, issued_s=0.0)
    assert (wishes.is_cancelled(others), wishes.deadline_s(others, 9.0)) == (False, 9.0)


def test_a_wish_that_names_no_tenant_means_both_and_a_later_one_counts() -> None:
    wishes, others = Wishes(life_s=10.0), RUN._replace(tenant_id="bolt")
    wishes.cancel((None, "j", 1), issued_s=0.0)
    wishes.set_deadline(RUN, 6.0, issued_s=1.0)
    wishes.set_deadline((None, "j", 1), 5.0, issued_s=0.0)
    assert (wishes.is_cancelled(RUN), wishes.is_cancelled(others)) == (True, True)
    assert (wishes.deadline_s(RUN, 9.0), wishes.deadline_s(others, 9.0)) == (5.0, 5.0)
    wishes.set_deadline(RUN, 7.0, issued_s=0.0)
    assert (wishes.deadline_s(RUN, 9.0), wishes.deadline_s(others, 9.0)) == (7.0, 5.0)
