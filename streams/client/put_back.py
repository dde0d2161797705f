"""What a redrive does about a dead letter that an application or a connector wrote of our records.

Nobody of ours gave that record up: its run may well be open. Then the record goes back, as it was,
to the topic where it came from, and whoever reads that gets it once more. Fences make that safe: a
stage that has worked it emits its result again, and a VideoDone says the same a second time. A run
that has failed or expired since is followed by the next; one that ended otherwise stays as it is.

Blocking calls on the object store, no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.codec import Codec
from schemas.records import GenerationRequest, VideoDone
from streams.audit import put_back_by
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.client.dead_letters import DeadLetter, JobName, original_record
from streams.client.foreign_letters import BadHeaders, CameFrom, as_before, came_from
from streams.core.events import Headers
from streams.redrive import BeginRun, NothingToDo, SendAgain, plan_run
from streams.topology import VIDEOS_DONE


@dataclass(frozen=True, slots=True)
class PutBack:
    """The original record, to be produced exactly so."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers


def plan_put_back(
    store: BlobStore, codec: Codec, letter: DeadLetter, job: JobName
) -> PutBack | BeginRun | SendAgain | NothingToDo:
    """What is to be done about a foreign dead letter of that job.

    Raises:
        BadHeaders: it does not say where it came from, or the record says otherwise.
        UndecodableRecord: it is no record of the topic from which it says it came.
        SickHost, FatalError: as `plan_run`.
    """
    origin = came_from(letter.headers)
    _check_partition(origin, original_record(letter, codec, None))
    author = put_back_by(store, identity(letter))
    if author is not None:
        at = author.at.isoformat(timespec="seconds")
        return NothingToDo("begun", f"it was put back before, by {author.by} at {at}")
    if origin.stage.reads != VIDEOS_DONE:
        fences = Fences(store)
        if fences.outcome(job.tenant_id, job.job_id, job.run) is not None:
            return plan_run(fences, codec, job.tenant_id, job.job_id, job.run + 1)
    assert letter.value is not None, "it has been decoded"
    headers = as_before(letter.headers)
    return PutBack(origin.stage.reads, origin.partition, letter.key, letter.value, headers)


def identity(letter: DeadLetter) -> bytes:
    """What tells a letter from every other, also of a topic that was made anew."""
    place = f"{letter.topic}/{letter.partition}/{letter.offset}/{letter.timestamp_ms}/"
    return place.encode() + (letter.value or b"")


def _check_partition(origin: CameFrom, record: Any) -> None:
    """From `prompts.cleaned` on a job keeps its partition."""
    if isinstance(record, GenerationRequest):
        return
    partition = record.partition if isinstance(record, VideoDone) else record.job.partition
    if partition != origin.partition:
        raise BadHeaders(
            f"its headers say partition {origin.partition}, its record {partition}:"
            " it would go where nobody expects it"
        )
