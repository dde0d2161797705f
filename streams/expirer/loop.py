"""The expirer's loop: read, note down, settle what is due, tell of it.

    requests, prompts.cleaned, videos.done, jobs.control -> ExpiryBook -> Settler -> videos.done

Nothing is settled before everything that was on the log has been read, nor while a record cannot be
decoded yet. A run leaves the book when its VideoDone is acknowledged or read; whatever fails before
that is tried again, so a store, a registry or a broker that is away costs patience. Killed
anywhere, the next expirer reads the same log and comes to the same bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Protocol

from schemas.cloudevents import Headers as AnyHeaders
from schemas.codec import Codec, UndecodableRecord, UnencodableRecord
from schemas.records import CleanedPrompt, GenerationRequest, JobControl, VideoDone
from streams.blobs.base import check_segment
from streams.core.events import (
    Acknowledged,
    Event,
    Headers,
    NotAcknowledged,
    Output,
    Ticket,
    TopicPartition,
)
from streams.core.expiry import Due, ExpiryBook
from streams.core.runs import RunOfJob
from streams.engine import Task
from streams.errors import InvalidRecord, PipelineError, SickHost
from streams.expirer.settle import Nothing, NotYet, Seen, Tell, Verdict, deadline_of
from streams.monitor.expirer import ExpirerMetrics
from streams.monitor.health import Health
from streams.runner import Clock
from streams.topology import JOB_CONTROL, REQUESTS, VIDEOS_DONE, stage

log = logging.getLogger(__name__)

CLEANED = stage("sampler").reads
MAX_AT_WORK = 256
"""Runs being settled or told of at a time: bounds memory and the producer's queue."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_ODD_PAUSE_S = 600.0  # a fence that nobody understands will be the same in a second
_STORE, _REGISTRY = "object store", "schema registry"
_TRACE = ("ce_id", "traceparent", "tracestate")


