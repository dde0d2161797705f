"""`Client`: what a producer and a subscriber need, on the topics themselves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from schemas.cloudevents import event_headers
from schemas.codec import Codec, UnencodableRecord
from schemas.records import (
    GenerationRequest,
    JobControl,
    JobEvent,
    StageControl,
    VideoDone,
    derive_job_id,
)
from streams.blobs.base import BlobStore
from streams.blobs.fences import Fences
from streams.claims import Author
from streams.client.connection import ClientError, Connection, NotDone, UnknownJob, WrongRequest
from streams.client.files import write_whole
from streams.client.ids import issuer, new_job_id
from streams.client.job_rows import JobRow, fold_jobs
from streams.client.log_reader import LogReader, open_log
from streams.client.outbox import Outbox
from streams.client.outcomes import LOOKBACK_S, outcomes_of_all, outcomes_of_group
from streams.client.subscription import subscribe
from streams.core.tiers import DEFAULT_TIERS, partition_of_job
from streams.errors import InvalidRecord
from streams.redrive import (
    WISH_KIND,
    BeginRun,
    NothingToDo,
    Plan,
    SendAgain,
    claim_redrive,
    plan_redrive,
    plan_run,
)
from streams.topology import (
    JOB_CONTROL,
    JOB_EVENTS,
    REQUESTS,
    STAGE_CONTROL,
    VIDEOS_DONE,
    stage,
)

JOB_TOPICS = (REQUESTS, JOB_EVENTS, VIDEOS_DONE)
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Client:
    """Submits jobs, follows them, fetches their videos. An async context manager; not thread-safe.

    Every method raises BrokerUnreachable where no broker answers and ClientError, in one line, for
    whatever else Kafka refuses.
    """

    def __init__(
        self,
        bootstrap: str,
        blobs: BlobStore | None = None,
        *,
        tiers: Sequence[str] = DEFAULT_TIERS,
        default_tier: str = "free",
        tenants: Mapping[str, str] | None = None,
        kafka_extra: Mapping[str, str] | None = None,
        codec: Codec | None = None,
    ) -> None:
        self._connection = Connection(bootstrap, kafka_extra or {})
        self._blobs = blobs
        self._tiers = tuple(tiers)
        self._default_tier = default_tier
        self._tenants = tenants or {}
        self._codec = codec or Codec()
        self._outbox = Outbox(self._connection)
        self._counts: dict[str, int] = {}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the producer; what was acknowledged stays so."""
        await self._outbox.close()

    async def submit(
        self,
        prompt: str,
        *,
        tenant_id: str = "local",
        tier: str | None = None,
        idempotency_key: str | None = None,
        negative_prompt: str = "",
        model: str | None = None,
        num_frames: int | None = None,
        width_px: int | None = None,
        height_px: int | None = None,
        fps: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        deadline: datetime | None = None,
        is_deferrable: bool = False,
        is_step_cached: bool = False,
        allowed_degradations: Sequence[str] = (),
    ) -> str:
        """Hand a job to the pipeline; its job id, once every in-sync replica has it.

        With an `idempotency_key` the job id is that of (tenant, key): to submit twice is one job.
        None leaves a choice to the model or the tier. A deferrable job waits until nothing else
        does. A step-cached one skips what changes little between two steps: faster, and another
        video. Use is made of `allowed_degradations` (`fewer_steps`, `distilled_model`, `smaller`)
        where it would miss its deadline otherwise. Raises WrongRequest for impossible values.
        """
        request = GenerationRequest(
            job_id=derive_job_id(tenant_id, idempotency_key) if idempotency_key else new_job_id(),
            tenant_id=tenant_id,
            prompt=prompt,
            created_at=datetime.now(UTC),
            negative_prompt=negative_prompt,
            idempotency_key=idempotency_key,
            tier=tier,
            model=model,
            num_frames=num_frames,
            width_px=width_px,
            height_px=height_px,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            deadline=deadline,
            is_deferrable=is_deferrable,
            is_step_cached=is_step_cached,
            allowed_degradations=tuple(allowed_degradations),
        )
        await self.send(request)
        return request.job_id

    async def send(self, request: GenerationRequest) -> None:
        """Produce a whole request record to its own partition of `requests`, acknowledged."""
        tier = request.tier or self._tenants.get(request.tenant_id, self._default_tier)
        if not _NAME.fullmatch(request.tenant_id):
            raise WrongRequest(f"tenant {request.tenant_id!r}: letters, digits, . _ - only")
        if not _NAME.fullmatch(request.job_id):
            raise WrongRequest(f"job id {request.job_id!r}: letters, digits, . _ - only")
        count = await self._partition_count(REQUESTS)
        try:
            partition = partition_of_job(
                tier, request.tenant_id, request.job_id, count, self._tiers
            )
            headers = event_headers(
                type(request).__name__,
                job_id=request.job_id,
                run=request.run,
                stage="client",
                outcome="submitted",
                time=request.created_at,
                deadline=request.deadline,
                cause=(),
                partition_key=request.job_id,
            )
            value = self._codec.encode(request)
        except (ValueError, UnencodableRecord) as fault:
            raise WrongRequest(str(fault)) from fault
        await self.produce(REQUESTS, partition, request.job_id.encode(), value, headers)

    async def control_stage(
        self, name: str, state: Literal["paused", "running"], reason: str | None = None
    ) -> None:
        """Tell every worker of a stage to stop or to go on taking records."""
        try:
            stage(name)
        except KeyError:
            raise WrongRequest(f"no stage {name!r}") from None
        control = StageControl(name, state, datetime.now(UTC), issuer(), reason)
        await self._partition_count(STAGE_CONTROL)
        await self.produce(STAGE_CONTROL, 0, name.encode(), self._codec.encode(control), [])

    async def cancel(
        self, job_id: str, run: int | None = None, *, tenant_id: str | None = None
    ) -> int:
        """Wish that a run of a job ends as cancelled; the run, once the wish is acknowledged.

        The run defaults to the latest that the topics know. `tenant_id` tells whose, where two
        tenants have a job of that id. Whether the cancel comes before the end is told by the
        VideoDone. Raises UnknownJob, and ClientError for a job that has ended.
        """
        row = await self._row(job_id, tenant_id)
        if run is None:
            if row.done is not None:
                raise ClientError(f"job {job_id} has ended already: {row.status}")
            run = row.run
        elif run < 1:
            raise WrongRequest(f"run {run}: runs count from 1")
        await self._control(
            JobControl(job_id, run, "cancel", datetime.now(UTC), issuer(), tenant_id=row.tenant_id)
        )
        return run

    async def plan_redrive(
        self, job_id: str, *, tenant_id: str | None = None, run: int | None = None
    ) -> Plan:
        """What `redrive` would do now.

        Raises UnknownJob where no tenant is given and no topic knows the job, WrongRequest for an
        id that none can be, and what the object store raises.
        """
        if tenant_id is None:
            tenant_id = (await self._row(job_id)).tenant_id
        fences = self._known_fences()
        try:
            if run is None:
                return await asyncio.to_thread(plan_redrive, fences, self._codec, tenant_id, job_id)
            return await asyncio.to_thread(plan_run, fences, self._codec, tenant_id, job_id, run)
        except InvalidRecord as fault:
            raise WrongRequest(str(fault)) from fault

    async def redrive(
        self,
        job_id: str,
        *,
        tenant_id: str | None = None,
        run: int | None = None,
        deadline_s: float = 86_400.0,
        why: str | None = None,
        order_id: str | None = None,
    ) -> BeginRun | SendAgain | NothingToDo:
        """Begin the next run of a job that failed or expired; what was done, or why nothing.

        With `run` that very run or none: to ask twice begins one. The run's deadline is
        `deadline_s` from now. Its claim says for good who began it, when, why and as part of which
        order (streams/audit.py). It is as good as begun once its wish is acknowledged: whoever is
        interrupted after that asks again, or leaves the rest to the expirer. SendAgain where
        somebody else claimed the run first. Raises as `plan_redrive`.
        """
        plan = await self.plan_redrive(job_id, tenant_id=tenant_id, run=run)
        if isinstance(plan, NothingToDo):
            return plan
        now = datetime.now(UTC)
        if isinstance(plan, BeginRun):
            wish = JobControl(job_id, plan.run, WISH_KIND, now, issuer(), tenant_id=plan.tenant_id)
            await self._control(wish)
            author = Author(issuer(), now, why, order_id)
            record = await asyncio.to_thread(
                claim_redrive, self._known_fences(), self._codec, plan, author, deadline_s
            )
            if isinstance(record, NothingToDo):
                return record
            if record.author != author:
                plan = SendAgain(plan.tenant_id, job_id, plan.run, record)
        else:
            record = plan.record
        await self.produce(
            record.topic, record.partition, record.key, record.value, list(record.headers)
        )
        return plan

    async def outcomes(
        self,
        group: str | None = None,
        *,
        from_beginning: bool = True,
        lookback_s: float = LOOKBACK_S,
    ) -> AsyncGenerator[VideoDone, None]:
        """Each job's effective outcome, once, as it comes; without end.

        Not handed on: duplicates, and runs that a later one has replaced (by the fences, if this
        client has an object store; else by what was seen). So a job appears again only with a
        higher `run`: it failed, was redriven, and this is its effective outcome now.

        With a group its members share the partitions. What was taken (the next one was asked for)
        is committed at once, and never comes again, over restarts and rebalances: what was handed
        on within the last `lookback_s` is read back. Only the one that a member holds when it dies,
        or still holds seconds after a rebalance began, may come once more.

        While the object store is away, the outcomes that depend on it wait. Raises ClientError
        where records were deleted unread.
        """
        fences = None if self._blobs is None else Fences(self._blobs)
        if group is None:
            found = outcomes_of_all(
                self._connection, self._codec, fences,
                from_beginning=from_beginning, lookback_s=lookback_s,
            )  # fmt: skip
        else:
            found = outcomes_of_group(
                self._connection, self._codec, fences, group,
                from_beginning=from_beginning, lookback_s=lookback_s,
            )  # fmt: skip
        async with aclosing(found) as outcomes:
            async for done in outcomes:
                yield done

    async def completions(
        self, group: str | None = None, *, from_beginning: bool = True
    ) -> AsyncGenerator[VideoDone, None]:
        """How jobs end, as they do, without end; duplicates possible.

        With a group its members share the records, and what was taken (the next one was asked for)
        is committed. Without, this reader sees all of them and nothing is kept.
        """
        if group is not None:
            members = subscribe(self._connection, self._codec, group, from_beginning=from_beginning)
            async with aclosing(members) as endings:
                async for done in endings:
                    yield done
            return
        async with self._log([VIDEOS_DONE], from_beginning=from_beginning) as log:
            while True:
                for record in await log.poll(1.0):
                    if isinstance(record, VideoDone):
                        yield record

    async def watch(self, job_id: str) -> AsyncGenerator[JobEvent | VideoDone, None]:
        """All that happens to a job, from its beginning; ends with the VideoDone of its last run.

        Waits without end for a job that nobody has submitted yet.
        """
        key, ended = job_id.encode(), None
        last_run = 0
        async with self._log(JOB_TOPICS) as log:  # a request tells of a run that nobody has begun
            while True:
                for record in await log.poll(1.0, key):
                    if record.job_id != job_id:
                        continue
                    last_run = max(last_run, record.run)
                    if isinstance(record, VideoDone):
                        ended = record
                    elif isinstance(record, JobEvent):
                        yield record
                if ended is None or ended.run < last_run:
                    continue
                # Another topic may lag behind: what was written before the ending comes before it.
                for record in await log.snapshot(key):
                    if record.job_id == job_id:
                        last_run = max(last_run, record.run)
                        if isinstance(record, JobEvent):
                            yield record
                        elif isinstance(record, VideoDone):
                            ended = record
                if ended.run >= last_run:
                    yield ended
                    return

    async def jobs(self) -> list[JobRow]:
        """Every job that the topics still hold, oldest first. Reads them whole."""
        async with self._log(JOB_TOPICS) as log:
            return list(fold_jobs(await log.snapshot()).values())

    async def find(self, job_id: str, tenant_id: str | None = None) -> JobRow | None:
        """What the topics say of one job now, of any tenant's if none is named; None: nothing."""
        async with self._log(JOB_TOPICS) as log:
            records = await log.snapshot(job_id.encode())
        return fold_jobs(
            each
            for each in records
            if each.job_id == job_id and tenant_id in (None, each.tenant_id)
        ).get(job_id)

    async def get(self, job_id: str) -> VideoDone:
        """How a job ended. Raises NotDone while it has not, UnknownJob for a job nobody knows."""
        row = await self._row(job_id)
        if row.done is None:
            where = f", in stage {row.stage}" if row.stage else ""
            raise NotDone(f"not done yet: {job_id} is {row.status}{where}")
        return row.done

    async def download(self, done: VideoDone, path: Path) -> None:
        """Write a completed job's video to `path`, whole and verified by sha256, or not at all.

        Raises ClientError for a job without a video, what the object store raises otherwise.
        """
        if done.video is None:
            reason = f" ({done.reason_code}: {done.reason})" if done.reason_code else ""
            raise ClientError(f"no video: job {done.job_id} was {done.status}{reason}")
        if self._blobs is None:
            raise ClientError("no object store was given to this client")
        await asyncio.to_thread(write_whole, self._blobs.get(done.video), path)

    async def _row(self, job_id: str, tenant_id: str | None = None) -> JobRow:
        row = await self.find(job_id, tenant_id)
        if row is None:
            whose = "" if tenant_id is None else f" of tenant {tenant_id}"
            raise UnknownJob(f"no job {job_id}{whose}")
        return row

    def _known_fences(self) -> Fences:
        if self._blobs is None:
            raise ClientError("no object store was given to this client")
        return Fences(self._blobs)

    async def _control(self, wish: JobControl) -> None:
        key = f"{wish.job_id}/{wish.run}/{wish.kind}".encode()
        await self._partition_count(JOB_CONTROL)
        await self.produce(JOB_CONTROL, 0, key, self._codec.encode(wish), [])

    def _log(
        self, topics: Sequence[str], *, from_beginning: bool = True
    ) -> AbstractAsyncContextManager[LogReader]:
        return open_log(self._connection, self._codec, topics, from_beginning=from_beginning)

    async def _partition_count(self, topic: str) -> int:
        if topic not in self._counts:
            self._counts.update(await self._connection.num_partitions([topic]))
        return self._counts[topic]

    async def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> None:
        """Put a record on the log exactly so; returns once it is acknowledged."""
        await self._outbox.put(topic, partition, key, value, headers)
