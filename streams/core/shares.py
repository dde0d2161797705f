"""What a request asks of its tenant's quota, and what the log tells of such shares."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Literal, NamedTuple

from streams.core.cost import Shape
from streams.core.runs import RunOfJob

Over = Literal["concurrent_jobs", "queued_gpu_seconds"]
"""The quota that a parked request is over."""


class Level(IntEnum):
    """How far a run has come, as the log tells it; a run never goes back."""

    PARKED = auto()  # its request lies in `requests.deferred`
    ADMITTED = auto()  # it is in the pipeline
    ENDED = auto()


class Source(Enum):
    """By which topic a request came."""

    NEW = auto()
    PARKED = auto()
    TRIED = auto()  # a retry topic: it was let in before


class Bulk(NamedTuple):
    """The size of a job's work: what its cost is estimated from."""

    model_version: str
    shape: Shape
    num_units: float  # denoising steps times forward rows


class Payer(NamedTuple):
    """Whose quota it is: a tenant's, in a tier, in one of the partitions that its jobs go to."""

    partition: int
    tier: str
    tenant_id: str


class Rung(NamedTuple):
    """What a job may be made where it would miss its deadline: what is let go of, what is left."""

    degradations: tuple[str, ...]
    bulk: Bulk


@dataclass(frozen=True, slots=True)
class Share:
    """What a request asks for. `is_charged` False: the rate has counted it before (a redrive).

    `rungs`: what it may be made instead, the least loss first.
    """

    payer: Payer
    bulk: Bulk
    source: Source = Source.NEW
    is_charged: bool = True
    rungs: tuple[Rung, ...] = ()


@dataclass(frozen=True, slots=True)
class JobSeen:
    """Event: the log tells how far a run has come. Ended: `share` None, and what it has cost."""

    partition: int
    run_of_job: RunOfJob
    level: Level
    share: Share | None = None
    deadline_s: float = 0.0
    cost_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LedgerRead:
    """Event: what a partition was to be followed for has been told, up to where its log was."""

    partition: int


@dataclass(frozen=True, slots=True)
class Follow:
    """Command: tell of every run of the new partition numbers, and no longer of those gone."""

    new: tuple[int, ...]
    gone: tuple[int, ...]
