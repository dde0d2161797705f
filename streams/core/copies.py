"""One flight at a time for each job, the copy of the highest rank first (DESIGN 4.7)."""

from __future__ import annotations

from streams.core.flight import IN_ENGINE, NOT_BEGUN, Flight, Phase
from streams.core.runs import Wished, whosever


class Copies:
    """The delivered, unfinished copies of each job, and which of them is at work."""

    def __init__(self) -> None:
        self._at_work: dict[str, Flight] = {}
        self._behind: dict[str, list[Flight]] = {}

    def at_work(self, job_id: str | None) -> Flight | None:
        """The copy that works on the job."""
        return None if job_id is None else self._at_work.get(job_id)

    def at_work_on(self, wished: Wished) -> Flight | None:
        """The copy that works on that very run; what waits behind it hears of wishes in its turn.

        Another tenant's job of the same id may be the one at work, or the one that waits.
        """
        flight = self._at_work.get(wished[1])
        if flight is None or flight.run_of_job is None:
            return None
        return flight if wished in (flight.run_of_job, whosever(flight.run_of_job)) else None

    def behind(self, job_id: str) -> list[Flight]:
        """Those that wait for the one at work. What is on its way aside is seen through."""
        return [each for each in self._behind.get(job_id, ()) if each.phase is Phase.BEHIND]

    def twins(self, job_id: str, flight: Flight) -> list[Flight]:
        """The copies of a flight that wait for it and rank no higher."""
        return [
            copy
            for copy in self.behind(job_id)
            if copy.work.identity == flight.work.identity and not copy.outranks(flight)
        ]

    def is_outranked(self, flight: Flight) -> bool:
        """Whether a higher copy of its job is here: then this one has nothing left to do."""
        job_id = flight.work.job_id
        if job_id is None:
            return False
        here = [*self._behind.get(job_id, ()), self._at_work.get(job_id)]
        return any(other is not None and other.outranks(flight) for other in here)

    def add(self, job_id: str, flight: Flight) -> tuple[list[Flight], bool]:
        """A copy was delivered: which copies are needless now, and whether it is at work at once.

        A needless copy is to be finished unworked, `remove` included: a higher one is here, which
        is on the log, and nobody waits for an answer about the lower one.
        """
        if (current := self._at_work.get(job_id)) is None:
            self._at_work[job_id] = flight
            return [], True
        needless = [copy for copy in self.behind(job_id) if flight.outranks(copy)]
        is_parked_too = current.phase is Phase.PARKED and _are_twins(current, flight)
        if is_parked_too or self.is_outranked(flight):
            needless.append(flight)
        self._behind.setdefault(job_id, []).append(flight)
        if _can_stop(current, flight):
            needless.append(current)
        return needless, False

    def remove(self, job_id: str, flight: Flight) -> Flight | None:
        """A copy is gone; the one that takes over from it, if it was at work and others wait."""
        behind = self._behind.get(job_id, [])
        following = None
        if self._at_work.get(job_id) is not flight:
            behind.remove(flight)
        elif waiting := self.behind(job_id):
            # Of equal rank the first delivered goes first.
            following = max(waiting, key=lambda each: each.rank)
            self._at_work[job_id] = following
            behind.remove(following)
        else:
            del self._at_work[job_id]
        if not behind:
            self._behind.pop(job_id, None)
        return following


def _are_twins(one: Flight, other: Flight) -> bool:
    return one.rank == other.rank and one.work.identity == other.work.identity


def _can_stop(current: Flight, newer: Flight) -> bool:
    if not newer.outranks(current):
        return False
    if current.phase in IN_ENGINE:
        return current.work.run < newer.work.run  # its run has ended, or there were no newer one
    return current.phase in NOT_BEGUN or current.phase is Phase.JUDGED
