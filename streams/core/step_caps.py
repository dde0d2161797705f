"""How many rows a forward takes: learned from what steps take, never past where it pays."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

_WORTH = 0.9  # of the throughput that no number of rows could exceed
_REMEMBERED = 8  # times at each number of rows
_LOOK_BEYOND_EVERY = 50  # steps
_MEMORY_SHARE = 0.9
_FORGIVE_AFTER = 1000  # steps; who else had the memory may be gone


@dataclass(frozen=True, slots=True)
class Line:
    """cost(rows) = fixed + each * rows."""

    fixed: float
    each: float

    def rows_for(self, share: float) -> float:
        """The fewest rows that reach this share of the throughput of infinitely many.

        >>> Line(fixed=3.0, each=1.0).rows_for(0.75)
        9.0
        """
        if self.each <= 0:
            return math.inf
        return max(1.0, share / (1 - share) * self.fixed / self.each)


@dataclass(frozen=True, slots=True)
class CapFigures:
    """What a cap is computed from: seconds of a step and peak memory, both by rows.

    `failed_at_rows`: so many found no memory.
    """

    step_s: Mapping[int, float]
    peak_bytes: Mapping[int, float]
    failed_at_rows: int | None


class StepCap:
    """The most rows of a forward, for one model, shape and device.

    It starts at one job and doubles while the fit of step times (a line, by least squares over the
    median of the last times at each number of rows) says that more rows pay; it stops at the knee,
    where nine tenths of what batching can ever give are reached, and under nine tenths of the
    memory. The first time at each number of rows does not count: kernels are chosen and memory is
    reserved in it.

    >>> cap = StepCap(most=64)
    >>> for _ in range(16): cap.took(cap.rows, 0.010 + 0.005 * cap.rows)
    >>> cap.rows
    18
    """

    def __init__(
        self, most: int, memory_bytes: int | None = None, learned: CapFigures | None = None
    ) -> None:
        """`most`: by the settings. `memory_bytes`: the device's; None where peaks are unknown.

        `learned`: by an earlier process.
        """
        if most < 1:
            raise ValueError(f"want at least one row, got {most}")
        self._most = most
        self._memory_bytes = memory_bytes
        self._num_steps = 0
        self._warm: set[int] = set()  # numbers of rows that this process has had
        self._last_s: defaultdict[int, deque[float]] = defaultdict(_last_times)
        self._step_s: dict[int, float] = {}
        self._peak_bytes: dict[int, float] = {}
        self._failed_at = math.inf  # rows that found no memory
        self._num_since_failure = 0  # steps
        if learned is not None:
            self._step_s |= learned.step_s
            self._peak_bytes |= learned.peak_bytes
            for rows, step_s in learned.step_s.items():
                self._last_s[rows].append(step_s)
            if learned.failed_at_rows is not None:
                self._failed_at = learned.failed_at_rows

    def figures(self) -> CapFigures:
        """What has been learned."""
        failed_at = None if self._failed_at == math.inf else int(self._failed_at)
        return CapFigures(dict(self._step_s), dict(self._peak_bytes), failed_at)

    @property
    def rows(self) -> int:
        """The cap in force; one job is let in whatever it says."""
        explore = 2 * max(self._step_s, default=1)
        pays = math.inf
        if len(self._step_s) > 1:
            pays = max(_fit(self._step_s).rows_for(_WORTH) - 1e-9, self._proven)
            if (
                self._num_steps + 1
            ) % _LOOK_BEYOND_EVERY == 0:  # times change, and some were chance
                pays *= 2
        most = min(explore, pays, self._most, self._failed_at - 1, self._fits)
        return max(1, math.ceil(most))

    def took(self, rows: int, step_s: float, peak_bytes: int | None = None) -> None:
        """A step of so many rows took so long, and so much memory at its peak."""
        self._num_steps += 1
        if rows in self._warm:
            self._last_s[rows].append(step_s)
            self._step_s[rows] = median(self._last_s[rows])
        self._warm.add(rows)
        if peak_bytes is not None:
            self._peak_bytes[rows] = max(peak_bytes, self._peak_bytes.get(rows, 0))
        self.succeeded()

    def succeeded(self) -> None:
        """A step found its memory, in whatever way: after enough of them a failure is forgiven."""
        self._num_since_failure += 1
        if self._num_since_failure >= _FORGIVE_AFTER:
            self._failed_at, self._num_since_failure = 2 * self._failed_at, 0

    def found_no_memory(self, rows: int) -> None:
        """A forward of so many rows failed for want of memory: fewer for a good while."""
        self._failed_at = min(self._failed_at, max(2, rows))
        self._num_since_failure = 0

    def has_room(self, rows: int) -> bool:
        """False if so many rows have found no memory before."""
        return rows < self._failed_at

    @property
    def _proven(self) -> int:
        """The fewest rows that were seen to reach that share of the best that was seen.

        A line through noisy times may promise nothing of batches that did pay.
        """
        per_s = {rows: rows / max(step_s, 1e-9) for rows, step_s in self._step_s.items()}
        enough = _WORTH * max(per_s.values())
        return min(rows for rows, each in per_s.items() if each >= enough)

    @property
    def _fits(self) -> float:
        if self._memory_bytes is None or len(self._peak_bytes) < 2:
            return math.inf
        line = _fit(self._peak_bytes)
        if line.each <= 0:
            return math.inf
        return max(
            1.0, math.floor((_MEMORY_SHARE * self._memory_bytes - line.fixed) / line.each + 1e-9)
        )


def _last_times() -> deque[float]:
    return deque(maxlen=_REMEMBERED)


def _fit(found: dict[int, float]) -> Line:
    """Least squares; neither part is negative."""
    mean_x = sum(found) / len(found)
    mean_y = sum(found.values()) / len(found)
    spread = sum((x - mean_x) ** 2 for x in found)
    each = sum((x - mean_x) * (y - mean_y) for x, y in found.items()) / spread
    each = max(0.0, each)
    return Line(max(0.0, mean_y - each * mean_x), each)
