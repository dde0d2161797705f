"""Two tenants have jobs of one id: no wish for one, and no share of one, is the other's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streams.core import events as ev
from streams.core.admission import Quotas
from streams.core.events import Drop, End, JobCancelled, JobDeadline, Start
from streams.core.fair_queue import Charge
from streams.core.flights import CANCELLED, EXPIRED
from streams.core.shares import JobSeen, Level, Payer, Share, Source
from tests.builders import a_delivery, a_ticket
from tests.unit.staging import T0, T1, TURN, Stage
from tests.unit.test_parking import BULK, LIMITS, Prompt


def of(tenant: str, offset: int = 0, **changes: Any) -> ev.Delivered:
    """A record of that tenant's job `j`."""
    charge = Charge("free", tenant, 1.0)
    return a_delivery(offset, "j", charge=charge, identity=tenant, **changes)


def ended(delivery: ev.Delivered, ending: ev.Ending = CANCELLED) -> End:
    return End(a_ticket(delivery.offset, delivery.partition), delivery.work, ending)


def seen_through(stage: Stage, ticket: ev.Ticket) -> list[ev.Command]:
    """What follows when that record is worked."""
    return stage(ev.Emitted(ticket, ()), ev.Acknowledged(ticket))


# ---- wishes


@pytest.mark.parametrize("is_at_work", [False, True])
def test_another_tenants_cancel_changes_nothing(is_at_work: bool) -> None:
    stage = Stage(of("acme"), *([TURN] if is_at_work else []))
    assert stage(JobCancelled("j", 1, 0.0, "bolt")) == []
    assert stage(TURN) == ([] if is_at_work else [Start(((T0, of("acme").work),))])


def test_what_another_tenant_has_cancelled_is_worked_when_it_comes() -> None:
    stage = Stage(JobCancelled("j", 1, 0.0, "bolt"))
    assert stage(of("acme"), TURN) == [Start(((T0, of("acme").work),))]
    stage = Stage(JobCancelled("j", 1, 0.0, "acme"))
    assert stage(of("acme")) == [ended(of("acme"))]


def test_what_waits_behind_another_tenants_job_is_cancelled_in_its_turn() -> None:
    stage = Stage(of("acme"), of("bolt", 1), TURN)
    assert stage(JobCancelled("j", 1, 0.0, "bolt")) == []
    assert seen_through(stage, T0)[-1] == ended(of("bolt", 1))


def test_what_another_tenants_job_waits_behind_is_cancelled_alone() -> None:
    stage = Stage(of("acme"), of("bolt", 1), TURN)
    end = ended(of("acme"))
    assert stage(JobCancelled("j", 1, 0.0, "acme")) == [Drop((T0,)), end]
    stage(ev.Ended(T0, ()), ev.Acknowledged(T0))
    assert stage(TURN) == [Start(((T1, of("bolt", 1).work),))]


def test_another_tenants_new_deadline_changes_nothing() -> None:
    stage = Stage(JobDeadline("j", 1, 5.0, 0.0, "bolt")).at(7.0)
    assert stage(of("acme", deadline_s=20.0), TURN) == [
        Start(((T0, of("acme", deadline_s=20.0).work),))
    ]
    assert seen_through(stage, T0) == [ev.Produce(T0, ())]
    late = of("bolt", 1, deadline_s=20.0)
    assert stage(late) == [ended(late, EXPIRED)]


def test_a_cancel_that_names_no_tenant_is_of_before_they_did_and_means_whosever() -> None:
    stage = Stage(of("acme"), of("bolt", 1), TURN)
    assert stage(JobCancelled("j", 1, 0.0)) == [Drop((T0,)), ended(of("acme"))]
    assert stage(ev.Ended(T0, ()), ev.Acknowledged(T0))[-1] == ended(of("bolt", 1))
    stage = Stage(JobCancelled("j", 1, 0.0))
    assert stage(of("acme")) == [ended(of("acme"))]


