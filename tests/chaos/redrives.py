"""Redrives under fire: dead letters of a fault that is healed, redriven while workers die."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

from streams.audit import read_done, read_orders
from streams.blobs.opening import store_of
from streams.local.stack import as_environment
from streams.local.worker_process import python_environment
from tests.chaos.ledger import POISONED, cure, poison
from tests.chaos.scene import Scene
from tests.chaos.submitter import tenant_of

FRAIL_STAGES = ("prompt", "sampler", "finisher")
NUM_FRAIL = 12
WITHIN_S = 60.0
REEL = (sys.executable, "-c", "from streams.cli import main; main()")
FROM_POISON = ("--reason", POISONED, "--why", "the poison is gone")


class Command:
    """A `reel dlt redrive` in a process of its own, against the servers' own ports."""

    def __init__(self, scene: Scene, name: str, *words: str) -> None:
        self.path = scene.folder / f"redrive-{name}.log"
        settings = scene.cluster.direct
        with self.path.open("wb") as out:
            self.process = subprocess.Popen(
                [*REEL, "dlt", "redrive", *words],
                cwd=scene.folder,
                env=python_environment(as_environment(settings)),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def said(self, suffix: str) -> dict[str, str]:
        """What it did about each of this scene's jobs."""
        lines = (line.split("\t") for line in self.path.read_text().splitlines())
        return {line[0]: line[2] for line in lines if len(line) == 3 and line[0].endswith(suffix)}


def redrive_under_fire(scene: Scene) -> None:
    """Two redrive everything at once, one more is killed, one takes a single job; workers die."""
    frail = fall_ill(scene)
    with ExitStack() as stack:
        both = [
            stack.enter_context(Command(scene, name, *FROM_POISON, "--rate", "10/s"))
            for name in ("one", "other")
        ]
        dying = stack.enter_context(Command(scene, "dying", *FROM_POISON))
        words = (frail[-1], "--tenant", tenant_of(frail[-1]))
        single = stack.enter_context(Command(scene, "single", *words))
        assert scene.until(lambda: len(dying.said(scene.suffix)) >= 3, WITHIN_S), "it did nothing"
        dying.process.kill()
        while not all(each.is_over for each in (*both, single)):
            scene.random.choice(scene.crew.workers).kill()
            scene.wait_s(scene.random.uniform(0.3, 1.0))
        assert dying.process.wait() == -9
        assert [each.process.returncode for each in (*both, single)] == [0, 0, 0]
        check_what_was_said(scene, frail, [*both, dying, single])
    assert scene.until(lambda: scene.has_ended(frail, 2), WITHIN_S), "redriven jobs have not ended"
    leave_alone(scene, frail)


def fall_ill(scene: Scene) -> list[str]:
    """Jobs that are dead letters of three stages by now, and what kept them from work is gone."""
    poison(scene.folder)
    frail = []
    for number in range(NUM_FRAIL):
        frail += [scene.submit(f"frail.{stage}.{number}") for stage in FRAIL_STAGES]
        scene.wait_s(0.25)  # among good jobs, or breakers would open
    assert scene.until(lambda: scene.has_ended(frail), WITHIN_S), "frail jobs have not failed"
    for job_id in frail:
        scene.expect_redrive(job_id)
    cure(scene.folder)
    return frail


def check_what_was_said(scene: Scene, frail: Sequence[str], commands: Sequence[Command]) -> None:
    """Each job was begun by one at most, and both who were asked for all speak of all."""
    said = [each.said(scene.suffix) for each in commands]
    for each in said[:2]:
        assert set(each) == set(frail), f"not spoken of: {sorted(set(frail) - set(each))[:3]}"
    begun = Counter(job for each in said for job, what in each.items() if what == "run 2 begun")
    assert set(begun.values()) <= {1}, f"begun twice: {begun.most_common(3)}"
    # One that nobody says to have begun was claimed by the one that was killed.
    assert len(begun) >= len(frail) - 1, f"only {len(begun)} of {len(frail)} were begun"
    check_records(scene, begun)


def check_records(scene: Scene, begun: Counter[str]) -> None:
    """Who did what, and why, is written down; of the one that was killed, that it began."""
    store = store_of(scene.cluster.direct)
    orders = [
        (order, ended)
        for order, ended in read_orders(store)
        if any(done.job_id.endswith(scene.suffix) for done in read_done(store, order.order_id))
        or ended is None
    ]
    ends = [ended for _, ended in orders if ended is not None]
    assert len(ends) >= 3, f"{len(ends)} orders are ended"
    assert any(ended is None for _, ended in orders), "the killed one's order is not to be seen"
    assert all(order.why == "the poison is gone" for order, _ in orders if "reason" in order.what)
    assert sum(ended.num_begun for ended in ends) <= len(begun)


def leave_alone(scene: Scene, frail: Sequence[str]) -> None:
    """What has completed is not redriven, however it is asked for."""
    done = next(each.job_id for each in scene.heard.told if each.job_id.startswith("good-"))
    with (
        Command(scene, "again", *FROM_POISON) as again,
        Command(scene, "done", done, "--tenant", tenant_of(done)) as single,
    ):
        assert scene.until(lambda: again.is_over and single.is_over, WITHIN_S), "no end"
        assert (again.process.returncode, single.process.returncode) == (0, 1)
        assert single.said(scene.suffix) == {done: "left alone: completed is final"}
        assert again.said(scene.suffix) == dict.fromkeys(
            frail, "left alone: run 2 was begun before and completed"
        )
