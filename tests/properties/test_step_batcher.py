"""StepBatcher: nobody waits for ever, forwards are full, short jobs do not wait for long ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.core.step_batcher import StepBatcher

KEYS = ("small", "large", "wide")


@dataclass
class World:
    """Jobs that come and go, a device whose steps cost by key, and how long each has waited."""

    caps: dict[str, int]
    costs_s: dict[str, float]
    batcher: StepBatcher[int, str] = field(default_factory=StepBatcher)
    here: dict[int, tuple[str, int]] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)  # steps
    payers: dict[int, str] = field(default_factory=dict)
    num_joined: int = 0
    now_s: float = 0.0

    def join(
        self, key: str, width: int, num_steps: int = 1000, weight: float = 1.0, payer: str = ""
    ) -> int:
        self.num_joined += 1
        self.batcher.join(self.num_joined, key, width, num_steps, weight, payer)
        self.here[self.num_joined] = key, width
        self.left[self.num_joined] = num_steps
        self.payers[self.num_joined] = payer
        return self.num_joined

    def leave(self, number: int) -> None:
        self.batcher.leave(number)
        del self.here[number], self.left[number]

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
        self.now_s += cost_s
        for number in picked:
            self.left[number] -= 1
        return picked

    def work(self) -> list[int]:
        """A step; who is done leaves."""
        done = [number for number in self.step() if not self.left[number]]
        for number in done:
            self.leave(number)
        return done


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
@given(CAPS, COSTS, st.lists(JOBS, min_size=1, max_size=6), st.integers(1, 4), st.data())
def test_a_long_job_ends_though_short_ones_come_as_fast_as_the_device_serves_them(
    caps: dict[str, int],
    costs_s: dict[str, float],
    company: list[tuple[str, int]],
    num_steps: int,
    data: st.DataObject,
) -> None:
    world = World(caps, costs_s)
    long = world.join(*data.draw(JOBS), num_steps=5 * num_steps)
    for job in company:
        world.join(*job, num_steps=num_steps)
    # It leads once it has waited for more of its own length than they of theirs: by then each that
    # came before has been served, and newcomers lead but every second step.
    for _ in range(2 * 5 * num_steps * (len(company) + 2) * 8):
        for _ in world.work():
            world.join(*data.draw(st.sampled_from(company)), num_steps=num_steps)
        if long not in world.here:
            return
    raise AssertionError("it starves")


@given(CAPS, st.integers(1, 20), st.integers(1, 6))
def test_newcomers_start_within_two_steps_for_each_that_came_with_them(
    caps: dict[str, int], num_old: int, num_new: int
) -> None:
    world = World(caps, dict.fromkeys(KEYS, 1.0))
    for _ in range(num_old):
        world.join("small", 1)
    for _ in range(2 * num_old):
        world.step()
    newcomers = {world.join("small", 1) for _ in range(num_new)}
    for _ in range(2 * num_new):
        newcomers -= set(world.step())
    assert not newcomers


def test_a_newcomer_takes_part_in_the_next_step_though_the_cap_is_reached() -> None:
    world = World({"small": 4}, {"small": 1.0})
    for _ in range(12):
        world.join("small", 1)
    for _ in range(30):
        world.step()
    newcomer = world.join("small", 1)
    assert newcomer in world.step()


def test_newcomers_that_fill_every_forward_leave_every_second_one_to_the_others() -> None:
    world = World({"small": 1}, {"small": 1.0})
    old = world.join("small", 1)
    world.step()
    led = 0
    for _ in range(20):
        world.join("small", 1)
        led += old in world.step()
    assert led == 10


def test_a_short_job_does_not_wait_for_a_long_ones_end() -> None:
    world = World({"small": 1}, {"small": 1.0})
    world.join("small", 1, num_steps=50)
    for _ in range(10):
        world.work()
    short = world.join("small", 1, num_steps=4)
    num_steps = 0
    while short in world.here:
        world.work()
        num_steps += 1
    assert num_steps <= 6


def test_jobs_of_one_length_end_in_the_order_in_which_they_came() -> None:
    world = World({"small": 1}, {"small": 1.0})
    jobs = [world.join("small", 1, num_steps=10) for _ in range(4)]
    ended: list[int] = []
    while world.here:
        ended += world.work()
    assert ended == jobs, "time that many share, nobody has"


def test_the_dearer_key_is_weighed_by_its_cost_and_not_by_its_steps() -> None:
    world = World({"small": 1, "large": 1}, {"small": 1.0, "large": 10.0})
    large, small = world.join("large", 1, 10), world.join("small", 1, 20)
    ended: list[int] = []
    while world.here:
        ended += world.work()
    assert ended == [small, large]


def test_a_heavier_tier_passes_lighter_ones_at_the_next_boundary() -> None:
    world = World({"small": 1}, {"small": 1.0})
    for _ in range(6):
        world.join("small", 1, num_steps=20, weight=1.0)
    for _ in range(12):
        world.work()
    paying = world.join("small", 1, num_steps=20, weight=100.0)
    num_steps = 0
    while paying in world.here:
        world.work()
        num_steps += 1
    assert num_steps <= 22


def a_flooded_world(num_resident: int) -> World:
    """A row at a time, and one tenant has so many jobs half done, or not begun."""
    world = World({"small": 1}, {"small": 1.0})
    for _ in range(num_resident):
        world.join("small", 1, num_steps=10, payer="flood")
        world.work()
    return world


@pytest.mark.parametrize("num_resident", [2, 8, 16])
def test_one_job_of_a_tenant_does_not_wait_behind_all_of_anothers(num_resident: int) -> None:
    world = a_flooded_world(num_resident)
    for _ in range(40):  # the flood goes on
        if world.work():
            world.join("small", 1, num_steps=10, payer="flood")
    quiet = world.join("small", 1, num_steps=10, payer="quiet")
    num_steps = 0
    while quiet in world.here:
        num_steps += 1
        if quiet not in world.work() and len(world.here) <= num_resident:
            world.join("small", 1, num_steps=10, payer="flood")
    assert num_steps <= 30, "half of the device is its share, and a job of the flood was under way"


def test_who_has_one_job_here_at_a_time_has_nearly_half_beside_who_has_eight() -> None:
    world = World({"small": 1}, {"small": 1.0})
    for _ in range(8):
        world.join("small", 1, 10, payer="many")
    world.join("small", 1, 10, payer="one")
    num_ended = 0
    for _ in range(2000):
        for ended in world.work():
            num_ended += world.payers[ended] == "one"
            world.join("small", 1, 10, payer=world.payers[ended])
    assert num_ended >= 80, "of two hundred"


def test_a_tiers_tenants_share_among_themselves_only_what_the_tier_has() -> None:
    """Many tenants of a light tier with a job each do not outweigh a heavy one's with many."""
    world = World({"small": 1}, {"small": 1.0})
    light = [world.join("small", 1, 10, payer=f"light-{number}") for number in range(8)]
    heavy = [world.join("small", 1, 10, weight=8.0, payer="heavy") for _ in range(4)]
    ended = [job for _ in range(120) for job in world.work()]
    assert set(ended[:4]) == set(heavy)
    assert set(ended[4:]) == set(light)


