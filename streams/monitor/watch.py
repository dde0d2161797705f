"""Who notices: what the loop does, as metrics, health and log lines."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from streams.core.events import (
    Assigned,
    Command,
    Commit,
    Committed,
    DeadLetter,
    Delivered,
    Drain,
    End,
    Ending,
    Event,
    HostSick,
    HostWell,
    Lost,
    Offload,
    Park,
    Probe,
    Probed,
    Produce,
    Retry,
    Revoked,
    StagePaused,
    Start,
    Ticket,
    TopicPartition,
    Work,
)
from streams.core.stage import StageState
from streams.core.tiers import OFF_PEAK, tier_of_partition
from streams.engine import Task
from streams.monitor.health import Health
from streams.monitor.metrics import WorkerMetrics

log = logging.getLogger(__name__)

_GAUGES_EVERY_S = 1.0
_HOST = "host and store well"


class HasCaughtUp(Protocol):
    """Something that is read to its end before a worker is ready."""

    @property
    def is_caught_up(self) -> bool:
        """Whether the end was reached once."""


class WorkerWatch:
    """Implements `streams.runner.Watch`; called on every turn, so it costs microseconds."""

    def __init__(
        self,
        metrics: WorkerMetrics,
        health: Health,
        controls: HasCaughtUp,
        join_timeout_s: float,
        tiers: Sequence[str] = (),
    ) -> None:
        self._metrics, self._health, self._controls = metrics, health, controls
        self._join_timeout_s = join_timeout_s
        self._tiers = tuple(tiers)
        self._now_s = 0.0
        self._join_by_s: float | None = None
        self._is_assigned = self._is_caught_up = False
        self._next_gauges_s = 0.0

    def turned(self, state: StageState, now_s: float) -> None:
        """The loop has turned once."""
        self._health.turned(now_s)
        self._now_s = now_s
        if not self._is_caught_up and self._controls.is_caught_up:
            self._is_caught_up = True
            self._health.done("controls read")
        if now_s < self._next_gauges_s:
            return
        self._next_gauges_s = now_s + _GAUGES_EVERY_S
        self._metrics.in_flight(len(state.flights))
        self._metrics.waiting(state.num_waiting)
        self._metrics.holding(state.host.is_holding)
        self._metrics.breakers(state.host.breakers)
        for partition, tracker in state.ours.trackers.items():
            self._metrics.commit_lag(partition, tracker.next_offset - tracker.commit_offset)
        self._watch_tiers(state)
        tiers = dict.fromkeys((*self._tiers, OFF_PEAK) if state.has_quotas else (), 0)
        self._metrics.admission(tiers | state.num_parked, state.num_unread_ledgers)
        self._watch_joining(now_s)

    def _watch_tiers(self, state: StageState) -> None:
        held = Counter(
            tier_of_partition(each.partition, self._tiers)
            for each in state.ours.trackers
            if self._tiers
        )
        waiting = {tier: (num, cost_s) for tier, num, cost_s in state.queue.waiting()}
        for tier in self._tiers:
            self._metrics.tier(tier, held[tier], *waiting.get(tier, (0, 0.0)))
        if self._tiers:
            self._metrics.tier(OFF_PEAK, 0, *waiting.get(OFF_PEAK, (0, 0.0)))

    def _watch_joining(self, now_s: float) -> None:
        if self._join_by_s is None:
            self._join_by_s = now_s + self._join_timeout_s
        if not self._is_assigned and now_s > self._join_by_s:
            self._join_by_s = now_s + self._join_timeout_s
            log.warning(
                "no partitions assigned yet: more workers than partitions, no broker, or one that "
                "does not speak the group protocol (REEL_GROUP_PROTOCOL)",
                extra={"waited_s": self._join_timeout_s},
            )

    def stalled(self, partition: TopicPartition, reason: str) -> None:
        """A partition cannot be read where the group wants to go on: alarm, and no skip."""
        self._metrics.stalled(partition)
        self._health.missing.add(f"{partition.topic}[{partition.partition}] readable")
        log.error(
            "partition stands still: its log no longer holds the offset to read next; "
            "`reel topics apply --from-start STAGE` accepts the gap",
            extra={"topic": partition.topic, "partition": partition.partition, "error": reason},
        )

    def event(self, event: Event) -> None:
        """About to be handled."""
        match event:
            case Delivered(partition):
                self._metrics.records_in(partition.topic)
            case Committed(is_ok):
                self._metrics.committed(is_ok)
            case Assigned(partitions):
                self._is_assigned = self._is_assigned or bool(partitions)
                if self._is_assigned:
                    self._health.done("assigned")
                for start in partitions.values():
                    if start.is_map_ignored:
                        self._metrics.map_ignored()
                self._rebalanced("assigned", len(partitions))
            case Revoked(partitions):
                self._rebalanced("revoked", len(partitions))
                self._forget(partitions)
            case Lost(partitions):
                self._rebalanced("lost", len(partitions))
                self._forget(partitions)
            case HostSick(reason_code, message):
                self._health.missing.add(_HOST)
                log.warning("host sick", extra={"reason_code": reason_code, "error": message})
            case HostWell():
                self._health.done(_HOST)
                log.info("host well")
            case Probed(is_ok):
                self._metrics.probed(is_ok)
                if is_ok:
                    self._health.done(_HOST)
                log.log(
                    logging.INFO if is_ok else logging.WARNING, "probed", extra={"is_ok": is_ok}
                )
            case StagePaused(is_paused):
                log.info("stage paused" if is_paused else "stage running")
            case Drain():
                self._health.drain()
                log.info("draining")

    def command(self, command: Command) -> None:
        """About to be performed."""
        match command:
            case Produce(_, outputs):
                for output in outputs:
                    self._metrics.records_out(output.topic)
            case Start(batch):
                self._metrics.batch_started(len(batch))
                for _, work in batch:
                    self._started(work)
            case DeadLetter(ticket, work, fault):
                self._metrics.dead_letters(fault.reason_code)
                extra = _about(ticket, work) | {"reason_code": fault.reason_code}
                log.warning("dead letter", extra=extra | {"error": fault.message})
            case Retry(ticket, work, delay_s, fault):
                self._metrics.retries(fault.reason_code)
                extra = _about(ticket, work) | {"reason_code": fault.reason_code}
                log.warning("again later", extra=extra | {"delay_s": delay_s})
            case Park(_, _, over):
                self._metrics.parked(over)
            case End(_, _, Ending(status="rejected", reason_code=reason_code)):
                self._metrics.refused(reason_code)
            case Offload(ticket, work):
                log.warning("dead letter too large for its topic", extra=_about(ticket, work))
            case Probe():
                self._health.missing.add(_HOST)
                log.warning("failures in a row: probing")
            case Commit(_, must_finish) if must_finish:
                self._metrics.committed(True)

    def _started(self, work: Work) -> None:
        """How long it has waited since it came on the topic, or was due."""
        if isinstance(work.payload, Task):
            since_s = max(work.payload.timestamp_ms / 1000, work.due_s or 0.0)
            self._metrics.waited(work.charge.tier, max(0.0, self._now_s - since_s))

    def _rebalanced(self, kind: str, num_partitions: int) -> None:
        self._metrics.rebalances(kind)
        log.info("partitions " + kind, extra={"num_partitions": num_partitions})

    def _forget(self, partitions: tuple[TopicPartition, ...]) -> None:
        for partition in partitions:
            self._metrics.forget_partition(partition)


def _about(ticket: Ticket, work: Work) -> dict[str, object]:
    return {
        "topic": ticket.partition.topic,
        "partition": ticket.partition.partition,
        "offset": ticket.offset,
        "job_id": work.job_id,
        "run": work.run,
        "try": work.try_number,
        "crashes": work.crashes.num,
    }
