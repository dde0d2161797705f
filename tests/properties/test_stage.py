"""StageState against the naive world of `stage_world`, in random order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.core.events import (
    Acknowledged,
    Delivered,
    Emitted,
    Ended,
    Ending,
    Failed,
    Fate,
    JobDeadline,
    NotAcknowledged,
    NotEnded,
    TopicPartition,
    Work,
)
from streams.core.fair_queue import Charge
from streams.core.offset_map import NO_CRASHES, Crashes
from streams.core.tiers import OFF_PEAK
from tests.builders import a_fault, an_output
from tests.properties.stage_ends import check, cooperate
from tests.properties.stage_log import PARTITIONS, RETRY, Verdict
from tests.properties.stage_world import World

T = TypeVar("T")

PARTITION = st.sampled_from(PARTITIONS)
ANY_PARTITION = st.sampled_from([*PARTITIONS, RETRY, RETRY])
JOB = st.sampled_from([("job-1", 1), ("job-1", 2), ("job-2", 1)])
TENANT = st.sampled_from(["acme", "acme", "noisy"])
LATER = a_fault(fate=Fate.LATER, reason_code="hiccup")
FAULTS = (a_fault(), a_fault(reason_code="conflict", ends_job=False))
ENDING = Ending("rejected", "over_quota", "too much")
FAULT = st.sampled_from([None, None, None, LATER, LATER, *FAULTS])
VERDICT = st.sampled_from([*[None] * 12, ENDING, *FAULTS])
CHARGES = (Charge("free", "noisy", 3.0), Charge("free", "noisy", 1.0), Charge("pro", "acme", 1.0))
DEFERRABLE = (Charge(OFF_PEAK, "acme", 1.0),)

# How often what happens. One rule with weights, because rules of equal chance rarely get a record
# through its whole life.
WEIGHTS = {
    "the_loop_turns": 12,
    "new_jobs_come": 4,
    "deferrable_jobs_come": 2,
    "a_copy_comes": 3,
    "the_engine_answers": 10,
    "the_producer_answers": 10,
    "a_commit_is_answered": 10,
    "the_newest_is_done_first": 3,
    "records_kill": 1,
    "partitions_come": 2,
    "partitions_go": 1,
    "records_come_again": 1,
    "dropped_work_is_answered_late": 1,
    "a_former_assignment_is_answered": 1,
    "a_client_cancels": 1,
    "a_client_cancels_what_is_here": 1,
    "a_client_moves_a_deadline": 1,
    "an_operator_pauses_or_resumes": 1,
    "the_host_falls_sick_or_recovers": 2,
    "a_probe_is_answered": 3,
    "jobs_fail_in_a_row": 2,
    "the_host_stays_as_it_is": 1,
    "the_process_dies": 1,
    "the_worker_drains": 1,
}


class StageMachine(RuleBasedStateMachine):
    """Each method is something that can happen to a worker; the world checks what it does then."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.num_jobs = 0

    @initialize(others=st.sets(ANY_PARTITION, max_size=2))
    def begin(self, others: set[TopicPartition]) -> None:
        self.world.assign([each for each in (*PARTITIONS, RETRY) if each not in others])
        for partition in PARTITIONS:
            self.append_jobs(partition, 0, "aab", None, None)

    @rule(
        what=st.sampled_from([what for what, weight in WEIGHTS.items() for _ in range(weight)]),
        data=st.data(),
    )
    def something_happens(self, what: str, data: st.DataObject) -> None:
        getattr(self, what)(data)

    # ---- records

    def new_jobs_come(self, data: st.DataObject) -> None:
        partition, gap = data.draw(PARTITION), data.draw(st.sampled_from([0, 0, 0, 2]))
        patience_s = data.draw(st.sampled_from([None, None, None, 0.0, 3.0]))
        deadline_s = None if patience_s is None else self.world.now_s + patience_s
        keys = data.draw(st.text("ab", min_size=1, max_size=4))
        self.append_jobs(partition, gap, keys, deadline_s, data.draw(VERDICT))

    def deferrable_jobs_come(self, data: st.DataObject) -> None:
        partition, patience_s = data.draw(PARTITION), data.draw(st.sampled_from([None, None, 3.0]))
        deadline_s = None if patience_s is None else self.world.now_s + patience_s
        self.append_jobs(partition, 0, "aabbbb", deadline_s, None, DEFERRABLE)

    def append_jobs(
        self,
        partition: TopicPartition,
        gap: int,
        keys: str,
        deadline_s: float | None,
        verdict: Verdict,
        charges: Sequence[Charge] = CHARGES,
    ) -> None:
        for key in keys:
            self.num_jobs += 1
            charge = charges[self.num_jobs % len(charges)]
            work = Work(f"new-{self.num_jobs}", 1, key, deadline_s, object(), charge=charge)
            self.world.log.append(partition, gap, work, verdict)

    def a_copy_comes(self, data: st.DataObject) -> None:
        partition, job = data.draw(PARTITION), data.draw(st.none() | JOB)
        if job is None:  # nobody can decode it
            nobody = Work(None, 1, None, None, object())
            self.world.log.append(partition, 0, nobody, FAULTS[0])
        else:
            crashes = data.draw(st.sampled_from([NO_CRASHES, NO_CRASHES, Crashes(3, 1)]))
            try_number = data.draw(st.integers(1, 2))
            charge = Charge("free", data.draw(TENANT), 1.0)
            work = Work(
                *job, "a", None, object(), try_number, crashes,
                identity=charge.tenant_id, charge=charge,
            )  # fmt: skip
            self.world.log.append(partition, 0, work, data.draw(VERDICT))

    def the_loop_turns(self, data: st.DataObject) -> None:
        most = data.draw(st.sampled_from([4, 4, 4, 1, 0]))
        for partition in (*PARTITIONS, RETRY):
            self.world.poll(partition, most)
        self.world.tick(data.draw(st.sampled_from([0.1, 0.0, 1.0])))

    def records_come_again(self, data: st.DataObject) -> None:
        world, partition = self.world, data.draw(ANY_PARTITION)
        assignment = world.ours.get(partition)
        if assignment is None:
            work = Work("foreign", 1, "a", None, object())
            world.dispatch_stale(Delivered(partition, 0, work))
        elif world.drain_until_s is None:
            for offset in sorted(assignment.delivered)[-2:]:
                again = Delivered(partition, offset, *world.log.records[partition][offset])
                world.dispatch_stale(again)

    # ---- partitions

    def partitions_come(self, data: st.DataObject) -> None:
        if not self.world.state.stopped:
            self.world.assign(sorted(data.draw(st.sets(ANY_PARTITION)) - self.world.ours.keys()))

    def partitions_go(self, data: st.DataObject) -> None:
        if not self.world.state.stopped:
            partitions = data.draw(st.sets(ANY_PARTITION)) & self.world.ours.keys()
            self.world.take_away(tuple(sorted(partitions)), is_lost=data.draw(st.booleans()))

    # ---- engine, producer, broker

    def the_engine_answers(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            if tickets := [*self.world.working, *self.world.ending]:
                ticket, fault = pick(data, tickets), data.draw(FAULT)
                if ticket in self.world.working:
                    self.world.answer_work(ticket, fault)
                else:
                    self.world.answer_end(ticket, fault)

    def the_producer_answers(self, data: st.DataObject) -> None:
        answer = data.draw(st.sampled_from(["yes", "yes", "yes", "not yet", "never"]))
        for _ in range(data.draw(st.integers(1, 4))):
            if self.world.writing:
                ticket = pick(data, self.world.writing)
                if answer == "yes":
                    self.world.answer_write(ticket)
                else:
                    self.world.refuse_write(ticket, is_permanent=answer == "never")

    def the_newest_is_done_first(self, data: st.DataObject) -> None:
        for ticket in sorted(self.world.working)[-1:]:
            self.world.answer_work(ticket)
            if ticket in self.world.writing:
                self.world.answer_write(ticket)
        if data.draw(st.booleans()):
            self.world.tick(1.0)
            self.a_commit_is_answered(data)

    def a_commit_is_answered(self, data: st.DataObject) -> None:
        if self.world.committing:
            self.world.answer_commit(is_ok=data.draw(st.sampled_from([True, True, False])))

    def dropped_work_is_answered_late(self, data: st.DataObject) -> None:
        if self.world.abandoned:
            kind = data.draw(st.sampled_from([Emitted, Ended, Failed, NotEnded]))
            self.world.answer_late(pick(data, self.world.abandoned), kind)

    def a_former_assignment_is_answered(self, data: st.DataObject) -> None:
        if tickets := self.world.former_tickets():
            ticket = pick(data, tickets)
            for event in (
                Emitted(ticket, (an_output(),)),
                Ended(ticket, ()),
                Failed(ticket, FAULTS[0]),
                NotEnded(ticket, FAULTS[0]),
                Acknowledged(ticket),
                NotAcknowledged(ticket, "late", is_permanent=True),
            ):
                self.world.dispatch_stale(event)

    # ---- wishes

    def a_client_cancels(self, data: st.DataObject) -> None:
        self.world.cancel((data.draw(st.none() | TENANT), *data.draw(JOB)))

    def a_client_cancels_what_is_here(self, data: st.DataObject) -> None:
        if not self.world.tickets:
            return
        ticket = pick(data, self.world.tickets)
        work, _ = self.world.log.records[ticket.partition][ticket.offset]
        if work.job_id is None:
            return
        own = work.charge.tenant_id
        tenant_id = data.draw(st.sampled_from([own, own, own, "another"]))
        was_working = ticket in self.world.working and tenant_id == own
        self.world.cancel((tenant_id, work.job_id, work.run))
        if was_working and (kind := data.draw(st.sampled_from([None, Emitted, Failed]))):
            self.world.answer_late(ticket, kind)  # answered before, and the answer comes now

    def a_client_moves_a_deadline(self, data: st.DataObject) -> None:
        patience_s = data.draw(st.sampled_from([-1.0, 5.0]))
        now_s, tenant_id = self.world.now_s, data.draw(st.none() | TENANT)
        self.world.dispatch(JobDeadline(*data.draw(JOB), now_s + patience_s, now_s, tenant_id))

    def an_operator_pauses_or_resumes(self, data: st.DataObject) -> None:
        self.world.pause_stage(data.draw(st.sampled_from([False, False, False, True])))

    # ---- the host

    def the_host_falls_sick_or_recovers(self, data: st.DataObject) -> None:
        if data.draw(st.sampled_from([True, True, False])):
            self.world.recover()
        else:
            self.world.fall_sick(is_local=data.draw(st.booleans()))

    def a_probe_is_answered(self, data: st.DataObject) -> None:
        if self.world.is_probing:
            self.world.answer_probe(is_ok=data.draw(st.booleans()))

    def jobs_fail_in_a_row(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            for ticket in list(self.world.working):
                self.world.answer_work(ticket, data.draw(st.sampled_from([LATER, FAULTS[0]])))
            self.world.tick(0.0)
            self.a_commit_is_answered(data)

    def the_host_stays_as_it_is(self, data: st.DataObject) -> None:
        self.world.tick(data.draw(st.sampled_from([3.0, 3.0, 61.0])))

    def the_process_dies(self, data: st.DataObject) -> None:
        self.world.crash(is_commit_taken=data.draw(st.booleans()))

    def records_kill(self, data: st.DataObject) -> None:
        """The process dies whenever it has begun something, a few times."""
        world = self.world
        for _ in range(data.draw(st.integers(2, 5))):
            if world.drain_until_s is None:
                world.assign([each for each in world.log.partitions if each not in world.ours])
                for partition in world.log.partitions:
                    world.poll(partition, 2)
                world.tick(1.0)
                self.a_commit_is_answered(data)
            world.crash(is_commit_taken=True)

    def the_worker_drains(self, data: st.DataObject) -> None:
        if self.world.state.stopped:
            self.world.boot()
        elif self.num_jobs > 20:
            self.world.drain()

    # ---- what holds

    @invariant()
    def the_world_agrees(self) -> None:
        check(self.world)

    def teardown(self) -> None:
        """However it went: with a world that answers, all is worked, or handed back in time."""
        if self.world.drain_until_s is None:
            cooperate(self.world)
        else:
            self.world.tick(self.world.limits.drain_s)
            assert self.world.state.stopped


def pick(data: st.DataObject, choices: Collection[T]) -> T:
    """One of them."""
    return data.draw(st.sampled_from(list(choices)))


TestStage: Any = StageMachine.TestCase
TestStage.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
