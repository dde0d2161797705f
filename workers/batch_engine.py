"""The micro-batch engine: a batch's rows are computed together, from the first to the last step.

A row that fails in a batch is found by halving, so its neighbours complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from schemas.records import StageTiming
from streams.core.events import Failed, Ticket
from streams.errors import FatalError, Rejected, SettingsError, SickHost
from workers.engine import PROGRESS_EVERY_S, RowEngine, fault_of, log_failure, now, without_tensors
from workers.fenced import Prepared
from workers.stage_work import BatchWork


class _Abandoned(Exception):
    """Nobody waits for this any more."""


class MicroBatchEngine(RowEngine):
    """Runs a stage's `BatchWork`."""

    @property
    def _work(self) -> BatchWork:
        return cast(BatchWork, self._fenced.work)

    def _enter(self, rows: Sequence[tuple[Ticket, Prepared]]) -> None:
        rows = [row for row in rows if row[0] in self._live]
        if not rows:
            return
        for _, prepared in rows:
            self._announce(prepared.task, "started", batched_with=len(rows))
        started_at, started_s = now(), time.monotonic()
        error: Exception | None = None
        results: Sequence[Any] = ()
        try:
            results = self._patiently(rows)
        except _Abandoned:
            return
        except (FatalError, SettingsError):
            raise
        except Exception as caught:  # anything a batch can raise is one of its rows' failure
            log_failure(caught)
            error = without_tensors(caught, len(rows))
        if error is not None:
            self._bisect(rows, error)
            return
        assert len(results) == len(rows), "compute answers every row"
        compute_s = time.monotonic() - started_s
        self._computed(compute_s)
        timing = StageTiming(
            self._fenced.stage.name, started_at, now(), compute_s / len(rows), len(rows),
            self._worker,
        )  # fmt: skip
        done = []
        for (ticket, prepared), result in zip(rows, results, strict=True):
            if isinstance(result, Exception) and not isinstance(result, Rejected):
                self._answer(Failed(ticket, fault_of(result)))
            else:
                done.append((ticket, prepared, result))
                for each in getattr(result, "degradations", ()):
                    self._announce(prepared.task, "degraded", detail=each)
        self._hand_off(self._complete, self._completes, done, timing)

    def _patiently(self, rows: Sequence[tuple[Ticket, Prepared]]) -> Sequence[Any]:
        """The batch's results; a sick host is waited for while somebody waits for them.

        Raises:
            Exception: whatever a batch can raise, or `RetryableError`: a device that is well
                refuses one of its rows.
        """
        inputs = [prepared.inputs for _, prepared in rows]
        report = self._reporter(rows)
        with self._holding.patiently() as hold:
            while True:
                try:
                    return self._work.compute(inputs, report)
                except SickHost as caught:
                    error = without_tensors(caught, len(rows))
                try:
                    raise self._unless_sick(error)
                except SickHost as sick:
                    hold.sit_out(sick)
                if not any(ticket in self._live for ticket, _ in rows):
                    raise _Abandoned

    def _bisect(self, rows: Sequence[tuple[Ticket, Prepared]], error: Exception) -> None:
        if len(rows) == 1:
            self._answer(Failed(rows[0][0], fault_of(error)))
            return
        middle = len(rows) // 2
        self._enter(rows[:middle])
        self._enter(rows[middle:])

    def _reporter(self, rows: Sequence[tuple[Ticket, Prepared]]) -> Callable[[int, int], None]:
        told_s = time.monotonic()

        def report(step: int, num_steps: int) -> None:
            nonlocal told_s
            if self._stopping.is_set() or not any(ticket in self._live for ticket, _ in rows):
                raise _Abandoned
            now_s = time.monotonic()
            if step < num_steps and now_s - told_s < PROGRESS_EVERY_S:
                return
            told_s = now_s
            for ticket, prepared in rows:
                if ticket in self._live:
                    self._announce(prepared.task, "progress", step=step, num_steps=num_steps)

        return report
