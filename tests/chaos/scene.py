"""A running pipeline on a cluster that can be broken: jobs flow while a fault does its work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streams.blobs.opening import store_of
from tests.chaos.cluster import Cluster
from tests.chaos.crew import Crew, Member
from tests.chaos.findings import (
    Heard,
    log_lines,
    look_around,
    read_outcomes,
    records_behind,
    topics_to_read,
    work_of,
)
from tests.chaos.ledger import Failpoint, Reading, arm, disarm, in_hand, is_armed
from tests.chaos.oracle import Figures, Finding, History, RunOfJob, figures, judge
from tests.chaos.submitter import Submitter
from tests.e2e.reading import Tail

DONE_WITHIN_S = 60.0
IN_FLIGHT = 40  # eight seconds of what two cores do: who waits longer is held up, not behind others
FEED_PER_S = 3.0
"""Jobs handed in while a fault works: more would show how slow two cores are, not what it does
(they come to 5 a second when nothing is broken)."""
READY_S = 90.0
READ_BYTES = 64 * 1024  # an answer for each record of every topic would cost what the pipeline has
FIRES_WITHIN_S = 120.0  # on a machine short of disk or CPU a process takes long to start


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one scenario went."""

    fault: str
    seed: int
    figures: Figures
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # what the fault says; exits that nobody ordered; log lines of findings
    seconds: float
    measured: Mapping[str, float]  # what the fault itself has measured, by its goal's name


