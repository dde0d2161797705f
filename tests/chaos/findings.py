"""What lies on the log, in the object store and in the ledger, read for the oracle."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import OFFSET_INVALID, Consumer, Message, TopicPartition

from schemas.codec import Codec
from schemas.records import VideoDone
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.core.events import Headers
from streams.errors import BlobCorrupt, BlobMissing
from streams.kafka.committed import committed_offsets
from streams.letters import DLT_PREFIX, texts
from streams.outcomes import read_outcome
from streams.settings import Settings
from streams.topology import REQUESTS, REQUESTS_DEFERRED, VIDEOS_DONE, worker_stages
from tests.chaos.ledger import FAILPOINTS, Entry
from tests.chaos.oracle import Outcome, RunOfJob, Told, Work
from tests.chaos.submitter import tenant_of, tenants
from tests.chaos.worker import MAX_BYTES

CODEC = Codec()
RAW = "raw-"
"""Keys of records that are no jobs."""
LOG_LINES_SHOWN = 8
_ANSWER_S = 20.0


class Heard:
    """What an outsider has read so far of the jobs whose ids end so."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self.told: list[Told] = []
        self._told_jobs: set[str] = set()
        self.reached: dict[str, set[RunOfJob]] = defaultdict(set)
        self.dead: dict[str, set[RunOfJob]] = defaultdict(set)
        #: What stages wrote, of jobs: by topic and run.
        self.num_written: Counter[tuple[str, RunOfJob]] = Counter()
        #: Of records that are no jobs: bytes and reason code of each dead letter, by key.
        self.letters: dict[str, list[tuple[bytes | None, str]]] = defaultdict(list)

    def take(self, message: Message, at_s: float) -> None:
        """One record."""
        topic, key, value = message.topic() or "", message.key(), message.value()
        job_id = (key or b"").decode("utf-8", "replace")
        if not job_id.endswith(self._suffix):
            return
        headers: Headers = tuple(message.headers() or ())  # type: ignore[arg-type]
        if topic.endswith(".dlt"):
            found = texts(headers, DLT_PREFIX)
            if job_id.startswith(RAW):
                self.letters[job_id].append((value, found["reason-code"]))
                return
            of = RunOfJob(job_id, int(found["run"]))
            self.num_written[topic, of] += 1
            self.dead[found["stage"]].add(of)
            return
        if job_id.startswith(RAW):
            return
        of = RunOfJob(job_id, _run_of(headers))
        self.reached[topic].add(of)
        if topic not in (REQUESTS, REQUESTS_DEFERRED):
            self.num_written[topic, of] += 1
        if topic == VIDEOS_DONE:
            assert value is not None, "VideoDone has no tombstones"
            done = CODEC.decode(value, VideoDone)
            told = Told(done.job_id, done.status, done.ended_by, value, at_s, done.run)
            self.told.append(told)
            self._told_jobs.add(done.job_id)

    @property
    def num_told(self) -> int:
        """Jobs of which a VideoDone was read."""
        return len(self._told_jobs)


def topics_to_read() -> list[str]:
    """All that the oracle hears of."""
    stages = worker_stages()
    letters = (each.dead_letters for each in stages)
    return [*(each.reads for each in stages), REQUESTS_DEFERRED, VIDEOS_DONE, *letters]


@dataclass(frozen=True, slots=True)
class Stored:
    """What a listing of a row's objects shows."""

    jobs: frozenset[str]  # of which anything lies there
    num_runs: Mapping[str, int]  # claimed, the first included, of those with more than that
    ended: frozenset[RunOfJob]  # runs with an outcome


def look_around(store: BlobStore, suffix: str) -> Stored:
    """List the objects of the jobs whose ids end so (keys: streams/blobs/fences.py)."""
    jobs: set[str] = set()
    num_runs: dict[str, int] = {}
    ended: set[RunOfJob] = set()
    for tenant in tenants(suffix):
        for found in store.walk(tenant):
            _, job_id, *below = found.key.split("/")
            jobs.add(job_id)
            if below[0] == "runs":
                num_runs[job_id] = max(num_runs.get(job_id, 1), int(below[1]))
            elif below[-1] == "outcome":
                ended.add(RunOfJob(job_id, int(below[0])))
    return Stored(frozenset(jobs), num_runs, frozenset(ended))


def read_outcomes(
    store: BlobStore, ended: Iterable[RunOfJob]
) -> tuple[dict[RunOfJob, Outcome], dict[str, str]]:
    """The outcome fences of these runs, and the jobs whose video is not as promised."""
    fences = Fences(store)

    def look(of: RunOfJob) -> tuple[RunOfJob, Outcome, str | None]:
        body = fences.outcome(tenant_of(of.job_id), *of)
        assert body is not None, f"{of} was listed, and is gone: fences stay for ever"
        done, why = read_outcome(CODEC, body), None
        if done.status == "completed":
            try:
                assert done.video is not None, "a completed job has a video"
                store.read(done.video, max_bytes=MAX_BYTES)
            except (BlobMissing, BlobCorrupt) as error:
                why = str(error)
        return of, Outcome(done.status, done.ended_by, body), why

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, sorted(ended)))
    outcomes = {of: outcome for of, outcome, _ in found}
    return outcomes, {of.job_id: why for of, _, why in found if why is not None}


def records_behind(settings: Settings) -> dict[str, int]:
    """Of each partition that a stage reads, how many records are not committed."""
    behind: dict[str, int] = {}
    for stage in worker_stages():
        topics = (stage.reads, *stage.also_reads(settings.retry_delays_s))
        partitions = [
            TopicPartition(topic, number)
            for topic in topics
            for number in range(settings.partitions)
        ]
        consumer = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": stage.group})
        try:
            for at in committed_offsets(consumer, partitions, _ANSWER_S):
                low, high = consumer.get_watermark_offsets(at, timeout=_ANSWER_S)
                committed = low if at.offset == OFFSET_INVALID else at.offset
                behind[f"{stage.group} {at.topic}[{at.partition}]"] = high - committed
        finally:
            consumer.close()
    return behind


def work_of(entries: Iterable[Entry]) -> dict[tuple[str, str], Work]:
    """What the ledger says of each (job, stage)."""
    worked: Counter[tuple[str, str]] = Counter()
    deaths: Counter[tuple[str, str]] = Counter()
    inside: dict[tuple[int, str], set[str]] = defaultdict(set)
    for entry in entries:
        held = inside[entry.pid, entry.stage]
        if entry.what == "fetched":
            held.update(entry.job_ids)
        elif entry.what == "worked":
            worked.update((job_id, entry.stage) for job_id in entry.job_ids)
        elif entry.what == "stored":
            held.difference_update(entry.job_ids)
        elif entry.what in FAILPOINTS:
            deaths.update((job_id, entry.stage) for job_id in held | set(entry.job_ids))
    return {key: Work(worked[key], deaths[key]) for key in worked | deaths}


def log_lines(folder: Path, logs: Path, job_id: str) -> Iterator[str]:
    """The last that the ledger and the workers' logs say of a job."""
    for path in (folder / "work.log", *sorted(logs.glob("*.log"))):
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if job_id in line]
            yield from (f"{path.name}: {line}" for line in lines[-LOG_LINES_SHOWN:])


def _run_of(headers: Headers) -> int:
    """A producer who says nothing means the first."""
    said = [value.decode() for name, value in headers if name == "ce_id" and value is not None]
    return int(said[-1].rsplit(".", 3)[1]) if said else 1
