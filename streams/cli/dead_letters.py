"""dlt list, show: dead letters, and what has become of their jobs."""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from schemas.codec import Codec, UndecodableRecord
from schemas.records import VideoDone
from streams.audit import put_back_by
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.claims import Author, read_run_claim
from streams.cli.context import client_settings, make_client, make_codec, make_store
from streams.cli.terminal import print_table, result, say
from streams.cli.wishes import parse_since
from streams.client import Client, ClientError, Connection
from streams.client.dead_letters import (
    OURS,
    DeadLetter,
    JobName,
    as_text,
    job_of,
    original_record,
    parse_address,
    read_dead_letter,
    read_dead_letters,
)
from streams.client.foreign_letters import CONNECTS, SPRINGS, BadHeaders, came_from
from streams.client.put_back import identity
from streams.errors import FatalError, InvalidRecord, SettingsError
from streams.settings import Settings
from streams.topology import Stage, worker_stages

_PROMPTS = ("prompt", "negative_prompt")
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters are meant; None: any."""

    stage: str | None
    tenant: str | None
    reason: str | None
    since: datetime | None
    topic: str | None = None  # a foreign application's

    @property
    def topics(self) -> tuple[str, ...]:
        """Where they lie. Raises SettingsError for a stage that has none."""
        own = tuple(stage.dead_letters for stage in self._stages)
        return own if self.topic is None else (self.topic,)

    def takes(self, letter: DeadLetter) -> bool:
        """Whether that one is meant, as far as it says itself."""
        if self.reason not in (None, letter.findings.get("reason-code")):
            return False
        return self.stage is None or (letter.stage is not None and letter.stage.name == self.stage)

    @property
    def _stages(self) -> tuple[Stage, ...]:
        stages = worker_stages()
        if self.stage is None:
            return stages
        found = tuple(stage for stage in stages if stage.name == self.stage)
        if not found:
            names = ", ".join(stage.name for stage in stages)
            raise SettingsError(f"no stage {self.stage!r} with dead letters: one of {names}")
        return found


class Pipeline:
    """What the commands ask: topics, records, fences."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = Connection(settings.bootstrap, settings.kafka_extra)
        self.codec: Codec = make_codec(settings)
        self.store: BlobStore = make_store(settings)
        self.fences = Fences(self.store)

    def client(self) -> Client:
        """A client for it, to be closed."""
        return make_client(self.settings, self.store)

    async def letters(
        self, choice: Choice
    ) -> AsyncGenerator[tuple[DeadLetter, JobName | None], None]:
        """The letters that are meant, and whose they are."""
        since_ms = None if choice.since is None else int(choice.since.timestamp() * 1000)
        reading = read_dead_letters(self.connection, choice.topics, since_ms)
        async with aclosing(reading) as letters:
            async for letter in letters:
                if not choice.takes(letter):
                    continue
                job = await asyncio.to_thread(job_of, letter, self.codec, self.store)
                if choice.tenant is None or (job and job.tenant_id == choice.tenant):
                    yield letter, job

    def author(self, job: JobName) -> Author | None:
        """Who began the run after the letter's, if anybody did. Blocking."""
        body = self.fences.claimed_run(job.tenant_id, job.job_id, job.run + 1)
        return None if body is None else read_run_claim(body).author

    def status(self, letter: DeadLetter, job: JobName | None) -> str:
        """What has become of a letter, or of its job. Blocking."""
        if job is None:
            return "no job"
        if letter.is_foreign and put_back_by(self.store, identity(letter)) is not None:
            return "put back"
        tenant, job_id, run = job.tenant_id, job.job_id, job.run
        if self.fences.claimed_run(tenant, job_id, run + 1) is not None:
            return f"redriven as run {self.fences.latest_run(tenant, job_id)}"
        body = self.fences.outcome(tenant, job_id, run)
        if body is None:
            return "open"
        try:
            status = self.codec.decode(body, VideoDone).status
        except UndecodableRecord as fault:
            raise FatalError(f"the outcome of {job_id} cannot be read: {fault}") from fault
        return "open" if status in ("failed", "expired") else status


