"""The expirer's loop on records handed to it: what it waits for, holds, repeats and lets go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from schemas.codec import Codec, UndecodableRecord, UnencodableRecord
from schemas.records import JobControl, Record
from streams.core.events import Acknowledged, Event, NotAcknowledged, Output, Ticket
from streams.core.expiry import Due, ExpiryBook
from streams.engine import Task
from streams.errors import BlobCorrupt, FatalError, InvalidRecord, RetryableError, SickHost
from streams.expirer.loop import Expirer
from streams.expirer.settle import Nothing, NotYet, Seen, Tell, Verdict
from streams.monitor.expirer import ExpirerMetrics
from streams.monitor.health import Health
from tests.builders import a_cleaned_prompt, a_job, a_request, a_video_done, an_output
from tests.registry import Registry

CODEC = Codec()
START = datetime(2026, 1, 1, tzinfo=UTC)
START_S = START.timestamp()
GRACE_S = 5.0
GIVE_UP_S = 30.0


@dataclass
class Bench:
    """An expirer with hands on all its edges: what it reads, when, and what answers it gets."""

    now: float = START_S
    is_caught_up: bool = True
    unread: list[Task] = field(default_factory=list)
    verdicts: list[Verdict | Exception] = field(default_factory=list)
    asked: list[Due] = field(default_factory=list)
    sent: list[tuple[Ticket, tuple[Output, ...]]] = field(default_factory=list)
    answers: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.book = ExpiryBook(GRACE_S, keep_s=1000.0, marker_s=100.0)
        self.health = Health(CollectorRegistry(), "127.0.0.1", 0)
        self.health.missing.add("topics read")
        self.metrics = ExpirerMetrics()
        self.expirer = Expirer(
            self.book, self.settle, self, self, CODEC, self, self.health, self.metrics,
            longest_deadline_s=3600.0, num_threads=1,
        )  # fmt: skip

    # Clock, reader, sink, settler

    def now_s(self) -> float:
        return self.now

    def poll(self, how: Any) -> Any:
        """The reader's takes seconds, the sink's a callback."""
        return self.hand_out(how) if callable(how) else self.hand_on()

    def hand_on(self) -> Iterator[Task]:
        while self.unread:
            yield self.unread.pop(0)

    def hand_out(self, dispatch: Callable[[Event], None]) -> None:
        answers, self.answers = self.answers, []
        for answer in answers:
            dispatch(answer)

    def produce(self, ticket: Ticket, outputs: tuple[Output, ...]) -> None:
        self.sent.append((ticket, outputs))

    def settle(self, due: Due) -> Verdict:
        self.asked.append(due)
        verdict = self.verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    # What a test does

    def read(self, record: Record, topic: str) -> None:
        self.unread.append(Task(None, 13, CODEC.encode(record), topic))

    def turn(self, after_s: float = 0.0) -> None:
        """Time passes; one turn, and another once what it began is done."""
        self.now += after_s
        self.expirer.turn(0.0)
        give_up_s = time.monotonic() + GIVE_UP_S
        while not all(future.done() for future in self.settling):
            assert time.monotonic() < give_up_s
        self.expirer.turn(0.0)

    @property
    def settling(self) -> list[Future[Verdict]]:
        return list(self.expirer._settling)

    def acknowledge(self) -> None:
        self.answers += [Acknowledged(ticket) for ticket, _ in self.sent]
        self.sent.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.expirer.stop()
    bench.expirer.run(0.0)
    bench.health.stop()


REQUEST = a_request(created_at=START, deadline=START + timedelta(seconds=60))
TELL = Tell((an_output(),), is_ending=True)


def a_wish(kind: str, **changes: Any) -> JobControl:
    fields = {"job_id": "job-1", "run": 1, "issued_at": START, "issued_by": "x", **changes}
    return JobControl(kind=kind, **{"tenant_id": "acme", **fields})


def test_an_overdue_run_is_settled_told_of_and_let_go(bench: Bench) -> None:
    bench.read(REQUEST, "requests")
    bench.turn()
    bench.turn(64.9)
    assert (bench.asked, len(bench.book)) == ([], 1)
    bench.verdicts = [TELL]
    bench.turn(0.2)
    assert [(due.kind, due.payload) for due in bench.asked] == [
        ("expired", Seen(CODEC.encode(REQUEST), 13, ()))
    ]
    ((_, outputs),) = bench.sent
    assert (outputs, len(bench.book)) == (TELL.outputs, 1)
    bench.acknowledge()
    bench.turn(1000)
    assert (len(bench.asked), len(bench.book)) == (1, 0)


def test_nothing_is_settled_before_the_log_has_been_read(bench: Bench) -> None:
    bench.is_caught_up = False
    bench.read(REQUEST, "requests")
    bench.turn(100)
    assert (bench.asked, bench.health.missing) == ([], {"topics read"})
    bench.is_caught_up = True
    bench.read(a_video_done(), "videos.done")
    bench.turn()
    assert (bench.asked, bench.health.missing, len(bench.book)) == ([], set(), 0)


def test_an_ending_that_is_read_before_its_request_counts(bench: Bench) -> None:
    bench.read(a_video_done(), "videos.done")
    bench.read(REQUEST, "requests")
    bench.read(a_cleaned_prompt(), "prompts.cleaned")
    bench.turn(100)
    assert (bench.asked, len(bench.book)) == ([], 0)


def test_what_is_read_of_a_run_after_its_ending_opens_it_no_more(bench: Bench) -> None:
    bench.read(REQUEST, "requests")
    bench.read(a_video_done(), "videos.done")
    bench.read(a_cleaned_prompt(job=a_job(deadline=REQUEST.deadline)), "prompts.cleaned")
    bench.read(a_wish("cancel"), "jobs.control")
    bench.turn()
    assert len(bench.book) == 0
    bench.turn(100)
    assert bench.asked == [], "it would be told of once more"


def test_a_run_that_was_nobodys_is_looked_at_again_when_it_is_requested(bench: Bench) -> None:
    for number in range(2):
        bench.read(REQUEST, "requests")
        bench.verdicts = [Nothing("no claim")]
        bench.turn(66)
        assert (len(bench.asked), len(bench.book)) == (number + 1, 0)


def test_once_claimed_a_request_is_not_kept(bench: Bench) -> None:
    bench.read(REQUEST, "requests")
    bench.read(a_cleaned_prompt(job=a_job(deadline=REQUEST.deadline)), "prompts.cleaned")
    bench.read(REQUEST, "requests")
    bench.verdicts = [Nothing("no claim")]
    bench.turn(66)
    assert [due.payload for due in bench.asked] == [Seen(None, 13, ())]
    assert len(bench.book) == 0


def test_a_store_that_is_away_holds_everything_and_loses_nothing(bench: Bench) -> None:
    jobs = ["a", "b", "c"]
    for job in jobs:
        bench.read(a_request(job_id=job, created_at=START, deadline=REQUEST.deadline), "requests")
    bench.verdicts = [SickHost("no answer")] * 3
    bench.turn(66)
    assert len(bench.asked) == 3
    assert bench.health.missing == {"object store"}
    bench.turn(0.5)
    assert len(bench.asked) == 3, "it is not asked again at once"
    bench.verdicts = [SickHost("no answer")] * 3
    bench.turn(1)
    bench.turn(1.5)
    assert len(bench.asked) == 6, "and less and less often"
    bench.verdicts = [TELL] * 3
    bench.turn(60)
    assert len(bench.sent) == 3
    assert bench.health.missing == set()
    bench.acknowledge()
    bench.turn()
    assert len(bench.book) == 0


def test_a_record_that_cannot_be_decoded_yet_is_waited_for(bench: Bench) -> None:
    registry = Registry()
    bench.expirer._codec = Codec(registry)
    ended = Codec(registry).encode(a_video_done())
    registry.is_away = True
    bench.read(REQUEST, "requests")
    bench.unread.append(Task(None, 13, ended, "videos.done"))
    late = START + timedelta(seconds=1000)
    bench.read(a_request(job_id="job-2", created_at=START, deadline=late), "requests")
    bench.turn(100)
    assert (bench.asked, len(bench.book), len(bench.unread)) == ([], 1, 1)
    assert bench.health.missing == {"schema registry", "topics read"}
    num_refused = registry.num_refused
    bench.turn(0.5)
    assert registry.num_refused == num_refused, "it is not asked again at once"
    bench.turn(1)
    assert registry.num_refused > num_refused
    registry.is_away = False
    bench.turn(60)
    assert (bench.asked, len(bench.book), bench.unread) == ([], 1, [])
    assert bench.health.missing == set()
    bench.verdicts = [TELL]
    bench.turn(1000)
    assert [due.key.job_id for due in bench.asked] == ["job-2"]


def test_what_the_brokers_did_not_take_is_settled_and_told_again(bench: Bench) -> None:
    bench.read(REQUEST, "requests")
    bench.verdicts = [TELL, TELL]
    bench.turn(66)
    ((ticket, _),) = bench.sent
    bench.answers = [NotAcknowledged(ticket, "timed out", is_permanent=False)]
    bench.sent.clear()
    bench.turn()
    bench.turn(2)
    assert (len(bench.asked), len(bench.sent)) == (2, 1)


def test_a_later_deadline_is_waited_for(bench: Bench) -> None:
    bench.read(REQUEST, "requests")
    bench.verdicts = [NotYet(START_S + 300)]
    bench.turn(66)
    bench.turn(200)
    assert len(bench.asked) == 1
    bench.verdicts = [TELL]
    bench.turn(100)
    assert len(bench.asked) == 2


@pytest.mark.parametrize(
    "error",
    [
        FatalError("a fence holds what is no claim"),
        InvalidRecord("no such tenant folder"),
        UndecodableRecord("ends early"),
        UnencodableRecord("reelstream.VideoDone: 70000 bytes, more than 65536"),
        RetryableError("a fence keeps changing"),
        BlobCorrupt("a fence has other bytes than it had"),
    ],
)
def test_a_run_that_cannot_be_settled_stops_nobody_else(bench: Bench, error: Exception) -> None:
    bench.read(REQUEST, "requests")
    bench.verdicts = [error]
    bench.turn(66)
    assert len(bench.book) == 1
    bench.read(a_request(job_id="job-2", created_at=START, deadline=REQUEST.deadline), "requests")
    bench.verdicts = [TELL]
    bench.turn(1)
    assert [due.key.job_id for due in bench.asked] == ["job-1", "job-2"]


def test_a_cancel_is_acted_upon_once_its_job_is_known(bench: Bench) -> None:
    bench.read(a_wish("cancel"), "jobs.control")
    bench.turn()
    bench.turn(100)
    assert bench.asked == []
    bench.read(a_request(created_at=START + timedelta(seconds=100), deadline=None), "requests")
    bench.verdicts = [TELL]
    bench.turn()
    assert [due.kind for due in bench.asked] == ["cancelled"]


def test_wishes_of_another_tenant_or_of_none_touch_no_job(bench: Bench) -> None:
    bench.read(REQUEST, "requests")
    for tenant in ("another", None):
        bench.read(a_wish("cancel", tenant_id=tenant), "jobs.control")
        early = START + timedelta(seconds=1)
        bench.read(a_wish("deadline", tenant_id=tenant, deadline=early), "jobs.control")
    bench.turn(59)
    assert bench.asked == []


def test_a_wished_deadline_replaces_the_requests_own(bench: Bench) -> None:
    bench.read(a_wish("deadline", deadline=START + timedelta(seconds=10)), "jobs.control")
    bench.read(REQUEST, "requests")
    bench.turn()
    bench.verdicts = [TELL]
    bench.turn(16)
    assert [(due.kind, due.is_moved) for due in bench.asked] == [("expired", True)]


def test_a_redrive_whose_request_comes_in_time_is_left_alone(bench: Bench) -> None:
    bench.read(a_wish("redrive", run=2), "jobs.control")
    bench.read(a_request(run=2, created_at=START, deadline=None), "requests")
    bench.turn(60)
    assert bench.asked == []
    bench.read(a_wish("redrive", run=3), "jobs.control")
    bench.turn()
    bench.verdicts = [Tell((an_output(),), is_ending=False)]
    bench.turn(6)
    assert [(due.kind, due.key.run) for due in bench.asked] == [("redrive", 3)]
    bench.acknowledge()
    bench.turn(100)
    assert (len(bench.asked), len(bench.book)) == (1, 1)  # run 2 goes on


@pytest.mark.parametrize("topic", ["requests", "prompts.cleaned", "videos.done", "jobs.control"])
def test_bytes_that_are_no_record_are_passed_over(topic: str, bench: Bench) -> None:
    tombstone: Any = None
    for value in (tombstone, b"", b"\x00", b"\xc3\x01 truncated"):
        bench.unread.append(Task(None, 13, value, topic))
    bench.read(a_request(), "videos.done")
    bench.read(a_request(tenant_id="../etc"), "requests")
    bench.read(a_request(run=0), "requests")
    bench.read(a_request(job_id="a/b"), "requests")
    bench.turn(100_000)
    assert (bench.asked, len(bench.book)) == ([], 0)
