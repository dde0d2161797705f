"""What the log proves by itself, whatever the workers believe: which records are settled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple

from schemas.codec import Codec, UndecodableRecord
from schemas.records import VideoDone
from streams import topology
from streams.core.events import Command, DeadLetter, Park, Retry, TopicPartition
from streams.core.offset_map import Crashes
from streams.engine import Task
from streams.intake import ID
from streams.letters import DLT_PREFIX, origin_of, texts
from tests.simulation.log import Entry
from tests.simulation.plan import RETRY
from tests.simulation.work import home

RunOfJob = tuple[str, int]
Rank = tuple[int, int, int, int]  # run, try, crashes, diverted
RECORD_STAGES = frozenset(each.name for each in topology.worker_stages())


class Known(NamedTuple):
    """A record of a stage's topics. `job_id` None: nobody can decode it."""

    job_id: str | None
    run: int
    try_number: int
    crashes: Crashes
    value: bytes | None
    due_s: float
    deadline_s: float
    num_diverted: int = 0

    @property
    def rank(self) -> Rank:
        """How the copies of a job order."""
        return self.run, self.try_number, self.crashes.num, self.num_diverted


class DeadLettered(NamedTuple):
    """A record of a dead-letter topic."""

    stage: str
    job_id: str | None
    run: int
    reason_code: str
    topic: str
    partition: int
    offset: int
    value: bytes | None