def list_letters(
    topic: str | None,
    stage: str | None,
    tenant: str | None,
    reason: str | None,
    since: str | None,
    limit: int,
) -> int:
    """Print the newest letters as a table, oldest first. The exit code."""
    choice = Choice(stage, tenant, reason, parse_since(since, datetime.now(UTC)), topic)
    pipeline = Pipeline(client_settings())
    newest: list[tuple[int, int, DeadLetter, JobName | None]] = []
    number = count()

    async def read() -> None:
        async with aclosing(pipeline.letters(choice)) as letters:
            async for letter, job in letters:
                heapq.heappush(newest, (letter.timestamp_ms, next(number), letter, job))
                if len(newest) > limit:
                    heapq.heappop(newest)

    _ = choice.topics  # wrong use is told before anybody is asked
    asyncio.run(read())
    columns = ("letter", "at", "reason", "job", "tenant", "run", "try", "status")
    rows = [
        (
            letter.address,
            _at(letter.timestamp_ms),
            letter.findings.get("reason-code") or "-",
            job.job_id if job else "-",
            job.tenant_id if job else "-",
            str(job.run) if job else "-",
            letter.findings.get("try", "-"),
            pipeline.status(letter, job),
        )
        for _, _, letter, job in sorted(newest, key=lambda each: each[:2])
    ]
    print_table(columns, rows)
    if (num_left := next(number) - len(rows)) > 0:
        say(f"{num_left} older ones are not shown: see --limit")
    return 0


def show_letter(address: str, *, is_prompt_shown: bool) -> int:
    """Print all of a letter but, unless it is asked for, the prompt. The exit code."""
    _ = parse_address(address)  # wrong use is told before anybody is asked
    pipeline = Pipeline(client_settings())
    letter = asyncio.run(find_letter(pipeline, address))
    job = job_of(letter, pipeline.codec, pipeline.store)
    result(f"letter: {letter.address}")
    result(f"at: {_at(letter.timestamp_ms)}")
    result(f"status: {pipeline.status(letter, job)}")
    if job is not None and (author := pipeline.author(job)) is not None:
        at = author.at.isoformat(timespec="seconds")
        result(f"redriven: by {author.by} at {at}, order {author.order_id}: {author.why or '-'}")
    if letter.is_foreign:
        result(f"redrive: {_redrive_of(letter)}")
    for name, text in sorted(letter.findings.items()):
        result(f"{name}: {text}")
    result(f"key: {as_text(letter.key)}")
    for name, value in letter.headers:
        if not name.startswith((OURS, SPRINGS, CONNECTS)):
            result(f"header {as_text(name.encode())}: {as_text(value)}")
    try:
        record = original_record(letter, pipeline.codec, pipeline.store)
    except (UndecodableRecord, InvalidRecord) as fault:
        result(f"value: {len(letter.value or b'')} bytes, not decoded: {fault}")
        return 0
    fields = asdict(record)
    if not is_prompt_shown:
        for name in _PROMPTS:
            if fields.get(name):
                fields[name] = f"({len(fields[name])} characters; --prompt shows them)"
    result(f"{type(record).__name__}:")
    result(json.dumps(fields, indent=2, ensure_ascii=False, default=_json_value))
    return 0


def _redrive_of(letter: DeadLetter) -> str:
    """What a redrive would do about a letter that is none of ours, while its run is open."""
    try:
        origin = came_from(letter.headers)
    except BadHeaders as fault:
        return f"not possible: {fault}"
    return f"puts it back on {origin.stage.reads}, partition {origin.partition}"


async def find_letter(pipeline: Pipeline, address: str) -> DeadLetter:
    """The letter at that place. Raises ClientError where there is none."""
    letter = await read_dead_letter(pipeline.connection, *parse_address(address))
    if letter is None:
        raise ClientError(f"no dead letter {address}")
    return letter


def _at(timestamp_ms: int) -> str:
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):  # whatever a foreign producer wrote
        return str(timestamp_ms)


def _json_value(value: object) -> Any:
    assert isinstance(value, datetime)
    return value.isoformat()
