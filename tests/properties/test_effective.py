"""EffectiveEndings beside a model that keeps every ending it ever met."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.core.effective import EffectiveEndings

JOBS = [("acme", "a"), ("acme", "b"), ("umbrella", "a")]


class EffectiveMachine(RuleBasedStateMachine):
    """Endings in any order, at times that may go back, forgotten now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.endings = EffectiveEndings()
        self.met: list[tuple[tuple[str, str], int, float]] = []
        self.newest_s = 0.0

    def last_met_s(self, job: tuple[str, str]) -> float:
        return max(at_s for each, _, at_s in self.met if each == job)

    @rule(job=st.sampled_from(JOBS), run=st.integers(1, 4), at_s=st.integers(0, 30))
    def meet(self, job: tuple[str, str], run: int, at_s: float) -> None:
        self.newest_s = max(self.newest_s, at_s)
        is_news = all(known < run for each, known, _ in self.met if each == job)
        assert self.endings.is_news(job, run) == is_news
        assert self.endings.meet(job, run, at_s) == is_news
        assert not self.endings.is_news(job, run)
        self.met.append((job, run, self.newest_s))

    @rule(before_s=st.integers(0, 31))
    def forget(self, before_s: float) -> None:
        self.endings.forget(before_s)
        kept = {job for job, _, _ in self.met if self.last_met_s(job) >= before_s}
        self.met = [each for each in self.met if each[0] in kept]

    @rule()
    def forget_everything(self) -> None:
        self.endings.forget(float("inf"))
        self.met = []

    @invariant()
    def nothing_else_is_kept(self) -> None:
        assert len(self.endings) == len({job for job, _, _ in self.met})


EffectiveMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestEffectiveEndings = EffectiveMachine.TestCase
