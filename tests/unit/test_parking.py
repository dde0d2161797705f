"""A stage with quotas: what is parked, what is let in when, and what a ledger must know first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streams.core import events as ev
from streams.core.admission import Quotas
from streams.core.cost import Prior, Shape
from streams.core.events import TopicPartition
from streams.core.fair_queue import Charge
from streams.core.limits import StageLimits
from streams.core.runs import RunOfJob
from streams.core.shares import Bulk, Follow, JobSeen, LedgerRead, Level, Payer, Share, Source
from streams.core.stage import StageState
from tests.builders import a_start_offset

NEW, DEFERRED = TopicPartition("requests", 0), TopicPartition("requests.deferred", 0)
QUOTAS = Quotas(jobs={"free": 1.0}, parked={"free": 3.0}, prior=Prior(fixed_s=1.0), num_parts=1)
LIMITS = StageLimits(
    window_high=4, window_low=1, window_per_tenant=2, look_ahead=4, batch_max=1, max_batches=8,
    make_way_s=5.0, quotas=QUOTAS,
)  # fmt: skip
BULK = Bulk("v1", Shape(17, 64, 64), 1)


class Prompt:
    """A stage that owns a partition, and the log that it reads and writes."""

    def __init__(self, limits: StageLimits = LIMITS) -> None:
        self.state, self.now_s = StageState(limits), 100.0
        self.offsets = {NEW: 0, DEFERRED: 0}
        self.started: list[str] = []
        self.parked: list[ev.Park] = []
        self.ended: list[ev.End] = []
        self.paused: set[TopicPartition] = set()
        self.follows: list[Follow] = []
        self(ev.Assigned(dict.fromkeys((NEW, DEFERRED), a_start_offset())))

    def __call__(self, *events: ev.Event) -> None:
        for event in events:
            for command in self.state.handle(event, self.now_s):
                match command:
                    case ev.Start(batch):
                        self.started += [str(work.job_id) for _, work in batch]
                    case ev.Park():
                        self.parked.append(command)
                    case ev.End():
                        self.ended.append(command)
                    case ev.Pause(partitions):
                        self.paused.update(partitions)
                    case ev.Resume(partitions):
                        self.paused.difference_update(partitions)
                    case Follow():
                        self.follows.append(command)
                    case ev.Commit(_, must_finish) if not must_finish:
                        self(ev.Committed(True))

    def read(self) -> Prompt:
        self(LedgerRead(0))
        return self

    def comes(
        self, job_id: str, tenant: str = "acme", at: TopicPartition = NEW, **more: Any
    ) -> None:
        source = Source.NEW if at == NEW else Source.PARKED
        share = Share(Payer(0, "free", tenant), BULK, source)
        charge = Charge("free", tenant, 1.0)
        deadline_s = more.pop("deadline_s", 10_000.0)
        work = ev.Work(job_id, 1, "k", deadline_s, job_id, charge=charge, share=share, **more)
        self.offsets[at] += 1
        self(ev.Delivered(at, self.offsets[at] - 1, work), ev.Tick())

    def comes_parked(self, job_id: str, tenant: str = "acme", **more: Any) -> None:
        self.comes(job_id, tenant, DEFERRED, **more)

    @staticmethod
    def run(job_id: str, tenant: str = "acme") -> RunOfJob:
        return RunOfJob(tenant, job_id, 1)

    def seen(self, job_id: str, level: Level, tenant: str = "acme") -> None:
        share = Share(Payer(0, "free", tenant), BULK, Source.TRIED)
        told = None if level is Level.ENDED else share
        self(JobSeen(0, self.run(job_id, tenant), level, told, 10_000.0), ev.Tick())

    def later(self, seconds: float) -> None:
        self.now_s += seconds
        self(ev.Tick())


def test_nothing_is_delivered_before_the_ledger_is_read() -> None:
    prompt = Prompt()
    assert prompt.paused == {NEW, DEFERRED}
    assert prompt.follows == [Follow((0,), ())]
    prompt.read()
    assert prompt.paused == set()
    prompt(ev.Revoked((NEW,)))
    assert len(prompt.follows) == 1, "the other topic's partition is still here"
    prompt(ev.Revoked((DEFERRED,)))
    assert prompt.follows[1:] == [Follow((), (0,))]


def test_while_a_ledger_is_read_no_turn_waits_long_for_requests_that_may_not_come_in() -> None:
    prompt = Prompt()
    prompt.later(5.0)
    assert prompt.state.poll_timeout_s(prompt.now_s) == LIMITS.busy_poll_s
    prompt.seen("old", Level.ADMITTED)
    assert prompt.state.poll_timeout_s(prompt.now_s) == LIMITS.shortest_poll_s
    prompt.read().later(5.0)
    assert prompt.state.poll_timeout_s(prompt.now_s) == LIMITS.poll_s


def test_over_its_quota_a_request_is_put_on_the_deferred_topic_and_finished() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes("two")
    prompt.comes("other", "bolt")
    assert prompt.started == ["one", "other"]
    (park,) = prompt.parked
    assert (park.work.job_id, park.over) == ("two", "concurrent_jobs")
    prompt(ev.NotAcknowledged(park.ticket, "no answer", False))
    prompt.later(2.0)
    assert prompt.parked == [park, park]
    prompt(ev.Acknowledged(park.ticket))
    assert park.ticket not in prompt.state.flights


def test_a_copy_that_can_never_be_written_is_a_dead_letter() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes("two")
    ticket = prompt.parked[0].ticket
    commands = prompt.state.handle(ev.NotAcknowledged(ticket, "too large", True), prompt.now_s)
    assert any(isinstance(each, ev.DeadLetter) for each in commands)


def test_parked_requests_go_in_as_others_end_the_earliest_deadline_first() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("patient", deadline_s=9_000.0)
    prompt.comes_parked("urgent", deadline_s=500.0)
    assert prompt.started == ["one"]
    assert prompt.state.num_parked == {"free": 2}
    prompt.seen("one", Level.ENDED)
    assert prompt.started == ["one", "urgent"]
    prompt.seen("one", Level.ENDED)  # told twice
    assert prompt.started == ["one", "urgent"]
    prompt.seen("urgent", Level.ENDED)
    assert prompt.started == ["one", "urgent", "patient"]
    assert prompt.state.num_parked == {}


def test_parked_requests_that_name_no_deadline_go_in_as_others_end() -> None:
    prompt = Prompt().read()
    prompt.comes("one", deadline_s=None)
    for job_id in ("a", "b", "c"):
        prompt.later(1.0)
        prompt.comes_parked(job_id, deadline_s=None)
    for ended, started in (("one", "a"), ("a", "b"), ("b", "c")):
        prompt.later(1.0)
        prompt.seen(ended, Level.ENDED)
        assert prompt.started[-1] == started
    prompt.seen("c", Level.ENDED)
    prompt.comes("new", deadline_s=None)
    assert prompt.started == ["one", "a", "b", "c", "new"]


def test_a_parked_request_whose_deadline_moves_keeps_nobody_out() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("a", deadline_s=500.0)
    prompt.comes_parked("b", deadline_s=600.0)
    prompt(ev.JobDeadline("a", 1, 9_000.0, prompt.now_s))
    prompt.seen("one", Level.ENDED)
    assert prompt.started == ["one", "b"]
    prompt.seen("b", Level.ENDED)
    assert prompt.started == ["one", "b", "a"]


def test_what_another_worker_had_let_in_counts() -> None:
    prompt = Prompt()
    prompt.seen("theirs", Level.ADMITTED)
    prompt.read()
    prompt.comes("one")
    assert prompt.started == []
    prompt.seen("theirs", Level.ENDED)
    prompt.comes("two")
    assert prompt.started == ["two"]


def test_over_the_bound_on_parked_requests_it_is_rejected_and_told_when_to_come_again() -> None:
    prompt = Prompt().read()
    for job_id in ("one", "two", "three", "four", "five"):
        prompt.comes(job_id)
    assert [each.work.job_id for each in prompt.parked] == ["two", "three", "four"]
    (end,) = prompt.ended
    assert (end.work.job_id, end.ending.status) == ("five", "rejected")
    assert end.ending.reason_code == "quota_exceeded"
    assert end.ending.retry_at_s is not None
    assert end.ending.retry_at_s > prompt.now_s


def test_a_parked_run_that_is_cancelled_or_expires_ends() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("two")
    prompt.comes_parked("three", deadline_s=prompt.now_s + 50.0)
    prompt.comes_parked("four", deadline_s=prompt.now_s + 60.0)
    prompt(ev.JobCancelled("two", 1, prompt.now_s))
    assert [(each.work.job_id, each.ending.status) for each in prompt.ended] == [
        ("two", "cancelled")
    ]
    prompt(ev.JobDeadline("four", 1, prompt.now_s + 200.0, prompt.now_s))
    prompt.later(51.0)
    assert [each.work.job_id for each in prompt.ended] == ["two", "three"]
    prompt.later(10.0)
    assert len(prompt.ended) == 2
    prompt.later(200.0)
    assert [each.work.job_id for each in prompt.ended] == ["two", "three", "four"]


def test_a_parked_run_that_has_ended_elsewhere_is_let_go_on_to_its_fences() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("two")
    prompt.seen("two", Level.ENDED)
    assert prompt.started == ["one", "two"]


def test_a_share_ends_with_its_deadline() -> None:
    prompt = Prompt().read()
    prompt.comes("one", deadline_s=prompt.now_s + 50.0)
    prompt.comes_parked("two")
    prompt.later(51.0)
    assert prompt.started == ["one", "two"]


def test_a_request_that_was_another_s_frees_what_it_held() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("two")
    (ticket,) = [each for each in prompt.state.flights if each.partition == NEW]
    fault = ev.Fault(ev.Fate.DEAD_LETTER, "idempotency_conflict", "another's", ends_job=False)
    prompt(ev.Failed(ticket, fault), ev.Tick())
    assert prompt.started == ["one", "two"]


def test_what_is_parked_is_handed_back_unmarked_and_the_next_owner_parks_it_again() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("two")
    prompt(ev.Drain())
    assert all(each.partition == NEW for each in prompt.state.flights)


def test_an_equal_copy_of_what_is_parked_has_nothing_to_do() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("two")
    num_flights = len(prompt.state.flights)
    prompt.comes("two")
    assert len(prompt.state.flights) == num_flights
    prompt.comes("two", identity="another's")
    assert len(prompt.state.flights) == num_flights + 1


def test_another_request_under_a_parked_jobs_id_does_not_stop_the_partition() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("X")
    for number in range(4):
        prompt.comes("X", identity=f"other-{number}", tenant=f"tenant-{number}")
    assert [each.work.identity for each in prompt.parked] == [f"other-{n}" for n in range(4)]
    assert NEW in prompt.paused
    assert prompt.state.num_parked == {"free": 1}, "who was there first keeps its place"
    for park in list(prompt.parked):
        prompt(ev.Acknowledged(park.ticket))
    assert NEW not in prompt.paused
    prompt.seen("one", Level.ENDED)
    assert prompt.started == ["one", "X"]


def test_what_comes_back_under_a_parked_jobs_id_waits_there_and_has_its_turn() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("X")
    prompt.comes_parked("X", identity="other")
    prompt.comes("X", identity="other", try_number=2)
    assert prompt.parked == [], "it is there; and what was tried keeps its count"
    prompt.seen("one", Level.ENDED)
    (ticket,) = [each for each in prompt.state.flights if each[:2] == (DEFERRED, 0)]
    prompt(ev.Emitted(ticket, ()), ev.Acknowledged(ticket), ev.Tick())
    assert prompt.started == ["one", "X", "X"]


def test_one_that_is_on_its_way_aside_takes_over_from_nobody() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("X")
    prompt.comes("X", identity="other")
    prompt(ev.JobCancelled("X", 1, prompt.now_s))
    (end,) = prompt.ended
    prompt(ev.Ended(end.ticket, ()), ev.Acknowledged(end.ticket), ev.Tick())
    assert prompt.started == ["one"]
    (park,) = prompt.parked
    prompt(ev.Acknowledged(park.ticket))
    assert [each.offset for each in prompt.state.flights if each != (NEW, 0, 1)] == []


def test_where_its_copy_can_never_be_written_the_parked_one_stays_as_it_is() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("X")
    prompt.comes("X", identity="other")
    (park,) = prompt.parked
    prompt(ev.NotAcknowledged(park.ticket, "too large", True), ev.Acknowledged(park.ticket))
    assert [each.ticket for each in prompt.ended] == [park.ticket]
    fault = ev.Fault(ev.Fate.DEAD_LETTER, "idempotency_conflict", "another's", ends_job=False)
    prompt(ev.NotEnded(park.ticket, fault))
    assert park.ticket not in prompt.state.flights
    prompt.seen("one", Level.ENDED)
    assert prompt.started == ["one", "X"]


def test_what_takes_over_as_parked_puts_those_of_other_topics_aside() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes("X")
    prompt.comes("X", identity="other")
    prompt.comes_parked("X", identity="third", num_diverted=1)
    (park,) = prompt.parked
    prompt(ev.Acknowledged(park.ticket))
    assert [each.work.identity for each in prompt.parked] == [None, "other"]


def test_others_under_a_parked_jobs_id_make_way_with_it() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    prompt.comes_parked("X")
    for number in range(3):
        prompt.comes_parked("X", identity=f"other-{number}")
    assert DEFERRED in prompt.paused
    share = Share(Payer(0, "free", "bolt"), BULK, Source.PARKED)
    prompt(JobSeen(0, prompt.run("hidden", "bolt"), Level.PARKED, share, 10_000.0))
    prompt.later(6.0)
    assert [each.work.identity for each in prompt.parked] == [None, "other-0"]
    for park in list(prompt.parked):
        prompt(ev.Acknowledged(park.ticket))
    assert prompt.state.num_parked == {"free": 1}, "the next has taken over"


def test_parked_requests_make_way_for_those_of_others_that_they_hide() -> None:
    prompt = Prompt().read()
    prompt.comes("one")
    for number in range(4):
        prompt.comes_parked(f"parked-{number}")
    assert DEFERRED in prompt.paused, "it holds as many as it may"
    prompt.later(6.0)
    assert prompt.parked == [], "nobody is hidden"
    share = Share(Payer(0, "free", "bolt"), BULK, Source.PARKED)
    prompt(JobSeen(0, prompt.run("hidden", "bolt"), Level.PARKED, share, 10_000.0))
    prompt.later(6.0)
    assert [each.work.job_id for each in prompt.parked] == ["parked-0", "parked-1"]
    for park in list(prompt.parked):
        prompt(ev.Acknowledged(park.ticket))
    prompt.later(0.1)
    prompt.comes_parked("hidden", "bolt")
    assert prompt.started == ["one", "hidden"]


def test_a_parked_head_that_holds_up_others_goes_to_the_end_of_its_topic() -> None:
    wide = replace(LIMITS, window_high=20, window_per_tenant=20, look_ahead=20, map_span=10)
    prompt = Prompt(wide).read()
    prompt.comes("one")
    prompt.comes_parked("parked")
    for number in range(1, 10):
        assert prompt.parked == []
        prompt.comes_parked(f"other-{number}", f"tenant-{number}")
        ticket = next(each for each in prompt.state.flights if each[:2] == (DEFERRED, number))
        prompt(ev.Emitted(ticket, ()), ev.Acknowledged(ticket), ev.Tick())
    (park,) = prompt.parked
    assert (park.work.job_id, park.over) == ("parked", "concurrent_jobs")
    assert DEFERRED in prompt.paused
    prompt(ev.Acknowledged(park.ticket))
    assert DEFERRED not in prompt.paused
    assert [each.offset for each in prompt.state.flights if each.partition == DEFERRED] == []


def test_a_head_behind_a_parked_one_goes_to_the_end_of_its_topic_too() -> None:
    wide = replace(LIMITS, window_high=20, window_per_tenant=20, look_ahead=20, map_span=60)
    prompt = Prompt(wide).read()
    prompt.comes("one")
    prompt.comes_parked("X", deadline_s=prompt.now_s + 50.0)
    prompt.comes_parked("X", identity="second")
    prompt.comes_parked("X", identity="third", num_diverted=1)
    prompt.later(51.0)
    (end,) = prompt.ended
    prompt(ev.Ended(end.ticket, ()), ev.Acknowledged(end.ticket))
    for number in range(3, 70):
        prompt.comes_parked(f"other-{number}", f"tenant-{number}")
        ticket = next(each for each in prompt.state.flights if each[:2] == (DEFERRED, number))
        prompt(ev.Emitted(ticket, ()), ev.Acknowledged(ticket), ev.Tick())
    (park,) = prompt.parked
    assert (park.work.identity, park.over) == ("second", "concurrent_jobs")


def test_without_quotas_nobody_is_asked() -> None:
    prompt = Prompt(replace(LIMITS, quotas=Quotas()))
    assert prompt.paused == set()
    prompt.comes("one")
    prompt.comes("two")
    prompt.comes_parked("three")  # parked while there were
    assert prompt.started == ["one", "two", "three"]
    assert prompt.follows == []
