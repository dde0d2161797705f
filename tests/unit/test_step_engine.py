"""StepEngine: joins and leaves at every step, and what a failing forward costs whom."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from schemas.codec import Codec
from schemas.records import JobEvent
from streams.core.events import Emitted, Failed, Fate, HostSick, HostWell
from streams.errors import FatalError, InvalidRecord, OutOfMemory, SickHost
from tests.unit.engine_rig import WAIT_S, Rig, ScriptedWork, latents_of, tasks_of, wait_until
from workers.engine import RowEngine
from workers.fenced import FencedWork
from workers.step_engine import StepEngine

ROWS_MAX = 8


class State(NamedTuple):
    """Of a job named `<name>-<steps>`, or `<name>-<steps>-wide` if it takes two rows."""

    job_id: str
    num_done: int

    @property
    def num_steps(self) -> int:
        return int(self.job_id.split("-")[1])

    @property
    def width(self) -> int:
        return 2 if self.job_id.endswith("wide") else 1


class ScriptedSteps(ScriptedWork):
    """Steps happen when the test says so, if it wants to; hooks say what comes of them."""

    is_free = True  # no step waits for `turns`
    memory: int | None = None  # a job takes 1,000 bytes of it

    def __post_init__(self) -> None:
        self.turns = threading.Semaphore(0)
        self.forwards: list[list[str]] = []  # job ids of every forward that was tried
        self.splits: list[bool] = []
        self.num_freed = 0
        self.saved: dict[str, State] = {}
        self.forgotten: list[str] = []
        self.on_save: Callable[[State], None] = lambda state: None
        self.on_open: Callable[[str], None] = lambda job_id: None
        self.on_forward: Callable[[Sequence[State], bool], None] = lambda states, is_split: None
        self.on_job: Callable[[State], Exception | None] = lambda state: None

    def open(self, inputs: str) -> State:
        self.on_open(inputs)
        return self.saved.get(inputs, State(inputs, 0))

    def width(self, state: State) -> int:
        return state.width

    def step_key(self, state: State) -> Hashable:
        return "other" if state.job_id.startswith("other") else "key"

    def steps(self, state: State) -> tuple[int, int]:
        return state.num_done, state.num_steps

    def step(self, states: Sequence[State], is_split: bool) -> Sequence[Any]:
        if not self.is_free:
            assert self.turns.acquire(timeout=WAIT_S)
        self.forwards.append([each.job_id for each in states])
        self.splits.append(is_split)
        self.on_forward(states, is_split)
        return [self.on_job(each) or State(each.job_id, each.num_done + 1) for each in states]

    def snapshot(self, state: State) -> Callable[[], None]:
        def save() -> None:
            self.on_save(state)
            self.saved[state.job_id] = state

        return save

    def forget(self, inputs: str) -> None:
        self.forgotten.append(inputs)

    def result(self, state: State) -> Any:
        return f"latents of {state.job_id}"

    def free_memory(self) -> None:
        self.num_freed += 1

    def memory_bytes(self) -> int | None:
        return self.memory

    def peak_bytes(self) -> int | None:
        return None if self.memory is None else 1_000 * len(self.forwards[-1])


class StepRig(Rig):
    """An engine whose caps have been found already, unless told otherwise."""

    checkpoint_s = 1000.0

    @property
    def steps(self) -> ScriptedSteps:
        return cast(ScriptedSteps, self.work)

    def make_work(self, stage: str) -> ScriptedWork:
        work = ScriptedSteps(stage, self.store)
        work.__post_init__()
        return work

    def make_engine(self, fenced: FencedWork) -> RowEngine:
        self.stepped: list[int] = []

        def stepped(rows: int, _seconds: float) -> None:
            self.stepped.append(rows)

        return StepEngine(
            fenced,
            "worker-1",
            4,
            self.held.append,
            lambda _: None,
            stepped,
            ROWS_MAX,
            self.checkpoint_s,
        )

    def turn(self) -> list[str]:
        """Let one forward happen, and wait for it; who was in it."""
        before = len(self.steps.forwards)
        self.steps.turns.release()
        wait_until(lambda: len(self.steps.forwards) > before)
        return sorted(self.steps.forwards[before])


@pytest.fixture
def rig(rig_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepRig]:
    """Left with every step free, so that its thread can end."""
    monkeypatch.setattr("streams.core.step_caps.StepCap.rows", property(lambda cap: cap._most))
    rig = StepRig(rig_folder)
    with rig:
        yield rig
        rig.steps.is_free = True
        rig.steps.turns.release(1000)


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


def test_a_sick_device_is_waited_for_and_no_step_is_lost(rig: StepRig) -> None:
    left = [SickHost("refused", reason_code="device_failed")] * 2

    def sick(states: Sequence[State], is_split: bool) -> None:
        if states[0].num_done == 1 and left:
            raise left.pop()

    rig.steps.on_forward = sick
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

    rig.steps.on_open = on_open
    rig.start(*tasks_of("a-2"))
    (answer,) = rig.wait_for(1)
    assert isinstance(answer, Emitted)
    rig.wait_for_word(2)
    assert rig.words[-1] == HostWell()


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


def test_onlookers_hear_of_the_start_and_of_the_last_step(rig: StepRig) -> None:
    rig.start(*tasks_of("a-3"))
    rig.wait_for(1)
    events = [Codec().decode(each.value, JobEvent) for each in rig.announced]
    kinds = [(each.kind, each.step, each.num_steps) for each in events]
    assert kinds[0] == ("started", None, None)
    assert kinds[-1] == ("progress", 3, 3)


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
        assert begun == [1]
        may_go_on.set()
        rig.wait_for(1)
        wait_until(lambda: rig.steps.forgotten == ["a-50"])


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


def test_a_task_of_another_shape_is_no_reason_to_wait(rig: StepRig) -> None:
    first, second = tasks_of("other-9999", "a-2")
    rig.steps.is_free = False
    rig.start(first)
    rig.turn()
    rig.start(second)
    wait_until(lambda: rig.turn() == ["a-2"])
    wait_until(lambda: rig.turn() == ["a-2"])
    rig.wait_for(1)
