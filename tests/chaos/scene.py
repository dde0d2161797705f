"""A running pipeline on a cluster that can be broken: jobs flow while a fault does its work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from streams.blobs.opening import store_of
from tests.chaos.cluster import Cluster
from tests.chaos.crew import Crew
from tests.chaos.findings import (
    Heard,
    log_lines,
    only,
    read_num_runs,
    read_outcomes,
    records_behind,
    topics_to_read,
    work_of,
)
from tests.chaos.ledger import disarm, read_ledger
from tests.chaos.oracle import Figures, Finding, History, RunOfJob, figures, judge
from tests.chaos.submitter import Submitter
from tests.e2e.reading import Tail

DONE_WITHIN_S = 60.0
IN_FLIGHT = 80
READY_S = 90.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one scenario went."""

    fault: str
    seed: int
    figures: Figures
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # of what was found, the log lines; exits that nobody ordered
    seconds: float


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
        self._seed, self._tail, self._done_within_s = seed, tail, done_within_s
        self._num_wanted = 0
        self._is_feeding = False
        self.started_at_s = self.healed_at_s = time.monotonic()

    def submit(self, name: str, status: str | None = "completed") -> str:
        """Hand in one job that should end so; its id."""
        job_id = f"{name}{self.suffix}"
        self.submitter.submit(job_id, status)
        return job_id

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
        """Feed at least so many jobs while the fault does its work, heal, wait, judge."""
        self._num_wanted, self._is_feeding = num_jobs, True
        assert self.until(lambda: self.heard.num_told >= 1, READY_S), "no job has ended"
        self.started_at_s = time.monotonic()
        fault(self)
        self._is_feeding = False
        wanted_within_s = 10 * self._done_within_s
        self.until(lambda: len(self.submitter.submissions) >= num_jobs, wanted_within_s)
        disarm(self.folder)
        self.cluster.heal()
        self.crew.heal()
        self.healed_at_s = time.monotonic()
        self.submitter.finish()
        self.until(self._all_told, 2 * self._done_within_s)
        behind = self._rest()
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
        is_wanted = self._is_feeding or submitted < self._num_wanted
        for _ in range(min(8, IN_FLIGHT - submitted + self.heard.num_told) if is_wanted else 0):
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
        jobs = set(self.submitter.submissions) | {each.job_id for each in self.heard.told}
        store = store_of(self.cluster.direct)
        num_runs = read_num_runs(store, sorted(jobs))
        outcomes, unreadable = read_outcomes(store, num_runs)
        history = History(
            submissions=self.submitter.submissions,
            told=self.heard.told,
            outcomes=outcomes,
            reached=only(jobs, self.heard.reached),
            dead=only(jobs, self.heard.dead),
            work=work_of(read_ledger(self.folder)),
            unreadable=unreadable,
            behind=behind,
            started_at_s=self.started_at_s,
            healed_at_s=self.healed_at_s,
            num_runs=num_runs,
        )
        findings = tuple(judge(history, self._done_within_s))
        lines = (
            f"  {line}"
            for job_id in {each.job_id: None for each in findings[:3] if each.job_id}
            for line in log_lines(self.folder, self.folder, job_id)
        )
        notes = (*self.crew.unforeseen_exits(), *lines)
        seconds = time.monotonic() - self.started_at_s
        return Verdict(self.fault, self._seed, figures(history), findings, notes, seconds)


@contextmanager
def open_scene(
    cluster: Cluster,
    folder: Path,
    fault: str,
    seed: int,
    orders: Mapping[str, str] | None = None,
    orders_of: Mapping[str, Mapping[str, str]] | None = None,
    done_within_s: float = DONE_WITHIN_S,
) -> Iterator[Scene]:
    """A pipeline of its own crew, on the cluster's topics.

    `done_within_s`: so long after the heal every sound job has completed, and all is committed.
    """
    folder.mkdir(parents=True)
    said = {"CHAOS_FOLDER": str(folder), "CHAOS_SEED": str(seed), "CHAOS_WORK_MS": "20"}
    crew = Crew(cluster.settings, folder, {**said, **(orders or {})}, orders_of=orders_of)
    with ExitStack() as stack:
        tail = stack.enter_context(Tail(cluster.bootstrap, topics_to_read()))
        stack.enter_context(crew)
        yield Scene(fault, seed, cluster, crew, tail, folder, done_within_s)
