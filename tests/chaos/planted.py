"""Bugs planted into real workers: each must make the suite fail.

    python -m tests.chaos.planted [BUG...]

A bug is a change to the product's own classes, made in the worker's process before it starts, where
`CHAOS_BUG` names it (tests/chaos/worker.py). The command runs each under a fault, prints which
checks caught it, and ends with 1 if one went unnoticed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.blobs.fences import Fences
from streams.core.events import CommitPoint, Committed, Delivered, Event, TopicPartition
from streams.core.flights import Flights
from streams.kafka.consumer import KafkaSource
from streams.runner import Dispatch
from streams.settings import read_settings
from tests.bench.goals import print_table
from tests.chaos.cluster import open_cluster
from tests.chaos.faults import FAULTS, open_row
from workers.fenced import FencedWork

DONE_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Bug:
    """`plant` changes the classes of this process; `fault` is what makes it show."""

    name: str
    plant: Callable[[], None]
    fault: str
    caught_by: frozenset[str]


def commit_what_was_delivered() -> None:
    """Offsets of what has not been worked yet."""
    poll, commit = KafkaSource.poll, KafkaSource.commit
    ends: dict[TopicPartition, int] = {}

    def polling(self: KafkaSource, timeout_s: float, dispatch: Dispatch) -> None:
        def heard(event: Event) -> None:
            if isinstance(event, Delivered):
                ends[event.partition] = max(ends.get(event.partition, 0), event.offset + 1)
            dispatch(event)

        poll(self, timeout_s, heard)

    def committing(
        self: KafkaSource, points: Mapping[TopicPartition, CommitPoint], must_finish: bool
    ) -> None:
        later = {
            each: CommitPoint(end) if (end := ends.get(each, 0)) > point.offset else point
            for each, point in points.items()
        }
        commit(self, later, must_finish)

    _replace(KafkaSource, poll=polling, commit=committing)


def end_without_a_fence() -> None:
    """A VideoDone that nothing stands behind."""
    _replace(Fences, end=lambda self, tenant, job, run, body: body)


def work_ended_runs_again() -> None:
    """Neither the outcome nor the results of earlier deliveries are looked for, or taken."""
    end, publish = Fences.end, Fences.publish_result

    def ending(self: Fences, tenant: str, job: str, run: int, body: bytes) -> bytes:
        end(self, tenant, job, run, body)
        return body

    def publishing(self: Fences, *arguments: Any) -> bytes:
        publish(self, *arguments)
        return bytes(arguments[-1])

    _replace(
        Fences,
        outcome=lambda self, tenant, job, run: None,
        result=lambda self, tenant, job, run, stage: None,
        end=ending,
        publish_result=publishing,
    )


def lose_videos() -> None:
    """Of some jobs the finisher's object is gone when its completion is told."""
    complete = FencedWork.complete

    def completing(self: FencedWork, prepared: Any, *rest: Any) -> Any:
        outputs = complete(self, prepared, *rest)
        job = prepared.task.record.job if self.stage.name == "finisher" else None
        if job is not None and _is_chosen(job.job_id):
            for found in list(self._store.walk(f"{job.tenant_id}/{job.job_id}/1/finisher")):
                self._store.remove(found.key)
        return outputs

    _replace(FencedWork, complete=completing)


def tell_nobody() -> None:
    """Of some jobs the outcome stands and its VideoDone is never sent."""
    complete = FencedWork.complete

    def completing(self: FencedWork, prepared: Any, *rest: Any) -> Any:
        outputs = complete(self, prepared, *rest)
        is_last = self.stage.name == "finisher"
        return () if is_last and _is_chosen(prepared.task.record.job.job_id) else outputs

    _replace(FencedWork, complete=completing)


def commit_nothing() -> None:
    """Marks and commits are answered, and never made."""
    poll = KafkaSource.poll
    asked: list[None] = []

    def polling(self: KafkaSource, timeout_s: float, dispatch: Dispatch) -> None:
        while asked:
            asked.pop()
            dispatch(Committed(True))
        poll(self, timeout_s, dispatch)

    def committing(
        self: KafkaSource, points: Mapping[TopicPartition, CommitPoint], must_finish: bool
    ) -> None:
        if not must_finish:
            asked.append(None)

    _replace(KafkaSource, poll=polling, commit=committing)


def let_heads_block() -> None:
    """What holds up its partition stays where it is."""
    _replace(Flights, divert_heads=lambda self: None)


def _replace(owner: type, **methods: Any) -> None:
    for name, method in methods.items():
        setattr(owner, name, method)


def _is_chosen(job_id: str) -> bool:
    return zlib.crc32(job_id.encode()) % 10 == 0


#: What the suite says where there is no bug: nothing.
CONTROL = "none"

BUGS: Mapping[str, Bug] = {
    each.name: each
    for each in (
        Bug(CONTROL, lambda: None, "F2", frozenset()),
        Bug("commit-what-was-delivered", commit_what_was_delivered, "F4", frozenset({"lost"})),
        Bug("end-without-a-fence", end_without_a_fence, "F2", frozenset({"no fence"})),
        Bug("work-ended-runs-again", work_ended_runs_again, "F1", frozenset({"second ending"})),
        Bug("lose-videos", lose_videos, "F2", frozenset({"unreadable"})),
        Bug("tell-nobody", tell_nobody, "F2", frozenset({"untold"})),
        Bug("commit-nothing", commit_nothing, "F2", frozenset({"stalled"})),
        Bug("let-heads-block", let_heads_block, "head-of-line", frozenset({"row"})),
    )
}


def main(arguments: Sequence[str]) -> int:
    """Run the bugs that are named, or every one; 0 if each was caught by a check that it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.planted")
    parser.add_argument("bugs", nargs="*", metavar="BUG", help=f"of {', '.join(BUGS)}")
    names = parser.parse_args(arguments).bugs
    if unknown := [each for each in names if each not in BUGS]:
        parser.error(f"no bug {unknown[0]}: of {', '.join(BUGS)}")
    chosen = [BUGS[name] for name in names or BUGS]
    rows, num_missed = [], 0
    with (
        tempfile.TemporaryDirectory(prefix="reel-planted-") as folder,
        open_cluster(Path(folder), read_settings().home) as cluster,
    ):
        for bug in chosen:
            seed = 1 + list(BUGS).index(bug.name)
            fault, orders = FAULTS[bug.fault], {"CHAOS_BUG": bug.name}
            with open_row(
                cluster, Path(folder) / bug.name, fault, seed,
                orders=orders, done_within_s=DONE_WITHIN_S,
            ) as scene:  # fmt: skip
                verdict = scene.run(fault.num_jobs, fault.inflict)
            checks = sorted({each.check for each in verdict.findings})
            is_caught = bool(bug.caught_by & set(checks)) or (bug.name == CONTROL and not checks)
            num_missed += not is_caught
            caught = ", ".join(checks) if is_caught else f"JUDGED WRONGLY ({', '.join(checks)})"
            rows.append([bug.name, bug.fault, str(len(verdict.findings)), caught])
            print(*rows[-1], flush=True)
    print_table(["planted bug", "fault", "findings", "checks"], rows)
    num_bugs = sum(bug.name != CONTROL for bug in chosen)
    num_without = len(chosen) - num_bugs
    print(f"{num_bugs} planted bugs, {num_without} runs without one, {num_missed} judged wrongly")
    return int(num_missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
