"""submit, watch, get, cancel, jobs, subscribe: what reads and writes the topics as a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from schemas.records import VideoDone
from streams.cli.context import client_settings, known_store, make_client, make_store
from streams.cli.progress import done_line, event_line, follow
from streams.cli.terminal import duration, print_table, result, say
from streams.cli.wishes import VideoWish
from streams.client import Client, JobRow, UnknownJob
from streams.topology import STAGES, VIDEOS_DONE


def submit_job(
    wish: VideoWish,
    tenant: str,
    tier: str | None,
    model: str | None,
    idempotency_key: str | None,
    deadline_s: float | None,
    *,
    is_deferrable: bool,
    is_step_cached: bool,
    allowed: Sequence[str],
    wait: bool,
) -> int:
    """Print the job's id; with `wait` follow it. The exit code."""

    async def run() -> int:
        deadline = None
        if deadline_s is not None:
            deadline = datetime.now(UTC) + timedelta(seconds=deadline_s)
        async with make_client(client_settings()) as client:
            job_id = await client.submit(
                tenant_id=tenant,
                tier=tier,
                model=model,
                idempotency_key=idempotency_key,
                deadline=deadline,
                is_deferrable=is_deferrable,
                is_step_cached=is_step_cached,
                allowed_degradations=allowed,
                **asdict(wish),
            )
            result(job_id)
            if not wait:
                return 0
            async with aclosing(client.watch(job_id)) as events:
                done = await follow(events)
        say(done_line(done))
        return exit_code(done)

    return asyncio.run(run())


def watch_job(job_id: str) -> int:
    """Print events to the end of the job. The exit code."""

    async def run() -> int:
        async with make_client(client_settings()) as client:
            if await client.find(job_id) is None:
                raise UnknownJob(f"no job {job_id}")
            async with aclosing(client.watch(job_id)) as events:
                async for event in events:
                    if isinstance(event, VideoDone):
                        result(done_line(event))
                        return exit_code(event)
                    result(event_line(event))
        raise AssertionError("the events of a job end with its VideoDone")

    return asyncio.run(run())


def get_video(job_id: str, path: Path) -> int:
    """Fetch the video; prints its path. The exit code."""

    async def run() -> int:
        settings = client_settings()
        async with make_client(settings) as client:
            done = await client.get(job_id)
        if done.video is not None:  # S3's client takes a while to import
            client = make_client(settings, make_store(settings))
        await client.download(done, path)
        result(str(path))
        return 0

    return asyncio.run(run())


def cancel_job(job_id: str, run: int | None, tenant: str | None) -> int:
    """Wish a run's end. The exit code."""

    async def wish() -> int:
        async with make_client(client_settings()) as client:
            return await client.cancel(job_id, run, tenant_id=tenant)

    say(f"{job_id}: cancel of run {asyncio.run(wish())} is on its way")
    return 0


def list_jobs(tenant: str | None) -> int:
    """Print a table of all jobs. The exit code."""

    async def run() -> list[JobRow]:
        async with make_client(client_settings()) as client:
            return await client.jobs()

    now = datetime.now(UTC)
    columns = ("job", "tenant", "tier", "status", "stage", "step", "age")
    rows = [row for row in asyncio.run(run()) if tenant in (None, row.tenant_id)]
    print_table(columns, (_cells(row, now) for row in rows))
    return 0


def print_outcomes(group: str | None) -> int:
    """Print a JSON line for each effective outcome, until interrupted. The exit code."""
    name = group or next(stage.group for stage in STAGES if stage.reads == VIDEOS_DONE)

    settings = client_settings()

    async def run(client: Client) -> None:
        outcomes = client.outcomes(name, lookback_s=settings.retention_s)
        async with client, aclosing(outcomes):
            async for done in outcomes:
                result(json.dumps(asdict(done), default=_as_text))

    asyncio.run(run(make_client(settings, known_store(settings))))
    return 0


def exit_code(done: VideoDone) -> int:
    """0 for a completed job, 1 for any other end."""
    return 0 if done.status == "completed" else 1


def _cells(row: JobRow, now: datetime) -> tuple[str, ...]:
    step = f"{row.step}/{row.num_steps}" if row.step is not None else "-"
    age = duration(max(0.0, (now - row.created_at).total_seconds()))
    return row.job_id, row.tenant_id, row.tier or "-", row.status, row.stage or "-", step, age


def _as_text(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
