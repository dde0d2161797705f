"""When a record that failed is tried again, and when no more: pure counting, no clock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from streams.core.events import Fate, Fault
from streams.core.offset_map import Crashes

CRASHES_BEFORE_ALONE = 2
CRASHES_ALONE_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after which delays, a failed record is tried again.

    `delays_s` ascend; there is a retry topic for each. The first retry waits the first delay, the
    second the second, and so on, the last for all that follow. Jitter lies in the choice alone: a
    quarter of the jobs waits one delay longer, so that what failed together does not return so.
    """

    delays_s: tuple[int, ...] = (10, 60, 600)
    max_tries: int = 4

    def delay_s(self, job_id: str, run: int, try_number: int) -> int | None:
        """The delay after that try has failed, counted from 1; None: it was the last.

        >>> [RetryPolicy((10, 60), 4).delay_s("job-1", 1, each) for each in (1, 2, 3, 4)]
        [10, 60, 60, None]
        """
        if self.is_last(try_number):
            return None
        chance = hashlib.sha256(f"{job_id}.{run}.{try_number}".encode()).digest()[0]
        rung = try_number - 1 + (chance < 64)
        return self.delays_s[min(rung, len(self.delays_s) - 1)]

    def is_last(self, try_number: int) -> bool:
        """Whether a job is given up when that try fails."""
        return try_number >= self.max_tries

    @property
    def shortest_s(self) -> int:
        """Where a record waits that stepped aside."""
        return self.delays_s[0]

    def aside_s(self, num_diverted: int) -> int:
        """The delay of what steps aside off-peak, and has so often before: longer every time."""
        return self.delays_s[min(num_diverted, len(self.delays_s) - 1)]

    @property
    def longest_s(self) -> int:
        """Where a record waits that killed a process all by itself."""
        return self.delays_s[-1]


def is_suspect(crashes: Crashes) -> bool:
    """Whether a record must run alone, so that the next crash tells whose fault it is."""
    return crashes.num >= CRASHES_BEFORE_ALONE


def sentence(crashes: Crashes, known_before: Crashes) -> Fault | None:
    """What a record's crashes lead to by themselves; None: it may be worked, as a suspect perhaps.

    `known_before` is what its headers say: a count beyond that is of a crash since, right here.
    """
    if crashes.num_alone >= CRASHES_ALONE_AT_MOST:
        text = f"{crashes.num} processes died with it, {crashes.num_alone} held nothing else"
        return Fault(Fate.DEAD_LETTER, "killed_workers", text)
    if crashes.num_alone > known_before.num_alone:
        return Fault(Fate.LATER, "killed_worker", "a process died that held nothing else")
    return None


def if_it_crashes_now(crashes: Crashes, is_alone: bool) -> Crashes:
    """What the count will have been if the process dies while the record is inside the engine."""
    return Crashes(crashes.num + 1, crashes.num_alone + is_alone)