class Evidence:
    """Fed with every record that is appended; grows only, so what is settled stays so."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._stage_of: dict[str, topology.Stage] = {}
        self._delay_s: dict[str, int] = {}
        for stage in topology.worker_stages():
            self._stage_of[stage.reads] = stage
            for delay_s in RETRY.delays_s:
                topic = topology.retry_topic(stage.reads, delay_s)
                self._stage_of[topic] = stage
                self._delay_s[topic] = delay_s
        self._stage_of[topology.REQUESTS_DEFERRED] = topology.stage("prompt")
        self._dead_topics = {each.dead_letters: each for each in topology.worker_stages()}
        self.known: dict[TopicPartition, dict[int, Known]] = defaultdict(dict)
        self.done: dict[RunOfJob, VideoDone] = {}
        self._ended_by: dict[RunOfJob, str | None] = {}
        self.dead: list[DeadLettered] = []
        self.num_emitted: dict[tuple[str, str, int], set[bytes]] = defaultdict(set)
        self._next: set[tuple[str, str, int]] = set()
        self._ranks: dict[tuple[str, str], Rank] = {}
        self._at_home: set[RunOfJob] = set()
        self._copied: set[tuple[TopicPartition, int]] = set()
        self.parked: set[tuple[int, bytes | None]] = set()
        self._buried: dict[tuple[TopicPartition, int], bool] = {}
        self._unending: set[tuple[TopicPartition, int]] = set()
        self._settled: set[tuple[TopicPartition, int]] = set()

    def appended(self, at: TopicPartition, entry: Entry, cause: Command | None) -> None:
        """A record was put on the log; `cause` is the worker's command that asked for it."""
        if at.topic in self._stage_of:
            self._stage_record(at, entry)
        elif at.topic == topology.VIDEOS_DONE:
            done = self._codec.decode(entry.value, VideoDone)
            run_of_job = done.job_id, done.run
            assert self.done.setdefault(run_of_job, done) == done, f"{run_of_job} ended twice"
            self._next.add(("finisher", *run_of_job))
        elif at.topic in self._dead_topics:
            self._dead_letter(at, entry)
        match cause:
            case Park(ticket):
                self.parked.add((at.partition, entry.value))
                self._copied.add((ticket.partition, ticket.offset))
            case Retry(ticket):
                self._copied.add((ticket.partition, ticket.offset))
            case DeadLetter(ticket, work, fault):
                is_all = not fault.ends_job or work.job_id is None
                self._buried[ticket.partition, ticket.offset] = is_all

    def _stage_record(self, at: TopicPartition, entry: Entry) -> None:
        stage = self._stage_of[at.topic]
        try:
            record: Any = self._codec.decode(entry.value or b"", stage.reads_record)
        except UndecodableRecord:
            self.known[at][entry.offset] = Known(None, 1, 1, Crashes(), entry.value, 0.0, 0.0)
            return
        job = record if stage.name == "prompt" else record.job
        job_id = job.job_id if ID.fullmatch(job.job_id) else None
        origin = origin_of(
            Task(None, at.partition, entry.value, at.topic, entry.offset, headers=entry.headers)
        )
        due_s = 0.0
        if at.topic in self._delay_s:
            due_s = entry.timestamp_ms / 1000 + self._delay_s[at.topic]
        self.known[at][entry.offset] = Known(
            job_id, job.run, origin.try_number, origin.crashes, entry.value, due_s,
            inf if job.deadline is None else job.deadline.timestamp(), origin.num_diverted,
        )  # fmt: skip
        if job_id is None:
            return
        rank = self.known[at][entry.offset].rank
        key = stage.name, job_id
        self._ranks[key] = max(rank, self._ranks.get(key, rank))
        if at.partition == home(job_id):
            self._at_home.add((job_id, job.run))
        for before in topology.worker_stages():
            if before.writes == at.topic:
                self._next.add((before.name, job_id, job.run))
                self.num_emitted[before.name, job_id, job.run].add(entry.value or b"")

    def _dead_letter(self, at: TopicPartition, entry: Entry) -> None:
        said = texts(entry.headers, DLT_PREFIX)
        job_id = entry.key.decode() if entry.key and entry.key.startswith(b"job-") else None
        self.dead.append(
            DeadLettered(
                said["stage"], job_id, int(said["run"]), said["reason-code"], said["topic"],
                int(said["partition"]), int(said["offset"]), entry.value,
            )
        )  # fmt: skip

    def ended(self, done: VideoDone) -> None:
        """An outcome stands; its VideoDone may be under way."""
        self._ended_by[done.job_id, done.run] = done.ended_by

    def cannot_end(self, partition: TopicPartition, offset: int) -> None:
        """The run of that record cannot be given an outcome: its dead letter is all there is."""
        self._unending.add((partition, offset))

    def was_buried(self, job_id: str, run: int) -> bool:
        """Whether a dead letter of the run is on the log."""
        return any(each.job_id == job_id and each.run == run for each in self.dead)

    def is_settled(self, at: TopicPartition, offset: int) -> bool:
        """Whether the log holds what makes the record needless."""
        place = at, offset
        if place in self._settled:
            return True
        record = self.known[at].get(offset)
        is_request = record is not None and self._stage_of[at.topic].name == "prompt"
        if self._is_proven(at, offset) or (is_request and self._is_parked_too(place)):
            self._settled.add(place)
            return True
        return False

    def _is_proven(self, at: TopicPartition, offset: int) -> bool:
        place, record = (at, offset), self.known[at].get(offset)
        if record is None or place in self._copied or self._buried.get(place, False):
            return True  # a gap, a copy, or a dead letter that is all there is to it
        if place in self._buried and place in self._unending:
            return True
        if record.job_id is None:
            return False
        stage = self._stage_of[at.topic].name
        run_of_job = record.job_id, record.run
        if (stage, *run_of_job) in self._next or run_of_job in self.done:
            return True
        if self._ranks[stage, record.job_id] > record.rank:
            return True
        # What another stage has ended it tells: its own record is not finished before it has.
        ended_by = self._ended_by.get(run_of_job, stage)
        if ended_by != stage and stage != "prompt" and ended_by in RECORD_STAGES:
            return True
        return (
            stage == "prompt"
            and at.partition != home(record.job_id)
            and (run_of_job in self._at_home)
        )

    def _is_parked_too(self, place: tuple[TopicPartition, int]) -> bool:
        """Whether the same request lies parked elsewhere, and nobody is done with it there."""
        at = TopicPartition(topology.REQUESTS_DEFERRED, place[0].partition)
        return any(
            (at, offset) not in self._settled and not self._is_proven(at, offset)
            for offset in self.parked_twins(*place)
        )

    def parked_twins(self, at: TopicPartition, offset: int) -> Iterator[int]:
        """Where else the same request lies parked: offsets of the same partition's parking."""
        record = self.known[at].get(offset)
        parking = TopicPartition(topology.REQUESTS_DEFERRED, at.partition)
        for other_offset, other in self.known[parking].items():
            is_alike = record is not None and (other.value, other.rank) == (
                record.value,
                record.rank,
            )
            if is_alike and (parking, other_offset) != (at, offset):
                yield other_offset