def test_who_comes_seldom_is_done_nearly_as_soon_as_if_it_were_alone() -> None:
    """A flood, of its own tier and with jobs that have waited, has what others leave."""
    world = World({"small": 1}, {"small": 1.0})
    for _ in range(20):  # the flood has used the device
        number = world.join("small", 1, 10, payer="flood")
        while number in world.here:
            world.work()
    for _ in range(2):
        world.join("small", 1, 10, payer="flood")
    for _ in range(12):
        world.work()
    for visit in range(6):
        began_s = world.now_s
        seldom = world.join("small", 1, 10, payer=f"seldom-{visit % 2}")
        while seldom in world.here:
            if sum(world.payers[each] == "flood" for each in world.here) < 2:
                world.join("small", 1, 10, payer="flood")
            world.work()
        assert world.now_s - began_s <= 13, "three steps beside its ten"
        for _ in range(40):
            if sum(world.payers[each] == "flood" for each in world.here) < 2:
                world.join("small", 1, 10, payer="flood")
            world.work()


def test_what_a_tenant_used_makes_no_difference_where_nobody_else_is() -> None:
    def order(first: str) -> list[tuple[int, ...]]:
        world = World({"small": 1}, {"small": 1.0})
        for payer in (first, "acme"):
            job = world.join("small", 1, 5, payer=payer)
            while job in world.here:
                world.step()
                if not world.left[job]:
                    world.leave(job)
        for num_steps in (9, 3, 5):
            world.join("small", 1, num_steps, payer="acme")
        return [world.step() for _ in range(17)]

    assert order("acme") == order("other")


def test_tenants_that_come_and_go_are_forgotten() -> None:
    world = World({"small": 1}, {"small": 1.0})
    for number in range(2_000):
        job = world.join("small", 1, 1, payer=f"tenant-{number}")
        world.step()
        world.leave(job)
    assert len(world.batcher._used) < 500


def test_of_use_is_what_the_fullest_forward_takes_and_one_that_is_ready() -> None:
    world = World({"small": 4, "large": 1, "other": 1}, dict.fromkeys(("small", "large"), 1.0))

    def num_of_use() -> int:
        return world.batcher.num_of_use(lambda key: world.caps[str(key)])

    assert num_of_use() == 1
    first = world.join("small", 1)
    assert num_of_use() == 4
    second = world.join("small", 2)
    assert num_of_use() == 3
    world.join("small", 1)
    assert num_of_use() == 4
    world.join("small", 1)
    assert num_of_use() == 4, "three in a forward, and one for the next"
    world.join("large", 1)
    assert num_of_use() == 4, "one forward at a time"
    world.leave(first)
    world.leave(second)
    assert num_of_use() == 4, "two more have room in a forward of small ones"
    world.leave(3)
    world.leave(4)
    assert num_of_use() == 2
    world.join("large", 1)
    world.join("other", 1)
    assert num_of_use() == 2, "each in a forward of its own"


def test_one_of_another_key_does_not_block_those_behind_it() -> None:
    world = World({"small": 2, "large": 1}, {"small": 1.0, "large": 1.0})
    large = world.join("large", 2)
    a, b = world.join("small", 1), world.join("small", 1)
    steps = {world.step() for _ in range(3)}
    assert steps == {(large,), (a, b)}


def test_a_job_of_a_new_key_is_weighed_as_by_its_old_one_until_that_has_run() -> None:
    world = World({"small": 1, "large": 1}, {"small": 1.0, "large": 1.0})
    job = world.join("small", 1, num_steps=4)
    world.step()
    world.batcher.rekey(job, "large")
    world.here[job] = "large", 1
    assert world.step() == (job,)


def test_keys_that_nobody_has_any_more_are_forgotten() -> None:
    """As of jobs that share no forward, and change from one expert to another."""
    batcher: StepBatcher[int, tuple[str, int]] = StepBatcher()
    for job in range(100):
        batcher.join(job, ("first", job), 1, 2)
        batcher.ran(batcher.pick(lambda key: 1), 1.0)
        batcher.rekey(job, ("second", job))
        assert list(batcher._row_s) == [("second", job)]
        batcher.ran(batcher.pick(lambda key: 1), 1.0)
        batcher.leave(job)
    assert batcher._row_s == {}
