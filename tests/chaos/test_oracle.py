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
    Submission,
    Told,
    Work,
    figures,
    judge,
)

LIMIT_S = 30.0
TOPICS = ("requests", "prompts.cleaned", "latents.ready", "frames.decoded", "videos.done")
A, B = "job-a", "job-b"
DONE = Outcome("completed", "finisher", b"a video")


def told(job_id: str = A, outcome: Outcome = DONE, at_s: float = 110.0) -> Told:
    return Told(job_id, outcome.status, outcome.ended_by, outcome.body, at_s)


def reached(*job_ids: str, up_to: str = "videos.done") -> dict[str, set[str]]:
    topics = TOPICS[: TOPICS.index(up_to) + 1]
    return {topic: set(job_ids) if topic in topics else set() for topic in TOPICS}


def a_history(**changes: Any) -> History:
    """One acknowledged job that completed ten seconds after the heal."""
    history = History(
        submissions={A: Submission("acknowledged")},
        told=[told()],
        outcomes={A: DONE},
        reached=reached(A),
        dead={},
        work={(A, "sampler"): Work(1, 0)},
        unreadable={},
        behind={"reel.sampler prompts.cleaned[0]": 0},
        started_at_s=90.0,
        healed_at_s=100.0,
    )
    return replace(history, **changes)


def failing(stage: str, deaths: int = 0, **changes: Any) -> History:
    outcome = Outcome("failed", stage, b"it failed")
    at = {"sampler": "prompts.cleaned", "decoder": "latents.ready"}[stage]
    return a_history(
        told=[told(outcome=outcome)],
        outcomes={A: outcome},
        reached=reached(A, up_to=at) | {"videos.done": {A}},
        dead={stage: {A}},
        work={(A, stage): Work(deaths, deaths)},
        **changes,
    )


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
    outcome = Outcome(status, "sampler", b"ended")
    history = a_history(
        submissions={A: Submission("acknowledged", status)},
        told=[told(outcome=outcome)],
        outcomes={A: outcome},
        reached=reached(A, up_to="prompts.cleaned") | {"videos.done": {A}},
    )
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
            a_history(outcomes={A: DONE, B: DONE}, told=[told(), told(B)]),
            [("unrequested", B, None)],
        ),
        (a_history(submissions={A: Submission("failed")}), [("unrequested", A, None)]),
        (failing("sampler", deaths=4), [("unfit ending", A, "sampler")]),
        (a_history(told=[told(at_s=131.0)]), [("late", A, "finisher")]),
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


def test_figures_count_distinct_jobs_and_the_longest_silence() -> None:
    history = a_history(
        submissions={A: Submission("acknowledged"), B: Submission("unknown")},
        told=[told(at_s=95.0), told(at_s=110.0), told(at_s=112.0)],
        work={(A, "sampler"): Work(3, 1), (A, "decoder"): Work(1, 0), (B, "prompt"): Work(0, 0)},
    )
    assert figures(history) == Figures(
        num_jobs=1, num_outcomes=1, num_duplicates=2, num_redone=2, longest_stall_s=15.0,
        after_heal_s=12.0,
    )  # fmt: skip


def test_a_finding_names_the_job_and_the_stage() -> None:
    assert str(Finding("lost", A, "decoder", "why")) == "lost: job-a decoder: why"
    assert str(Finding("stalled", None, None, "why")) == "stalled: why"
