"""Batches, case by case."""

from __future__ import annotations

from streams.core.accounts import ITEM
from streams.core.batches import Batch, Batches
from streams.core.fair_queue import Charge, Fairness
from streams.core.tiers import OFF_PEAK


def some_batches(max_batches: int = 2) -> Batches[str]:
    return Batches(max_size=2, max_age_s=1.0, max_batches=max_batches)


def test_no_more_batches_enter_than_the_engine_takes() -> None:
    batches = some_batches(max_batches=1)
    for item in "abc":
        batches.add("k", item, Charge(), None, 0.0)
    assert batches.take(0.0) == Batch(1, ("a", "b"), is_alone=False)
    assert batches.take(9.0) is None
    batches.leave(1)
    assert batches.take(9.0) is None, "one of them is still in it"
    batches.leave(1)
    assert batches.take(9.0) == Batch(2, ("c",), is_alone=False)


def test_nothing_enters_where_nothing_waits() -> None:
    batches = some_batches()
    assert (batches.take(0.0), batches.num_waiting, batches.next_due_s()) == (None, 0, None)


def test_a_suspect_waits_until_the_engine_is_empty_and_nothing_passes_it() -> None:
    batches = some_batches()
    batches.add("k", "a", Charge(), None, 0.0)
    batches.take(0.0)
    batches.add_suspect("s")
    batches.add("k", "b", Charge(), None, 0.0)
    assert (batches.take(9.0), batches.num_waiting, batches.next_due_s()) == (None, 2, 0.0)
    batches.leave(1)
    assert batches.take(9.0) == Batch(2, ("s",), is_alone=True)


def test_suspects_and_batches_take_turns() -> None:
    batches, order = some_batches(), []
    for item in ("s", "t"):
        batches.add_suspect(item)
    for item in ("a", "b", "c"):
        batches.add("k", item, Charge(), None, 0.0)
    while batch := batches.take(9.0):
        order.append(batch.items)
        for _ in batch.items:
            batches.leave(batch.number)
    assert order == [("s",), ("a", "b"), ("t",), ("c",)]


def test_a_suspect_goes_out_of_turn_where_nothing_else_waits() -> None:
    batches = some_batches()
    batches.add_suspect("s")
    batches.add_suspect("t")
    batches.take(0.0)
    batches.leave(1)
    assert batches.take(0.0) == Batch(2, ("t",), is_alone=True)


def test_waiting_items_can_be_dropped_suspects_too() -> None:
    batches = some_batches()
    batches.add("k", "a", Charge(), None, 0.0)
    batches.add("k", "b", Charge(), None, 0.0)
    batches.add_suspect("s")
    batches.add_suspect("t")
    assert batches.remove({"a", "s", "x"}) == ("a", "s")
    assert batches.num_waiting == 2


def tiers_full_of_free_jobs(has_room: bool) -> Batches[str]:
    batches: Batches[str] = Batches(1, 0.0, 2, Fairness({"enterprise": 8.0, "free": 1.0}), has_room)
    for item in ("f1", "f2", "f3"):
        batches.add("k", item, Charge("free", "noisy", 1.0), None, 0.0)
    for number, item in ((1, "f1"), (2, "f2")):
        assert batches.take(0.0) == Batch(number, (item,), is_alone=False)
    for item in ("e1", "e2", "e3"):
        batches.add("k", item, Charge("enterprise", "acme", 1.0), None, 0.0)
    return batches


def test_a_heavier_tier_does_not_wait_for_places_that_lighter_ones_have_taken() -> None:
    batches = tiers_full_of_free_jobs(has_room=True)
    assert [batches.take(0.0), batches.take(0.0), batches.take(0.0)] == [
        Batch(3, ("e1",), is_alone=False),
        Batch(4, ("e2",), is_alone=False),
        None,
    ], "of its own weight there are two places"
    batches.leave(1)
    assert batches.take(0.0) is None
    batches.leave(3)
    assert batches.take(0.0) == Batch(5, ("e3",), is_alone=False)
    for number in (2, 4, 5):
        batches.leave(number)
    assert batches.take(0.0) == Batch(6, ("f3",), is_alone=False)


def test_where_the_engine_works_all_that_it_holds_everybody_waits_for_a_place() -> None:
    assert tiers_full_of_free_jobs(has_room=False).take(0.0) is None


