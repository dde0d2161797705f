"""A worker without torch: the real loop, engine, fences and clients around work of a line or two.

`python -m tests.echo STAGE [SECONDS [STEPS]]` runs one, configured like any worker; each batch
takes that long, or each row of so many steps. What becomes of a job is told by its id
(tests/acts.py).
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import Any

from schemas.records import (
    BlobRef,
    CleanedPrompt,
    FrameChunk,
    FramesDecoded,
    GenerationRequest,
    Job,
    LatentsReady,
    Record,
    StageTiming,
    VideoDone,
)
from streams.blobs.base import BlobStore
from streams.engine import Task
from streams.errors import FatalError, PipelineError
from streams.settings import Settings
from streams.topology import Stage
from tests.acts import act
from workers.main import BuildWork, main
from workers.stage_work import Report


class EchoWork:
    """Answers each record with a well-formed record of the next stage and a blob of its own."""

    def __init__(self, stage: Stage, store: BlobStore, batch_s: float) -> None:
        self.stage, self._store, self._batch_s = stage.name, store, batch_s
        self._num_acts: Counter[str] = Counter()  # computations, by job

    def load(self) -> None:
        """Nothing to load."""

    def batch_key(self, task: Task) -> Hashable:
        """All records go together."""
        return None

    def job(self, task: Task) -> Job:
        """As it is: an echo costs a step."""
        return job_of(task.record, task.partition)

    def begin(self, task: Task) -> Task:
        """No request fence: the shape of the record is all that counts here."""
        return task

    def fetch(self, task: Task) -> Any:
        """The record itself."""
        return task.record

    def compute(self, batch: Sequence[Any], report: Report) -> Sequence[Any]:
        """One step, in which jobs do as their ids say (tests/acts.py)."""
        time.sleep(self._batch_s)
        report(1, 1)
        return [self._act(record) for record in batch]

    def _act(self, record: Any) -> Any:
        job_id = record.job_id if self.stage == "prompt" else record.job.job_id
        self._num_acts[job_id] += 1
        try:
            act(self.stage, job_id, self._num_acts[job_id] - 1)
        except FatalError:
            raise
        except (PipelineError, ArithmeticError) as error:  # this row's failure
            return error
        return record

    def probe(self) -> None:
        """A worker that does nothing does it well."""

    def store(self, task: Task, result: Any, timing: StageTiming) -> Record:
        """The next stage's record."""
        record = task.record
        job = job_of(record, task.partition) if self.stage == "prompt" else record.job
        prefix = f"{job.tenant_id}/{job.job_id}/{job.run}/{self.stage}"
        blob = self._store.put(prefix, [f"{self.stage} {job.job_id}".encode()], "text/plain")
        timings = (timing,) if self.stage == "prompt" else (*record.timings, timing)
        return next_record(self.stage, record, job, blob, timings)


class EchoSteps(EchoWork):
    """The same in steps, whose time grows with their rows; a job's state is how many it has had."""

    def __init__(self, stage: Stage, store: BlobStore, row_s: float, num_steps: int) -> None:
        super().__init__(stage, store, 0.0)
        self._step_s, self._num_steps = row_s / num_steps, num_steps

    def identity(self) -> str:
        return "echo"

    def open(self, inputs: Any) -> Any:
        return inputs, 0

    def width(self, state: Any) -> int:
        return 1

    def step_key(self, state: Any) -> Hashable:
        return None

    def is_alone(self, state: Any) -> bool:
        return False

    def steps(self, state: Any) -> tuple[int, int]:
        return state[1], self._num_steps

    def step(self, states: Sequence[Any], is_split: bool) -> Sequence[Any]:
        time.sleep(self._step_s * len(states))
        return [(record, num_done + 1) for record, num_done in states]

    def snapshot(self, state: Any) -> Callable[[], None]:
        return lambda: None

    def preview(self, state: Any) -> None:
        return None

    def forget(self, inputs: Any) -> None:
        """There are no checkpoints."""

    def result(self, state: Any) -> Any:
        return state[0]

    def free_memory(self) -> None:
        """There is none."""

    def memory_bytes(self) -> None:
        return None

    def peak_bytes(self) -> None:
        return None

    def num_compiled_graphs(self) -> int:
        return 0


def next_record(
    stage: str, record: Any, job: Job, blob: BlobRef, timings: tuple[StageTiming, ...]
) -> Record:
    match stage:
        case "prompt":
            return CleanedPrompt(job, record.prompt, "", "unchecked", blob, 32, timings=timings)
        case "sampler":
            return LatentsReady(job, blob, "CTHW", True, 1, {}, timings)
        case "decoder":
            return FramesDecoded(job, (FrameChunk(blob, 0, job.num_frames),), timings=timings)
        case _:
            return VideoDone(
                job.job_id, job.run, job.tenant_id, "completed", job.partition, job.created_at,
                timings[-1].finished_at, tier=job.tier, video=blob, ended_by=stage,
                timings=timings,
            )  # fmt: skip


def job_of(request: GenerationRequest, partition: int) -> Job:
    deadline = request.deadline or request.created_at + timedelta(days=1)
    return Job(
        request.job_id, request.run, request.tenant_id, request.tier or "free", partition,
        "echo", "0", 1, 16, 16, 8, 1, 1.0, 0, request.created_at, deadline,
    )  # fmt: skip


def echo(batch_s: float, num_steps: int = 0) -> BuildWork:
    """Takes the place of `workers.main.build_work`; in steps if there are any."""

    def build(stage: Stage, settings: Settings, store: BlobStore) -> EchoWork:
        if num_steps:
            return EchoSteps(stage, store, batch_s, num_steps)
        return EchoWork(stage, store, batch_s)

    return build


if __name__ == "__main__":
    seconds, steps = (*sys.argv[2:4], "0", "0")[:2]
    sys.exit(main(sys.argv[1:2], echo(float(seconds), int(steps))))
