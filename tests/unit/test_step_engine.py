"""StepEngine: joins and leaves at every step, and what a failing forward costs whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.codec import Codec
from schemas.records import JobEvent
from streams.core.events import Emitted, Failed, Fate
from streams.errors import InvalidRecord, OutOfMemory, SickHost
from tests.unit.engine_rig import (
    latents_of,
    tasks_of,
    wait_until,
)
from tests.unit.step_rig import ROWS_MAX, State, StepRig


@pytest.fixture
def rig(step_rig: StepRig) -> StepRig:
    """An engine of steps, not of batches."""
    return step_rig


def no_memory(most_rows: int) -> Callable[[Sequence[State], bool], None]:
    """A forward of more rows finds no memory; split, the prompts' rows count."""

    def on_forward(states: Sequence[State], is_split: bool) -> None:
        rows = len(states) if is_split else sum(each.width for each in states)
        if rows > most_rows:
            raise OutOfMemory("no memory", {"rows": str(rows)})

    return on_forward


def test_each_job_leaves_after_its_own_steps(rig: StepRig) -> None:
    rig.start(*tasks_of("a-1", "b-3", "c-2"))
    answers = rig.wait_for(3)
    assert [latents_of(each).job.job_id for each in answers] == ["a-1", "b-3", "c-2"]
    taken = [sum(name in forward for forward in rig.steps.forwards) for name in ("a-1", "b-3")]
    assert taken == [1, 3]
    timing = latents_of(answers[0]).timings[-1]
    assert (timing.stage, timing.worker) == ("sampler", "worker-1")


def test_a_job_joins_between_two_steps_of_another(rig: StepRig) -> None:
    rig.steps.is_free = False
    rig.start(*tasks_of("a-9999"))
    rig.turn()
    rig.start(*tasks_of("x-1", "b-9999")[1:])
    wait_until(lambda: rig.turn() == ["a-9999", "b-9999"])


def test_a_job_of_a_heavier_tier_takes_part_in_every_step_though_others_came_first(
    rig: StepRig,
) -> None:
    rig.steps.is_free = False
    rig.start(*tasks_of(*(f"a{number}-60" for number in range(12))))
    for _ in range(20):
        rig.turn()
    (task,) = tasks_of("paying-10")
    job = replace(task.record.job, tier="enterprise")
    rig.start(replace(task, record=replace(task.record, job=job), offset=12))
    wait_until(lambda: "paying-10" in rig.turn())
    for _ in range(8):
        assert "paying-10" in rig.turn()


def test_a_cancelled_jobs_rows_are_free_at_the_next_boundary(rig: StepRig) -> None:
    rig.steps.is_free = False
    (ticket, _) = rig.start(*tasks_of("a-9999", "b-9999"))
    wait_until(lambda: len(rig.turn()) == 2)
    rig.drop(ticket)
    rig.turn()  # under way already, perhaps, when it was dropped
    assert rig.turn() == ["b-9999"]
    assert rig.take() == 0


def test_a_row_that_breaks_the_forward_is_found_and_its_neighbours_lose_nothing(
    rig: StepRig,
) -> None:
    def poisoned(states: Sequence[State], is_split: bool) -> None:
        if any(each.job_id == "bad-4" and each.num_done == 2 for each in states):
            raise ZeroDivisionError("a secret prompt")

    rig.steps.on_forward = poisoned
    good = [f"good{number}-4" for number in range(7)]
    rig.start(*tasks_of(*good[:3], "bad-4", *good[3:]))
    answers = rig.wait_for(8)
    failed = [each for each in answers if isinstance(each, Failed)]
    assert [each.ticket.offset for each in failed] == [3]
    assert (failed[0].fault.fate, failed[0].fault.reason_code) == (Fate.LATER, "internal_error")
    assert "secret" not in str(failed[0])
    assert sum(isinstance(each, Emitted) for each in answers) == 7


def test_a_row_that_a_device_which_is_well_refuses_is_found_and_counts_a_try(
    rig: StepRig,
) -> None:
    """Some errors of a device are of one row's shape."""

    def refused(states: Sequence[State], is_split: bool) -> None:
        if any(each.job_id == "bad-4" and each.num_done == 2 for each in states):
            raise SickHost("CUDA error: invalid configuration", reason_code="device_failed")

    rig.steps.on_forward = refused
    rig.start(*tasks_of("a-4", "bad-4", "b-4"))
    answers = rig.wait_for(3)
    assert [type(each) for each in answers] == [Emitted, Failed, Emitted]
    assert isinstance(answers[1], Failed)
    assert (answers[1].fault.fate, answers[1].fault.reason_code) == (Fate.LATER, "device_failed")
    assert (rig.held, rig.words) == ([], []), "nobody waited"


def test_a_job_that_is_not_finite_fails_and_no_forward_is_done_again(rig: StepRig) -> None:
    bad = InvalidRecord("not finite", reason_code="non_finite_latents")
    rig.steps.on_job = lambda state: bad if state == State("bad-4", 1) else None
    rig.start(*tasks_of("a-4", "bad-4", "b-4"))
    answers = rig.wait_for(3)
    assert [type(each) for each in answers] == [Emitted, Failed, Emitted]
    assert isinstance(answers[1], Failed)
    assert answers[1].fault.fate is Fate.DEAD_LETTER
    taken = [sum(name in forward for forward in rig.steps.forwards) for name in ("a-4", "bad-4")]
    assert taken == [4, 2]


