"""What must be true of a pipeline once every fault is healed and nothing moves: pure.

It trusts what clients were answered, what lies on the log and in the object store, and the test
workers' ledger; nothing that a worker says of itself. Each run of a job is held to the rules on its
own; what a job came to is the outcome of its highest claimed run.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from streams.topology import VIDEOS_DONE, Stage, worker_stages

Answer = Literal["acknowledged", "failed", "unknown"]

#: A job may die as often inside an engine before it may end as a dead letter (DESIGN 4.5).
DEATHS_ALLOWED = 5


class RunOfJob(NamedTuple):
    """The first run of a job, or one that a redrive began."""

    job_id: str
    run: int = 1


@dataclass(frozen=True, slots=True)
class Submission:
    """A request, and what its producer heard, when. `status` None: any ending is right.

    `num_runs`: the first, and one for each time it was to be redriven.
    """

    answer: Answer
    status: str | None = "completed"
    num_runs: int = 1
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """A VideoDone as it lies on the log, in order. `at_s` is when the test read it."""

    job_id: str
    status: str
    ended_by: str | None
    body: bytes
    at_s: float
    run: int = 1

    @property
    def of(self) -> RunOfJob:
        """Whose ending it is."""
        return RunOfJob(self.job_id, self.run)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What stands in the object store: a run's outcome fence."""

    status: str
    ended_by: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """What the ledger says of one job in one stage."""

    num_worked: int
    num_deaths: int  # of processes that had begun and not stored it


@dataclass(frozen=True, slots=True)
class History:
    """Everything that was asked and everything that was found, of one scenario."""

    submissions: Mapping[str, Submission]
    told: Sequence[Told]
    outcomes: Mapping[RunOfJob, Outcome]
    reached: Mapping[str, Set[RunOfJob]]  # by stage topic
    dead: Mapping[str, Set[RunOfJob]]  # of dead letters, by stage
    stored: Set[str]  # jobs of which anything lies in the object store
    work: Mapping[tuple[str, str], Work]  # by (job, stage)
    unreadable: Mapping[str, str]  # completed jobs whose object is not what was promised, and why
    behind: Mapping[str, int]  # records not committed, by "group topic[partition]"
    started_at_s: float
    healed_at_s: float
    num_records: int  # that stages wrote: of their topics and of their dead letters
    num_again: int  # of these, that said of a run what another one had said
    num_runs: Mapping[str, int] = field(default_factory=dict)  # claimed, where it is not one
    stages: Sequence[Stage] = field(default_factory=worker_stages)

    def latest(self, job_id: str) -> RunOfJob:
        """The run whose outcome is effective."""
        return RunOfJob(job_id, self.num_runs.get(job_id, 1))

    def waited_s(self, job_id: str, told_at_s: float) -> float:
        """From when nothing was broken and the job was in, until then."""
        return told_at_s - max(self.healed_at_s, self.submissions[job_id].at_s)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that must hold does not; `check` is the rule's name."""

    check: str
    job_id: str | None
    stage: str | None
    text: str

    def __str__(self) -> str:
        where = " ".join(each for each in (self.job_id, self.stage) if each)
        return f"{self.check}: {where}: {self.text}" if where else f"{self.check}: {self.text}"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a scenario cost. `num_redone` counts computations beyond the first of (job, stage).

    `after_heal_s`: the longest that a job took from when it was in and nothing was broken.
    """

    num_jobs: int
    num_outcomes: int
    num_records: int
    num_duplicates: int
    num_redone: int
    longest_stall_s: float
    after_heal_s: float


def judge(history: History, limit_s: float) -> list[Finding]:
    """All that is wrong. Sound jobs must have completed within `limit_s` of the heal."""
    return sorted(
        {
            *_lost(history),
            *_second_endings(history),
            *_second_runs(history),
            *_unrequested(history),
            *_unfit_endings(history, limit_s),
            *_needless_letters(history),
            *_imbalance(history),
            *(Finding("unreadable", job, None, why) for job, why in history.unreadable.items()),
            *(
                Finding("stalled", None, None, f"{where}: {count} records are not committed")
                for where, count in history.behind.items()
                if count
            ),
        },
        key=str,
    )


def figures(history: History) -> Figures:
    """The table's figures."""
    times_s = [history.started_at_s, *sorted(each.at_s for each in history.told)]
    gaps_s = [later - sooner for sooner, later in itertools.pairwise(times_s)]
    told = (each for each in history.told if each.job_id in history.submissions)
    waits_s = (history.waited_s(each.job_id, each.at_s) for each in told)
    return Figures(
        num_jobs=sum(each.answer == "acknowledged" for each in history.submissions.values()),
        num_outcomes=len(history.outcomes),
        num_records=history.num_records,
        num_duplicates=history.num_again,
        num_redone=sum(
            max(0, each.num_worked - history.latest(job_id).run)
            for (job_id, _), each in history.work.items()
        ),
        longest_stall_s=max(gaps_s, default=0.0),
        after_heal_s=max((0.0, *waits_s)),
    )


