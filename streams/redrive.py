"""Redrive: the next run of a job that failed or expired, from the request that holds its id.

In order: the wish on `jobs.control`, acknowledged; `runs/<run>` claimed, with the record to produce
in it; that record on `requests`, acknowledged. Whoever dies in between loses nothing: the wish is
completed by whoever reads it (`complete_redrive`), a claimed run by whoever asks again. Of two at
once one wins the claim and both produce the winner's record, which is one run.

What is decided here rests on fences, which never change, so it stays true however late it is
acted upon. Blocking calls on the object store, no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from schemas.cloudevents import event_headers, event_id
from schemas.codec import Codec, UndecodableRecord, UnencodableRecord
from schemas.records import GenerationRequest, VideoDone
from streams.blobs.fences import Fences
from streams.claims import Author, Claim, RunClaim, read_claim, read_run_claim, run_claim_body
from streams.errors import FatalError
from streams.topology import REQUESTS, STAGES

WISH_KIND = "redrive"
"""`JobControl.kind`; its `run` is the run to begin."""

_FINAL = ("completed", "cancelled", "rejected")
_FIRST_STAGE = STAGES[0].name

Why = Literal["open", "final", "begun", "unknown", "unfit"]


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """No run is to be begun. `why`:

    open     the run has not ended yet
    final    it has ended as completed, cancelled or rejected
    begun    the run that was asked for was begun before, and has ended since
    unknown  no request holds the job id, or the run before was never begun
    unfit    the request cannot be written again (too large, or of an unknown schema)
    """

    why: Why
    reason: str


@dataclass(frozen=True, slots=True)
class BeginRun:
    """`run` may be claimed; the run before it has ended as `after`."""

    tenant_id: str
    job_id: str
    run: int
    request: Claim
    after: VideoDone


@dataclass(frozen=True, slots=True)
class SendAgain:
    """`run` is claimed, and nothing shows that its record was ever produced."""

    tenant_id: str
    job_id: str
    run: int
    record: RunClaim


Plan = BeginRun | SendAgain | NothingToDo


def plan_redrive(fences: Fences, codec: Codec, tenant: str, job: str) -> Plan:
    """What a redrive of the job is to do now: its latest run, or the one after.

    Raises:
        InvalidRecord: tenant or job cannot be part of a key.
        SickHost: the object store is away.
        FatalError: a fence holds what nobody of ours writes.
    """
    latest = fences.latest_run(tenant, job)
    if latest > 1 and fences.outcome(tenant, job, latest) is None:
        return plan_run(fences, codec, tenant, job, latest)
    return plan_run(fences, codec, tenant, job, latest + 1)


def plan_run(fences: Fences, codec: Codec, tenant: str, job: str, run: int) -> Plan:
    """What is to be done so that this very run (2 or later) begins, if it may.

    Raises:
        As `plan_redrive`; InvalidRecord for a run below 2 too.
    """
    if (claimed := fences.claimed_run(tenant, job, run)) is not None:
        if (ended := fences.outcome(tenant, job, run)) is not None:
            status = _decode_done(codec, ended).status
            return NothingToDo("begun", f"run {run} was begun before and {status}")
        if fences.result(tenant, job, run, _FIRST_STAGE) is not None:
            return NothingToDo("open", f"run {run} is under way")
        return SendAgain(tenant, job, run, read_run_claim(claimed))
    if run > 2 and fences.claimed_run(tenant, job, run - 1) is None:
        return NothingToDo("unknown", f"there was no run {run - 1}")
    if (ended := fences.outcome(tenant, job, run - 1)) is None:
        if run == 2 and fences.request(tenant, job) is None:
            return NothingToDo("unknown", "no request holds this job id")
        return NothingToDo("open", f"run {run - 1} has not ended")
    done = _decode_done(codec, ended)
    if done.status in _FINAL:
        return NothingToDo("final", f"{done.status} is final")
    if (request := fences.request(tenant, job)) is None:
        return NothingToDo("unknown", "no request holds this job id")
    plan = BeginRun(tenant, job, run, read_claim(request), done)
    try:  # before anything is wished that could never be done
        _record_of(codec, plan, done.finished_at, done.finished_at)
    except (UndecodableRecord, UnencodableRecord) as error:
        return _unfit(error)
    return plan


def claim_redrive(
    fences: Fences, codec: Codec, plan: BeginRun, author: Author, deadline_s: float
) -> RunClaim | NothingToDo:
    """Claim the run; the record to produce, which is the winner's where another was faster.

    It is written down who began it: a record of another `author` was claimed by somebody else. The
    run gets a deadline of its own, `deadline_s` from then. Only after its wish is on
    `jobs.control`, or a death right after the claim would leave nobody who knows of it.

    Raises:
        SickHost: the object store is away; the claim may stand all the same.
        FatalError: a fence holds what nobody of ours writes.
    """
    try:
        record = _record_of(codec, plan, author.at, author.at + timedelta(seconds=deadline_s))
    except (UndecodableRecord, UnencodableRecord) as error:
        return _unfit(error)
    body = run_claim_body(replace(record, author=author))
    body = fences.claim_run(plan.tenant_id, plan.job_id, plan.run, body)
    return read_run_claim(body)


def complete_redrive(
    fences: Fences,
    codec: Codec,
    tenant: str,
    job: str,
    run: int,
    *,
    author: Author,
    deadline_s: float,
) -> RunClaim | NothingToDo:
    """Act on a wish found on `jobs.control`: the record to produce, acknowledged, or why none.

    May be called again for the same wish, by anybody and at the same time: there will be one run.

    Raises:
        InvalidRecord: tenant or job cannot be part of a key, or run is below 2.
        SickHost, FatalError: as `claim_redrive`.
    """
    match plan_run(fences, codec, tenant, job, run):
        case BeginRun() as plan:
            return claim_redrive(fences, codec, plan, author, deadline_s)
        case SendAgain(record=record):
            return record
        case nothing:
            return nothing


def _unfit(error: Exception) -> NothingToDo:
    return NothingToDo("unfit", f"its request cannot be written again: {error}")


def _record_of(codec: Codec, plan: BeginRun, now: datetime, deadline: datetime) -> RunClaim:
    """The request record of the run, in the partition that the job keeps."""
    first = codec.decode(plan.request.value, GenerationRequest)
    request = replace(first, run=plan.run, created_at=now, deadline=deadline)
    after = plan.after
    cause = event_id(after.job_id, after.run, after.ended_by or "", after.status)
    headers = event_headers(
        "GenerationRequest",
        job_id=plan.job_id,
        run=plan.run,
        stage="redrive",
        outcome="submitted",
        time=now,
        deadline=deadline,
        cause=(("ce_id", cause.encode()),),
        partition_key=plan.job_id,
    )
    return RunClaim(
        topic=REQUESTS,
        partition=plan.request.partition,
        key=plan.job_id.encode(),
        value=codec.encode(request),
        headers=tuple(headers),
    )


def _decode_done(codec: Codec, body: bytes) -> VideoDone:
    try:
        return codec.decode(body, VideoDone)
    except UndecodableRecord as error:
        raise FatalError(f"an outcome fence holds no VideoDone: {error}") from error
