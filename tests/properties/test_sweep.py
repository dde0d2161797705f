"""The sweep's decision beside two models: the rules in other words, and who may still come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import hypothesis.strategies as st
from hypothesis import given

from streams.blobs.base import Found
from streams.blobs.sweep import Ages, Kind, RunFacts, may_go, may_go_by_age
from tests.builders import CREATED_AT

HOURS = st.integers(0, 40)
AGES = st.builds(
    lambda grace, run, kept: Ages(*(timedelta(hours=h) for h in (grace, run, kept))),
    st.integers(1, 5), st.integers(1, 10), st.integers(1, 20),
)  # fmt: skip


def near(ages: Ages, *since: int) -> st.SearchStrategy[int]:
    """An hour at, or just before or after, one that an age could make a difference to."""
    spans = [ages.grace, ages.longest_run, ages.retention]
    hours = [
        span // timedelta(hours=1) for span in [*spans, *(each + ages.grace for each in spans)]
    ]
    return st.builds(
        lambda begun, span, off: begun + span + off,
        st.sampled_from(since), st.sampled_from(hours), st.integers(-1, 1),
    )  # fmt: skip


def at(hours: int) -> Found:
    return Found("acme/job/1/sampler/blob", 7, CREATED_AT + timedelta(hours=hours))


@given(
    ages=AGES, made=HOURS, ended=st.none() | HOURS,
    named=st.sampled_from((None, True, False, False, False)), data=st.data(),
)  # fmt: skip
def test_the_decision_is_the_rule_in_words(
    ages: Ages, made: int, ended: int | None, named: bool | None, data: st.DataObject
) -> None:
    blob, now = at(made), data.draw(near(ages, made, ended or 0))
    facts = RunFacts(
        None if ended is None else CREATED_AT + timedelta(hours=ended),
        None if named is None else frozenset({blob.key} if named else {"acme/job/1/other"}),
    )
    grace, run = ages.grace // timedelta(hours=1), ages.longest_run // timedelta(hours=1)
    is_old = all(now > hour + grace for hour in (made, ended or 0))
    is_left = now > made + run + grace
    expected = named is False and (is_left if ended is None else is_old)
    assert may_go(blob, facts, CREATED_AT + timedelta(hours=now), ages) is expected


@dataclass(frozen=True)
class Life:
    """A run, in hours after its request: when a stage puts a blob, names it, ends the run."""

    put: int
    published: int | None
    ended: int | None
    video: bool  # the blob is the video of the outcome


@st.composite
def lives(draw: st.DrawFn, longest_run: int, grace: int) -> Life:
    """Whatever workers may do: at work until deadline and retries, or the grace after an end."""
    ended = draw(st.none() | st.integers(0, longest_run))
    latest = longest_run if ended is None else min(longest_run, ended + grace)
    put = draw(st.integers(0, latest))
    published = draw(st.none() | st.integers(put, latest))
    video = ended is not None and put <= ended and draw(st.booleans())
    return Life(put, None if video else published, ended, video)


@given(data=st.data(), ages=AGES, now=st.integers(0, 60))
def test_what_anybody_may_still_name_or_read_never_goes(
    data: st.DataObject, ages: Ages, now: int
) -> None:
    grace, run = ages.grace // timedelta(hours=1), ages.longest_run // timedelta(hours=1)
    life = data.draw(lives(run, grace))
    if life.put > now:
        return
    blob = at(life.put)
    # What the sweep sees at `now`: nothing that has not happened yet.
    has_ended = life.ended is not None and life.ended <= now
    is_published = life.published is not None and life.published <= now
    named = life.video if has_ended else is_published
    facts = RunFacts(
        CREATED_AT + timedelta(hours=life.ended) if has_ended and life.ended is not None else None,
        frozenset({blob.key} if named else ()),
    )
    goes = may_go(blob, facts, CREATED_AT + timedelta(hours=now), ages)
    if life.video:
        assert not goes, "the video of an outcome, seen or to come"
    elif life.published is not None:
        # A stage that lags reads it until the run ends; one that was at it then, the grace after.
        is_wanted = life.ended is None or now <= life.ended + grace
        assert not (goes and is_wanted)
    if goes:
        assert life.published is None or life.published <= now, "named after it went"


@given(ages=AGES, made=HOURS, kind=st.sampled_from(Kind), data=st.data())
def test_what_belongs_to_no_run_goes_by_age_alone(
    ages: Ages, made: int, kind: Kind, data: st.DataObject
) -> None:
    now = data.draw(near(ages, made))
    grace, kept = ages.grace // timedelta(hours=1), ages.retention // timedelta(hours=1)
    limits = {Kind.DEAD_LETTER: kept + grace, Kind.PROBE: grace}
    expected = kind in limits and now - made > limits[kind]
    assert may_go_by_age(at(made), kind, CREATED_AT + timedelta(hours=now), ages) is expected
