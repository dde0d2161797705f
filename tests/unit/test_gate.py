"""Gate, case by case."""

from __future__ import annotations

from streams.core.gate import Gate, Why


def a_gate(*keys: str) -> Gate[str]:
    gate: Gate[str] = Gate()
    gate.add(keys)
    return gate


def test_a_reason_that_ends_never_opens_what_another_keeps_closed() -> None:
    gate = a_gate("a")
    assert gate.close("a", Why.WINDOW) == ("a",)
    assert gate.close("a", Why.NOT_DUE) == ()
    assert gate.open("a", Why.WINDOW) == ()
    assert gate.open("a", Why.NOT_DUE) == ("a",)


def test_a_reason_counts_once() -> None:
    gate = a_gate("a")
    gate.close("a", Why.WINDOW)
    assert gate.close("a", Why.WINDOW) == ()
    assert gate.open("a", Why.WINDOW) == ("a",)
    assert gate.open("a", Why.WINDOW) == ()


def test_closing_all_names_those_that_were_open() -> None:
    gate = a_gate("a", "b")
    gate.close("a", Why.WINDOW)
    assert gate.close_all(Why.HOLDING) == ("b",)
    assert gate.close_all(Why.STAGE_PAUSED) == ()
    assert (gate.is_closed_by(Why.HOLDING), gate.is_closed_by(Why.DRAINING)) == (True, False)
    assert gate.open_all(Why.HOLDING) == ()
    assert gate.open_all(Why.STAGE_PAUSED) == ("b",)
    assert gate.open_all(Why.STAGE_PAUSED) == ()


def test_what_ends_while_all_are_closed_opens_with_them() -> None:
    gate = a_gate("a")
    gate.close("a", Why.WINDOW)
    gate.close_all(Why.HOLDING)
    assert gate.open("a", Why.WINDOW) == ()
    assert gate.open_all(Why.HOLDING) == ("a",)


def test_partitions_that_come_while_all_are_closed_are_closed() -> None:
    gate = a_gate()
    gate.close_all(Why.STAGE_PAUSED)
    assert gate.add(["a", "b"]) == ("a", "b")
    assert gate.close("a", Why.WINDOW) == ()


def test_a_partition_that_went_away_is_never_opened() -> None:
    gate = a_gate("a")
    gate.close("a", Why.WINDOW)
    gate.remove("a")
    gate.remove("a")
    assert gate.open("a", Why.WINDOW) == ()
    assert gate.add(["a"]) == ()
