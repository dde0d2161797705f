"""StepBatcher: nobody waits for ever, forwards are full, time is shared by cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.core.step_batcher import StepBatcher

KEYS = ("small", "large", "wide")


@dataclass
class World:
    """Jobs that come and go, a device whose steps cost by key, and how long each has waited."""

    caps: dict[str, int]
    costs_s: dict[str, float]
    batcher: StepBatcher[int] = field(default_factory=StepBatcher)
    here: dict[int, tuple[str, int]] = field(default_factory=dict)
    waited: Counter[int] = field(default_factory=Counter)
    used_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    num_joined: int = 0

    def join(self, key: str, width: int) -> int:
        self.num_joined += 1
        self.batcher.join(self.num_joined, key, width)
        self.here[self.num_joined] = key, width
        return self.num_joined

    def leave(self, number: int) -> None:
        self.batcher.leave(number)
        del self.here[number], self.waited[number]

    def step(self) -> tuple[int, ...]:
        picked = self.batcher.pick(lambda key: self.caps[str(key)])
        if not picked:
            assert not self.here
            return ()
        assert len(set(picked)) == len(picked)
        (key,) = {self.here[each][0] for each in picked}
        left = self.caps[key] - sum(self.here[each][1] for each in picked)
        assert left >= 0 or len(picked) == 1, "only who goes in any case may be too wide"
        others = [w for n, (k, w) in self.here.items() if k == key and n not in picked]
        assert all(width > left for width in others), "a row is free, and somebody could have it"
        cost_s = self.costs_s[key]
        self.batcher.ran(picked, cost_s)
        for number in self.here:
            self.waited[number] = 0 if number in picked else self.waited[number] + 1
        for number in picked:
            self.used_s[number] += cost_s / len(picked)
        return picked


CAPS = st.fixed_dictionaries({key: st.integers(1, 8) for key in KEYS})
COSTS = st.fixed_dictionaries({key: st.sampled_from([0.5, 1.0, 2.0]) for key in KEYS})
JOBS = st.tuples(st.sampled_from(KEYS), st.integers(1, 2))


@settings(max_examples=150, deadline=None)
@given(CAPS, COSTS, st.lists(st.one_of(JOBS, st.integers(0, 7), st.none()), max_size=120))
def test_forwards_are_full_and_of_one_key_whoever_comes_and_goes(
    caps: dict[str, int], costs_s: dict[str, float], script: list[tuple[str, int] | int | None]
) -> None:
    world = World(caps, costs_s)
    for act in script:
        if isinstance(act, tuple):
            world.join(*act)
        elif act is None:
            world.step()
        elif world.here:
            world.leave(list(world.here)[act % len(world.here)])
    while world.here:
        for number in world.step():
            world.leave(number)


@settings(max_examples=60, deadline=None)
@given(CAPS, COSTS, st.lists(JOBS, min_size=2, max_size=8), st.data())
def test_nobody_waits_beyond_a_bound_even_under_a_stream_of_newcomers(
    caps: dict[str, int],
    costs_s: dict[str, float],
    first: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    world = World(caps, costs_s)
    for job in first:
        world.join(*job)
    size = len(first)
    most = 0
    for _ in range(120):
        picked = world.step()
        most = max(most, *world.waited.values())
        leaver = data.draw(st.sampled_from(sorted(picked)))
        world.leave(leaver)
        world.join(*data.draw(JOBS))
    # What is owed grows by the cheapest step's share each time; nobody is ever owed more than the
    # dearest step has made of it. Costs differ by four at most here.
    assert most <= 10 * size


def test_a_newcomer_takes_part_in_the_next_step_though_the_cap_is_reached() -> None:
    world = World({"small": 4}, {"small": 1.0})
    for _ in range(12):
        world.join("small", 1)
    for _ in range(30):
        world.step()
    newcomer = world.join("small", 1)
    assert newcomer in world.step()


def test_keys_share_the_device_by_time_and_not_by_steps() -> None:
    world = World({"small": 1, "large": 1}, {"small": 1.0, "large": 4.0})
    small, large = world.join("small", 1), world.join("large", 1)
    for _ in range(400):
        world.step()
    assert abs(world.used_s[small] / world.used_s[large] - 1) < 0.05


def test_one_of_another_key_does_not_block_those_behind_it() -> None:
    world = World({"small": 2, "large": 1}, {"small": 1.0, "large": 1.0})
    world.join("large", 2)
    a, b = world.join("small", 1), world.join("small", 1)
    first, second = world.step(), world.step()
    assert (first, second) == ((1,), (a, b))


def test_who_was_served_while_there_was_room_need_not_wait_for_it_later() -> None:
    world = World({"small": 8, "large": 1}, {"small": 1.0, "large": 1.0})
    old = world.join("small", 1)
    for _ in range(50):  # it shares every step with newcomers that lead
        newcomer = world.join("small", 1)
        world.step()
        world.leave(newcomer)
    world.join("large", 1)
    assert any(old in world.step() for _ in range(4))
