"""Copies beside a model that is one list of what is here, in order of delivery."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.copies import Copies
from streams.core.flight import IN_ENGINE, NOT_BEGUN, Flight, Phase
from streams.core.offset_map import Crashes
from tests.builders import a_ticket, a_work

JOB = st.sampled_from(["j", "k"])


def outranks(one: Flight, other: Flight) -> bool:
    return one.rank > other.rank and one.work.identity == other.work.identity


class CopiesMachine(RuleBasedStateMachine):
    """Copies come, change phase while at work, and go; who is at work follows from their ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = Copies()
        self.here: list[Flight] = []
        self.at_work: dict[str, Flight] = {}
        self.num_delivered = 0

    def of(self, job_id: str) -> list[Flight]:
        return [each for each in self.here if each.work.job_id == job_id]

    @rule(
        job_id=JOB, run=st.integers(1, 2), nth=st.integers(1, 2), num=st.integers(0, 1),
        identity=st.sampled_from(["its own", "its own", "another's"]),
    )  # fmt: skip
    def come(self, job_id: str, run: int, nth: int, num: int, identity: str) -> None:
        work = a_work(job_id, run=run, try_number=nth, crashes=Crashes(num, 0), identity=identity)
        flight = Flight(a_ticket(self.num_delivered), work)
        self.num_delivered += 1
        before = self.of(job_id)
        self.here.append(flight)
        needless, is_first = self.copies.add(job_id, flight)
        assert is_first == (job_id not in self.at_work)
        if is_first:
            self.at_work[job_id] = flight
            flight.phase = Phase.WAITING
        expected = [each for each in [*before, flight] if self.is_needless(each, flight)]
        key = [each.ticket.offset for each in needless]
        assert sorted(key) == sorted(each.ticket.offset for each in expected)
        for each in needless:
            self.go(each)

    def is_needless(self, copy: Flight, newest: Flight) -> bool:
        """A higher one is here and nobody waits for an answer about it, or its twin is parked."""
        assert copy.work.job_id
        current = self.at_work[copy.work.job_id]
        if copy is not current and copy.phase is Phase.PARKING:
            return False
        is_alike = (copy.rank, copy.work.identity) == (current.rank, current.work.identity)
        if copy is newest and copy is not current and is_alike and current.phase is Phase.PARKED:
            return True
        if not any(outranks(other, copy) for other in self.of(copy.work.job_id)):
            return False
        if copy is not self.at_work[copy.work.job_id]:
            return True
        if not outranks(newest, copy):
            return False
        if copy.phase in IN_ENGINE:
            return copy.work.run < newest.work.run
        return copy.phase in NOT_BEGUN | {Phase.JUDGED}

    def go(self, flight: Flight) -> None:
        job_id = flight.work.job_id
        assert job_id
        self.here = [each for each in self.here if each is not flight]
        following = self.copies.remove(job_id, flight)
        if self.at_work.get(job_id) is not flight:
            assert following is None
            return
        del self.at_work[job_id]
        left = [each for each in self.of(job_id) if each.phase is Phase.BEHIND]
        assert following is (max(left, key=lambda each: each.rank) if left else None)
        if following is not None:
            self.at_work[job_id] = following
            following.phase = Phase.WAITING

    @rule(job_id=JOB, phase=st.sampled_from([p for p in Phase if p is not Phase.BEHIND]))
    def go_on(self, job_id: str, phase: Phase) -> None:
        if flight := self.at_work.get(job_id):
            flight.phase = phase

    @rule(data=st.data())
    def go_aside(self, data: st.DataObject) -> None:
        """Its own copy is being written: nobody else's turn or rank changes that."""
        if behind := [each for each in self.here if each.phase is Phase.BEHIND]:
            data.draw(st.sampled_from(behind)).phase = Phase.PARKING

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.here:
            self.go(self.here[data.draw(st.integers(0, len(self.here) - 1))])

    @invariant()
    def agrees_with_the_model(self) -> None:
        for job_id in ("j", "k"):
            here = self.of(job_id)
            assert self.copies.at_work(job_id) is self.at_work.get(job_id)
            for flight in here:
                higher = any(outranks(other, flight) for other in here)
                assert self.copies.is_outranked(flight) == higher
                behind = [
                    each.ticket
                    for each in here
                    if each.phase is Phase.BEHIND
                    and each.work.identity == flight.work.identity
                    and each.rank <= flight.rank
                ]
                found = self.copies.twins(job_id, flight)
                assert [each.ticket for each in found] == behind


TestCopies = CopiesMachine.TestCase
TestCopies.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
