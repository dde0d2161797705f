"""The engine of a simulated worker: what `MicroBatchEngine` does, one step at a time.

Prepare, compute, complete, end, offload and probe are steps that the scheduler runs whenever it
likes, other workers' steps between them, and even inside them wherever the store is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, cast

from schemas.records import StageTiming
from streams.core.events import (
    Drop,
    Emitted,
    End,
    Ended,
    Ending,
    Event,
    Failed,
    HostSick,
    HostWell,
    NotEnded,
    Offload,
    Offloaded,
    Output,
    Probed,
    Start,
    Ticket,
)
from streams.engine import Task
from streams.errors import FatalError, PipelineError, Rejected, SickHost
from workers.engine import fault_of
from workers.fenced import FencedWork, Prepared
from workers.stage_work import BatchWork

_HOLD_FIRST_S, _HOLD_LONGEST_S = 0.3, 2.0


class Bench(Protocol):
    """What the engine asks of the simulation."""

    def step(self, delay_s: tuple[float, float], call: Callable[[], None]) -> None:
        """Run that after a while, drawn between the two, unless the process is gone by then."""

    def now_s(self) -> float:
        """The worker's clock."""

    def prepared(self, task: Task, was_done: bool, edition: int) -> None:
        """A record is about to be worked; whether that was done already."""

    def unworked(self, outputs: tuple[Output, ...]) -> None:
        """A record is settled without work."""

    def is_done(self, task: Task) -> bool:
        """Whether the stage has its result, or the run its outcome."""

    def wake(self) -> None:
        """There is something for the loop."""

    name: str
    longest_compute_s: float


@dataclass(slots=True)
class _Batch:
    num_unsettled: int
    ready: list[tuple[Ticket, Prepared]] = field(default_factory=list)


