"""What all engines do: fetch on I/O threads, compute on one engine thread, store on I/O threads.

While some rows compute, the inputs of the next are fetched and the results of the last are stored.
Where that takes microseconds, as it does without a network, the engine thread does it all.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from schemas.records import BlobRef, GenerationRequest, JobEvent, StageTiming
from streams.core.events import (
    Announced,
    Drop,
    Emitted,
    End,
    Ended,
    Ending,
    Event,
    Failed,
    Fate,
    Fault,
    NotEnded,
    Offload,
    Offloaded,
    Probed,
    Start,
    Ticket,
    Work,
)
from streams.engine import Task
from streams.errors import (
    FatalError,
    InvalidRecord,
    OutOfMemory,
    PipelineError,
    RetryableError,
    SettingsError,
    SickHost,
)
from workers.fenced import FencedWork, Prepared
from workers.holding import LONGEST_WAIT_S, Holding

log = logging.getLogger(__name__)

T = TypeVar("T")

PROGRESS_EVERY_S = 0.5
_WORTH_A_THREAD_S = 0.00025


class _Pace:
    """Whether rows are worth a thread each: those that wait for a network are, by far.

    To hand one over and wait for the interpreter's lock costs more than the work on a cheap one.
    """

    def __init__(self) -> None:
        self._row_s = math.inf  # a moving average; races lose a sample, no more

    @property
    def is_worth_threads(self) -> bool:
        """Whether it is better to work rows side by side."""
        return self._row_s > _WORTH_A_THREAD_S

    def took(self, seconds: float, num_rows: int) -> None:
        """That many rows took so long."""
        row_s = seconds / num_rows
        self._row_s = row_s if self._row_s == math.inf else 0.8 * self._row_s + 0.2 * row_s


@dataclass(slots=True)
class _Batch:
    """A batch whose rows are being prepared."""

    num_unsettled: int
    ready: list[tuple[Ticket, Prepared]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def settle(self, row: tuple[Ticket, Prepared] | None) -> bool:
        """One row is prepared, or will never be; True for the last one."""
        with self.lock:
            if row is not None:
                self.ready.append(row)
            self.num_unsettled -= 1
            return self.num_unsettled == 0


class RowEngine(ABC):
    """What engines share; implements `streams.engine.Engine` but for what rows go through."""

    def __init__(
        self,
        fenced: FencedWork,
        worker: str,
        io_threads: int,
        held: Callable[[str], None],
        computed: Callable[[float], None],
    ) -> None:
        """`held(cause)` is told of each wait for a sick host, `computed(seconds)` of each batch."""
        self._fenced, self._worker = fenced, worker
        self._computed = computed
        self._completions: queue.SimpleQueue[Event] = queue.SimpleQueue()
        # What the engine thread does next; None: it ends.
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Begun, neither answered nor dropped; set operations are atomic. A cancelled record is
        # dropped and ends at once, so what ends is kept apart from what is worked.
        self._live: set[Ticket] = set()
        self._ending: set[Ticket] = set()
        self._prepares, self._completes = _Pace(), _Pace()
        self._crash: BaseException | None = None
        self._stopping = threading.Event()
        self._holding = Holding(self._completions.put, held, self._stopping)
        self.loaded = threading.Event()
        self._io = ThreadPoolExecutor(io_threads, thread_name_prefix="io")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # ---- from the loop

    def start(self, command: Start) -> None:
        """Begin a batch."""
        batch = _Batch(len(command.batch))
        self._live.update(ticket for ticket, _ in command.batch)
        self._hand_off(self._prepare, self._prepares, command.batch, batch)

    def end(self, command: End) -> None:
        """Give a run its outcome."""
        self._ending.add(command.ticket)
        assert isinstance(command.work.payload, Task)
        self._submit(self._end, command.ticket, command.work.payload, command.ending)

    def offload(self, command: Offload) -> None:
        """Put an original that is too large for the dead-letter topic into the object store."""
        self._ending.add(command.ticket)
        assert isinstance(command.work.payload, Task)
        self._submit(self._offload, command.ticket, command.work.payload)

    def probe(self) -> None:
        """Work the built-in good job, between two batches."""
        self._calls.put(self._probe)

    def drop(self, command: Drop) -> None:
        """Forget these; a batch of which nothing is left stops at its next step."""
        self._live.difference_update(command.tickets)
        self._ending.difference_update(command.tickets)

    def completions(self) -> Iterable[Event]:
        """What has happened since the last call."""
        if self._crash is not None:
            if isinstance(self._crash, (SettingsError, FatalError)):
                raise self._crash
            raise FatalError(f"engine: {type(self._crash).__name__}") from self._crash
        events = []
        while True:
            try:
                events.append(self._completions.get_nowait())
            except queue.Empty:
                return events

    def stop(self) -> None:
        """End the threads; a computation under way stops at its next step."""
        self._stopping.set()
        self._live.clear()
        self._ending.clear()
        self._calls.put(None)
        self._io.shutdown(wait=True, cancel_futures=True)
        self._thread.join(timeout=LONGEST_WAIT_S)

    # ---- on I/O threads

    def _hand_off(
        self, call: Callable[..., object], pace: _Pace, rows: Sequence[tuple[Any, ...]], *more: Any
    ) -> None:
        """`call(*row, *more)` for every row: on I/O threads, or, if cheap, on the engine's."""

        def each(some: Sequence[tuple[Any, ...]]) -> None:
            begun_s = time.monotonic()
            for row in some:
                try:
                    call(*row, *more)
                except SickHost:  # it waits on a thread that nobody else needs
                    self._submit(call, *row, *more)
            pace.took(time.monotonic() - begun_s, len(some))

        if pace.is_worth_threads:
            for row in rows:
                self._submit(each, (row,))
        elif rows:
            self._calls.put(partial(each, rows))

    def _submit(self, function: Callable[..., object], *arguments: Any) -> Future[None] | None:
        """Have an I/O thread do that; None once the engine is stopping."""

        def guarded() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                self._crash = error

        return None if self._stopping.is_set() else self._io.submit(guarded)

    def _prepare(self, ticket: Ticket, work: Work, batch: _Batch) -> None:
        row: tuple[Ticket, Prepared] | None = None
        task = work.payload
        assert isinstance(task, Task)
        task = replace(task, degradations=work.degradations)
        prepared = self._answered(ticket, lambda: self._fenced.prepare(task))
        if isinstance(prepared, Prepared):
            row = ticket, prepared
        elif prepared is not None:
            self._answer(Emitted(ticket, prepared))
        if batch.settle(row) and batch.ready:
            self._calls.put(partial(self._enter, batch.ready))

    def _complete(
        self, ticket: Ticket, row: Prepared, result: Any, timing: StageTiming, part: float = 1.0
    ) -> bool:
        """Whether the result is published. `part` of the work is what the timing is of."""
        outputs = self._answered(ticket, lambda: self._fenced.complete(row, result, timing, part))
        if outputs is not None:
            self._answer(Emitted(ticket, outputs))
        return outputs is not None

    def _end(self, ticket: Ticket, task: Task, ending: Ending) -> None:
        outputs = self._answered(ticket, lambda: self._fenced.end(task, ending), is_end=True)
        if outputs is not None:
            self._answer(Ended(ticket, outputs))

    def _offload(self, ticket: Ticket, task: Task) -> None:
        with self._holding.patiently() as hold:
            while ticket in self._ending:
                try:
                    blob = self._fenced.offload(task)
                except SickHost as error:
                    hold.sit_out(error)
                else:
                    self._answer(Offloaded(ticket, blob))

    def _answered(self, ticket: Ticket, call: Callable[[], T], is_end: bool = False) -> T | None:
        """What the call returns; None if the ticket was dropped, or failed and is answered so.

        A sick host is waited for, here, for as long as the ticket lives: hold (DESIGN 4.6).

        Raises:
            SickHost: on the engine thread, which waits for nobody.
        """
        live = self._ending if is_end else self._live
        with self._holding.patiently() as hold:
            while ticket in live:
                try:
                    return call()
                except SickHost as error:
                    if threading.current_thread() is self._thread:
                        raise
                    hold.sit_out(error)
                except FatalError:
                    raise
                except Exception as error:  # the record's work failed: by its type it has a fate
                    log_failure(error)
                    fault = fault_of(error)
                    self._answer(NotEnded(ticket, fault) if is_end else Failed(ticket, fault))
                    return None
        return None

    def _answer(self, event: Emitted | Failed | Ended | NotEnded | Offloaded) -> None:
        is_end = isinstance(event, Ended | NotEnded | Offloaded)
        (self._ending if is_end else self._live).discard(event.ticket)
        self._completions.put(event)

    # ---- on the engine thread

    def _run(self) -> None:
        try:
            self._fenced.work.load()
            self.loaded.set()
            while (call := self._next_call()) is not None:
                call()
        except BaseException as error:
            self._crash = error
            self.loaded.set()

    def _next_call(self) -> Callable[[], None] | None:
        """What the engine thread does next, waiting for it; None: it ends."""
        return self._calls.get()

    @abstractmethod
    def _enter(self, rows: Sequence[tuple[Ticket, Prepared]]) -> None:
        """These have their inputs; some may be dropped already."""

    def _probe(self) -> None:
        """Whatever goes wrong with a job that is known to be good is this host's fault."""
        try:
            self._fenced.probe()
        except (FatalError, SettingsError):
            raise
        except Exception as error:
            log_failure(error)
            self._completions.put(Probed(is_ok=False, is_local=getattr(error, "is_local", True)))
        else:
            self._completions.put(Probed(is_ok=True))

    def _unless_sick(self, error: Exception) -> Exception:
        """What an error from the device is as a failure of one of the rows that met it.

        A device may refuse a shape, and no more: a job that is known to be good tells. Not to be
        asked in an `except` block, which keeps what the rows hold.

        Raises:
            SickHost: the built-in good job fails too.
        """
        if not isinstance(error, SickHost):
            return error
        if error.reason_code != "device_failed":
            raise error
        try:
            self._fenced.work.probe()
        except (FatalError, SettingsError):
            raise
        except Exception as found:
            log_failure(found)
        else:
            return RetryableError(str(error), reason_code=error.reason_code)
        raise error

    def _announce(
        self,
        task: Task,
        kind: str,
        batched_with: int = 1,
        step: int | None = None,
        num_steps: int | None = None,
        detail: str | None = None,
        preview: BlobRef | None = None,
    ) -> None:
        record = task.record
        job = record if isinstance(record, GenerationRequest) else record.job
        event = JobEvent(
            job_id=job.job_id,
            run=job.run,
            tenant_id=job.tenant_id,
            stage=self._fenced.stage.name,
            kind=kind,
            at=now(),
            worker=self._worker,
            batched_with=batched_with,
            step=step,
            num_steps=num_steps,
            preview=preview,
            detail=detail,
        )
        word = kind if step is None else f"{kind}-{step}"
        if (output := self._fenced.announce(task, event, word)) is not None:
            self._completions.put(Announced(output))


