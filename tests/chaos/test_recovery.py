"""What the ledger says of a killed worker's jobs, and of steps."""

from __future__ import annotations

from tests.chaos.ledger import Entry
from tests.chaos.recovery import Steps, recoveries, steps_of


def entry(at_s: float, pid: int, what: str, *job_ids: str, stage: str = "sampler") -> Entry:
    return Entry(at_s, pid, stage, what, job_ids)


DIES_WITH_TWO = (
    entry(1.0, 7, "fetched", "a"),
    entry(1.1, 7, "fetched", "b"),
    entry(1.2, 7, "fetched", "c"),
    entry(1.3, 7, "stored", "c"),
    entry(2.0, 7, "after-work", "a"),
)


def test_a_worker_has_been_replaced_when_one_of_its_jobs_is_begun_elsewhere() -> None:
    assert recoveries(DIES_WITH_TWO) == [None]
    finished = (*DIES_WITH_TWO, entry(4.0, 8, "fetched", "c"))
    assert recoveries(finished) == [None]
    assert recoveries((*finished, entry(8.5, 9, "fetched", "b"))) == [6.5]


def test_neither_itself_nor_another_stage_replaces_it() -> None:
    others = (entry(3.0, 8, "fetched", "a", "b", stage="decoder"), entry(3.0, 7, "fetched", "a"))
    assert recoveries((*DIES_WITH_TWO, *others)) == [None]


def test_who_dies_with_nothing_in_hand_is_not_waited_for() -> None:
    assert recoveries((entry(1.0, 7, "fetched", "a"), entry(1.3, 7, "stored", "a"),
                       entry(2.0, 7, "before-commit"))) == []  # fmt: skip


def test_jobs_that_are_begun_twice_count_by_the_first_time() -> None:
    again = (entry(4.0, 8, "fetched", "a", "b"), entry(9.0, 9, "fetched", "a"))
    assert recoveries((*DIES_WITH_TWO, *again)) == [2.0]


def test_steps_beyond_the_last_checkpoint_may_be_done_again() -> None:
    history = (
        entry(1.0, 7, "loading", "a"),
        entry(1.1, 7, "stepped", "a:1", "b:1"),
        entry(1.2, 7, "stepped", "a:2"),
        entry(1.3, 7, "saved", "a:2"),
        entry(1.4, 7, "stepped", "a:3"),
        entry(2.0, 8, "loading", "a"),
        entry(2.1, 8, "stepped", "a:3"),
    )
    assert steps_of(history) == Steps(num_done=5, num_again=1, num_again_though_held=0)


def test_a_step_that_a_checkpoint_held_is_counted() -> None:
    history = (
        entry(1.0, 7, "loading", "a"),
        entry(1.1, 7, "stepped", "a:1"),
        entry(1.2, 7, "saved", "a:1"),
        entry(2.0, 8, "loading", "a"),
        entry(2.1, 8, "stepped", "a:1"),
    )
    assert steps_of(history) == Steps(num_done=2, num_again=1, num_again_though_held=1)


def test_a_checkpoint_that_comes_after_the_job_was_asked_for_says_nothing() -> None:
    history = (
        entry(1.0, 7, "loading", "a"),
        entry(1.1, 7, "stepped", "a:1"),
        entry(2.0, 8, "loading", "a"),
        entry(2.05, 7, "saved", "a:1"),
        entry(2.1, 8, "stepped", "a:1"),
    )
    assert steps_of(history) == Steps(num_done=2, num_again=1, num_again_though_held=0)
