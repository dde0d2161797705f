"""dlt redrive, orders: the next run of dead letters' jobs, and who had it begun."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from streams.audit import (
    Done,
    Order,
    OrderLog,
    note_put_back,
    read_done,
    read_order,
    read_orders,
)
from streams.claims import Author
from streams.cli.context import client_settings, make_store
from streams.cli.dead_letters import Choice, Pipeline, find_letter
from streams.cli.terminal import print_table, result, say
from streams.cli.wishes import parse_rate, parse_since
from streams.client import Client, ClientError, UnknownJob
from streams.client.dead_letters import DeadLetter, JobName, job_of, parse_address
from streams.client.foreign_letters import BadHeaders, came_from
from streams.client.ids import issuer, new_job_id
from streams.client.put_back import PutBack, identity, plan_put_back
from streams.errors import SettingsError, SickHost
from streams.redrive import BeginRun, NothingToDo, Plan, SendAgain

_MAX_REMEMBERED = 10_000


def redrive_letters(
    target: str | None,
    topic: str | None,
    stage: str | None,
    tenant: str | None,
    reason: str | None,
    since: str | None,
    rate: str | None,
    why: str | None,
    *,
    is_all: bool,
    is_dry_run: bool,
) -> int:
    """Redrive one letter or job, or all that are meant; a line for each. The exit code."""
    filters = (topic, stage, reason, since)
    if target is not None and (is_all or any(filters)):
        raise SettingsError("one letter or job, or a filter, not both")
    if target is None and not (is_all or tenant or any(filters)):
        raise SettingsError(
            "want STAGE/PARTITION/OFFSET, a JOB, a filter such as --stage, or --all"
        )
    if target is not None and "/" in target and tenant is not None:
        raise SettingsError("a letter knows its tenant: --tenant goes with a JOB or a filter")
    rate_per_s = parse_rate(rate)
    choice = Choice(stage, tenant, reason, parse_since(since, datetime.now(UTC)), topic)
    _ = choice.topics
    if target is None and not (is_dry_run or (why or "").strip()):
        raise SettingsError("whoever redrives many must say for the record --why")
    is_letter = target is not None and "/" in target
    if target is not None and is_letter:
        _ = parse_address(target)
    words = {
        "target": target, "topic": topic, "stage": stage, "tenant": tenant, "reason": reason,
        "rate": rate,
        "since": None if choice.since is None else choice.since.isoformat(timespec="seconds"),
        "all": "yes" if is_all else None,
    }  # fmt: skip
    what = {name: word for name, word in words.items() if word is not None}
    pipeline = Pipeline(client_settings())
    order = None if is_dry_run else _Order(pipeline, what, why)
    redriver = _Redriver(pipeline, rate_per_s, order)
    if target is not None:
        doing = redriver.letter(target) if is_letter else redriver.job(target, tenant)
        return asyncio.run(doing)
    return asyncio.run(redriver.all_of(choice))


def list_orders(order_id: str | None) -> int:
    """Print who had what redriven, oldest first; of one order what became of each job."""
    store = make_store(client_settings())
    if order_id is None:
        found = read_orders(store)
    elif (one := read_order(store, order_id)) is None:
        raise ClientError(f"no order {order_id}")
    else:
        found = [one]
    rows = []
    for order, ended in found:
        what = " ".join(f"{name}={word}" for name, word in sorted(order.what.items()))
        how = "under way, or killed" if ended is None else ended.interrupted_by or "done"
        counts = ("-", "-") if ended is None else (str(ended.num_begun), str(ended.num_others))
        at = order.at.isoformat(timespec="seconds")
        rows.append((order.order_id, at, order.by, what, *counts, how, order.why or "-"))
    print_table(("order", "at", "by", "what", "begun", "others", "ended", "why"), rows)
    if order_id is not None:
        for done in read_done(store, order_id):
            result(f"{done.job_id}\t{done.tenant_id}\t{done.what}")
    return 0


@dataclass(slots=True)
class _Order:
    """An order and its audit record, which is begun before anything is done about it."""

    pipeline: Pipeline
    what: dict[str, str]
    why: str | None
    order_id: str = field(default_factory=new_job_id)  # sorted by time
    log: OrderLog | None = None

    def begin(self) -> None:
        """Write it down, if that is still to be done. Blocking."""
        if self.log is None:
            now = datetime.now(UTC)
            order = Order(self.order_id, issuer(), now, self.what, self.why)
            self.log = OrderLog(self.pipeline.store, order)

    def note(self, job_id: str, tenant: str, done: Plan | PutBack, what: str) -> None:
        """Write down what became of a job. Blocking."""
        assert self.log is not None, "nothing is done before the order is written down"
        run = done.run if isinstance(done, BeginRun | SendAgain) else None
        is_begun = isinstance(done, BeginRun | PutBack)
        self.log.note(Done(tenant, job_id, run, what), is_begun=is_begun)

    def end(self, interrupted_by: str | None = None) -> None:
        """Write down that it is over. Blocking."""
        if self.log is not None:
            self.log.end(datetime.now(UTC), interrupted_by)


class _Redriver:
    """Redrives, or, without an order, says what a redrive would do."""

    def __init__(self, pipeline: Pipeline, rate_per_s: float | None, order: _Order | None) -> None:
        self._pipeline, self._order = pipeline, order
        self._apart_s = 0.0 if rate_per_s is None or order is None else 1.0 / rate_per_s
        # The latest jobs: many letters may be one job's. To ask again would be harmless.
        self._seen: OrderedDict[JobName, None] = OrderedDict()

    async def letter(self, address: str) -> int:
        """The exit code: 1 where the letter's job can never be redriven."""
        letter = await find_letter(self._pipeline, address)
        job = await asyncio.to_thread(job_of, letter, self._pipeline.codec, self._pipeline.store)
        if job is None:
            result(f"{letter.address}\t-\tleft alone: {_why_nobodys(letter)}")
            return 1
        async with self._pipeline.client() as client, self._recorded():
            return _exit_code(await self._of_letter(client, letter, job))

    async def job(self, job_id: str, tenant: str | None) -> int:
        """The exit code: 1 where the job can never be redriven."""
        async with self._pipeline.client() as client, self._recorded():
            if tenant is None:
                if (row := await client.find(job_id)) is None:
                    raise UnknownJob(f"no job {job_id}")
                tenant = row.tenant_id
            return _exit_code(await self._redrive(client, job_id, tenant, None))

    async def all_of(self, choice: Choice) -> int:
        """The exit code: 0, whatever was left alone."""
        num_begun = 0
        async with (
            self._pipeline.client() as client,
            self._recorded(),
            aclosing(self._pipeline.letters(choice)) as letters,
        ):
            async for letter, job in letters:
                if job is None:
                    result(f"{letter.address}\t-\tleft alone: {_why_nobodys(letter)}")
                elif letter.is_foreign or self._is_first(job):
                    begun_s = time.monotonic()
                    done = await self._of_letter(client, letter, job)
                    if not isinstance(done, NothingToDo):
                        num_begun += 1
                        await asyncio.sleep(self._apart_s - (time.monotonic() - begun_s))
        say(f"{num_begun} {'would be ' if self._order is None else ''}redriven")
        return 0

    @asynccontextmanager
    async def _recorded(self) -> AsyncGenerator[None, None]:
        """The record is ended, whatever comes; one that is not was killed, or lost its store."""
        if self._order is None:
            yield
            return
        try:
            yield
        except BaseException as fault:
            with suppress(SickHost):  # what is wrong is told by what was raised first
                self._order.end(str(fault) or type(fault).__name__)
            raise
        await asyncio.to_thread(self._order.end)

    async def _of_letter(self, client: Client, letter: DeadLetter, job: JobName) -> Plan | PutBack:
        if letter.is_foreign:
            try:
                plan = await self._put_back(client, letter, job)
            except BadHeaders as fault:
                plan = NothingToDo("unfit", str(fault))
            if isinstance(plan, PutBack | NothingToDo):
                await self._tell(job.job_id, job.tenant_id, plan)
                return plan
        return await self._redrive(client, job.job_id, job.tenant_id, job.run + 1)

    async def _put_back(self, client: Client, letter: DeadLetter, job: JobName) -> Plan | PutBack:
        """Put a foreign letter's record back, if that is what is to be done; what is to be done."""
        store, codec = self._pipeline.store, self._pipeline.codec
        plan = await asyncio.to_thread(plan_put_back, store, codec, letter, job)
        if not isinstance(plan, PutBack):
            return plan
        counts = await self._pipeline.connection.num_partitions([plan.topic])
        if plan.partition >= counts[plan.topic]:
            raise BadHeaders(f"{plan.topic} has no partition {plan.partition}")
        if self._order is not None:
            await asyncio.to_thread(self._order.begin)
            await client.produce(
                plan.topic, plan.partition, plan.key, plan.value, list(plan.headers)
            )
            author = Author(issuer(), datetime.now(UTC), self._order.why, self._order.order_id)
            await asyncio.to_thread(note_put_back, store, identity(letter), author)
        return plan

    async def _redrive(self, client: Client, job_id: str, tenant: str, run: int | None) -> Plan:
        if self._order is None:
            done = await client.plan_redrive(job_id, tenant_id=tenant, run=run)
        else:
            await asyncio.to_thread(self._order.begin)
            done = await client.redrive(
                job_id,
                tenant_id=tenant,
                run=run,
                deadline_s=self._pipeline.settings.deadline_s,
                why=self._order.why,
                order_id=self._order.order_id,
            )
        await self._tell(job_id, tenant, done)
        return done

    async def _tell(self, job_id: str, tenant: str, done: Plan | PutBack) -> None:
        """For whoever looks on, and for the record."""
        would = "would be " if self._order is None else ""
        match done:
            case PutBack():
                what = f"{would}put back on {done.topic}, partition {done.partition}"
            case BeginRun():
                what = f"run {done.run} {would}begun"
            case SendAgain():
                what = f"run {done.run} {would}sent again"
            case _:
                what = f"left alone: {done.reason}"
        if self._order is not None:
            await asyncio.to_thread(self._order.begin)
            await asyncio.to_thread(self._order.note, job_id, tenant, done, what)
        result(f"{job_id}\t{tenant}\t{what}")

    def _is_first(self, job: JobName) -> bool:
        if job in self._seen:
            return False
        self._seen[job] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return True


def _why_nobodys(letter: DeadLetter) -> str:
    """Why no job can be named."""
    if letter.is_foreign:
        try:
            came_from(letter.headers)
        except BadHeaders as fault:
            return str(fault)
    return "no job of its own"


def _exit_code(done: Plan | PutBack) -> int:
    is_hopeless = isinstance(done, NothingToDo) and done.why in ("final", "unknown", "unfit")
    return 1 if is_hopeless else 0
