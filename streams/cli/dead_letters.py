"""dlt list, show, redrive: dead letters, and the next run of their jobs."""

from __future__ import annotations

import asyncio
import heapq
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from schemas.codec import Codec, UndecodableRecord
from schemas.records import VideoDone
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.cli.context import client_settings, make_client, make_codec, make_store
from streams.cli.terminal import print_table, result, say
from streams.cli.wishes import parse_rate, parse_since
from streams.client import Client, ClientError, Connection, UnknownJob
from streams.client.dead_letters import (
    CONNECTS,
    OURS,
    SPRINGS,
    DeadLetter,
    JobName,
    as_text,
    job_of,
    original_record,
    parse_address,
    read_dead_letter,
    read_dead_letters,
)
from streams.errors import FatalError, InvalidRecord, SettingsError
from streams.redrive import BeginRun, NothingToDo, Plan, SendAgain
from streams.settings import Settings
from streams.topology import Stage, worker_stages

_PROMPTS = ("prompt", "negative_prompt")
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which dead letters are meant; None: any."""

    stage: str | None
    tenant: str | None
    reason: str | None
    since: datetime | None

    @property
    def stages(self) -> tuple[Stage, ...]:
        stages = worker_stages()
        if self.stage is None:
            return stages
        found = tuple(stage for stage in stages if stage.name == self.stage)
        if not found:
            names = ", ".join(stage.name for stage in stages)
            raise SettingsError(f"no stage {self.stage!r} with dead letters: one of {names}")
        return found


class _Pipeline:
    """What the commands ask: topics, records, fences."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = Connection(settings.bootstrap, settings.kafka_extra)
        self.codec: Codec = make_codec(settings)
        self.store: BlobStore = make_store(settings)
        self.fences = Fences(self.store)

    def client(self) -> Client:
        return make_client(self.settings, self.store)

    async def letters(
        self, choice: _Choice
    ) -> AsyncGenerator[tuple[DeadLetter, JobName | None], None]:
        """The letters that are meant, and whose they are."""
        since_ms = None if choice.since is None else int(choice.since.timestamp() * 1000)
        reading = read_dead_letters(self.connection, choice.stages, since_ms)
        async with aclosing(reading) as letters:
            async for letter in letters:
                if choice.reason not in (None, letter.findings.get("reason-code")):
                    continue
                job = await asyncio.to_thread(job_of, letter, self.codec, self.store)
                if choice.tenant is None or (job and job.tenant_id == choice.tenant):
                    yield letter, job

    def status(self, job: JobName | None) -> str:
        """What has become of a letter's job. Blocking."""
        if job is None:
            return "no job"
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
    stage: str | None, tenant: str | None, reason: str | None, since: str | None, limit: int
) -> int:
    """Print the newest letters as a table, oldest first. The exit code."""
    choice = _Choice(stage, tenant, reason, parse_since(since, datetime.now(UTC)))
    pipeline = _Pipeline(client_settings())
    newest: list[tuple[int, int, DeadLetter, JobName | None]] = []
    number = count()

    async def read() -> None:
        async with aclosing(pipeline.letters(choice)) as letters:
            async for letter, job in letters:
                heapq.heappush(newest, (letter.timestamp_ms, next(number), letter, job))
                if len(newest) > limit:
                    heapq.heappop(newest)

    _ = choice.stages  # wrong use is told before anybody is asked
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
            pipeline.status(job),
        )
        for _, _, letter, job in sorted(newest, key=lambda each: each[:2])
    ]
    print_table(columns, rows)
    if (num_left := next(number) - len(rows)) > 0:
        say(f"{num_left} older ones are not shown: see --limit")
    return 0


def show_letter(address: str, *, is_prompt_shown: bool) -> int:
    """Print all of a letter but, unless it is asked for, the prompt. The exit code."""
    stage, partition, offset = parse_address(address)
    pipeline = _Pipeline(client_settings())
    letter = asyncio.run(_find(pipeline, stage, partition, offset))
    job = job_of(letter, pipeline.codec, pipeline.store)
    result(f"letter: {letter.address}")
    result(f"at: {_at(letter.timestamp_ms)}")
    result(f"status: {pipeline.status(job)}")
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


