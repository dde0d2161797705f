"""Batches, case by case."""

from __future__ import annotations

from streams.core.batches import Batch, Batches


def some_batches(*items: str) -> Batches[str]:
    """Batches of two, aged one second, two in the engine."""
    batches: Batches[str] = Batches(max_size=2, max_age_s=1.0, max_batches=2)
    for item in items:
        batches.add("key", item, now_s=0.0)
    return batches


def test_no_more_batches_enter_than_the_engine_takes() -> None:
    batches = some_batches("a", "b", "c", "d", "e")
    assert batches.take(9.0) == Batch(1, ("a", "b"), is_alone=False)
    assert batches.take(9.0) == Batch(2, ("c", "d"), is_alone=False)
    assert batches.take(9.0) is None
    batches.leave(1)
    assert batches.take(9.0) is None
    batches.leave(1)
    assert batches.take(9.0) == Batch(3, ("e",), is_alone=False)


def test_an_empty_queue_gives_no_batch() -> None:
    assert (some_batches().take(0.0), some_batches().next_due_s()) == (None, None)


def test_a_suspect_waits_for_an_empty_engine_and_is_alone_in_it() -> None:
    batches = some_batches("a")
    batches.take(0.0)
    batches.add_suspect("s")
    assert (batches.take(0.0), batches.next_due_s()) == (None, 0.0)
    batches.leave(1)
    batches.add("key", "b", 0.0)
    assert batches.take(0.0) == Batch(2, ("s",), is_alone=True)
    assert batches.take(9.0) is None
    batches.leave(2)
    assert batches.take(0.0) == Batch(3, ("b",), is_alone=False)


def test_suspects_and_batches_take_turns() -> None:
    batches, taken = some_batches("a", "b", "c"), []
    for suspect in ("s", "t", "u"):
        batches.add_suspect(suspect)
    while (batch := batches.take(0.0)) is not None:
        taken.append(batch.items)
        for _ in batch.items:
            batches.leave(batch.number)
    assert taken == [("s",), ("a", "b"), ("t",), ("c",), ("u",)]


def test_what_waits_can_be_dropped() -> None:
    batches = some_batches("a", "b")
    batches.add_suspect("s")
    batches.add_suspect("t")
    assert batches.drop({"a", "s"}.__contains__) == ("a", "s")
    assert batches.num_waiting == 2
