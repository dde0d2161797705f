"""Whether a job was admitted for the very model that a worker holds."""

from __future__ import annotations

from schemas.records import Job
from streams.errors import InvalidRecord
from workers.models.card import ModelCard


def require_model(job: Job, card: ModelCard) -> None:
    """Refuse a job of another model version: its embeddings or latents would mean nothing here.

    Raises:
        InvalidRecord: `model_mismatch`.
    """
    if job.model_version != card.version:
        raise InvalidRecord(
            f"the job is for {job.model} {job.model_version}, this worker holds {card.name} "
            f"{card.version}",
            reason_code="model_mismatch",
        )
