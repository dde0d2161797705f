"""Each check of the oracle finds what it is for, and nothing in a sound history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.oracle import (
    Figures,
    Finding,
    History,
    Outcome,
    RunOfJob,
    Submission,
    Told,
    Work,
    figures,
    judge,
)

LIMIT_S = 30.0
TOPICS = ("requests", "prompts.cleaned", "latents.ready", "frames.decoded", "videos.done")
A, B = "job-a", "job-b"
RUN_A, RUN_B, SECOND = RunOfJob(A), RunOfJob(B), RunOfJob(A, 2)
DONE = Outcome("completed", "finisher", b"a video")


def told(job_id: str = A, outcome: Outcome = DONE, at_s: float = 110.0) -> Told:
    return Told(job_id, outcome.status, outcome.ended_by, outcome.body, at_s)


def reached(*job_ids: str, up_to: str = "videos.done", run: int = 1) -> dict[str, set[RunOfJob]]:
    topics, runs = TOPICS[: TOPICS.index(up_to) + 1], {RunOfJob(each, run) for each in job_ids}
    return {topic: runs if topic in topics else set() for topic in TOPICS}


def a_history(**changes: Any) -> History:
    """One acknowledged job that completed ten seconds after the heal."""
    history = History(
        submissions={A: Submission("acknowledged")},
        told=[told()],
        outcomes={RUN_A: DONE},
        reached=reached(A),
        dead={},
        stored={A},
        work={(A, "sampler"): Work(1, 0)},
        unreadable={},
        behind={"reel.sampler prompts.cleaned[0]": 0},
        started_at_s=90.0,
        healed_at_s=100.0,
        num_records=4,
        num_again=0,
    )
    return replace(history, **changes)


def failing(stage: str, deaths: int = 0, **changes: Any) -> History:
    outcome = Outcome("failed", stage, b"it failed")
    at = {"sampler": "prompts.cleaned", "decoder": "latents.ready"}[stage]
    return a_history(
        told=[told(outcome=outcome)],
        outcomes={RUN_A: outcome},
        reached=reached(A, up_to=at) | {"videos.done": {RUN_A}},
        dead={stage: {RUN_A}},
        work={(A, stage): Work(deaths, deaths)},
        **changes,
    )


def ending_as(status: str, deaths: int = 0, **changes: Any) -> History:
    """In the sampler, without a dead letter."""
    outcome = Outcome(status, "sampler", b"ended")
    return a_history(
        told=[told(outcome=outcome)],
        outcomes={RUN_A: outcome},
        reached=reached(A, up_to="prompts.cleaned") | {"videos.done": {RUN_A}},
        work={(A, "sampler"): Work(deaths, deaths)},
        **changes,
    )


def in_at(at_s: float) -> dict[str, Submission]:
    return {A: Submission("acknowledged", at_s=at_s)}


def test_who_came_after_the_heal_has_its_time_from_then() -> None:
    assert judge(a_history(submissions=in_at(110.0), told=[told(at_s=131.0)]), LIMIT_S) == []


def test_a_sound_history_has_no_findings() -> None:
    assert judge(a_history(), LIMIT_S) == []


def test_jobs_whose_producer_was_not_answered_may_end_or_not() -> None:
    both = {A: Submission("unknown"), B: Submission("unknown")}
    assert judge(a_history(submissions=both), LIMIT_S) == []


def test_what_should_fail_may_fail_and_what_killed_five_times_may_be_given_up() -> None:
    failed = {A: Submission("acknowledged", "failed")}
    assert judge(failing("decoder", submissions=failed), LIMIT_S) == []
    assert judge(failing("decoder", submissions={A: Submission("acknowledged", None)}), 30) == []
    assert judge(failing("sampler", deaths=5), LIMIT_S) == []


@pytest.mark.parametrize("status", ["cancelled", "expired", "rejected"])
def test_a_job_that_ends_otherwise_leaves_the_balance_where_it_ends(status: str) -> None:
    history = ending_as(status, submissions={A: Submission("acknowledged", status)})
    assert judge(history, LIMIT_S) == []


@pytest.mark.parametrize(
    ("history", "findings"),
    [
        (
            a_history(told=[], outcomes={}, reached=reached(A, up_to="latents.ready")),
            [("lost", A, "decoder"), ("vanished", A, "decoder")],
        ),
        (a_history(told=[]), [("untold", A, "finisher")]),
        (a_history(outcomes={}), [("lost", A, "finisher"), ("no fence", A, "finisher")]),
        (
            a_history(told=[told(), told(outcome=replace(DONE, body=b"another video"))]),
            [("second ending", A, "finisher")],
        ),
        (
            a_history(outcomes={RUN_A: DONE, RUN_B: DONE}, told=[told(), told(B)]),
            [("unrequested", B, None)],
        ),
        (a_history(submissions={A: Submission("failed")}), [("unrequested", A, None)]),
        (
            failing("sampler", deaths=4),
            [("needless letter", A, "sampler"), ("unfit ending", A, "sampler")],
        ),
        (a_history(told=[told(at_s=131.0)]), [("late", A, "finisher")]),
        (
            a_history(submissions=in_at(110.0), told=[told(at_s=141.0)]),
            [("late", A, "finisher")],
        ),
        (
            a_history(reached=reached(A) | {"requests": set()}),
            [("from nowhere", A, "prompt"), ("lost", A, None)],
        ),
        (a_history(stored={A, B}), [("unrequested", B, None)]),
        (
            a_history(reached={**reached(A), "requests": {RUN_A, RUN_B}}),
            [("unrequested", B, None), ("vanished", B, "prompt")],
        ),
        (a_history(dead={"decoder": {RUN_A}}), [("needless letter", A, "decoder")]),
        (ending_as("cancelled", deaths=5), [("unfit ending", A, "sampler")]),
        (
            a_history(reached=reached(A) | {"latents.ready": set()}),
            [("from nowhere", A, "decoder"), ("vanished", A, "sampler")],
        ),
        (
            replace(failing("sampler", deaths=5), dead={}),
            [("no dead letter", A, "sampler"), ("vanished", A, "sampler")],
        ),
        (a_history(unreadable={A: "other bytes"}), [("unreadable", A, None)]),
        (a_history(behind={"reel.sampler prompts.cleaned[0]": 1}), [("stalled", None, None)]),
    ],
)
def test_each_check_can_fail(history: History, findings: list[tuple[str, str, str]]) -> None:
    found = judge(history, LIMIT_S)
    assert [(each.check, each.job_id, each.stage) for each in found] == findings


def redriven(status: str = "completed", **changes: Any) -> History:
    """Its first run failed in the sampler; the second ended so, by the finisher."""
    first, second = Outcome("failed", "sampler", b"it failed"), Outcome(status, "finisher", b"2")
    before, after = reached(A, up_to="prompts.cleaned"), reached(A, run=2)
    came = {topic: before[topic] | after[topic] for topic in TOPICS}
    history = a_history(
        submissions={A: Submission("acknowledged", num_runs=2)},
        told=[told(outcome=first, at_s=95.0), replace(told(outcome=second), run=2)],
        outcomes={RUN_A: first, SECOND: second},
        reached=came | {"videos.done": {RUN_A, SECOND}},
        dead={"sampler": {RUN_A}},
        num_runs={A: 2},
    )
    return replace(history, **changes)


def test_a_job_that_was_redriven_is_judged_by_its_last_run() -> None:
    assert judge(redriven(), LIMIT_S) == []


@pytest.mark.parametrize(
    ("history", "findings"),
    [
        (redriven(submissions={A: Submission("acknowledged")}), [("second run", A, None)]),
        (
            redriven(submissions={A: Submission("acknowledged", num_runs=3)}),
            [("second run", A, None)],
        ),
        (
            redriven("failed", dead={"sampler": {RUN_A}, "finisher": {SECOND}}),
            [("needless letter", A, "finisher"), ("unfit ending", A, "finisher")],
        ),
        (redriven("failed"), [("no dead letter", A, "finisher"), ("unfit ending", A, "finisher")]),
        (
            redriven(told=redriven().told[:1], outcomes={RUN_A: redriven().outcomes[RUN_A]}),
            [("lost", A, "finisher")],
        ),
        (redriven(told=redriven().told[:1]), [("untold", A, "finisher")]),
        (
            redriven(num_runs={}),
            [
                ("needless letter", A, "sampler"),
                ("second run", A, "finisher"),
                ("second run", A, None),
                ("unfit ending", A, "sampler"),
            ],
        ),
        (
            redriven(reached={**redriven().reached, "latents.ready": set()}),
            [("from nowhere", A, "decoder"), ("vanished", A, "sampler")],
        ),
        (
            redriven(told=[*redriven().told, replace(redriven().told[1], body=b"other")]),
            [("second ending", A, "finisher")],
        ),
        (redriven(told=[told(), *redriven().told]), [("second ending", A, "finisher")]),
    ],
)
def test_each_check_of_runs_can_fail(
    history: History, findings: list[tuple[str, str, str]]
) -> None:
    found = judge(history, LIMIT_S)
    assert [(each.check, each.job_id, each.stage) for each in found] == findings


def test_work_done_once_in_each_run_is_not_done_again() -> None:
    work = {(A, "prompt"): Work(2, 0), (A, "sampler"): Work(3, 0)}
    assert figures(redriven(work=work)).num_redone == 1


def test_figures_count_distinct_jobs_and_the_longest_silence() -> None:
    history = a_history(
        submissions={A: Submission("acknowledged"), B: Submission("unknown")},
        told=[told(at_s=95.0), told(at_s=110.0), told(at_s=112.0)],
        work={(A, "sampler"): Work(3, 1), (A, "decoder"): Work(1, 0), (B, "prompt"): Work(0, 0)},
        num_records=9,
        num_again=2,
    )
    assert figures(history) == Figures(
        num_jobs=1, num_outcomes=1, num_records=9, num_duplicates=2, num_redone=2,
        longest_stall_s=15.0, after_heal_s=12.0,
    )  # fmt: skip


def test_a_finding_names_the_job_and_the_stage() -> None:
    assert str(Finding("lost", A, "decoder", "why")) == "lost: job-a decoder: why"
    assert str(Finding("stalled", None, None, "why")) == "stalled: why"
