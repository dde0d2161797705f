"""Copies of one job, case by case."""

from __future__ import annotations

import pytest

from streams.core.copies import Copies
from streams.core.flight import Flight, Phase
from streams.core.offset_map import Crashes
from tests.builders import a_ticket, a_work


def a_flight(
    offset: int, run: int = 1, nth: int = 1, crashes: int = 0, phase: Phase = Phase.BEHIND
) -> Flight:
    work = a_work("j", run=run, try_number=nth, crashes=Crashes(crashes, 0))
    return Flight(a_ticket(offset), work, phase=phase)


def test_the_first_is_at_work_at_once() -> None:
    copies, first = Copies(), a_flight(0)
    assert copies.add("j", first) == ([], True)
    assert copies.at_work("j") is first


def test_an_equal_one_waits() -> None:
    copies, first, second = Copies(), a_flight(0), a_flight(1)
    copies.add("j", first)
    assert copies.add("j", second) == ([], False)
    assert copies.remove("j", first) is second
    assert copies.remove("j", second) is None
    assert copies.at_work("j") is None


@pytest.mark.parametrize("higher", [(2, 1, 0), (1, 2, 0), (1, 1, 1)])
def test_a_lower_one_that_comes_later_is_needless(higher: tuple[int, int, int]) -> None:
    copies, first = Copies(), a_flight(0, *higher)
    copies.add("j", first)
    second = a_flight(1)
    assert copies.add("j", second) == ([second], False)
    assert copies.remove("j", second) is None
    assert copies.at_work("j") is first


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.DELAYED, Phase.JUDGED])
def test_a_higher_one_stops_one_that_nobody_works_on(phase: Phase) -> None:
    copies, first, second = Copies(), a_flight(0, phase=phase), a_flight(1, nth=2)
    copies.add("j", first)
    assert copies.add("j", second) == ([first], False)
    assert copies.remove("j", first) is second


@pytest.mark.parametrize("phase", [Phase.ENTERING, Phase.RUNNING])
def test_in_the_engine_a_higher_run_stops_it_and_a_higher_try_does_not(phase: Phase) -> None:
    copies, first = Copies(), a_flight(0, phase=phase)
    copies.add("j", first)
    assert copies.add("j", a_flight(1, nth=2)) == ([], False)
    needless, _ = copies.add("j", a_flight(2, run=2))
    assert [each.ticket.offset for each in needless] == [1, 0]


@pytest.mark.parametrize(
    "phase", [Phase.PRODUCING, Phase.RETRYING, Phase.ENDING, Phase.DEAD_LETTERING]
)
def test_what_is_past_its_work_is_seen_through(phase: Phase) -> None:
    copies = Copies()
    copies.add("j", a_flight(0, phase=phase))
    assert copies.add("j", a_flight(1, run=2)) == ([], False)


def test_the_highest_takes_over_and_of_equals_the_first() -> None:
    copies, first = Copies(), a_flight(0, phase=Phase.PRODUCING)
    copies.add("j", first)
    waiting = [a_flight(1, nth=2), a_flight(2, nth=2)]
    for each in waiting:
        copies.add("j", each)
    assert copies.remove("j", first) is waiting[0]


def test_outranked_is_what_a_higher_one_is_here_for() -> None:
    copies, first = Copies(), a_flight(0, phase=Phase.RUNNING)
    copies.add("j", first)
    assert not copies.is_outranked(first)
    copies.add("j", a_flight(1, nth=2))
    assert copies.is_outranked(first)
    assert not copies.is_outranked(Flight(a_ticket(5), a_work(None)))


def test_twins_are_copies_that_wait_and_rank_no_higher() -> None:
    copies, first = Copies(), a_flight(0, phase=Phase.RETRYING)
    copies.add("j", first)
    twin, higher = a_flight(1), a_flight(2, nth=2)
    copies.add("j", twin)
    copies.add("j", higher)
    assert copies.twins("j", first) == [twin]
    assert copies.twins("j", higher) == [twin, higher]
    assert copies.twins("k", first) == []


def test_another_request_under_the_job_is_nobodys_copy() -> None:
    copies, first = Copies(), a_flight(0, phase=Phase.RETRYING)
    copies.add("j", first)
    other = Flight(a_ticket(9), a_work("j", identity="another request"))
    assert copies.add("j", other) == ([], False)
    assert copies.add("j", a_flight(1, nth=2)) == ([], False)
    assert not copies.is_outranked(other)
    assert copies.twins("j", first) == []