def test_a_suspect_is_not_kept_waiting_by_heavier_tiers() -> None:
    batches = tiers_full_of_free_jobs(has_room=True)
    batches.add_suspect("s")
    assert batches.take(0.0) is None, "the engine runs empty for it"


def test_a_tenant_does_not_wait_for_places_that_one_of_its_tier_has_taken_from_its_share() -> None:
    """Resident sets: they may be many more than work at a time, and the queue cannot pass them."""
    batches: Batches[str] = Batches(1, 0.0, 4, Fairness({"pro": 1.0}), has_room_for_heavier=True)

    def add(tenant: str, num: int) -> None:
        for number in range(num):
            batches.add("k", f"{tenant}-{number}", Charge("pro", tenant, 1.0), None, 0.0)

    def taken() -> list[str]:
        found: list[str] = []
        while (batch := batches.take(0.0)) is not None:
            found.extend(batch.items)
        return found

    batches.offer(4)
    add("flood", 9)
    assert taken() == [f"flood-{number}" for number in range(4)], "the places that there are"
    add("a", 3)
    assert taken() == ["a-0"], "then it is the flood's turn, which has more than its share"
    batches.leave(1)
    batches.leave(2)
    assert taken() == ["flood-4", "a-1"]
    for name in "bcdef":
        add(name, 1)
    assert taken() == ["b-0", "c-0", "d-0"], "twice the places are all there are"


def test_whose_turn_it_is_but_who_may_not_enter_stands_before_nobody_of_another_tier() -> None:
    weights = {"enterprise": 8.0, "free": 1.0}
    batches: Batches[str] = Batches(1, 0.0, 2, Fairness(weights), has_room_for_heavier=True)
    for number in range(2):
        batches.add("k", f"flood-{number}", Charge("enterprise", "flood", 1.0), None, 0.0)
        batches.take(0.0)
    for number in range(3):
        batches.add("k", f"busy-{number}", Charge("free", "busy", 0.01), None, 0.0)
    assert batches.take(0.0) == Batch(3, ("busy-0",), is_alone=False)
    assert batches.take(0.0) is None, "it has its share of two places"
    batches.add("k", "quiet", Charge("enterprise", "quiet", 1.0), None, 0.0)
    assert leader_of(batches) == "busy-1"
    assert batches.take(0.0) == Batch(4, ("quiet",), is_alone=False)


def leader_of(batches: Batches[str]) -> str:
    return str(batches.queue.lead()[ITEM])


def test_an_engine_that_works_a_few_at_a_time_is_given_no_more() -> None:
    """What is beyond them would wait inside, in whatever order it came."""
    batches: Batches[str] = Batches(1, 0.0, 4, Fairness({"pro": 1.0}), has_room_for_heavier=True)
    for number in range(9):
        batches.add("k", f"job-{number}", Charge("pro", "acme", 1.0), None, 0.0)

    def num_taken() -> int:
        num = 0
        while batches.take(0.0) is not None:
            num += 1
        return num

    assert num_taken() == 2, "before it has said anything"
    batches.offer(3)
    assert num_taken() == 1
    batches.offer(100)
    assert num_taken() == 1, "no more than the most in any case"
    batches.offer(0)
    for number in (1, 2, 3):
        batches.leave(number)
    assert num_taken() == 0
    batches.leave(4)
    assert num_taken() == 1, "one there always is"


def test_off_peak_work_has_places_only_where_nothing_heavier_wants_them() -> None:
    """Resident sets: a job of any tier enters beside as many deferrable ones as there are."""
    batches: Batches[str] = Batches(1, 0.0, 2, Fairness({"free": 1.0}), has_room_for_heavier=True)
    for item in ("late-1", "late-2", "late-3"):
        batches.add("k", item, Charge(OFF_PEAK, "acme", 1.0), None, 0.0)
    taken = [batches.take(0.0) for _ in range(3)]
    assert [each.items for each in taken if each] == [("late-1",), ("late-2",)]
    batches.add("k", "others-late", Charge(OFF_PEAK, "other", 1.0), None, 0.0)
    assert batches.take(0.0) is None
    batches.add("k", "free", Charge("free", "acme", 1.0), None, 0.0)
    assert batches.take(0.0) == Batch(3, ("free",), is_alone=False)