def _lost(history: History) -> Iterator[Finding]:
    told = {each.of for each in history.told}
    on_the_log = {of.job_id for of in history.reached.get(history.stages[0].reads, ())}
    for job_id, submission in history.submissions.items():
        latest = history.latest(job_id)
        if submission.answer == "acknowledged" and job_id not in on_the_log:
            yield Finding("lost", job_id, None, "its producer was told it is in, and it is not")
        elif submission.answer == "acknowledged" and latest not in history.outcomes:
            text = f"run {latest.run} has no outcome"
            yield Finding("lost", job_id, _last_stage(history, latest), text)
    for of, outcome in history.outcomes.items():
        if of not in told and of.job_id in history.submissions:
            text = f"the outcome of run {of.run} has no VideoDone"
            yield Finding("untold", of.job_id, outcome.ended_by, text)


def _second_endings(history: History) -> Iterator[Finding]:
    for each in history.told:
        outcome = history.outcomes.get(each.of)
        if outcome is None:
            text = f"told {each.status} by {each.ended_by}, and no outcome stands"
            yield Finding("no fence", each.job_id, each.ended_by, text)
        elif outcome.body != each.body:
            text = f"told {each.status} by {each.ended_by}; what stands is another ending:"
            text += f" {outcome.status} by {outcome.ended_by}"
            yield Finding("second ending", each.job_id, each.ended_by, text)


def _second_runs(history: History) -> Iterator[Finding]:
    for job_id, submission in history.submissions.items():
        latest = history.latest(job_id)
        if submission.answer == "acknowledged" and latest.run != submission.num_runs:
            text = f"it has {latest.run} runs, and should have {submission.num_runs}"
            yield Finding("second run", job_id, None, text)
    for each in history.told:
        if each.run > history.latest(each.job_id).run:
            text = f"told of run {each.run}, which nobody began"
            yield Finding("second run", each.job_id, each.ended_by, text)


def _unrequested(history: History) -> Iterator[Finding]:
    found = {of.job_id for runs in history.reached.values() for of in runs}
    found.update(of.job_id for of in history.outcomes)
    found.update(each.job_id for each in history.told)
    for job_id in sorted(found | history.stored):
        submission = history.submissions.get(job_id)
        if submission is None or submission.answer == "failed":
            yield Finding("unrequested", job_id, None, "nobody was told it is in, and it was begun")


def _unfit_endings(history: History, limit_s: float) -> Iterator[Finding]:
    told_at_s: dict[RunOfJob, float] = {}
    for each in history.told:
        told_at_s.setdefault(each.of, each.at_s)
    for job_id, submission in history.submissions.items():
        latest = history.latest(job_id)
        outcome = history.outcomes.get(latest)
        if outcome is None or submission.status is None:
            continue
        is_given_up = outcome.status == "failed" and _may_be_dead(history, job_id)
        if outcome.status != submission.status and not is_given_up:
            text = f"it is {outcome.status}, not {submission.status}"
            yield Finding("unfit ending", job_id, outcome.ended_by, text)
        took_s = history.waited_s(job_id, told_at_s.get(latest, history.healed_at_s))
        if took_s > limit_s:
            text = f"it ended {took_s:.1f} s after the heal, not within {limit_s:g} s"
            yield Finding("late", job_id, outcome.ended_by, text)


def _needless_letters(history: History) -> Iterator[Finding]:
    """What should complete leaves no dead letter in its last run, whatever it came to."""
    for stage, runs in history.dead.items():
        for of in sorted(runs):
            submission = history.submissions.get(of.job_id)
            is_sound = submission is not None and submission.status == "completed"
            is_last = of == history.latest(of.job_id)
            if is_sound and is_last and not _may_be_dead(history, of.job_id):
                yield Finding("needless letter", of.job_id, stage, "it should complete")


def _may_be_dead(history: History, job_id: str) -> bool:
    deaths = Counter[str]()
    for (job, _), work in history.work.items():
        deaths[job] += work.num_deaths
    return deaths[job_id] >= DEATHS_ALLOWED


def _imbalance(history: History) -> Iterator[Finding]:
    """In = out + dead letters + other endings, by distinct (run of a job, stage)."""
    for stage in history.stages:
        came = history.reached.get(stage.reads, set())
        left = history.reached.get(stage.writes or "", set())
        dead = history.dead.get(stage.name, set())
        for of in sorted(left - came):
            if stage.writes != VIDEOS_DONE:
                text = f"run {of.run} left and had not come"
                yield Finding("from nowhere", of.job_id, stage.name, text)
        for of in sorted(came - left - dead):
            outcome = history.outcomes.get(of)
            if outcome is None or outcome.status in ("completed", "failed"):
                text = f"run {of.run} came, and neither left nor ended"
                yield Finding("vanished", of.job_id, stage.name, text)
    for of, outcome in history.outcomes.items():
        if outcome.status == "failed" and not any(of in each for each in history.dead.values()):
            text = f"run {of.run} failed without one"
            yield Finding("no dead letter", of.job_id, outcome.ended_by, text)


def _last_stage(history: History, of: RunOfJob) -> str | None:
    reached = [each.name for each in history.stages if of in history.reached.get(each.reads, ())]
    return reached[-1] if reached else None