def redrive_letters(
    target: str | None,
    stage: str | None,
    tenant: str | None,
    reason: str | None,
    since: str | None,
    rate: str | None,
    *,
    is_all: bool,
    is_dry_run: bool,
) -> int:
    """Redrive one letter or job, or all that are meant; a line for each. The exit code."""
    filters = (stage, reason, since)
    if target is not None and (is_all or any(filters)):
        raise SettingsError("one letter or job, or a filter, not both")
    if target is None and not (is_all or tenant or any(filters)):
        raise SettingsError(
            "want STAGE/PARTITION/OFFSET, a JOB, a filter such as --stage, or --all"
        )
    if target is not None and "/" in target and tenant is not None:
        raise SettingsError("a letter knows its tenant: --tenant goes with a JOB or a filter")
    rate_per_s = parse_rate(rate)
    choice = _Choice(stage, tenant, reason, parse_since(since, datetime.now(UTC)))
    _ = choice.stages
    place = parse_address(target) if target is not None and "/" in target else None
    redriver = _Redriver(_Pipeline(client_settings()), rate_per_s, is_dry_run=is_dry_run)
    if place is not None:
        return asyncio.run(redriver.letter(*place))
    if target is not None:
        return asyncio.run(redriver.job(target, tenant))
    return asyncio.run(redriver.all_of(choice))


class _Redriver:
    """Redrives, or says what a redrive would do."""

    def __init__(self, pipeline: _Pipeline, rate_per_s: float | None, *, is_dry_run: bool) -> None:
        self._pipeline, self._is_dry_run = pipeline, is_dry_run
        self._rest_s = 0.0 if rate_per_s is None or is_dry_run else 1.0 / rate_per_s
        # The latest jobs: many letters may be one job's. To ask again would be harmless.
        self._seen: OrderedDict[JobName, None] = OrderedDict()

    async def letter(self, stage: Stage, partition: int, offset: int) -> int:
        """The exit code: 1 where the letter's job can never be redriven."""
        letter = await _find(self._pipeline, stage, partition, offset)
        job = await asyncio.to_thread(job_of, letter, self._pipeline.codec, self._pipeline.store)
        if job is None:
            result(f"{letter.address}\t-\tleft alone: no job of its own")
            return 1
        async with self._pipeline.client() as client:
            return _exit_code(await self._redrive(client, job.job_id, job.tenant_id, job.run + 1))

    async def job(self, job_id: str, tenant: str | None) -> int:
        """The exit code: 1 where the job can never be redriven."""
        async with self._pipeline.client() as client:
            if tenant is None:
                if (row := await client.find(job_id)) is None:
                    raise UnknownJob(f"no job {job_id}")
                tenant = row.tenant_id
            return _exit_code(await self._redrive(client, job_id, tenant, None))

    async def all_of(self, choice: _Choice) -> int:
        """The exit code: 0, whatever was left alone."""
        num_begun = 0
        async with (
            self._pipeline.client() as client,
            aclosing(self._pipeline.letters(choice)) as letters,
        ):
            async for letter, job in letters:
                if job is None:
                    result(f"{letter.address}\t-\tleft alone: no job of its own")
                elif self._is_first(job):
                    done = await self._redrive(client, job.job_id, job.tenant_id, job.run + 1)
                    if not isinstance(done, NothingToDo):
                        num_begun += 1
                        await asyncio.sleep(self._rest_s)
        say(f"{num_begun} {'would be ' if self._is_dry_run else ''}redriven")
        return 0

    async def _redrive(self, client: Client, job_id: str, tenant: str, run: int | None) -> Plan:
        if self._is_dry_run:
            done = await client.plan_redrive(job_id, tenant_id=tenant, run=run)
        else:
            deadline_s = self._pipeline.settings.deadline_s
            done = await client.redrive(job_id, tenant_id=tenant, run=run, deadline_s=deadline_s)
        would = "would be " if self._is_dry_run else ""
        match done:
            case BeginRun():
                what = f"run {done.run} {would}begun"
            case SendAgain():
                what = f"run {done.run} {would}sent again"
            case _:
                what = f"left alone: {done.reason}"
        result(f"{job_id}\t{tenant}\t{what}")
        return done

    def _is_first(self, job: JobName) -> bool:
        if job in self._seen:
            return False
        self._seen[job] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return True


async def _find(pipeline: _Pipeline, stage: Stage, partition: int, offset: int) -> DeadLetter:
    letter = await read_dead_letter(pipeline.connection, stage, partition, offset)
    if letter is None:
        raise ClientError(f"no dead letter {stage.name}/{partition}/{offset}")
    return letter


def _exit_code(done: Plan) -> int:
    is_hopeless = isinstance(done, NothingToDo) and done.why in ("final", "unknown", "unfit")
    return 1 if is_hopeless else 0


def _at(timestamp_ms: int) -> str:
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):  # whatever a foreign producer wrote
        return str(timestamp_ms)


def _json_value(value: object) -> Any:
    assert isinstance(value, datetime)
    return value.isoformat()
