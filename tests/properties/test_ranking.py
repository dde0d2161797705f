"""Ranking beside a list that is searched: whoever comes, goes, is served and comes again."""

from __future__ import annotations

import random
from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import given, settings

from streams.core.ranking import Ranking


@dataclass(eq=False)
class Member:
    """One who is ranked."""

    rank: float = 0.0
    place: int = 0
    num: int = 0
    is_ranked: bool = False


class World:
    """A ranking, and those in it."""

    def __init__(self, num: int) -> None:
        self.ranking: Ranking[Member] = Ranking()
        self.members = [Member() for _ in range(num)]
        self.served, self.num_placed = 0.0, 0

    def come(self, member: Member) -> None:
        if not member.num:
            self.num_placed += 1
            member.place = self.num_placed
            member.rank = max(member.rank, self.served)
            if not member.is_ranked:
                self.ranking.add(member)
        member.num += 1

    def serve(self, cost: float) -> None:
        first = self.ranking.first()
        assert first is self.least(), "the least goes first"
        if first is not None:
            self.num_placed += 1
            self.served = max(self.served, first.rank)
            first.rank, first.place = first.rank + cost, self.num_placed
            first.num -= 1

    def least(self) -> Member | None:
        waiting = [each for each in self.members if each.num]
        return min(waiting, key=lambda each: (each.rank, each.place), default=None)


@given(st.integers(0, 2**32), st.integers(1, 8), st.floats(0.05, 0.6))
@settings(max_examples=150, deadline=None)
def test_the_first_is_the_least_of_those_that_wait(seed: int, num: int, eagerness: float) -> None:
    chance, world = random.Random(seed), World(num)
    for _ in range(300):
        if chance.random() < eagerness:
            world.serve(chance.choice([0.0, 1.0, 5.0]))
        elif (member := chance.choice(world.members)).num and chance.random() < 0.6:
            member.num -= 1
        else:
            world.come(member)
    assert world.ranking.first() is world.least()


@given(st.integers(0, 2**32), st.integers(100, 300))
@settings(max_examples=15)
def test_so_it_is_where_only_some_are_in_order(seed: int, num: int) -> None:
    chance, world = random.Random(seed), World(num)
    for member in world.members:
        world.come(member)
        world.come(member)
    for _ in range(3 * num):
        world.serve(chance.choice([0.0, 1.0, 5.0, 5.5]))
        if chance.random() < 0.5:
            world.come(chance.choice(world.members))


def test_who_is_alone_and_served_again_and_again_leaves_nothing_behind() -> None:
    world = World(1)
    (member,) = world.members
    for _ in range(3):
        world.come(member)
    for _ in range(2_000):
        world.come(member)
        world.serve(1.0)
    assert len(world.ranking) == 1
    assert len(world.ranking._near) < 200


@given(st.integers(0, 5), st.integers(0, 300))
def test_who_comes_and_goes_is_forgotten(num_stay: int, num_go: int) -> None:
    world = World(num_stay)
    for member in world.members:
        world.come(member)
    for _ in range(num_go):
        other = Member()
        world.come(other)
        other.num = 0
    assert world.ranking.first() is world.least()
    assert len(world.ranking) <= 2 * num_stay + 65
