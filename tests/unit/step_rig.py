"""A StepEngine over scripted steps, and the loop's side of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from schemas.records import BlobRef
from tests.unit.engine_rig import (
    WAIT_S,
    Rig,
    ScriptedWork,
    wait_until,
)
from workers.engine import RowEngine
from workers.fenced import FencedWork
from workers.step_engine import StepEngine, StepSettings

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
        self.most_bytes = 0  # that a forward took, since this was last asked
        self.saved: dict[str, State] = {}
        self.forgotten: list[str] = []
        self.on_save: Callable[[State], None] = lambda state: None
        self.on_preview: Callable[[State], Callable[[], BlobRef] | None] = lambda state: None
        self.on_open: Callable[[str], None] = lambda job_id: None
        self.on_forward: Callable[[Sequence[State], bool], None] = lambda states, is_split: None
        self.on_job: Callable[[State], Exception | None] = lambda state: None
        self.on_step_key: Callable[[State], None] = lambda state: None
        self.on_snapshot: Callable[[State], None] = lambda state: None
        self.on_result: Callable[[State], None] = lambda state: None

    def identity(self) -> str:
        return "scripted"

    def open(self, inputs: str) -> State:
        self.on_open(inputs)
        return self.saved.get(inputs, State(inputs, 0))

    def width(self, state: State) -> int:
        return state.width

    def step_key(self, state: State) -> Hashable:
        self.on_step_key(state)
        return "other" if state.job_id.startswith("other") else "key"

    def is_alone(self, state: State) -> bool:
        return "alone" in state.job_id

    def steps(self, state: State) -> tuple[int, int]:
        return state.num_done, state.num_steps

    def step(self, states: Sequence[State], is_split: bool) -> Sequence[Any]:
        if not self.is_free:
            assert self.turns.acquire(timeout=WAIT_S)
        self.forwards.append([each.job_id for each in states])
        self.splits.append(is_split)
        self.most_bytes = max(self.most_bytes, 1_000 * len(states))
        self.on_forward(states, is_split)
        return [self.on_job(each) or State(each.job_id, each.num_done + 1) for each in states]

    def snapshot(self, state: State) -> Callable[[], None]:
        self.on_snapshot(state)

        def save() -> None:
            self.on_save(state)
            self.saved[state.job_id] = state

        return save

    def preview(self, state: State) -> Callable[[], BlobRef] | None:
        return self.on_preview(state)

    def forget(self, inputs: str) -> None:
        self.forgotten.append(inputs)

    def result(self, state: State) -> Any:
        self.on_result(state)
        return f"latents of {state.job_id}"

    def free_memory(self) -> None:
        self.num_freed += 1

    def memory_bytes(self) -> int | None:
        return self.memory

    def peak_bytes(self) -> int | None:
        peak, self.most_bytes = self.most_bytes, 0
        return None if self.memory is None else peak

    def num_compiled_graphs(self) -> int:
        return 0


class StepRig(Rig):
    """An engine whose caps have been found already, unless told otherwise."""

    checkpoint_s = preview_s = 1000.0
    caps_folder: Path | None = None

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
            StepSettings(
                ROWS_MAX,
                self.checkpoint_s,
                self.preview_s,
                self.caps_folder,
                {"enterprise": 100.0},
            ),
        )

    def peak_bytes(self, key: Hashable) -> Mapping[int, float]:
        """What was learned of a forward's memory, by rows; once all jobs are through."""
        learned = cast(StepEngine, self.engine)._learned
        assert learned is not None
        return learned.of(key).figures().peak_bytes

    def turn(self) -> list[str]:
        """Let one forward happen, and wait for it; who was in it."""
        before = len(self.steps.forwards)
        self.steps.turns.release()
        wait_until(lambda: len(self.steps.forwards) > before)
        return sorted(self.steps.forwards[before])
