"""StageState against the naive world of `stage_world`, in random order."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.core.events import (
    Acknowledged,
    Delivered,
    Emitted,
    Ended,
    Failed,
    Fault,
    JobDeadline,
    NotAcknowledged,
    NotEnded,
    TopicPartition,
    Work,
)
from tests.builders import an_output
from tests.properties.stage_world import ENDING, FAULTS, PARTITIONS, Verdict, World

T = TypeVar("T")

JOBS = st.tuples(st.sampled_from(["job-1", "job-2", "job-3", "job-4"]), st.integers(1, 2))
PARTITION = st.sampled_from(PARTITIONS)
FAULT = st.none() | st.sampled_from(FAULTS)
VERDICT = st.sampled_from([None, None, None, None, ENDING, *FAULTS])
OFTEN = st.sampled_from([True, True, True, False])
INDEX = st.integers(0, 15)


class StageMachine(RuleBasedStateMachine):
    """Each rule is something that can happen to a worker; the world checks what it does then."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.num_jobs = 0

    # ---- records

    @rule(
        partition=PARTITION,
        gap=st.sampled_from([0, 0, 0, 2]),
        key=st.sampled_from("ab"),
        patience_s=st.sampled_from([None, None, 0.0, 3.0]),
        verdict=VERDICT,
    )
    def a_new_job(
        self,
        partition: TopicPartition,
        gap: int,
        key: str,
        patience_s: float | None,
        verdict: Verdict,
    ) -> None:
        self.num_jobs += 1
        deadline_s = None if patience_s is None else self.world.now_s + patience_s
        work = Work(f"new-{self.num_jobs}", 1, key, deadline_s, object())
        self.world.append(partition, gap, work, verdict)

    @rule(partition=PARTITION, job=JOBS, verdict=VERDICT)
    def a_copy_of_a_job(
        self, partition: TopicPartition, job: tuple[str, int], verdict: Verdict
    ) -> None:
        self.world.append(partition, 0, Work(*job, "a", None, object()), verdict)

    @rule(partition=PARTITION)
    def a_record_that_nobody_can_decode(self, partition: TopicPartition) -> None:
        self.world.append(partition, 0, Work(None, 1, None, None, object()), FAULTS[0])

    @rule(most=st.integers(0, 6), elapsed_s=st.sampled_from([0.0, 0.1, 1.0]))
    def the_loop_turns(self, most: int, elapsed_s: float) -> None:
        for partition in PARTITIONS:
            self.world.poll(partition, most)
        self.world.tick(elapsed_s)

    @rule(partition=PARTITION, most=st.integers(1, 3))
    def records_come_again_or_to_the_wrong_worker(
        self, partition: TopicPartition, most: int
    ) -> None:
        world = self.world
        assignment = world.ours.get(partition)
        if assignment is None:
            work = Work("foreign", 1, "a", None, object())
            world.dispatch_stale(Delivered(partition, 0, work))
        elif world.drain_until_s is None:
            for offset in sorted(assignment.delivered)[-most:]:
                again = Delivered(partition, offset, *world.log[partition][offset])
                world.dispatch_stale(again)

    # ---- partitions

    @initialize(partitions=st.sets(PARTITION, min_size=1))
    def begin(self, partitions: set[TopicPartition]) -> None:
        self.assign(partitions)

    @rule(partitions=st.sets(PARTITION))
    def assign(self, partitions: set[TopicPartition]) -> None:
        if not self.world.state.stopped:
            self.world.assign(sorted(partitions - self.world.ours.keys()))

    @rule(partitions=st.sets(PARTITION), is_lost=st.booleans())
    def take_away(self, partitions: set[TopicPartition], is_lost: bool) -> None:
        if not self.world.state.stopped:
            self.world.take_away(tuple(sorted(partitions & self.world.ours.keys())), is_lost)

    # ---- engine, producer, broker

    @precondition(lambda self: self.world.working or self.world.ending)
    @rule(index=INDEX, fault=FAULT)
    def the_engine_answers(self, index: int, fault: Fault | None) -> None:
        ticket = pick([*self.world.working, *self.world.ending], index)
        if ticket in self.world.working:
            self.world.answer_work(ticket, fault)
        else:
            self.world.answer_end(ticket, fault)

    @precondition(lambda self: self.world.abandoned)
    @rule(index=INDEX, kind=st.sampled_from([Emitted, Ended, Failed, NotEnded]))
    def dropped_work_is_answered_late(self, index: int, kind: type) -> None:
        self.world.answer_late(pick(self.world.abandoned, index), kind)

    @precondition(lambda self: self.world.old_tickets)
    @rule(index=INDEX)
    def answers_come_for_a_former_assignment(self, index: int) -> None:
        ticket = pick(self.world.old_tickets, index)
        if self.world.is_current(ticket):
            return
        for event in (
            Emitted(ticket, (an_output(),)),
            Ended(ticket, ()),
            Failed(ticket, FAULTS[0]),
            NotEnded(ticket, FAULTS[0]),
            Acknowledged(ticket),
            NotAcknowledged(ticket, "late", is_permanent=True),
        ):
            self.world.dispatch_stale(event)

    @precondition(lambda self: self.world.producing)
    @rule(index=INDEX, is_ok=OFTEN, is_permanent=st.booleans())
    def a_produce_is_answered(self, index: int, is_ok: bool, is_permanent: bool) -> None:
        ticket = pick(self.world.producing, index)
        if is_ok:
            self.world.answer_produce(ticket)
        else:
            self.world.refuse_produce(ticket, is_permanent)

    @precondition(lambda self: self.world.committing)
    @rule(is_ok=OFTEN)
    def a_commit_is_answered(self, is_ok: bool) -> None:
        self.world.answer_commit(is_ok)

    # ---- wishes and time

    @rule(job=JOBS)
    def cancel(self, job: tuple[str, int]) -> None:
        self.world.cancel(job)

    @precondition(lambda self: self.world.working)
    @rule(index=INDEX, late=st.sampled_from([None, Emitted, Failed]))
    def cancel_what_is_at_work(self, index: int, late: type | None) -> None:
        ticket = pick(self.world.working, index)
        work = self.world.working[ticket]
        assert work.job_id is not None
        self.world.cancel((work.job_id, work.run))
        if late is not None:  # it was answered already, and the answer comes now
            self.world.answer_late(ticket, late)

    @rule(job=JOBS, patience_s=st.sampled_from([-1.0, 5.0]))
    def move_a_deadline(self, job: tuple[str, int], patience_s: float) -> None:
        self.world.dispatch(JobDeadline(*job, self.world.now_s + patience_s))

    @rule(is_paused=st.booleans())
    def pause_the_stage(self, is_paused: bool) -> None:
        self.world.pause_stage(is_paused)

    @precondition(lambda self: self.num_jobs > 8)
    @rule()
    def drain(self) -> None:
        self.world.drain()

    # ---- what holds

    @invariant()
    def the_world_agrees(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """However it went: with a world that answers, all is worked, or handed back in time."""
        if self.world.drain_until_s is None:
            self.world.cooperate()
        else:
            self.world.tick(self.world.limits.drain_s)
            assert self.world.state.stopped
            for partition, assignment in self.world.ours.items():
                assert self.world.committed[partition] == assignment.highest_commit()


def pick(choices: Collection[T], index: int) -> T:
    """One of them, by an index that may be too large."""
    return list(choices)[index % len(choices)]


TestStage = StageMachine.TestCase
TestStage.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
