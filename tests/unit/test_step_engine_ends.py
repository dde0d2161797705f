"""StepEngine when the device is sick, when jobs go unfinished, and when it ends: checkpoints."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.codec import Codec
from schemas.records import BlobRef, JobEvent
from streams.core.events import Emitted, Failed, Fate, HostSick, HostWell
from streams.errors import FatalError, OutOfMemory, SickHost
from tests.unit.engine_rig import (
    WAIT_S,
    latents_of,
    raising,
    tasks_of,
    wait_until,
)
from tests.unit.step_rig import State, StepRig


@pytest.fixture
def rig(step_rig: StepRig) -> StepRig:
    """An engine of steps, not of batches."""
    return step_rig


def failing_probe() -> None:
    """The device fails whatever is asked of it."""
    raise SickHost("the good job fails too", reason_code="device_failed")


def test_a_sick_device_is_waited_for_and_no_step_is_lost(rig: StepRig) -> None:
    left = [SickHost("refused", reason_code="device_failed")] * 2

    def sick(states: Sequence[State], is_split: bool) -> None:
        if states[0].num_done == 1 and left:
            raise left.pop()

    rig.steps.on_forward = sick
    rig.steps.on_probe = failing_probe
    rig.start(*tasks_of("a-3"))
    (answer,) = rig.wait_for(1)
    assert isinstance(answer, Emitted)
    rig.wait_for_word(2)
    assert rig.words == [HostSick("device_failed", "refused", is_local=True), HostWell()]
    assert len(rig.steps.forwards) == 5


def test_a_job_that_cannot_begin_on_a_sick_device_begins_when_it_is_well(rig: StepRig) -> None:
    left = [SickHost("refused", reason_code="device_failed")] * 2

    def on_open(job_id: str) -> None:
        if left:
            raise left.pop()

    rig.steps.on_open, rig.steps.on_probe = on_open, failing_probe
    rig.start(*tasks_of("a-2"))
    (answer,) = rig.wait_for(1)
    assert isinstance(answer, Emitted)
    rig.wait_for_word(2)
    assert rig.words[-1] == HostWell()


@pytest.mark.parametrize(
    ("hook", "num_done"), [("on_step_key", 0), ("on_step_key", 1), ("on_result", 3)]
)
def test_a_device_that_fails_between_two_steps_is_waited_for(
    rig: StepRig, hook: str, num_done: int
) -> None:
    left = [SickHost("refused", reason_code="device_failed")] * 2

    def sick(state: State) -> None:
        if state == State("a-3", num_done) and left:
            raise left.pop()

    setattr(rig.steps, hook, sick)
    rig.steps.on_probe = failing_probe
    rig.start(*tasks_of("a-3", "b-3"))
    answers = rig.wait_for(2)
    assert [type(each) for each in answers] == [Emitted, Emitted]
    rig.wait_for_word(2)
    assert rig.words == [HostSick("device_failed", "refused", is_local=True), HostWell()]


@pytest.mark.parametrize("hook", ["on_open", "on_step_key", "on_result"])
def test_a_job_that_a_device_which_is_well_refuses_outside_of_a_step_counts_a_try(
    rig: StepRig, hook: str
) -> None:
    def refused(asked: State | str) -> None:
        if "bad-3" in (asked, getattr(asked, "job_id", None)):
            raise SickHost("CUDA error: invalid configuration", reason_code="device_failed")

    setattr(rig.steps, hook, refused)
    rig.start(*tasks_of("a-3", "bad-3", "b-3"))
    answers = rig.wait_for(3)
    assert [type(each) for each in answers] == [Emitted, Failed, Emitted]
    assert isinstance(answers[1], Failed)
    assert (answers[1].fault.fate, answers[1].fault.reason_code) == (Fate.LATER, "device_failed")
    assert (rig.held, rig.words) == ([], []), "nobody waited"


def test_nothing_is_asked_of_a_lost_device_outside_of_a_step(rig: StepRig) -> None:
    """A job that is parted meanwhile leaves no checkpoint; its neighbour loses nothing."""
    is_lost = threading.Event()
    is_well = threading.Event()

    def sick(states: Sequence[State], is_split: bool) -> None:
        if states[0].num_done >= 1 and not is_well.is_set():
            is_lost.set()
            raise SickHost("refused", reason_code="device_failed")

    def lost(state: State) -> None:
        if is_lost.is_set() and not is_well.is_set():
            raise RuntimeError("CUDA error: unspecified launch failure")

    rig.steps.on_forward, rig.steps.on_probe = sick, failing_probe
    rig.steps.on_step_key = rig.steps.on_snapshot = lost
    parted, _ = rig.start(*tasks_of("a-3", "b-3"))
    rig.wait_for_word(1)
    rig.drop(parted)
    wait_until(lambda: len(rig.held) > 2 and len(rig.steps.forwards[-1]) == 1)
    is_well.set()
    (answer,) = rig.wait_for(1)
    assert isinstance(answer, Emitted)
    assert rig.steps.saved == {}


@pytest.mark.parametrize("hook", ["on_step_key", "on_result"])
def test_what_goes_wrong_with_one_job_after_its_step_is_its_own_failure(
    rig: StepRig, hook: str
) -> None:
    def bad(state: State) -> None:
        if state.job_id == "bad-2" and state.num_done > 0:
            raise ZeroDivisionError

    setattr(rig.steps, hook, bad)
    rig.start(*tasks_of("a-2", "bad-2", "b-2"))
    answers = rig.wait_for(3)
    assert [type(each) for each in answers] == [Emitted, Failed, Emitted]


def test_a_checkpoint_that_the_device_does_not_give_costs_that_checkpoint_only(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRig, "checkpoint_s", 0.0)
    rig = StepRig(rig_folder)

    def lost(state: State) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    rig.steps.on_snapshot = lost
    with rig:
        rig.start(*tasks_of("a-3"))
        (answer,) = rig.wait_for(1)
    assert isinstance(answer, Emitted)
    assert (rig.steps.saved, rig.steps.forgotten) == ({}, [])


@pytest.mark.parametrize("num_times", [1, 2])
def test_a_job_that_finds_no_memory_to_begin_with_begins_again_or_comes_later(
    rig: StepRig, num_times: int
) -> None:
    left = [OutOfMemory("no memory for 1 rows", {"rows": "1"})] * num_times

    def on_open(job_id: str) -> None:
        if job_id == "b-2" and left:
            raise left.pop()

    rig.steps.on_open = on_open
    rig.start(*tasks_of("a-9", "b-2"))
    answers = rig.wait_for(2)
    assert rig.steps.num_freed == num_times
    failed = [each.fault for each in answers if isinstance(each, Failed)]
    assert [(each.fate, each.reason_code) for each in failed] == (num_times - 1) * [
        (Fate.LATER, "out_of_memory")
    ]


def test_a_hold_ends_when_the_job_that_could_not_begin_goes(rig: StepRig) -> None:
    def on_open(job_id: str) -> None:
        raise SickHost("refused")

    rig.steps.on_open = on_open
    (ticket,) = rig.start(*tasks_of("a-2"))
    rig.wait_for_word(1)
    rig.drop(ticket)
    rig.wait_for_word(2)
    assert rig.words[-1] == HostWell()


def test_the_last_checkpoint_is_put_last_though_the_one_before_is_slow(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRig, "checkpoint_s", 0.0)
    may_go_on = threading.Event()
    put: list[int] = []

    def slow(state: State) -> None:
        assert may_go_on.wait(WAIT_S)
        put.append(state.num_done)

    rig = StepRig(rig_folder)
    rig.steps.on_save = slow
    with rig:
        (ticket,) = rig.start(*tasks_of("a-9999999"))
        wait_until(lambda: len(rig.steps.forwards) > 3)
        rig.drop(ticket)
        wait_until(lambda: len(rig.engine._jobs) == 0)  # type: ignore[attr-defined]
        may_go_on.set()
    assert put == sorted(put)
    assert len(put) == 2
    assert put[-1] == len(rig.steps.forwards)


def test_a_hold_ends_when_nobody_waits_any_more(rig: StepRig) -> None:
    def sick(states: Sequence[State], is_split: bool) -> None:
        raise SickHost("refused")

    rig.steps.on_forward = sick
    (ticket,) = rig.start(*tasks_of("a-3"))
    rig.wait_for_word(1)
    rig.drop(ticket)
    rig.wait_for_word(2)
    assert rig.words[-1] == HostWell()


def test_a_fatal_error_ends_the_engine(rig: StepRig) -> None:
    def fatal(states: Sequence[State], is_split: bool) -> None:
        raise FatalError("the weights are gone")

    rig.steps.on_forward = fatal
    rig.start(*tasks_of("a-1"))
    with pytest.raises(FatalError, match="weights"):
        wait_until(lambda: rig.take() > 0)


def test_stop_leaves_jobs_in_the_middle_with_checkpoints(rig: StepRig) -> None:
    jobs = [f"{number}-100000" for number in range(9)]
    rig.start(*tasks_of(*jobs))
    wait_until(lambda: len({each for forward in rig.steps.forwards for each in forward}) == 9)
    rig.engine.stop()
    assert rig.take() == 0
    taken = Counter(each for forward in rig.steps.forwards for each in forward)
    assert {name: state.num_done for name, state in rig.steps.saved.items()} == taken


def test_a_job_whose_partition_goes_leaves_a_checkpoint_and_is_gone_on_with(rig: StepRig) -> None:
    rig.steps.is_free = False
    (ticket,) = rig.start(*tasks_of("a-6"))
    for _ in range(3):
        rig.turn()
    rig.drop(ticket)
    rig.steps.turns.release()  # a step may be under way
    wait_until(lambda: "a-6" in rig.steps.saved)
    num_done = rig.steps.saved["a-6"].num_done
    assert num_done in (3, 4)
    before = len(rig.steps.forwards)
    rig.steps.is_free = True
    rig.start(*tasks_of("a-6"))
    rig.steps.turns.release(100)
    rig.wait_for(1)
    assert len(rig.steps.forwards) - before == 6 - num_done


def test_what_a_resumed_job_costs_is_told_of_all_its_steps(rig: StepRig) -> None:
    rig.steps.saved["a-10"] = State("a-10", 8)
    rig.start(*tasks_of("a-10"))
    (answer,) = rig.wait_for(1)
    timing = latents_of(answer).timings[-1]
    (whole_s,) = rig.measured
    assert whole_s == pytest.approx(5 * timing.compute_s), "two steps of ten were taken here"


def test_checkpoints_are_stored_as_often_as_asked_for_and_one_at_a_time(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRig, "checkpoint_s", 0.0)
    begun: list[int] = []
    may_go_on = threading.Event()

    def slow(state: State) -> None:
        begun.append(state.num_done)
        assert may_go_on.wait(WAIT_S)

    rig = StepRig(rig_folder)
    rig.steps.on_save = slow
    with rig:
        rig.start(*tasks_of("a-50"))
        wait_until(lambda: len(rig.steps.forwards) == 50)  # the store is slow, the steps are not
        wait_until(lambda: bool(begun))  # its thread may not have had a turn in all of them
        assert begun == [1]
        may_go_on.set()
        rig.wait_for(1)
        wait_until(lambda: rig.steps.forgotten == ["a-50"])


def test_a_job_that_left_no_checkpoint_has_none_to_be_removed(rig: StepRig) -> None:
    rig.start(*tasks_of("a-3"))
    rig.wait_for(1)
    rig.engine.stop()
    assert rig.steps.forgotten == []


def test_the_checkpoint_of_a_job_whose_result_cannot_be_stored_stays(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRig, "checkpoint_s", 0.0)
    rig = StepRig(rig_folder)
    rig.steps.on_store = raising(ZeroDivisionError("a bug"))
    with rig:
        rig.start(*tasks_of("a-3"))
        (answer,) = rig.wait_for(1)
    assert isinstance(answer, Failed)
    assert rig.steps.forgotten == []


def test_an_engine_that_holds_ends_at_once(rig: StepRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.holding.FIRST_WAIT_S", 1000.0)

    def sick(states: Sequence[State], is_split: bool) -> None:
        raise SickHost("refused")

    rig.steps.on_forward = sick
    rig.start(*tasks_of("a-3"))
    rig.wait_for_word(1)
    rig.engine.stop()
    assert rig.threads() == set()


def test_a_checkpoint_that_cannot_be_stored_costs_nothing(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRig, "checkpoint_s", 0.0)
    rig = StepRig(rig_folder)

    def away(state: State) -> None:
        raise SickHost("refused", reason_code="store_down")

    rig.steps.on_save = away
    with rig:
        rig.start(*tasks_of("a-5"))
        (answer,) = rig.wait_for(1)
    assert isinstance(answer, Emitted)
    assert rig.held == [], "nobody waits for a checkpoint"


def test_previews_are_shown_as_often_as_asked_for_and_never_of_the_last_step(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRig, "preview_s", 0.0)
    rig = StepRig(rig_folder)
    picture = BlobRef("file:///p", "0" * 64, 0, "image/png")
    rig.steps.on_preview = lambda state: lambda: replace(picture, size_bytes=state.num_done)
    with rig:
        rig.start(*tasks_of("a-4"))
        rig.wait_for(1)
        wait_until(lambda: len(previews(rig)) == 3)
    assert sorted(previews(rig)) == [(1, 4, 1), (2, 4, 2), (3, 4, 3)]


def test_a_preview_that_fails_costs_nothing(
    rig_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(StepRig, "preview_s", 0.0)

    def unstorable() -> BlobRef:
        raise SickHost("the store is away", reason_code="store_unavailable")

    def preview(state: State) -> Callable[[], BlobRef] | None:
        if state.num_done == 1:
            raise OutOfMemory("no room for a picture", {})
        return unstorable

    rig = StepRig(rig_folder)
    rig.steps.on_preview = preview
    with rig:
        rig.start(*tasks_of("a-3"))
        rig.wait_for(1)
        wait_until(lambda: "preview" in [each.message for each in caplog.records])
    assert previews(rig) == []
    assert len(rig.steps.forwards) == 3


def previews(rig: StepRig) -> list[tuple[int | None, int | None, int]]:
    events = [Codec().decode(each.value, JobEvent) for each in rig.announced]
    return [(each.step, each.num_steps, each.preview.size_bytes) for each in events if each.preview]
