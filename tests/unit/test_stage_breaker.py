"""StageState and its breaker: failures in a row, and jobs about to be given up."""

from __future__ import annotations

from dataclasses import replace

from streams.core.events import (
    Acknowledged,
    Commit,
    DeadLetter,
    Drain,
    Drop,
    Emitted,
    End,
    Failed,
    JobCancelled,
    Pause,
    Probe,
    Probed,
    Resume,
    Tick,
)
from streams.core.flights import CANCELLED
from streams.core.limits import StageLimits
from streams.core.retry import RetryPolicy
from tests.builders import P0, a_delivery, a_fault
from tests.unit.staging import (
    LATER,
    LIMITS,
    OUTPUTS,
    T0,
    T1,
    T2,
    TURN,
    Stage,
    a_point,
    a_retry,
    started,
)

BREAKING = replace(LIMITS, breaker_limit=2, probe_wait_s=1.0, leave_after_s=10.0)


def failing() -> Stage:
    """Two jobs have failed in a row, as many as the breaker bears."""
    stage = Stage(a_delivery(0), a_delivery(1), a_delivery(2), TURN, limits=BREAKING)
    assert stage(Failed(T0, LATER)) == [a_retry(a_delivery(0).work)]
    assert stage(Failed(T1, LATER)) == [Pause((P0,))]
    return stage


def test_failures_in_a_row_wait_for_a_probe() -> None:
    stage = failing()
    assert stage(Tick()) == [Probe()]
    assert stage(Tick()) == []


def test_a_good_probe_lets_the_failures_take_their_fates() -> None:
    stage = failing()
    stage(Tick())
    assert stage(Probed(True)) == [a_retry(a_delivery(1).work, T1), Resume((P0,))]
    assert stage(TURN) == [started(2)]


def test_a_bad_probe_holds_and_the_next_good_one_forgives() -> None:
    stage = failing()
    stage(Tick())
    assert stage(Probed(False)) == []
    assert stage.at(0.9)(TURN) == []
    assert stage.at(1.0)(TURN) == [Probe()]
    assert stage(Probed(True)) == [Resume((P0,))]
    assert stage(TURN) == [started(2, 1)]


def test_bad_probes_for_long_are_a_reason_to_leave() -> None:
    stage = failing()
    stage(Tick(), Probed(False))
    stage.at(10.0)(Tick())
    assert stage.state.left_because == "probe_failed"


def given_up(limits: StageLimits = LIMITS) -> Stage:
    """One job fails, and then another for the last time, with nothing worked in between."""
    last = a_delivery(1, try_number=RetryPolicy().max_tries)
    stage = Stage(a_delivery(0), last, TURN, limits=limits)
    assert stage(Failed(T0, LATER)) == [a_retry(a_delivery(0).work)]
    assert stage(Failed(T1, LATER)) == [Pause((P0,))]
    return stage


def test_nothing_is_given_up_before_this_host_has_been_probed() -> None:
    stage = given_up()
    assert stage(Tick()) == [Probe()]
    last = a_delivery(1, try_number=RetryPolicy().max_tries).work
    assert stage(Probed(True)) == [DeadLetter(T1, last, LATER), Resume((P0,))]


def test_a_sick_host_gives_nothing_up_however_few_jobs_there_are() -> None:
    stage = given_up()
    stage(Tick(), Probed(False))
    assert stage.at(1.0)(TURN) == [Probe()]
    assert stage(Probed(True)) == [Resume((P0,))]
    assert stage(TURN) == [started(1, try_number=RetryPolicy().max_tries)]


def test_failures_that_are_no_jobs_last_are_borne_up_to_the_limit() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, limits=LIMITS)
    assert stage(Failed(T0, LATER)) == [a_retry(a_delivery(0).work)]
    assert stage(Failed(T1, LATER)) == [a_retry(a_delivery(1).work, T1)]


def test_a_last_try_right_after_a_job_that_was_worked_is_the_jobs_own_failure() -> None:
    last = a_delivery(1, try_number=RetryPolicy().max_tries)
    stage = Stage(a_delivery(0), last, TURN, limits=LIMITS)
    stage(Emitted(T0, OUTPUTS))
    assert stage(Failed(T1, LATER)) == [DeadLetter(T1, last.work, LATER)]


def test_what_fails_while_the_breaker_is_open_waits_for_the_probe_too() -> None:
    deliveries = [a_delivery(offset) for offset in range(3)]
    stage = Stage(*deliveries, TURN, limits=BREAKING).at(1.0)
    stage(TURN, Failed(T0, LATER), Failed(T1, LATER), Tick())
    assert stage(Failed(T2, a_fault())) == []
    assert stage(Probed(True)) == [
        a_retry(a_delivery(1).work, T1),
        DeadLetter(T2, a_delivery(2).work, a_fault()),
        Resume((P0,)),
    ]


def test_a_fault_that_is_not_its_jobs_says_nothing_of_the_host() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, limits=BREAKING)
    fault = a_fault(ends_job=False)
    assert len(stage(Failed(T0, fault), Failed(T1, fault))) == 2


def test_what_waits_for_a_probe_can_be_cancelled() -> None:
    stage = failing()
    assert stage(JobCancelled("job-0-1", 1, 0.0)) == [End(T1, a_delivery(1).work, CANCELLED)]
    stage(Tick())
    assert stage(Probed(True)) == [Resume((P0,))]


def test_a_drain_hands_back_what_waits_for_a_probe() -> None:
    stage = failing()
    stage(Acknowledged(T0), Drain())
    assert stage(Tick()) == [Commit({P0: a_point(1)}, must_finish=True)]
    assert stage.state.stopped


def test_a_drain_does_not_wait_for_what_fails_meanwhile_and_would_wait_for_a_probe() -> None:
    stage = Stage(a_delivery(0), a_delivery(1), TURN, Drain(), limits=BREAKING)
    stage(Failed(T0, LATER), Failed(T1, LATER), Acknowledged(T0))
    assert stage(Tick()) == [Commit({P0: a_point(1)}, must_finish=True), Drop((T1,))]
    assert stage.state.stopped