class Scene:
    """Jobs, workers and servers of one scenario. `until` keeps all of it going."""

    def __init__(
        self,
        fault: str,
        seed: int,
        cluster: Cluster,
        crew: Crew,
        tail: Tail,
        folder: Path,
        done_within_s: float,
    ) -> None:
        self.fault, self.cluster, self.crew, self.folder = fault, cluster, crew, folder
        self.random = random.Random(f"{seed}/{fault}")
        self.submitter = Submitter(cluster.settings)
        self.suffix = f".{fault}-{seed}"
        self.heard = Heard(self.suffix)
        self.ledger = Reading(folder)
        self._seed, self._tail, self._done_within_s = seed, tail, done_within_s
        self._num_wanted = 0
        self._is_feeding, self._in_flight = False, IN_FLIGHT
        self._fed_at_s = 0.0
        self._row_findings: list[Finding] = []
        self.measured: dict[str, float] = {}
        self.notes: list[str] = []
        self.started_at_s = self.healed_at_s = time.monotonic()

    def submit(self, name: str, status: str | None = "completed", **wishes: Any) -> str:
        """Hand in one job that should end so (`Submitter.submit`); its id."""
        job_id = f"{name}{self.suffix}"
        self.submitter.submit(job_id, status, **wishes)
        return job_id

    def feed_fast(self, in_flight: int) -> None:
        """From now on so many are in at a time, though nothing is healed yet."""
        self._is_feeding, self._in_flight = False, in_flight

    @property
    def num_acknowledged(self) -> int:
        """Requests that are on the log, as their producer was told."""
        answers = (each.answer for each in self.submitter.submissions.values())
        return sum(answer == "acknowledged" for answer in answers)

    def die_at(self, points: Mapping[str, Failpoint]) -> None:
        """By stage: the next of its workers to pass there dies; returns when all have."""
        for stage, point in points.items():
            arm(self.folder, stage, point)

        def left() -> dict[str, Failpoint]:
            return {s: point for s, point in points.items() if is_armed(self.folder, s, point)}

        has_fired = self.until(lambda: not left(), FIRES_WITHIN_S)
        assert has_fired, f"within {FIRES_WITHIN_S:g} s no worker came by {left()}"

    def until_busy(self, member: Member) -> set[str]:
        """Returns when that worker, which runs, has begun to compute anything more; which jobs."""
        pid = member.pids[-1]
        before = in_hand(self.ledger.entries(), pid)  # also what was taken from it meanwhile
        found: set[str] = set()

        def is_busy() -> bool:
            found.update(in_hand(self.ledger.entries(), pid) - before)
            return bool(found)

        assert self.until(is_busy, FIRES_WITHIN_S), f"{member.name} has had nothing to do"
        return found

    def has_ended(self, jobs: Collection[str], run: int = 1) -> bool:
        """Whether of each job that run's VideoDone was read."""
        return {each.job_id for each in self.heard.told if each.run == run}.issuperset(jobs)

    def wait_s(self, seconds: float) -> None:
        """Let everything go on for so long."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s, seconds + 5.0)

    def until(self, is_so: Callable[[], bool], limit_s: float) -> bool:
        """Keep everything going until that is so; False if it is not so in time."""
        end_s = time.monotonic() + limit_s
        while not is_so():
            if time.monotonic() > end_s:
                return False
            self._step()
        return True

    def aside(self, *calls: Callable[[], object]) -> None:
        """Do what blocks, all of it at once, while everything goes on; returns when it is done."""
        with ThreadPoolExecutor(len(calls)) as pool:
            doing = [pool.submit(call) for call in calls]
            self.until(lambda: all(each.done() for each in doing), READY_S)
        for each in doing:
            each.result()

    def expect(self, job_id: str, status: str) -> None:
        """What was done to this job lets it end so."""
        known = self.submitter.submissions[job_id]
        self.submitter.submissions[job_id] = replace(known, status=status)

    def expect_redrive(self, job_id: str) -> None:
        """It is given another run, by whose outcome it is judged."""
        known = self.submitter.submissions[job_id]
        self.submitter.submissions[job_id] = replace(known, num_runs=known.num_runs + 1)

    def run(self, num_jobs: int, fault: Callable[[Scene], None]) -> Verdict:
        """Feed at least so many jobs while the fault does its work, heal, wait, end, judge."""
        self._num_wanted, self._is_feeding = num_jobs, True
        assert self.until(lambda: self.heard.num_told >= 1, READY_S), "no job has ended"
        self.started_at_s = time.monotonic()
        try:
            fault(self)
        except AssertionError as error:  # the fault did not come about, or its own rule is broken
            self._row_findings.append(Finding("row", None, None, str(error)))
        self._is_feeding = False
        disarm(self.folder)
        self.cluster.heal()
        self.crew.heal()
        self.healed_at_s = time.monotonic()
        wanted_within_s = 10 * self._done_within_s
        self.until(lambda: self.num_acknowledged >= num_jobs, wanted_within_s)
        self._num_wanted = 0  # else what comes in would never rest
        self.submitter.finish()
        if self.num_acknowledged < num_jobs / 2:
            text = f"{self.num_acknowledged} of {num_jobs} requests were acknowledged"
            self._row_findings.append(Finding("row", None, None, text))
        self.until(self._all_told, 2 * self._done_within_s)
        behind = self._rest()
        self._row_findings += [Finding("row", None, None, each) for each in self.crew.dismiss()]
        self._row_findings += [Finding("crash", None, None, each) for each in self.crew.crashes()]
        return self._verdict(behind)

    def _step(self) -> None:
        self.crew.step()
        self.submitter.poll()
        self._feed()
        now_s = time.monotonic()
        for message in self._tail.read(0.02):
            self.heard.take(message, now_s)

    def _feed(self) -> None:
        submitted = len(self.submitter.submissions)
        room = self._in_flight - submitted + self.heard.num_told
        if self._is_feeding:
            now_s = time.monotonic()
            room = min(room, now_s - self._fed_at_s >= 1 / FEED_PER_S)
            self._fed_at_s = now_s if room > 0 else self._fed_at_s
        elif self.num_acknowledged >= self._num_wanted:  # what brokers never took is no job
            return
        for _ in range(min(8, room)):
            self.submit(f"good-{len(self.submitter.submissions)}")

    def _all_told(self) -> bool:
        told = {each.of for each in self.heard.told}
        return all(
            RunOfJob(job_id, each.num_runs) in told
            for job_id, each in self.submitter.submissions.items()
            if each.answer == "acknowledged"
        )

    def _rest(self) -> dict[str, int]:
        """Until nothing is uncommitted, or for too long; what is left then."""
        end_s = time.monotonic() + self._done_within_s
        while True:
            behind = records_behind(self.cluster.direct)
            if not any(behind.values()) or time.monotonic() > end_s:
                self.wait_s(0.5)  # what was told at the very last
                return behind
            self.wait_s(1.0)

    def _verdict(self, behind: Mapping[str, int]) -> Verdict:
        store = store_of(self.cluster.direct)
        stored = look_around(store, self.suffix)
        outcomes, unreadable = read_outcomes(store, stored.ended)
        history = History(
            submissions=self.submitter.submissions,
            told=self.heard.told,
            outcomes=outcomes,
            reached=self.heard.reached,
            dead=self.heard.dead,
            stored=stored.jobs,
            work=work_of(self.ledger.entries()),
            unreadable=unreadable,
            behind=behind,
            started_at_s=self.started_at_s,
            healed_at_s=self.healed_at_s,
            num_records=self.heard.num_written.total(),
            num_again=self.heard.num_written.total() - len(self.heard.num_written),
            num_runs=stored.num_runs,
        )
        findings = (*self._row_findings, *judge(history, self._done_within_s))
        lines = (
            f"  {line}"
            for job_id in {each.job_id: None for each in findings[:3] if each.job_id}
            for line in log_lines(self.folder, self.folder, job_id)
        )
        notes = (*self.notes, *self.crew.unforeseen_exits(), *lines)
        seconds = time.monotonic() - self.started_at_s
        cost = figures(history)
        return Verdict(self.fault, self._seed, cost, findings, notes, seconds, self.measured)


@contextmanager
def open_scene(
    cluster: Cluster,
    folder: Path,
    fault: str,
    seed: int,
    orders: Mapping[str, str] | None = None,
    orders_of: Mapping[str, Mapping[str, str]] | None = None,
    changes: Mapping[str, object] | None = None,
    done_within_s: float = DONE_WITHIN_S,
) -> Iterator[Scene]:
    """A pipeline of its own crew, on the cluster's topics; `changes` are to the crew's settings.

    `done_within_s`: so long after the heal every sound job has completed, and all is committed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = {"CHAOS_SEED": str(seed), "CHAOS_WORK_MS": "20"}
    settings = cluster.settings.model_copy(update=dict(changes or {}))
    crew = Crew(settings, folder, {**said, **(orders or {})}, orders_of=orders_of)
    with ExitStack() as stack:
        tail = stack.enter_context(Tail(cluster.bootstrap, topics_to_read(), min_bytes=READ_BYTES))
        stack.enter_context(crew)
        yield Scene(fault, seed, cluster, crew, tail, folder, done_within_s)
