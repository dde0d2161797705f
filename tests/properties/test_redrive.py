"""Redrivers that interleave and die anywhere, beside what each run may have been begun by."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.codec import Codec
from schemas.records import GenerationRequest, VideoDone
from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.claims import Author, RunClaim, claim_request, read_run_claim
from streams.redrive import BeginRun, SendAgain, claim_redrive, complete_redrive, plan_redrive
from tests.builders import a_request

CODEC = Codec()
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
JOB = ("acme", "job-1")
DAY_S = 86_400.0


class RedriveMachine(RuleBasedStateMachine):
    """One job. A redriver between two steps is an entry of `wished` or `holding`; any may die."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.fences = Fences(open_store(Path(self.folder.name).as_uri()))
        claim_request(self.fences, a_request(), CODEC.encode(a_request()), 13)
        self.now = NOON
        self.ends: dict[int, str] = {}
        self.wished: list[BeginRun] = []  # the wish is on jobs.control, the run not claimed
        self.wishes: set[int] = set()  # what jobs.control holds
        self.holding: list[RunClaim] = []  # claimed, not produced
        self.produced: dict[int, set[bytes]] = {}
        self.claims: dict[int, bytes | None] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    def later(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def author(self) -> Author:
        return Author("somebody", self.later())

    def latest(self) -> int:
        return self.fences.latest_run(*JOB)

    @rule()
    def plan(self) -> None:
        match plan_redrive(self.fences, CODEC, *JOB):
            case BeginRun() as plan:
                assert self.ends[plan.run - 1] in ("failed", "expired")
                self.wished.append(plan)
                self.wishes.add(plan.run)
            case SendAgain(record=record):
                self.holding.append(record)
            case nothing:
                assert nothing.why == ("final" if self.latest() in self.ends else "open")

    @precondition(lambda self: self.wished)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        plan = self.wished.pop(data.draw(st.integers(0, len(self.wished) - 1)))
        record = claim_redrive(self.fences, CODEC, plan, self.author(), DAY_S)
        assert isinstance(record, RunClaim)
        self.holding.append(record)

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def produce(self, data: st.DataObject) -> None:
        self.note(self.holding.pop(data.draw(st.integers(0, len(self.holding) - 1))))

    @rule()
    def everybody_dies(self) -> None:
        self.wished, self.holding = [], []

    @rule()
    def the_wishes_are_read(self) -> None:
        """By the expirer, as after its own restart: all of them."""
        for run in sorted(self.wishes):
            record = complete_redrive(
                self.fences, CODEC, *JOB, run, author=self.author(), deadline_s=DAY_S
            )
            if isinstance(record, RunClaim):
                self.note(record)
        latest = self.latest()
        assert latest == 1 or latest in self.ends or self.produced[latest]
        assert not self.wishes or max(self.wishes) <= latest  # no wish is ever lost

    @rule(status=st.sampled_from(["failed", "expired", "failed", "expired", "completed"]))
    def the_latest_run_ends(self, status: str) -> None:
        run = self.latest()
        if run not in self.ends:
            self.ends[run] = status
            done = VideoDone("job-1", run, "acme", status, 13, NOON, NOON)  # type: ignore[arg-type]
            self.fences.end(*JOB, run, CODEC.encode(done))

    def note(self, record: RunClaim) -> None:
        run = CODEC.decode(record.value, GenerationRequest).run
        assert record == read_run_claim(self.fences.claimed_run(*JOB, run) or b"")
        self.produced.setdefault(run, set()).add(record.value)

    @invariant()
    def a_run_begins_once_and_only_after_one_that_failed_or_expired(self) -> None:
        for run in range(2, self.latest() + 1):
            assert self.ends[run - 1] in ("failed", "expired")
            standing = self.fences.claimed_run(*JOB, run)
            assert self.claims.setdefault(run, standing) == standing
        assert all(len(values) == 1 for values in self.produced.values())


RedriveMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRedrive = RedriveMachine.TestCase
