"""The step engine: jobs join and leave the running batch between any two denoising steps.

One forward serves jobs at different steps of different schedules (streams/core/step_batcher.py
says which). Nobody waits for anybody else's end; a cancelled job's rows are free at the next
boundary; a forward that fails is done again in halves, from the same states, so neighbours of a
row that cannot be computed lose nothing. What a job has reached is stored every so often, and when
it goes unfinished, so whoever works it next begins there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any, cast

from schemas.records import BlobRef, Job, StageTiming
from streams.core.events import Failed, Places, Ticket
from streams.core.step_batcher import StepBatcher
from streams.core.step_caps import StepCap
from streams.core.tiers import OFF_PEAK_WEIGHT
from streams.engine import Task
from streams.errors import FatalError, OutOfMemory, RetryableError, SettingsError, SickHost
from workers.engine import PROGRESS_EVERY_S, RowEngine, fault_of, log_failure, now, without_tensors
from workers.fenced import FencedWork, Prepared
from workers.holding import LONGEST_WAIT_S, Hold
from workers.learned_caps import LearnedCaps
from workers.stage_work import SteppedWork
from workers.step_ladder import StepLadder

log = logging.getLogger(__name__)

PARTING_S = 5.0
KEEP_CAPS_EVERY_S = 60.0

_BatchKey = tuple[Hashable, Ticket | None]


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What a step engine is told.

    `rows_max` bounds a forward; `checkpoint_s` and `preview_s` are between two of a job's;
    `caps_folder` keeps learned caps for the next run; `weights` of tiers are 1 where unsaid.
    """

    rows_max: int
    checkpoint_s: float
    preview_s: float = math.inf
    caps_folder: Path | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    """A job that is being denoised."""

    prepared: Prepared
    state: Any
    key: _BatchKey  # of its next step
    started_at: datetime | None = None
    compute_s: float = 0.0  # its share of the steps
    num_steps: int = 0  # taken here
    num_shared: int = 0  # jobs in them, itself included
    told_s: float = 0.0  # of its progress
    saved_s: float = field(default_factory=time.monotonic)  # when, or since when it would be worked
    previewed_s: float = field(default_factory=time.monotonic)  # as saved_s
    saving: Future[None] | None = None
    has_checkpoint: bool = False  # it went on from one, or has stored one


