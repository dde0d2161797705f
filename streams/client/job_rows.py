"""What the topics say of each job, folded into one row a job. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from schemas.records import GenerationRequest, JobEvent, VideoDone
from streams.topology import STAGES

_POSITION = {stage.name: position for position, stage in enumerate(STAGES)}


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as a reader of the topics sees it: `queued`, `running`, or how it ended."""

    job_id: str
    tenant_id: str
    run: int
    status: str
    created_at: datetime
    tier: str | None = None
    stage: str | None = None
    step: int | None = None
    num_steps: int | None = None
    last_event: JobEvent | None = None
    done: VideoDone | None = None


def fold_jobs(records: Iterable[GenerationRequest | JobEvent | VideoDone]) -> dict[str, JobRow]:
    """The rows of all jobs by job id, oldest job first.

    The order among topics does not matter: a later run beats an earlier one, an ending beats events
    of its run, a later stage an earlier one. Duplicates change nothing.
    """
    rows: dict[str, JobRow] = {}
    for record in records:
        row = rows.get(record.job_id)
        rows[record.job_id] = _first(record) if row is None else _next(row, record)
    return dict(sorted(rows.items(), key=lambda item: (item[1].created_at, item[0])))


def _first(record: GenerationRequest | JobEvent | VideoDone) -> JobRow:
    created_at = record.at if isinstance(record, JobEvent) else record.created_at
    blank = JobRow(record.job_id, record.tenant_id, record.run, "queued", created_at)
    return _next(blank, record)


def _next(row: JobRow, record: GenerationRequest | JobEvent | VideoDone) -> JobRow:
    if isinstance(record, GenerationRequest | VideoDone):
        row = replace(
            row,
            tier=record.tier or row.tier,
            created_at=min(row.created_at, record.created_at),
            tenant_id=record.tenant_id,
        )
    if record.run < row.run:
        return row
    if record.run > row.run:  # what was known is of an earlier run
        row = JobRow(row.job_id, row.tenant_id, record.run, "queued", row.created_at, tier=row.tier)
    match record:
        case VideoDone():
            return replace(row, status=record.status, stage=record.ended_by, done=record)
        case JobEvent() if row.done is None and _is_news(row.last_event, record):
            progressed = record.step is not None
            same_stage = row.stage == record.stage
            return replace(
                row,
                status="running",
                stage=record.stage,
                step=record.step if progressed or not same_stage else row.step,
                num_steps=record.num_steps if progressed or not same_stage else row.num_steps,
                last_event=record,
            )
    return row


def _is_news(known: JobEvent | None, event: JobEvent) -> bool:
    return known is None or _age_key(event) >= _age_key(known)


def _age_key(event: JobEvent) -> tuple[int, datetime]:
    return _POSITION.get(event.stage, -1), event.at
