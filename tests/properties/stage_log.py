"""What the naive world around a `StageState` reads: a log, retry topics, and who owns what."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from streams.core.events import Ending, Fault, TopicPartition, Work
from streams.core.fair_queue import Fairness
from streams.core.flight import Rank
from streams.core.limits import StageLimits
from streams.core.offset_map import OffsetMap
from streams.core.retry import RetryPolicy

LIMITS = StageLimits(
    window_high=4, window_low=1, window_per_tenant=3, look_ahead=6,
    batch_max=2, batch_age_s=1.0, max_batches=2,
    retry=RetryPolicy((2, 5), 3), breaker_limit=3, probe_wait_s=0.5, longest_probe_wait_s=2.0,
    leave_after_s=60.0, make_way_s=3.0, ask_again_s=0.5, commit_interval_s=1.0, drain_s=5.0,
    map_span=5,
    fairness=Fairness({"pro": 3.0, "free": 1.0}, ageing_s=20.0),
)  # fmt: skip
PARTITIONS = tuple(TopicPartition("requests", number) for number in range(3))
RETRY = TopicPartition("requests.retry", 0)
"""Where copies go; one topic for both delays, so that they do not come due in order."""

Verdict = Fault | Ending | None


@dataclass(slots=True)
class Assignment:
    """A partition while it is ours, as the world remembers it."""

    epoch: int
    known: OffsetMap  # what was committed when it began
    position: int  # of the next record to deliver, in offsets
    delivered: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)  # may be finished: the log has the proof
    skipped: set[int] = field(default_factory=set)  # an earlier owner has finished them
    committed: int = -1

    def highest_commit(self) -> int:
        """The largest offset that a commit may name."""
        if unsettled := self.delivered - self.settled:
            return min(unsettled)
        return max(self.delivered | self.skipped, default=self.known.offset - 1) + 1


class Log:
    """Every record, by partition and offset; what was retried comes back on one more partition."""

    def __init__(self) -> None:
        self.partitions = (*PARTITIONS, RETRY)
        self.records: dict[TopicPartition, dict[int, tuple[Work, Verdict]]] = {
            each: {} for each in self.partitions
        }
        self.end: dict[TopicPartition, int] = dict.fromkeys(self.partitions, 0)
        self.retried: list[Work] = []
        self.proven: set[tuple[TopicPartition, int]] = set()  # told here what became of it

    def append(self, partition: TopicPartition, gap: int, work: Work, verdict: Verdict) -> None:
        """Put a record at the end of a partition, `gap` offsets further than need be."""
        offset = self.end[partition] + gap
        self.records[partition][offset] = work, verdict
        self.end[partition] = offset + 1

    def unproven(self) -> list[Work]:
        """Records of which nothing was ever told, and of whose job there is no higher copy.

        Through any number of owners and crashes: once all is committed, these are lost.
        """
        works = [work for records in self.records.values() for work, _ in records.values()]
        highest: dict[tuple[str, str | None], Rank] = {}
        for work in works:
            job = job_of(work)
            highest[job] = max(rank_of(work), highest.get(job, (0, 0, 0, 0)))
        return [
            work
            for partition, records in self.records.items()
            for offset, (work, _) in records.items()
            if (partition, offset) not in self.proven
            and (work.job_id is None or rank_of(work) == highest[job_of(work)])
        ]

    def retry(self, partition: TopicPartition, work: Work, due_s: float) -> None:
        """A copy comes back later; on its own partition number, which is all one to the core."""
        copy = dataclasses.replace(work, due_s=due_s)
        self.retried.append(copy)
        self.append(RETRY, 0, copy, None)


def job_of(work: Work) -> tuple[str, str | None]:
    """Whose job it is: two tenants may have jobs of one id."""
    return work.charge.tenant_id, work.job_id


def rank_of(work: Work) -> Rank:
    """Copies of a job order by run, try, crashes and how often they stepped aside."""
    return work.run, work.try_number, work.crashes.num, work.num_diverted
