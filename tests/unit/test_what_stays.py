"""What the prompt stage still knows of jobs that have ended long before their deadline: nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from streams.core import events as ev
from streams.core.cost import Prior
from streams.core.ledger import MARKER_S, Ledger
from streams.core.runs import RunOfJob
from streams.core.shares import Level, Payer
from tests.builders import a_start_offset, an_output
from tests.unit.test_parking import BULK, Prompt

A_DAY_S = 86_400.0
NUM_JOBS = 800


def test_a_request_that_was_let_in_and_ended() -> None:
    def job(prompt: Prompt, job_id: str) -> None:
        _comes(prompt, job_id)
        assert prompt.started.pop() == job_id
        _is_worked(prompt, job_id)

    assert _growth(job) < NUM_JOBS


def test_a_parked_request_that_is_asked_again_and_again() -> None:
    def job(prompt: Prompt, job_id: str) -> None:
        _comes(prompt, f"{job_id}-before")
        _comes(prompt, job_id, is_parked=True)
        for number in range(4):  # each of them is over the quota too, and gone again
            prompt.seen(f"{job_id}-{number}", Level.ADMITTED)
            prompt.seen(f"{job_id}-{number}", Level.ENDED)
        assert job_id not in prompt.started
        _is_worked(prompt, f"{job_id}-before")
        assert prompt.started.pop() == job_id
        prompt.started.clear()
        _is_worked(prompt, job_id)

    assert _growth(job) < NUM_JOBS


def test_partitions_that_come_and_go_with_all_that_is_parked_there() -> None:
    def job(prompt: Prompt, job_id: str) -> None:
        for number in range(4):
            _comes(prompt, f"{job_id}-{number}", is_parked=number > 0)
        starts = {each: a_start_offset(offset) for each, offset in prompt.offsets.items()}
        prompt(ev.Revoked(tuple(starts)), ev.Assigned(starts))
        prompt.read().started.clear()

    assert _growth(job) < NUM_JOBS


def test_jobs_that_have_ended_where_there_is_always_one_more() -> None:
    ledger, sizes = Ledger(Prior(fixed_s=1.0)), []
    ledger.open(0)
    ledger.read(0)
    for number in range(2 * NUM_JOBS):
        now_s = float(number)
        job = RunOfJob("acme", f"job-{number}", 1)
        ledger.hold(job, Payer(0, "free", "acme"), BULK, now_s + A_DAY_S, now_s)
        ledger.ended(0, job._replace(job_id=f"job-{number - 1}"), 1.0, now_s)
        ledger.expire(now_s)
        if number % NUM_JOBS == NUM_JOBS - 1:
            sizes.append(_num_reachable(ledger))
    assert sizes[1] - sizes[0] < NUM_JOBS


def _comes(prompt: Prompt, job_id: str, is_parked: bool = False) -> None:
    come = prompt.comes_parked if is_parked else prompt.comes
    come(job_id, deadline_s=prompt.now_s + A_DAY_S)


def _is_worked(prompt: Prompt, job_id: str) -> None:
    """It leaves the stage, and its video is done soon after."""
    flights = prompt.state.flights.items()
    (ticket,) = [ticket for ticket, flight in flights if flight.work.job_id == job_id]
    prompt(ev.Emitted(ticket, (an_output(),)), ev.Acknowledged(ticket), ev.Tick())
    prompt.seen(job_id, Level.ENDED)
    prompt.later(0.1)


def _growth(do_job: Callable[[Prompt, str], None]) -> int:
    """Objects that the stage holds more after twice as many jobs."""
    prompt, sizes = Prompt().read(), []
    for part in range(2):
        for number in range(NUM_JOBS):
            do_job(prompt, f"job-{part}-{number}")
        prompt.later(2 * MARKER_S)
        sizes.append(_num_reachable(prompt.state))
    return sizes[1] - sizes[0]


def _num_reachable(root: object) -> int:
    found: dict[int, Any] = {}
    ahead = [root]
    while ahead:
        each = ahead.pop()
        if id(each) not in found and not isinstance(each, type | ModuleType | FunctionType):
            found[id(each)] = each
            ahead.extend(gc.get_referents(each))
    return len(found)
