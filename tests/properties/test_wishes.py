"""Wishes and RetryPolicy beside models that keep everything."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from streams.core.offset_map import Crashes
from streams.core.retry import RetryPolicy, if_it_crashes_now, is_suspect, sentence
from streams.core.runs import RunOfJob, Wished
from streams.core.wishes import Wishes

LIFE_S = 10.0
RUNS = [RunOfJob(*each) for each in (("a", "j", 1), ("b", "j", 1), ("a", "j", 2), ("a", "k", 1))]
RUN = st.sampled_from([*RUNS, (None, "j", 1)])
TIME = st.integers(0, 40).map(float)
WISHES = st.lists(st.tuples(RUN, TIME, st.none() | TIME), max_size=12)


@given(WISHES, TIME)
def test_what_is_left_of_wishes_is_what_may_still_matter(
    made: list[tuple[Wished, float, float | None]], now_s: float
) -> None:
    wishes = Wishes(LIFE_S)
    cancelled: dict[Wished, float] = {}
    deadlines: dict[Wished, tuple[float, float, int]] = {}
    for number, (run, issued_s, deadline_s) in enumerate(made):
        if deadline_s is None:
            wishes.cancel(run, issued_s)
            cancelled[run] = issued_s
        else:
            wishes.set_deadline(run, deadline_s, issued_s)
            deadlines[run] = issued_s, deadline_s, number
    wishes.forget_old(now_s)
    lasting = {run for run, issued_s in cancelled.items() if issued_s + LIFE_S > now_s}
    kept = {run: at for run, at in deadlines.items() if max(at[0] + LIFE_S, at[1]) > now_s}
    for each in RUNS:
        names: list[Wished] = [each, (None, each.job_id, each.run)]
        assert wishes.is_cancelled(each) == any(name in lasting for name in names)
        mine = [kept[name] for name in names if name in kept]
        last = max(mine, key=lambda at: at[2], default=(0.0, -1.0, 0))
        assert wishes.deadline_s(each, -1.0) == last[1]
    assert len(wishes) == len(lasting) + len(kept)


DELAYS = st.lists(st.integers(1, 9999), min_size=1, max_size=4, unique=True).map(sorted)


@given(DELAYS, st.integers(1, 9), st.text(max_size=9), st.integers(1, 3))
def test_a_job_is_retried_so_often_and_no_more_and_never_sooner_than_before(
    delays_s: list[int], max_tries: int, job_id: str, run: int
) -> None:
    policy = RetryPolicy(tuple(delays_s), max_tries)
    waits = [policy.delay_s(job_id, run, nth) for nth in range(1, max_tries + 3)]
    told = [each for each in waits if each is not None]
    assert waits == told + [None] * 3
    assert len(told) == max_tries - 1
    for nth, wait in enumerate(told):
        rungs = {delays_s[min(nth + more, len(delays_s) - 1)] for more in (0, 1)}
        assert wait in rungs
    assert all(later >= sooner for sooner, later in pairwise(told))
    assert policy.longest_s == max(delays_s)


def test_a_killer_dies_after_three_crashes_alone_and_takes_nobody_along() -> None:
    """Two crashes in company, then alone each time, between them the longest retry."""
    crashes, told, story = Crashes(), Crashes(), []
    for _ in range(9):
        fault = sentence(crashes, told)
        if fault is not None:
            told = crashes  # the copy's headers say so
            story.append(fault.reason_code)
        if fault is not None and fault.fate.value == "dead_letter":
            break
        story.append("alone" if is_suspect(crashes) else "in company")
        crashes = if_it_crashes_now(crashes, is_suspect(crashes))
    alone = ["alone", "killed_worker"]
    assert story == ["in company", "in company", *alone, *alone, "alone", "killed_workers"]
