"""What requests ask of their tenants' quotas, and what the log tells of such shares."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from schemas.codec import Codec, UndecodableRecord
from schemas.records import CleanedPrompt, GenerationRequest, Job, VideoDone
from streams.core.admission import Quotas
from streams.core.runs import RunOfJob
from streams.core.shares import JobSeen, Level, Payer, Rung, Share, Source
from streams.core.tiers import OFF_PEAK
from streams.costs import PRIORS, bulk_of
from streams.engine import Task
from streams.errors import Rejected
from streams.placement import home_partition
from streams.settings import Settings
from streams.topology import REQUESTS, REQUESTS_DEFERRED, VIDEOS_DONE, stage

T = TypeVar("T", CleanedPrompt, GenerationRequest, VideoDone)

log = logging.getLogger(__name__)

#: What tells of all runs, where requests are let in.
LEDGER_TOPICS = (VIDEOS_DONE, stage("prompt").writes or "", REQUESTS_DEFERRED)

#: What a job may be made where it would miss its deadline, the least loss first.
LADDER = (
    ("fewer_steps",),
    ("distilled_model",),
    ("smaller",),
    ("fewer_steps", "smaller"),
    ("distilled_model", "smaller"),
)

#: Requests whose parked copies are soon read back from the log: more than are under way at a time.
_MAX_ASKED = 4096

_SOURCES = {REQUESTS: Source.NEW, REQUESTS_DEFERRED: Source.PARKED}


class RequestShares:
    """Shares of requests and jobs, by the settings; pure but for the model's card."""

    def __init__(self, settings: Settings, codec: Codec, job_of: Callable[[Task], Job]) -> None:
        """`job_of` tells the job that a request would be (Rejected: none)."""
        self._settings, self._codec, self._job_of = settings, codec, job_of
        self._asked: OrderedDict[tuple[int, bytes], JobSeen] = OrderedDict()

    def __call__(self, task: Task) -> Share | None:
        """What a request asks for; None where it has no share to ask for here.

        A misplaced request is forwarded before anything else, and asks in its own partition; one
        that is no job is refused by the engine.
        """
        request = task.record
        try:
            if home_partition(request, self._settings) != task.partition:
                return None
            job = self._job_of(task)
        except Rejected:
            return None
        source = _SOURCES.get(task.topic, Source.TRIED)
        share = _share(job, task.partition, source, is_charged=request.run == 1)
        if source is Source.NEW:
            self._remember(task, _parked(job, share))
        if self._settings.deadline_margin is None or not request.allowed_degradations:
            return share
        return replace(share, rungs=tuple(self._rungs(task)))

    def _rungs(self, task: Task) -> Iterator[Rung]:
        """What the job may be made, as the request allows and the model can."""
        allowed = task.record.allowed_degradations
        for names in LADDER:
            if set(names) <= set(allowed):
                with suppress(Rejected):
                    yield Rung(names, bulk_of(self._job_of(replace(task, degradations=names))))

    def seen(self, task: Task) -> JobSeen | None:
        """What a record of `LEDGER_TOPICS` says; None: nothing that is understood.

        Whatever it is that nobody understands here, the stage that works it will see to it.
        """
        try:
            match task.topic:
                case topic if topic == VIDEOS_DONE:
                    return self._ended(self._decoded(task, VideoDone), task.partition)
                case topic if topic == REQUESTS_DEFERRED:
                    return self._parked(task)
                case _:
                    job = self._decoded(task, CleanedPrompt).job
                    share = _share(job, task.partition, Source.TRIED, is_charged=False)
                    return JobSeen(
                        task.partition, _run_of(job), Level.ADMITTED, share,
                        job.deadline.timestamp(),
                    )  # fmt: skip
        except (UndecodableRecord, Rejected) as error:
            log.debug("not for the ledger", extra={"topic": task.topic, "error": str(error)})
            return None

    def _remember(self, task: Task, seen: JobSeen) -> None:
        """Its parked copy has the same value, and need not be decoded and priced to be known."""
        self._asked[task.partition, task.value or b""] = seen
        if len(self._asked) > _MAX_ASKED:
            self._asked.popitem(last=False)

    def _parked(self, task: Task) -> JobSeen:
        if seen := self._asked.pop((task.partition, task.value or b""), None):
            return seen
        job = self._job_of(replace(task, record=self._decoded(task, GenerationRequest)))
        return _parked(job, _share(job, task.partition, Source.PARKED, is_charged=False))

    def _ended(self, done: VideoDone, partition: int) -> JobSeen:
        # What was not finished tells nothing about what such a job costs.
        cost_s = done.cost_gpu_s if done.status == "completed" else 0.0
        return JobSeen(partition, _run_of(done), Level.ENDED, cost_s=cost_s)

    def _decoded(self, task: Task, record_type: type[T]) -> T:
        return self._codec.decode(task.value or b"", record_type)


def quotas_of(settings: Settings) -> Quotas:
    """What tenants may have, by the settings."""
    each = float(settings.tenant_jobs)
    jobs = dict.fromkeys((*settings.tiers, OFF_PEAK), each) if each else {}
    return Quotas(
        jobs={**jobs, **settings.tier_jobs},
        gpu_s=settings.tier_gpu_seconds,
        parked=settings.tier_parked,
        rates=settings.tier_rates,
        deadline_margin=settings.deadline_margin,
        num_parts=min(2, settings.partitions // len(settings.tiers)),
        prior=PRIORS["sampler"],
    )


def _parked(job: Job, share: Share) -> JobSeen:
    return JobSeen(
        share.payer.partition,
        _run_of(job),
        Level.PARKED,
        Share(share.payer, share.bulk, Source.PARKED, is_charged=False),
        job.deadline.timestamp(),
    )


def _run_of(told: Job | VideoDone) -> RunOfJob:
    return RunOfJob(told.tenant_id, told.job_id, told.run)


def _share(job: Job, partition: int, source: Source, is_charged: bool) -> Share:
    tier = OFF_PEAK if job.is_deferrable else job.tier
    return Share(Payer(partition, tier, job.tenant_id), bulk_of(job), source, is_charged)