def test_a_forward_that_finds_no_memory_climbs_down_the_ladder(rig: StepRig) -> None:
    rig.steps.is_free = False
    rig.steps.on_forward = no_memory(2)
    rig.start(*tasks_of("a-1-wide", "b-1-wide", "c-1", "d-1"))
    rig.steps.turns.release(50)
    answers = rig.wait_for(4)
    assert {type(each) for each in answers} == {Emitted}
    sizes = [len(each) for each in rig.steps.forwards]
    whole = sizes.index(4) if 4 in sizes else None
    assert whole is not None, "all four came together"
    # as it is, with the cache freed, with guidance apart, in halves
    assert sizes[whole : whole + 5] == [4, 4, 4, 2, 2]
    assert rig.steps.splits[whole : whole + 5] == [False, False, True, True, True]
    assert rig.steps.num_freed >= 1


def test_a_job_that_fits_nowhere_is_a_dead_letter_with_evidence(rig: StepRig) -> None:
    rig.steps.on_forward = no_memory(0)
    rig.start(*tasks_of("a-2"))
    (answer,) = rig.wait_for(1)
    assert isinstance(answer, Failed)
    assert (answer.fault.fate, answer.fault.reason_code) == (Fate.DEAD_LETTER, "out_of_memory")
    assert dict(answer.fault.evidence) == {"rows": "1", "cap-rows": "8"}


def test_what_found_no_memory_is_not_tried_again(rig: StepRig) -> None:
    rig.steps.on_forward = no_memory(1)
    rig.start(*tasks_of("a-6-wide"))
    rig.wait_for(1)
    assert rig.steps.splits == [False, False, *6 * [True]], "whole, freed, then apart for good"


def test_a_want_of_memory_that_passes_is_forgiven_though_guidance_went_apart_since(
    rig: StepRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.core.step_caps._FORGIVE_AFTER", 3)
    left = [OutOfMemory("no memory", {})] * 2

    def passing(states: Sequence[State], is_split: bool) -> None:
        if left:
            raise left.pop()

    rig.steps.on_forward = passing
    rig.start(*tasks_of("a-6-wide"))
    rig.wait_for(1)
    assert rig.steps.splits == [False, False, *3 * [True], *3 * [False]]


def test_what_failed_before_is_no_part_of_the_peak_of_what_succeeds(rig: StepRig) -> None:
    rig.steps.memory = 100_000
    rig.steps.on_forward = no_memory(1)
    rig.start(*tasks_of("a-2", "b-2"))
    rig.wait_for(2)
    assert len(rig.steps.forwards[0]) == 2
    assert rig.peak_bytes("key") == {1: 1_000}


def test_a_forward_stays_within_nine_tenths_of_the_memory(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.core.step_caps._LOOK_BEYOND_EVERY", 1)  # time says: more
    rig = StepRig(rig_folder)
    rig.steps.memory = 5_000
    with rig:
        rig.start(*tasks_of("a-1"))
        rig.wait_for(1)
        rig.start(*tasks_of("x", *(f"{number}-40" for number in range(8)))[1:])
        rig.wait_for(9)
    assert max(len(forward) for forward in rig.steps.forwards) == 4


def test_jobs_of_two_keys_take_turns(rig: StepRig) -> None:
    rig.start(*tasks_of("a-6", "other-6"))
    rig.wait_for(2)
    assert all(len(forward) == 1 for forward in rig.steps.forwards)
    assert len(rig.steps.forwards) == 12


def test_a_job_that_cannot_begin_fails_alone(rig: StepRig) -> None:
    def on_open(job_id: str) -> None:
        if job_id == "bad-2":
            raise InvalidRecord("no such steps", reason_code="bad_steps")

    rig.steps.on_open = on_open
    rig.start(*tasks_of("bad-2", "a-2"))
    answers = rig.wait_for(2)
    assert [type(each) for each in answers] == [Failed, Emitted]


def test_onlookers_hear_of_the_start_and_of_the_last_step(rig: StepRig) -> None:
    rig.start(*tasks_of("a-3"))
    rig.wait_for(1)
    events = [Codec().decode(each.value, JobEvent) for each in rig.announced]
    kinds = [(each.kind, each.step, each.num_steps) for each in events]
    assert kinds[0] == ("started", None, None)
    assert kinds[-1] == ("progress", 3, 3)


def test_a_task_of_another_shape_is_no_reason_to_wait(rig: StepRig) -> None:
    first, second = tasks_of("other-9999", "a-2")
    rig.steps.is_free = False
    rig.start(first)
    rig.turn()
    rig.start(second)
    wait_until(lambda: rig.turn() == ["a-2"])
    wait_until(lambda: rig.turn() == ["a-2"])
    rig.wait_for(1)


def test_places_are_offered_for_what_one_forward_takes_and_one_that_is_ready(rig: StepRig) -> None:
    """What comes beyond would wait here, where no tenant's share counts."""
    rig.steps.is_free = False

    def is_offered(num: int) -> bool:
        return bool(rig.turn()) and rig.take() == 0 and rig.places[-1:] == [num]

    first, second, third = tasks_of("a-9999-alone", "b-9999-alone", "c-9999")
    rig.start(first)
    wait_until(lambda: is_offered(2))
    rig.start(second)
    wait_until(lambda: rig.turn() == ["b-9999-alone"])
    assert is_offered(2), "each in a forward of its own, and one is ready"
    rig.start(third)
    wait_until(lambda: is_offered(ROWS_MAX))


def test_a_job_that_is_to_be_alone_shares_no_forward(rig: StepRig) -> None:
    rig.start(*tasks_of("a-50", "b-50-alone", "c-50", "d-50-alone"))
    rig.wait_for(4)
    for forward in rig.steps.forwards:
        assert len(forward) == 1 or not any("alone" in job_id for job_id in forward)
    assert ["a-50", "c-50"] in [sorted(forward) for forward in rig.steps.forwards]
