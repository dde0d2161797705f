"""`Client`: what a producer and a subscriber need, on the topics themselves."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import socket
import tempfile
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from schemas.cloudevents import event_headers
from schemas.codec import Codec, UnencodableRecord
from schemas.records import (
    GenerationRequest,
    JobEvent,
    StageControl,
    VideoDone,
    derive_job_id,
)
from streams.blobs.base import BlobStore
from streams.client.connection import ClientError, Connection, NotDone, UnknownJob, WrongRequest
from streams.client.ids import new_job_id
from streams.client.job_rows import JobRow, fold_jobs
from streams.client.log_reader import LogReader, open_log, stop_quietly
from streams.client.subscription import subscribe
from streams.core.tiers import DEFAULT_TIERS, partition_of_job
from streams.topology import JOB_EVENTS, REQUESTS, STAGE_CONTROL, VIDEOS_DONE, stage

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
        self._producer: Any = None
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
        if self._producer is not None:
            await stop_quietly(self._producer)
            self._producer = None

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
    ) -> str:
        """Hand a job to the pipeline; its job id, once every in-sync replica has it.

        With an `idempotency_key` the job id is that of (tenant, key): to submit twice is one job.
        None leaves a choice to the model or the tier. Raises WrongRequest for values that no
        request can hold.
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
        await self._produce(REQUESTS, partition, request.job_id.encode(), value, headers)

    async def control_stage(
        self, name: str, state: Literal["paused", "running"], reason: str | None = None
    ) -> None:
        """Tell every worker of a stage to stop or to go on taking records."""
        try:
            stage(name)
        except KeyError:
            raise WrongRequest(f"no stage {name!r}") from None
        issued_by = f"{getpass.getuser()}@{socket.gethostname()}"
        control = StageControl(name, state, datetime.now(UTC), issued_by, reason)
        await self._partition_count(STAGE_CONTROL)
        await self._produce(STAGE_CONTROL, 0, name.encode(), self._codec.encode(control), [])

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
        async with self._log([JOB_EVENTS, VIDEOS_DONE]) as log:
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

    async def find(self, job_id: str) -> JobRow | None:
        """What the topics say of one job now; None if they don't know it."""
        async with self._log(JOB_TOPICS) as log:
            records = await log.snapshot(job_id.encode())
        return fold_jobs(each for each in records if each.job_id == job_id).get(job_id)

    async def get(self, job_id: str) -> VideoDone:
        """How a job ended. Raises NotDone while it has not, UnknownJob for a job nobody knows."""
        row = await self.find(job_id)
        if row is None:
            raise UnknownJob(f"no job {job_id}")
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
        await asyncio.to_thread(_write_whole, self._blobs.get(done.video), path)

    def _log(
        self, topics: Sequence[str], *, from_beginning: bool = True
    ) -> AbstractAsyncContextManager[LogReader]:
        return open_log(self._connection, self._codec, topics, from_beginning=from_beginning)

    async def _partition_count(self, topic: str) -> int:
        if topic not in self._counts:
            self._counts.update(await self._connection.num_partitions([topic]))
        return self._counts[topic]

    async def _produce(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: list[tuple[str, bytes]]
    ) -> None:
        with self._connection.faults():
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **self._connection.options(), acks="all", enable_idempotence=True
                )
                try:
                    await producer.start()
                except BaseException:
                    await stop_quietly(producer)
                    raise
                self._producer = producer
            try:
                await self._producer.send_and_wait(
                    topic, value, key=key, partition=partition, headers=headers
                )
            except MessageSizeTooLargeError as fault:
                raise WrongRequest(f"{len(value)} bytes are too many for {topic}") from fault


def _write_whole(pieces: Iterable[bytes], path: Path) -> None:
    """Write to a temporary file beside `path`, then rename: readers see all of it or nothing."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