def test_a_deadline_that_names_no_tenant_is_of_before_they_did_and_means_whosever() -> None:
    stage = Stage(JobDeadline("j", 1, 20.0, 0.0)).at(7.0)
    mine, others = of("acme", deadline_s=5.0), of("bolt", 1, deadline_s=5.0)
    assert stage(mine, TURN) == [Start(((T0, mine.work),))]
    seen_through(stage, T0)
    assert stage(others, TURN) == [Start(((T1, others.work),))]


@pytest.mark.parametrize(("first", "last"), [("acme", None), (None, "acme")])
def test_of_a_deadline_with_and_one_without_a_tenant_the_last_wish_counts(
    first: str | None, last: str | None
) -> None:
    stage = Stage(JobDeadline("j", 1, 20.0, 0.0, first), JobDeadline("j", 1, 1.0, 0.0, last))
    late = of("acme", deadline_s=20.0)
    assert stage.at(7.0)(late) == [ended(late, EXPIRED)]


# ---- shares


TWO = replace(LIMITS, quotas=Quotas(jobs={"free": 1.0}, prior=LIMITS.quotas.prior, num_parts=1))


def test_a_job_that_ends_frees_its_own_tenants_share() -> None:
    prompt = Prompt(TWO)
    prompt.seen("X", Level.ADMITTED, "acme")
    prompt.seen("X", Level.ADMITTED, "bolt")
    prompt.read()
    prompt.comes("a", "acme")
    prompt.comes("b", "bolt")
    assert prompt.started == [], "both have their quota in the pipeline"
    prompt.seen("X", Level.ENDED, "bolt")
    prompt.comes("a2", "acme")
    prompt.comes("b2", "bolt")
    assert prompt.started == ["b2"]


def test_an_id_that_another_tenants_job_had_is_no_ended_run() -> None:
    prompt = Prompt(TWO).read()
    prompt.seen("X", Level.ENDED, "bolt")
    prompt.comes("one", "acme")
    prompt.comes("X", "acme")
    assert prompt.started == ["one"], "over its quota, whatever has ended elsewhere"


def test_a_new_deadline_prolongs_its_own_tenants_share() -> None:
    prompt = Prompt(TWO).read()
    for tenant in ("acme", "bolt"):
        share = Share(Payer(0, "free", tenant), BULK, Source.TRIED)
        prompt(JobSeen(0, prompt.run("X", tenant), Level.ADMITTED, share, prompt.now_s + 50.0))
    prompt(JobDeadline("X", 1, prompt.now_s + 500.0, prompt.now_s, "bolt"))
    prompt.later(51.0)
    prompt.comes("b", "bolt")
    prompt.comes("a", "acme")
    assert prompt.started == ["a"]


def test_a_deadline_that_names_no_tenant_prolongs_whosever_share() -> None:
    prompt = Prompt(TWO).read()
    for tenant in ("acme", "bolt"):
        share = Share(Payer(0, "free", tenant), BULK, Source.TRIED)
        prompt(JobSeen(0, prompt.run("X", tenant), Level.ADMITTED, share, prompt.now_s + 50.0))
    prompt(JobDeadline("X", 1, prompt.now_s + 500.0, prompt.now_s))
    prompt.later(51.0)
    prompt.comes("b", "bolt")
    prompt.comes("a", "acme")
    assert prompt.started == []


def test_a_parked_request_waits_as_long_as_its_own_tenant_wishes() -> None:
    prompt = Prompt(TWO).read()
    prompt.comes("one", "acme")
    prompt.comes_parked("X", "acme", deadline_s=prompt.now_s + 50.0)
    prompt(JobDeadline("X", 1, prompt.now_s + 500.0, prompt.now_s, "bolt"))
    prompt.later(51.0)
    assert [(each.work.job_id, each.ending) for each in prompt.ended] == [("X", EXPIRED)]


def test_a_parked_request_is_cancelled_by_its_own_tenant() -> None:
    prompt = Prompt(TWO).read()
    prompt.comes("one", "acme")
    prompt.comes_parked("X", "acme")
    prompt(JobCancelled("X", 1, prompt.now_s, "bolt"))
    assert prompt.ended == []
    prompt(JobCancelled("X", 1, prompt.now_s, "acme"))
    assert [each.work.job_id for each in prompt.ended] == ["X"]
