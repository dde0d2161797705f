"""MicroBatcher, case by case."""

from __future__ import annotations

import pytest

from streams.core.fair_queue import Charge
from streams.core.micro_batch import MicroBatcher


def a_batcher(**items: float) -> MicroBatcher[str]:
    """Batches of two, aged one second; `key_name=now_s` adds an item."""
    batcher: MicroBatcher[str] = MicroBatcher(max_size=2, max_age_s=1.0)
    for item, now_s in items.items():
        batcher.add(item[0], item, Charge(), None, now_s)
    return batcher


def test_a_batch_closes_on_size() -> None:
    batcher = a_batcher(a1=0.0, a2=0.1, a3=0.2)
    assert batcher.take(0.2, is_idle=False) == ("a1", "a2")
    assert batcher.take(0.2, is_idle=False) == ()
    assert len(batcher) == 1


def test_a_batch_closes_on_the_age_of_its_head() -> None:
    batcher = a_batcher(a1=0.0)
    assert batcher.take(0.99, is_idle=False) == ()
    assert batcher.take(1.0, is_idle=False) == ("a1",)


def test_an_idle_device_waits_for_nothing() -> None:
    assert a_batcher(a1=0.0).take(0.0, is_idle=True) == ("a1",)


def test_a_batch_holds_one_key() -> None:
    batcher = a_batcher(a1=0.0, b1=0.1, a2=0.2)
    assert batcher.take(0.2, is_idle=False) == ("a1", "a2")
    assert batcher.take(0.2, is_idle=True) == ("b1",)


def test_of_the_ready_keys_the_oldest_head_goes_first() -> None:
    batcher = a_batcher(b1=0.0, a1=0.1, a2=0.2)
    assert batcher.take(2.0, is_idle=False) == ("b1",)
    assert batcher.take(2.0, is_idle=False) == ("a1", "a2")


def test_an_empty_batcher_gives_nothing_and_is_due_never() -> None:
    batcher = a_batcher()
    assert (batcher.take(9.0, is_idle=True), batcher.next_due_s()) == ((), None)


def test_the_oldest_head_says_when_the_next_batch_is_due() -> None:
    assert a_batcher(a1=0.5, b1=0.2).next_due_s() == 1.2


def test_dropped_items_leave_and_the_others_keep_their_order() -> None:
    batcher = a_batcher(a1=0.0, b1=0.1, a2=0.2, a3=0.3)
    assert batcher.remove({"b1", "a1", "x"}) == ("a1", "b1")
    assert len(batcher) == 2
    assert batcher.next_due_s() == 1.2
    assert batcher.take(0.3, is_idle=True) == ("a2", "a3")


@pytest.mark.parametrize(("max_size", "max_age_s"), [(0, 1.0), (1, -0.1)])
def test_limits_that_make_no_batch_are_refused(max_size: int, max_age_s: float) -> None:
    with pytest.raises(ValueError, match="max_size >= 1"):
        MicroBatcher(max_size, max_age_s)