class Reader(Protocol):
    """Records of the topics (streams/kafka/tail.py)."""

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that was there at first has been told."""

    def poll(self, timeout_s: float) -> Iterator[Task]:
        """What is new, after at most that long."""


class Sink(Protocol):
    """Where records go (streams/kafka/producer.py)."""

    def produce(self, ticket: Ticket, outputs: tuple[Output, ...]) -> None:
        """Send all; `Acknowledged` or `NotAcknowledged` follows."""

    def poll(self, dispatch: Callable[[Event], None]) -> None:
        """Hand on answers."""


class Expirer:
    """Turns until told to stop. All methods but `stop` belong to one thread."""

    def __init__(
        self,
        book: ExpiryBook,
        settle: Callable[[Due], Verdict],
        reader: Reader,
        sink: Sink,
        codec: Codec,
        clock: Clock,
        health: Health,
        metrics: ExpirerMetrics,
        *,
        longest_deadline_s: float,
        num_threads: int,
    ) -> None:
        """`settle` is called on `num_threads` threads at a time."""
        self._book, self._settle, self._reader, self._sink = book, settle, reader, sink
        self._codec, self._clock, self._health, self._metrics = codec, clock, health, metrics
        self._longest_deadline_s = longest_deadline_s
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="settle")
        self._settling: dict[Future[Verdict], Due] = {}
        self._telling: dict[Ticket, tuple[Due, Tell]] = {}
        self._tickets = count()
        self._unread: Task | None = None  # read, and not decoded yet
        self._hold_until_s, self._pause_s = 0.0, _FIRST_PAUSE_S
        self._must_stop = False

    def stop(self) -> None:
        """Stop soon; safe to call from a signal handler. What is under way is done again."""
        self._must_stop = True

    def run(self, poll_s: float) -> None:
        """Turn until stopped. Whatever is raised here is a bug or a topic that is gone."""
        try:
            while not self._must_stop:
                self.turn(poll_s)
            self._health.drain()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def turn(self, poll_s: float) -> None:
        """One turn: what is new, what was settled, what was told, what is due."""
        self._health.turned(self._clock.now_s())
        self._read(poll_s)
        now_s = self._clock.now_s()
        for future in [each for each in self._settling if each.done()]:
            self._settled(self._settling.pop(future), future, now_s)
        self._sink.poll(self._answered)
        self._metrics.open_runs(len(self._book))
        if self._unread is not None or not self._reader.is_caught_up:
            return
        self._health.done("topics read")
        if now_s >= self._hold_until_s:
            room = MAX_AT_WORK - len(self._settling) - len(self._telling)
            for due in self._book.due(now_s, room):
                self._settling[self._pool.submit(self._settle, due)] = due

    # ---- what is read

    def _read(self, poll_s: float) -> None:
        """Note down what is new; while the schema registry is away, the same record again."""
        if self._unread is None:
            tasks = self._reader.poll(poll_s)
        else:
            time.sleep(poll_s)
            if self._clock.now_s() < self._hold_until_s:
                return
            tasks = iter((self._unread,))
        for task in tasks:
            now_s = self._clock.now_s()
            try:
                self._see(task, now_s)
            except SickHost as error:
                self._unread = task
                self._hold(error, now_s, _REGISTRY)
                return
        if self._unread is not None:
            self._unread, self._pause_s = None, _FIRST_PAUSE_S
            self._health.done(_REGISTRY)

    def _see(self, task: Task, now_s: float) -> None:
        if task.value is None:
            return  # a tombstone: the wish is old
        try:
            match task.topic:
                case t if t == VIDEOS_DONE:
                    done = self._codec.decode(task.value, VideoDone)
                    self._book.ended(RunOfJob(done.tenant_id, done.job_id, done.run), now_s)
                case t if t == JOB_CONTROL:
                    self._wished(self._codec.decode(task.value, JobControl), now_s)
                case t if t == CLEANED:
                    job = self._codec.decode(task.value, CleanedPrompt).job
                    self._book.claimed(
                        _key(job.tenant_id, job.job_id, job.run), job.deadline.timestamp(),
                        Seen(None, task.partition, _trace(task.headers)), now_s,
                    )  # fmt: skip
                case t:
                    assert t == REQUESTS, t
                    request = self._codec.decode(task.value, GenerationRequest)
                    self._book.requested(
                        _key(request.tenant_id, request.job_id, request.run),
                        deadline_of(request, self._longest_deadline_s),
                        Seen(task.value, task.partition, _trace(task.headers)), now_s,
                    )  # fmt: skip
        except (UndecodableRecord, InvalidRecord) as error:
            # The stage that reads it dead-letters it; it has no outcome (DESIGN 4.6).
            self._metrics.not_understood(task.topic)
            log.debug("not understood", extra={"topic": task.topic, "error": str(error)})

    def _wished(self, control: JobControl, now_s: float) -> None:
        if control.tenant_id is None:
            return  # older than the field: the stages act upon it, we could end another's job
        key = _key(control.tenant_id, control.job_id, control.run)
        match control.kind:
            case "cancel":
                self._book.cancel_wished(key, now_s)
            case "deadline" if control.deadline is not None:
                self._book.deadline_wished(key, control.deadline.timestamp(), now_s)
            case "redrive":
                self._book.redrive_wished(key, control, now_s)

    # ---- what is settled

    def _settled(self, due: Due, future: Future[Verdict], now_s: float) -> None:
        try:
            verdict = future.result()
        except SickHost as error:
            self._hold(error, now_s, _STORE)
            self._book.again(due.key, self._hold_until_s)
            return
        except (PipelineError, UndecodableRecord, UnencodableRecord) as error:
            log.error("cannot be settled", extra={**_about(due), "error": str(error)})
            self._metrics.not_settled()
            self._book.again(due.key, now_s + _ODD_PAUSE_S)
            return
        self._pause_s = _FIRST_PAUSE_S
        self._health.done(_STORE)
        match verdict:
            case Tell():
                ticket = Ticket(TopicPartition(VIDEOS_DONE, -1), next(self._tickets), 0)
                self._telling[ticket] = (due, verdict)
                self._sink.produce(ticket, verdict.outputs)
            case NotYet(deadline_s):
                self._book.rearmed(due.key, deadline_s)
            case Nothing(reason):
                log.info("nothing to do", extra={**_about(due), "reason": reason})
                if due.kind == "redrive":
                    self._book.redriven(due.key)
                else:
                    self._book.let_go(due.key)

    def _hold(self, error: SickHost, now_s: float, missing: str) -> None:
        if now_s < self._hold_until_s:
            return  # one of those that were under way when the first met it
        self._hold_until_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._health.missing.add(missing)
        self._metrics.held(error.reason_code)
        log.warning("the %s is away: waiting", missing, extra={"error": str(error)})

    def _answered(self, event: Event) -> None:
        now_s = self._clock.now_s()
        match event:
            case Acknowledged(ticket):
                due, tell = self._telling.pop(ticket)
                log.info(
                    "ended" if tell.is_ending else "redriven",
                    extra={**_about(due), "ce_id": _ce_id(tell)},
                )
                self._metrics.told(due.kind)
                if tell.is_ending:
                    self._book.ended(due.key, now_s)
                else:
                    self._book.redriven(due.key)
            case NotAcknowledged(ticket):
                due, _ = self._telling.pop(ticket)
                self._book.again(due.key, now_s + _FIRST_PAUSE_S)


def _key(tenant_id: str, job_id: str, run: int) -> RunOfJob:
    """Raises InvalidRecord where nothing could be written for such a run."""
    if run < 1:
        raise InvalidRecord(f"run {run}: runs count from 1")
    return RunOfJob(check_segment(tenant_id), check_segment(job_id), run)


def _trace(headers: AnyHeaders) -> Headers:
    """What the VideoDone of a request inherits from it."""
    return tuple((name, value) for name, value in headers if name in _TRACE)


def _ce_id(tell: Tell) -> str:
    found = dict(tell.outputs[0].headers).get("ce_id") or b""
    return found.decode()


def _about(due: Due) -> dict[str, object]:
    return {
        "tenant_id": due.key.tenant_id,
        "job_id": due.key.job_id,
        "run": due.key.run,
        "kind": due.kind,
    }
