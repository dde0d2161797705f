"""Gate, case by case."""

from __future__ import annotations

from streams.core.gate import Gate, Why


def a_gate(*keys: str) -> Gate[str]:
    gate: Gate[str] = Gate()
    assert gate.add(keys) == ()
    return gate


def test_a_partition_opens_when_its_last_reason_is_gone() -> None:
    gate = a_gate("p0", "p1")
    assert gate.close("p0", Why.WINDOW) == ("p0",)
    assert gate.close("p0", Why.NOT_DUE) == ()
    assert gate.open("p0", Why.WINDOW) == ()
    assert gate.open("p0", Why.NOT_DUE) == ("p0",)


def test_a_reason_that_does_not_hold_opens_nothing() -> None:
    gate = a_gate("p0")
    gate.close("p0", Why.WINDOW)
    assert gate.open("p0", Why.NOT_DUE) == ()
    assert gate.open_all(Why.HOLDING) == ()


def test_what_is_closed_already_is_not_closed_with_all() -> None:
    gate = a_gate("p0", "p1")
    gate.close("p0", Why.WINDOW)
    assert gate.close_all(Why.HOLDING) == ("p1",)
    assert gate.is_closed_by(Why.HOLDING)
    assert gate.close_all(Why.STAGE_PAUSED) == ()


def test_all_open_when_the_last_reason_for_all_is_gone_but_for_their_own() -> None:
    gate = a_gate("p0", "p1")
    gate.close("p0", Why.WINDOW)
    gate.close_all(Why.HOLDING)
    gate.close_all(Why.STAGE_PAUSED)
    assert gate.open_all(Why.HOLDING) == ()
    assert gate.open_all(Why.STAGE_PAUSED) == ("p1",)


def test_an_own_reason_that_ends_while_all_are_closed_opens_nothing() -> None:
    gate = a_gate("p0")
    gate.close("p0", Why.WINDOW)
    gate.close_all(Why.HOLDING)
    assert gate.open("p0", Why.WINDOW) == ()
    assert gate.open_all(Why.HOLDING) == ("p0",)


def test_a_partition_that_comes_while_all_are_closed_is_closed_at_once() -> None:
    gate = a_gate()
    gate.close_all(Why.DRAINING)
    assert gate.add(["p0"]) == ("p0",)


def test_a_partition_that_went_away_is_not_opened() -> None:
    gate = a_gate("p0")
    gate.close("p0", Why.NOT_DUE)
    gate.remove("p0")
    gate.remove("p0")
    assert gate.open("p0", Why.NOT_DUE) == ()
