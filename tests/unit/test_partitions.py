"""OurPartitions, case by case: what is committed when, and what is not said twice."""

from __future__ import annotations

from streams.core.events import StartOffset, Ticket
from streams.core.fair_queue import Charge
from streams.core.offset_map import BACK_PRESSURE_SPAN, Crashes, OffsetMap
from streams.core.partitions import OurPartitions
from tests.builders import P0, P1, a_start_offset
from tests.unit.staging import a_point

ACME = Charge("pro", "acme", 1.0)


def some_partitions(*starts: StartOffset) -> OurPartitions:
    ours = OurPartitions(window_high=2, window_low=0)
    ours.assign(zip((P0, P1), starts, strict=False))
    return ours


def work(ours: OurPartitions, offset: int) -> None:
    ticket = ours.deliver(P0, offset)
    assert ticket is not None
    ours.enter(P0, ACME)
    ours.finish(ticket, ACME)


def test_epochs_never_repeat() -> None:
    ours = some_partitions(a_start_offset(), a_start_offset())
    ours.forget([P0])
    ours.assign([(P0, a_start_offset())])
    assert (ours.deliver(P0, 0), ours.deliver(P1, 0)) == (Ticket(P0, 0, 3), Ticket(P1, 0, 2))


def test_what_the_group_has_committed_is_not_said_again() -> None:
    known = OffsetMap(3, 0b10, {3: Crashes(1, 0)})
    ours = some_partitions(StartOffset(known, True), a_start_offset(is_committed=False))
    assert ours.next_commit() == {P1: a_point(0)}
    ours.committed(is_ok=True)
    assert ours.last_commit([P0, P1]) == {}


def test_what_an_earlier_owner_finished_gets_no_ticket_and_moves_the_commit() -> None:
    ours = some_partitions(StartOffset(OffsetMap(0, 0b1), True))
    assert ours.deliver(P0, 0) is None
    assert ours.next_commit() == {P0: a_point(1)}


def test_a_commit_that_is_under_way_is_said_again_when_its_partition_goes() -> None:
    ours = some_partitions(a_start_offset())
    work(ours, 0)
    assert (ours.is_dirty, ours.is_committing) == (True, False)
    assert ours.next_commit() == {P0: a_point(1)}
    assert (ours.is_dirty, ours.is_committing) == (False, True)
    assert ours.last_commit([P0, P1]) == {P0: a_point(1)}
    ours.forget([P0])
    ours.committed(is_ok=False)
    assert (ours.is_dirty, ours.is_committing) == (False, False)


def test_a_commit_that_failed_is_said_again() -> None:
    ours = some_partitions(a_start_offset())
    work(ours, 0)
    ours.next_commit()
    ours.committed(is_ok=False)
    assert ours.next_commit() == {P0: a_point(1)}


def test_what_was_touched_and_is_as_before_is_not_said() -> None:
    ours = some_partitions(a_start_offset())
    ours.touch(P0)
    assert (ours.is_dirty, ours.next_commit(), ours.is_committing) == (True, {}, False)


def test_a_full_window_closes_and_an_empty_one_opens() -> None:
    ours = some_partitions(a_start_offset())
    tickets = [ours.deliver(P0, 0), ours.deliver(P0, 1)]
    assert [ours.enter(P0, ACME), ours.enter(P0, ACME)] == [(), (P0,)]
    assert [ours.finish(each, ACME) for each in tickets if each] == [(), (P0,)]


def test_a_long_map_closes_until_it_is_short() -> None:
    ours = some_partitions(a_start_offset())
    first, last = ours.deliver(P0, 0), ours.deliver(P0, BACK_PRESSURE_SPAN - 1)
    assert first
    assert last
    ours.enter(P0, ACME)
    ours.finish(last, ACME)
    assert ours.press_back(P0) == ((P0,), ())
    assert ours.press_back(P0) == ((), ())
    ours.enter(P0, ACME)
    ours.finish(first, ACME)
    assert ours.press_back(P0) == ((), (P0,))


def test_what_went_away_delivers_nothing() -> None:
    ours = some_partitions(a_start_offset())
    ours.forget([P0, P1])
    assert ours.deliver(P0, 0) is None