class SimulatedEngine:
    """Implements `streams.engine.Engine`."""

    def __init__(self, fenced: FencedWork, bench: Bench) -> None:
        self._fenced, self._bench = fenced, bench
        self._live: set[Ticket] = set()
        self._ending: set[Ticket] = set()
        self._holding: set[int] = set()
        self._last_hold = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._is_computing = False
        self.events: list[Event] = []

    @property
    def is_busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._live or self._ending)

    # ---- from the loop

    def start(self, command: Start) -> None:
        """Begin a batch."""
        batch = _Batch(len(command.batch))
        for ticket, work in command.batch:
            self._live.add(ticket)
            assert isinstance(work.payload, Task)
            self._io(partial(self._prepare, batch, ticket, work.payload))

    def end(self, command: End) -> None:
        """Give a run its outcome."""
        self._ending.add(command.ticket)
        assert isinstance(command.work.payload, Task)
        self._io(partial(self._end, command.ticket, command.work.payload, command.ending))

    def offload(self, command: Offload) -> None:
        """Put an original into the store."""
        self._ending.add(command.ticket)
        assert isinstance(command.work.payload, Task)
        self._io(partial(self._offload, command.ticket, command.work.payload))

    def probe(self) -> None:
        """Work the good job, between two batches."""
        self._queue(self._probe)

    def drop(self, command: Drop) -> None:
        """Forget these."""
        self._live.difference_update(command.tickets)
        self._ending.difference_update(command.tickets)

    def completions(self) -> Iterable[Event]:
        """What has happened since the last call."""
        events, self.events = self.events, []
        return events

    def stop(self) -> None:
        """Nothing is answered any more."""
        self._live.clear()
        self._ending.clear()

    # ---- steps

    def _io(self, call: Callable[[], None]) -> None:
        self._bench.step((0.002, 0.05), call)

    def _prepare(self, batch: _Batch, ticket: Ticket, task: Task) -> None:
        was_done = False

        def prepare() -> Prepared | tuple[Any, ...]:
            nonlocal was_done
            was_done = self._bench.is_done(task)  # now: a hold may have lasted for long
            return self._fenced.prepare(task)

        def settle(prepared: Prepared | tuple[Any, ...] | None) -> None:
            if isinstance(prepared, Prepared):
                self._bench.prepared(task, was_done, prepared.edition)
                batch.ready.append((ticket, prepared))
            elif prepared is not None:
                self._bench.unworked(prepared)
                self._answer(Emitted(ticket, prepared))
            batch.num_unsettled -= 1
            if not batch.num_unsettled and batch.ready:
                self._queue(partial(self._compute, batch.ready))

        self._try(self._live, ticket, prepare, settle)

    def _complete(self, ticket: Ticket, row: Prepared, result: Any, timing: StageTiming) -> None:
        def settle(outputs: Any) -> None:
            if outputs is not None:
                self._answer(Emitted(ticket, outputs))

        self._try(self._live, ticket, lambda: self._fenced.complete(row, result, timing), settle)

    def _end(self, ticket: Ticket, task: Task, ending: Ending) -> None:
        def settle(outputs: Any) -> None:
            if outputs is not None:
                self._answer(Ended(ticket, outputs))

        self._try(self._ending, ticket, lambda: self._fenced.end(task, ending), settle)

    def _offload(self, ticket: Ticket, task: Task) -> None:
        def settle(blob: Any) -> None:
            if blob is not None:
                self._answer(Offloaded(ticket, blob))

        self._try(self._ending, ticket, lambda: self._fenced.offload(task), settle)

    def _try(
        self,
        waited_for: set[Ticket],
        ticket: Ticket,
        call: Callable[[], Any],
        settle: Callable[[Any], None],
        hold: int = 0,
        wait_s: float = _HOLD_FIRST_S,
    ) -> None:
        """Settle with what the call returns, or None; a sick host is sat out."""
        result = None
        if ticket in waited_for:
            try:
                result = call()
            except SickHost as error:
                hold = self._hold(hold, error)
                again = partial(
                    self._try, waited_for, ticket, call, settle, hold,
                    min(2 * wait_s, _HOLD_LONGEST_S),
                )  # fmt: skip
                self._bench.step((wait_s, wait_s), again)
                return
            except FatalError:
                raise
            except PipelineError as error:
                fault = fault_of(error)
                is_end = waited_for is self._ending
                self._answer(NotEnded(ticket, fault) if is_end else Failed(ticket, fault))
        self._go_on(hold)
        settle(result)

    def _hold(self, hold: int, error: SickHost) -> int:
        if not hold:
            self._last_hold += 1
            hold = self._last_hold
            self._holding.add(hold)
            self._tell(HostSick(error.reason_code, str(error), error.is_local))
        return hold

    def _go_on(self, hold: int) -> None:
        if hold in self._holding:
            self._holding.remove(hold)
            if not self._holding:
                self._tell(HostWell())

    def _answer(self, event: Emitted | Failed | Ended | NotEnded | Offloaded) -> None:
        is_end = isinstance(event, Ended | NotEnded | Offloaded)
        answered = self._ending if is_end else self._live
        if event.ticket in answered:
            answered.discard(event.ticket)
            self._tell(event)

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        self._bench.wake()

    # ---- the engine thread: one call at a time

    def _queue(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if not self._is_computing:
            self._is_computing = True
            self._bench.step((0.02, self._bench.longest_compute_s), self._next_call)

    def _next_call(self) -> None:
        self._calls.popleft()()
        if self._calls:
            self._bench.step((0.02, self._bench.longest_compute_s), self._next_call)
        else:
            self._is_computing = False

    def _probe(self) -> None:
        try:
            self._fenced.probe()
        except PipelineError as error:
            self._tell(Probed(is_ok=False, is_local=getattr(error, "is_local", True)))
        else:
            self._tell(Probed(is_ok=True))

    def _compute(
        self, rows: list[tuple[Ticket, Prepared]], hold: int = 0, wait_s: float = _HOLD_FIRST_S
    ) -> None:
        rows = [row for row in rows if row[0] in self._live]
        results: Any = ()
        if rows:
            try:
                work = cast(BatchWork, self._fenced.work)
                results = work.compute([row.inputs for _, row in rows], _unreported)
            except SickHost as error:
                again = partial(
                    self._compute, rows, self._hold(hold, error), min(2 * wait_s, _HOLD_LONGEST_S)
                )
                self._bench.step((wait_s, wait_s), partial(self._queue, again))
                return
        self._go_on(hold)
        at = datetime.fromtimestamp(self._bench.now_s(), UTC)
        timing = StageTiming(self._fenced.stage.name, at, at, 0.1, len(rows), self._bench.name)
        for (ticket, row), result in zip(rows, results, strict=True):
            if isinstance(result, Exception) and not isinstance(result, Rejected):
                self._answer(Failed(ticket, fault_of(result)))
            else:
                self._io(partial(self._complete, ticket, row, result, timing))


def _unreported(step: int, num_steps: int) -> None:
    """Nobody looks on."""