class StepEngine(RowEngine):
    """Runs a stage's `SteppedWork`; the resident jobs are as many as were started."""

    def __init__(
        self,
        fenced: FencedWork,
        worker: str,
        io_threads: int,
        held: Callable[[str], None],
        computed: Callable[[float], None],
        stepped: Callable[[int, float], None],
        settings: StepSettings,
    ) -> None:
        """`stepped(rows, seconds)` is told of each step."""
        self._stepped, self._settings = stepped, settings
        self._jobs: dict[Ticket, _Job] = {}
        self._batcher: StepBatcher[Ticket, _BatchKey] = StepBatcher()
        self._learned: LearnedCaps | None = None
        self._kept_s = time.monotonic()  # what was learned
        self._hold: Hold | None = None
        self._parting: list[Future[None]] = []  # checkpoints of jobs that went unfinished
        self._storing: set[Ticket] = set()  # results that are not told of yet, perhaps
        self._num_places = 0  # that were told of last
        self._ladder = StepLadder(cast(SteppedWork, fenced.work), self._cap, self._unless_sick)
        super().__init__(fenced, worker, io_threads, held, computed)

    @property
    def _work(self) -> SteppedWork:
        return cast(SteppedWork, self._fenced.work)

    def stop(self) -> None:
        """End the threads, at the next boundary; jobs in the middle leave checkpoints."""
        self._calls.put(None)
        if self._hold is None:  # else the device does nothing, and waits for nobody
            self._thread.join(timeout=LONGEST_WAIT_S)
            wait(self._parting, timeout=PARTING_S)
        super().stop()

    # ---- on I/O threads

    def _complete_job(
        self, ticket: Ticket, job: _Job, part: float, result: Any, timing: StageTiming
    ) -> None:
        if self._complete(ticket, job.prepared, result, timing, part) and job.has_checkpoint:
            if job.saving is not None:
                wait([job.saving])
            self._quietly(partial(self._work.forget, job.prepared.inputs))

    def _quietly(self, call: Callable[[], None]) -> None:
        """What may fail: a checkpoint that is not written costs work, one that stays costs room."""
        try:
            call()
        except SickHost as error:
            log.warning("checkpoint", extra={"reason": error.reason_code, "error": str(error)})

    # ---- on the engine thread

    def _next_call(self) -> Callable[[], None] | None:
        try:
            call = self._calls.get_nowait() if self._jobs else super()._next_call()
        except Empty:
            return self._step
        if call is None:
            for ticket in list(self._jobs):
                self._part(ticket)
            if self._learned is not None:
                self._learned.write(self._learned.dump())
        return call

    def _enter(self, rows: Sequence[tuple[Ticket, Prepared]]) -> None:
        for number, (ticket, prepared) in enumerate(rows):
            if ticket not in self._live:
                continue
            try:
                state, key = self._begun(ticket, prepared.inputs)
            except (FatalError, SettingsError):
                raise
            except SickHost as error:
                self._sit_out(error)
                self._calls.put(partial(self._enter, rows[number:]))
                return
            except Exception as error:  # it cannot even begin: that is its own failure
                log_failure(error)
                self._answer(Failed(ticket, fault_of(error)))
                continue
            num_done, num_steps = self._work.steps(state)
            job = prepared.task.record.job
            self._jobs[ticket] = _Job(prepared, state, key, has_checkpoint=num_done > 0)
            self._batcher.join(
                ticket, key, self._work.width(state), num_steps - num_done, self._weight(job),
                (job.tier, job.tenant_id),
            )  # fmt: skip
        if not self._jobs:
            self._end_hold()
        self._offer_places()

    def _begun(self, ticket: Ticket, inputs: Any) -> tuple[Any, _BatchKey]:
        """A job's state before its first step here, and the batch key of that.

        Raises:
            SickHost: the device may be asked for it.
        """
        try:
            state = self._opened(inputs)
            return state, self._batch_key(ticket, state)
        except SickHost as caught:
            error = without_tensors(caught, 1)
        raise self._unless_sick(error)

    def _opened(self, inputs: Any) -> Any:
        """A job's state; where there is no memory for it, once more with the cache freed.

        Raises:
            RetryableError: those that are here leave none. They go, and it may come again.
        """
        error: Exception | None = None
        for _ in range(2):
            try:
                return self._work.open(inputs)
            except OutOfMemory as caught:
                error = without_tensors(caught, 1)
            self._work.free_memory()
        raise RetryableError(str(error), reason_code="out_of_memory")

    def _offer_places(self) -> None:
        """Tell how many jobs there is use for; those that are being stored take nobody's place."""
        if not self._jobs:
            return  # by what was here last
        num_of_use = self._batcher.num_of_use(lambda key: 1 if key[1] else self._cap(key[0]).rows)
        self._storing &= self._live
        num_places = len(self._storing) + num_of_use
        if num_places != self._num_places:
            self._num_places = num_places
            self._completions.put(Places(num_places))

    def _weight(self, job: Job) -> float:
        """How fast it comes up in line."""
        return OFF_PEAK_WEIGHT if job.is_deferrable else self._settings.weights.get(job.tier, 1.0)

    def _step(self) -> None:
        """One forward, for the jobs whose turn it is."""
        for ticket in [each for each in self._jobs if each not in self._live]:
            self._part(ticket)  # cancelled, or its partition is another's now
        tickets = self._batcher.pick(lambda key: self._cap(key[0]).rows)
        if not tickets:
            self._end_hold()
            return
        jobs = [self._jobs[ticket] for ticket in tickets]
        for job in jobs:
            if job.started_at is None:
                job.started_at = now()
                self._announce(job.prepared.task, "started", batched_with=len(jobs))
        (key, _), began_s = jobs[0].key, time.monotonic()
        try:
            rows = sum(self._work.width(job.state) for job in jobs)
            outcomes = self._ladder.outcomes(key, [job.state for job in jobs])
            step_s = time.monotonic() - began_s
            nexts = [self._next(*each) for each in zip(tickets, outcomes, strict=True)]
        except SickHost as error:  # the jobs are where they were
            self._sit_out(error)
            return
        self._end_hold()
        self._batcher.ran(tickets, step_s)
        if began_s - self._kept_s >= KEEP_CAPS_EVERY_S:
            self._kept_s = began_s
            self._submit(self._caps.write, self._caps.dump())
        self._stepped(rows, step_s)
        for ticket, job, state, next_ in zip(tickets, jobs, outcomes, nexts, strict=True):
            job.compute_s += step_s * self._work.width(job.state) / rows
            job.num_steps += 1
            job.num_shared += len(jobs)
            self._take(ticket, job, state, next_)
        self._offer_places()

    def _next(self, ticket: Ticket, outcome: Any) -> Any:
        """What comes after a step: the next one's batch key, or the result; or why neither does.

        Raises:
            SickHost: the device may be asked for it.
        """
        if isinstance(outcome, Exception):
            return outcome
        num_done, num_steps = self._work.steps(outcome)
        try:
            if num_done < num_steps:
                return self._batch_key(ticket, outcome)
            return self._work.result(outcome)
        except (FatalError, SettingsError):
            raise
        except Exception as caught:
            log_failure(caught)
            error = without_tensors(caught, self._work.width(outcome))
        return self._unless_sick(error)

    def _take(self, ticket: Ticket, job: _Job, state: Any, next_: Any) -> None:
        """A job's step has come out; `next_` as above."""
        if isinstance(next_, Exception):
            self._leave(ticket)
            self._answer(Failed(ticket, fault_of(next_)))
            return
        job.state = state
        num_done, num_steps = self._work.steps(state)
        self._report(ticket, job, num_done, num_steps)
        if num_done < num_steps:
            self._preview(ticket, job, num_done, num_steps)
            is_idle = job.saving is None or job.saving.done()  # else the store is slow
            if is_idle and time.monotonic() - job.saved_s >= self._settings.checkpoint_s:
                self._save(job)
            job.key = next_
            self._batcher.rekey(ticket, next_)
            return
        self._leave(ticket)
        assert job.started_at is not None, "it has taken a step"
        self._computed(job.compute_s)
        timing = StageTiming(
            self._fenced.stage.name, job.started_at, now(), job.compute_s,
            round(job.num_shared / job.num_steps), self._worker,
        )  # fmt: skip
        job.state = None  # while a slow store takes the result, steps need the memory
        row = ticket, job, job.num_steps / num_steps, next_
        self._storing.add(ticket)
        self._hand_off(self._complete_job, self._completes, [row], timing)

    def _sit_out(self, error: SickHost) -> None:
        if self._hold is None:
            self._hold = self._holding.patiently()
        self._hold.sit_out(error)

    def _end_hold(self) -> None:
        if self._hold is not None:
            self._hold.__exit__()
            self._hold = None

    def _part(self, ticket: Ticket) -> None:
        """It goes in the middle of its steps: whoever works it next begins there."""
        job = self._jobs[ticket]
        self._leave(ticket)
        if job.num_steps and (saving := self._save(job)) is not None:
            self._parting = [each for each in self._parting if not each.done()] + [saving]

    def _save(self, job: _Job) -> Future[None] | None:
        """Store a checkpoint, once the one before is stored: the last one put stays.

        One that the device does not give is none; the next step will tell how the device is.
        """
        before, job.saved_s = job.saving, time.monotonic()
        try:
            snapshot = self._work.snapshot(job.state)
        except Exception as error:
            log_failure(error)
            return before

        def save() -> None:
            if before is not None:
                wait([before])  # it has a thread already: they are taken in order
            self._quietly(snapshot)

        job.has_checkpoint = True
        job.saving = self._submit(save)
        return job.saving

    def _leave(self, ticket: Ticket) -> None:
        del self._jobs[ticket]
        self._batcher.leave(ticket)

    def _report(self, ticket: Ticket, job: _Job, num_done: int, num_steps: int) -> None:
        now_s = time.monotonic()
        is_last = num_done == num_steps
        if (is_last or now_s - job.told_s >= PROGRESS_EVERY_S) and ticket in self._live:
            job.told_s = now_s
            self._announce(job.prepared.task, "progress", step=num_done, num_steps=num_steps)

    def _preview(self, ticket: Ticket, job: _Job, num_done: int, num_steps: int) -> None:
        """Let onlookers see what it will be; a preview that fails costs nobody anything."""
        now_s = time.monotonic()
        if now_s - job.previewed_s < self._settings.preview_s or ticket not in self._live:
            return
        job.previewed_s = now_s
        try:
            store = self._work.preview(job.state)
        except Exception as error:  # whatever: the next step will tell whether the device is well
            log_failure(error)
            return
        if store is not None:
            self._submit(self._show, job.prepared.task, store, num_done, num_steps)

    def _show(
        self, task: Task, store: Callable[[], BlobRef], num_done: int, num_steps: int
    ) -> None:
        """On an I/O thread."""
        try:
            preview = store()
        except SickHost as error:
            log.warning("preview", extra={"reason": error.reason_code, "error": str(error)})
            return
        self._announce(task, "preview", step=num_done, num_steps=num_steps, preview=preview)

    # ---- who shares a forward

    def _batch_key(self, ticket: Ticket, state: Any) -> _BatchKey:
        return self._work.step_key(state), ticket if self._work.is_alone(state) else None

    def _cap(self, key: Hashable) -> StepCap:
        return self._caps.of(key)

    @property
    def _caps(self) -> LearnedCaps:
        """Made when the first step is due: the device is known only when the model is loaded."""
        if self._learned is None:
            work = self._work
            self._learned = LearnedCaps(
                self._settings.caps_folder, work.identity(), self._settings.rows_max,
                work.memory_bytes(),
            )  # fmt: skip
        return self._learned