#: The job of that id, or its run, is not this record's to end.
NOT_THEIR_JOB = frozenset({"idempotency_conflict", "unclaimed_run"})


def fault_of(error: Exception) -> Fault:
    """The fault of an error from a record's work; an unknown one is to be tried later."""
    if isinstance(error, InvalidRecord):
        ends_job = error.reason_code not in NOT_THEIR_JOB
        evidence = tuple(error.evidence.items()) if isinstance(error, OutOfMemory) else ()
        return Fault(Fate.DEAD_LETTER, error.reason_code, str(error), ends_job, evidence)
    if isinstance(error, PipelineError):
        return Fault(Fate.LATER, error.reason_code, str(error))
    return Fault(Fate.LATER, "internal_error", type(error).__name__)


def without_tensors(error: Exception, num_rows: int) -> Exception:
    """The error, to be raised or told later: tracebacks and causes keep a batch's tensors alive."""
    if isinstance(error, MemoryError):
        return OutOfMemory("no memory on the host", {"rows": str(num_rows)})
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def log_failure(error: Exception) -> None:
    """Log where an error came from; the message of a foreign one may quote the prompt."""
    if isinstance(error, PipelineError):
        log.warning("work failed", extra={"reason": error.reason_code, "error": str(error)})
        return
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    where = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    log.error("work failed", extra={"error": type(error).__name__, "where": where})


def now() -> datetime:
    """The time of day."""
    return datetime.now(UTC)
