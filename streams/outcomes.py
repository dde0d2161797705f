"""How the ending of a run is written down and told: the same by every stage and the expirer.

Pure. The bytes of a VideoDone are the outcome fence (`Fences.end`), and whoever tells of it, winner
or loser, first time or again, produces those bytes with the event id that they imply.
"""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.cloudevents import event_headers
from schemas.codec import Codec, UndecodableRecord
from schemas.records import (
    CleanedPrompt,
    FramesDecoded,
    GenerationRequest,
    LatentsReady,
    VideoDone,
)
from streams.core.events import Ending, Headers, Output
from streams.errors import FatalError
from streams.topology import VIDEOS_DONE

MAX_REASON_CHARS = 1000
MAX_NAME_CHARS = 128
"""Of a tier and a model: a request may ask for one of any name, which its outcome repeats."""


def video_done(
    record: GenerationRequest | CleanedPrompt | LatentsReady | FramesDecoded,
    ending: Ending,
    *,
    partition: int,
    ended_by: str,
    finished_at: datetime,
) -> VideoDone:
    """The VideoDone of a run that ends other than by completing, as far as `record` knows it.

    `partition` is the job's own, `ended_by` a stage or `expirer`.
    """
    job = record if isinstance(record, GenerationRequest) else record.job
    timings = () if isinstance(record, GenerationRequest) else record.timings
    at_s = ending.retry_at_s
    retry_at = None if at_s is None else datetime.fromtimestamp(at_s, UTC)
    return VideoDone(
        job_id=job.job_id,
        run=job.run,
        tenant_id=job.tenant_id,
        status=ending.status,
        partition=partition,
        created_at=job.created_at,
        finished_at=finished_at,
        tier=_name(job.tier),
        reason_code=ending.reason_code,
        reason=ending.reason[:MAX_REASON_CHARS],
        ended_by=ended_by,
        model=_name(job.model),
        model_version=None if isinstance(job, GenerationRequest) else job.model_version,
        retry_at=retry_at,
        cost_gpu_s=sum(timing.compute_s for timing in timings),
        timings=timings,
    )


def _name(text: str | None) -> str | None:
    return None if text is None else text[:MAX_NAME_CHARS]


def read_outcome(codec: Codec, body: bytes) -> VideoDone:
    """What an outcome fence says.

    Raises:
        FatalError: it is no VideoDone; only we write fences.
    """
    try:
        return codec.decode(body, VideoDone)
    except UndecodableRecord as error:
        raise FatalError(f"a fence holds what is no VideoDone: {error}") from error


def outcome_output(codec: Codec, body: bytes, teller: str, cause: Headers) -> Output:
    """The record that tells of an outcome fence: its bytes, its job's partition, its event id.

    `teller` counts only where the outcome does not say who ended the run. `cause` is the headers
    of the record that led here: it gives causation and trace, and nothing of the identity.

    Raises:
        FatalError: `body` is no VideoDone.
    """
    done = read_outcome(codec, body)
    headers = event_headers(
        "VideoDone", job_id=done.job_id, run=done.run, stage=done.ended_by or teller,
        outcome=done.status, time=done.finished_at, deadline=None, cause=cause,
        partition_key=done.job_id,
    )  # fmt: skip
    return Output(VIDEOS_DONE, done.partition, done.job_id.encode(), body, tuple(headers))
