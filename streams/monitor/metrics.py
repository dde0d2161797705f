"""What a worker measures about itself. `METRICS` is the one table of names, kinds and labels.

Every series carries the label `stage`; no label ever holds a job, a tenant or anything else that
grows with the load. `process_*` (memory, CPU time, open files) comes with them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from streams import topology
from streams.core.events import TopicPartition

# A second series for each counter, with the time of its first use, doubles the page for nobody.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is exported. `labels` come after `stage`; `buckets` are a histogram's."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = (
    Metric("reel_records_in_total", "counter", "Records delivered.", ("topic",)),
    Metric("reel_records_out_total", "counter", "Records produced.", ("topic",)),
    Metric("reel_dead_letters_total", "counter", "Records dead-lettered.", ("reason_code",)),
    Metric("reel_retries_total", "counter", "Copies put on a retry topic.", ("reason_code",)),
    Metric("reel_probes_total", "counter", "Built-in good jobs: ok or failed.", ("result",)),
    Metric("reel_offset_maps_ignored_total", "counter", "Offset maps of an unknown version."),
    Metric("reel_holding", "gauge", "1 while work waits for a sick host or store."),
    Metric("reel_breaker_open", "gauge", "1 while open: `engine` (a sick host or store is tried"
           " again and again), `jobs` (failures in a row: a probe tells why).", ("breaker",)),
    Metric("reel_batch_records", "histogram", "Records in a started batch.",
           buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)),
    Metric("reel_stage_seconds", "histogram", "Time in the engine: a batch's or a job's.",
           buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)),
    Metric("reel_step_rows", "histogram", "Rows of a denoising step, guidance rows included.",
           buckets=(1, 2, 4, 8, 16, 32, 64)),
    Metric("reel_step_seconds", "histogram", "Time of a denoising step.",
           buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)),
    Metric("reel_in_flight_records", "gauge", "Records delivered and not finished."),
    Metric("reel_waiting_records", "gauge", "Records in flight that wait for a batch."),
    Metric("reel_tier_partitions", "gauge", "Partitions of a tier's stripe that are held here,"
           " retry topics' too.", ("tier",)),
    Metric("reel_tier_waiting_records", "gauge", "Records in flight that wait their turn.",
           ("tier",)),
    Metric("reel_tier_waiting_gpu_seconds", "gauge", "What those will cost this stage, estimated.",
           ("tier",)),
    Metric("reel_tier_wait_seconds", "histogram", "From a record's append, or due time, to its"
           " start.", ("tier",),
           buckets=(0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800)),
    Metric("reel_parked_records", "gauge", "Requests here that wait for room in their tenants'"
           " quotas.", ("tier",)),
    Metric("reel_requests_parked_total", "counter", "Requests put on `requests.deferred`, by the"
           " quota that was used up; those that made way for others again.", ("over",)),
    Metric("reel_requests_refused_total", "counter", "Requests refused for the load, not for what"
           " they are.", ("reason_code",)),
    Metric("reel_ledger_unread_partitions", "gauge", "Partitions that let nobody in yet: who has"
           " what in the pipeline is still being read."),
    Metric("reel_cost_ratio", "histogram", "What a job took, by what was expected.",
           buckets=(0.1, 0.25, 0.5, 0.7, 0.9, 1.1, 1.4, 2, 4, 10)),
    Metric("reel_compiled_graphs", "gauge", "Graphs that REEL_COMPILE has compiled so far."),
    Metric("reel_commit_lag_records", "gauge", "Delivered and not committed.",
           ("topic", "partition")),
    Metric("reel_commits_total", "counter", "Commits answered: ok or failed.", ("result",)),
    Metric("reel_rebalances_total", "counter", "Callbacks: assigned, revoked, lost.", ("kind",)),
    Metric("reel_stalled_partitions", "gauge", "Partitions whose next offset is gone."),
    Metric("reel_holds_total", "counter", "Waits for a sick host, store or broker.", ("cause",)),
    Metric("reel_build_info", "gauge", "Always 1.", ("version", "python_version")),
)  # fmt: skip

_MAX_CODES = 64  # values of one label that come from error codes; what is beyond is "other"


class WorkerMetrics:
    """The metrics of one worker, in a registry of its own. Methods cost about a microsecond.

    Thread-safe, but for `commit_lag`, `stalled` and `forget_partition`, which are the loop's.
    `stage` is the name of a stage of the topology.
    """

    def __init__(self, stage: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._stage = stage
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._records_in = _Counts(counter("reel_records_in_total"), stage)
        self._records_out = _Counts(counter("reel_records_out_total"), stage)
        self._dead_letters = _Counts(counter("reel_dead_letters_total"), stage)
        self._commits = _Counts(counter("reel_commits_total"), stage)
        self._rebalances = _Counts(counter("reel_rebalances_total"), stage)
        self._holds = _Counts(counter("reel_holds_total"), stage)
        self._retries = _Counts(counter("reel_retries_total"), stage)
        self._probes = _Counts(counter("reel_probes_total"), stage)
        self._maps_ignored = counter("reel_offset_maps_ignored_total").labels(stage)
        self._holding = gauge("reel_holding").labels(stage)
        self._breaker_open = gauge("reel_breaker_open")
        self._batch = histogram("reel_batch_records").labels(stage)
        self._stage_seconds = histogram("reel_stage_seconds").labels(stage)
        self._step_rows = histogram("reel_step_rows").labels(stage)
        self._step_seconds = histogram("reel_step_seconds").labels(stage)
        self._tier_gauges = tuple(
            gauge(f"reel_tier_{name}")
            for name in ("partitions", "waiting_records", "waiting_gpu_seconds")
        )
        self._tier_wait = histogram("reel_tier_wait_seconds")
        self._parked = gauge("reel_parked_records")
        self._requests_parked = _Counts(counter("reel_requests_parked_total"), stage)
        self._requests_refused = _Counts(counter("reel_requests_refused_total"), stage)
        self._ledger_unread = gauge("reel_ledger_unread_partitions").labels(stage)
        self._cost_ratio = histogram("reel_cost_ratio").labels(stage)
        self._compiled = gauge("reel_compiled_graphs").labels(stage)
        self._in_flight = gauge("reel_in_flight_records").labels(stage)
        self._waiting = gauge("reel_waiting_records").labels(stage)
        self._commit_lag = gauge("reel_commit_lag_records")
        self._num_stalled = gauge("reel_stalled_partitions").labels(stage)
        self._lags: dict[TopicPartition, Gauge] = {}
        self._stalled: set[TopicPartition] = set()
        # Zero from the start, or else a rate would not see the first occurrence.
        spec = topology.stage(stage)
        self._records_in.touch(spec.reads)
        if spec.writes is not None:
            self._records_out.touch(spec.writes)
        for result in (True, False):
            self._commits.touch(_result(result))
            self._probes.touch(_result(result))
        for kind in ("assigned", "revoked", "lost"):
            self._rebalances.touch(kind)
        gauge("reel_build_info").labels(stage, _our_version(), platform.python_version()).set(1)

    def records_in(self, topic: str) -> None:
        """A record of this topic was delivered."""
        self._records_in.count(topic)

    def records_out(self, topic: str) -> None:
        """A record was handed to the producer for this topic."""
        self._records_out.count(topic)

    def dead_letters(self, reason_code: str) -> None:
        """A record was given up as a dead letter."""
        self._dead_letters.count(reason_code)

    def retries(self, reason_code: str) -> None:
        """A record was put on a retry topic."""
        self._retries.count(reason_code)

    def probed(self, is_ok: bool) -> None:
        """The built-in good job was worked, or was not."""
        self._probes.count(_result(is_ok))

    def map_ignored(self) -> None:
        """An offset map could not be read: what it said was finished is worked again."""
        self._maps_ignored.inc()

    def holding(self, is_holding: bool) -> None:
        """Work waits for a sick host or store, or does no longer."""
        self._holding.set(is_holding)

    def breakers(self, are_open: Mapping[str, bool]) -> None:
        """Which breakers are open, by their names."""
        for name, is_open in are_open.items():
            self._breaker_open.labels(self._stage, name).set(is_open)

    def batch_started(self, num_records: int) -> None:
        """The engine was given a batch."""
        self._batch.observe(num_records)

    def stage_seconds(self, seconds: float) -> None:
        """The engine was busy with a batch for so long."""
        self._stage_seconds.observe(seconds)

    def stepped(self, num_rows: int, seconds: float) -> None:
        """A denoising step of so many rows took so long."""
        self._step_rows.observe(num_rows)
        self._step_seconds.observe(seconds)

    def compiled_graphs(self, count: Callable[[], int]) -> None:
        """What to ask for them, at each scrape."""
        self._compiled.set_function(count)

    def in_flight(self, num_records: int) -> None:
        """So many records are delivered and not finished."""
        self._in_flight.set(num_records)

    def waiting(self, num_records: int) -> None:
        """So many of them wait for a batch."""
        self._waiting.set(num_records)

    def tier(self, tier: str, num_partitions: int, num_waiting: int, cost_s: float) -> None:
        """What is held here of a tier, and what of it waits its turn."""
        figures = num_partitions, num_waiting, cost_s
        for gauge, figure in zip(self._tier_gauges, figures, strict=True):
            gauge.labels(self._stage, tier).set(figure)

    def waited(self, tier: str, seconds: float) -> None:
        """A record of that tier began after so long."""
        self._tier_wait.labels(self._stage, tier).observe(seconds)

    def admission(self, num_parked: Mapping[str, int], num_unread: int) -> None:
        """What waits for room here, by tier, and how many ledgers are not read yet."""
        for tier, number in num_parked.items():
            self._parked.labels(self._stage, tier).set(number)
        self._ledger_unread.set(num_unread)

    def parked(self, over: str) -> None:
        """A request was put off, over that quota."""
        self._requests_parked.count(over)

    def refused(self, reason_code: str) -> None:
        """A request was refused for the load that there is."""
        self._requests_refused.count(reason_code)

    def cost_ratio(self, ratio: float) -> None:
        """A job took so many times what was expected."""
        self._cost_ratio.observe(ratio)

    def commit_lag(self, partition: TopicPartition, num_records: int) -> None:
        """So many offsets of this partition are delivered and not committed."""
        gauge = self._lags.get(partition)
        if gauge is None:
            gauge = self._lags[partition] = self._commit_lag.labels(self._stage, *partition)
        gauge.set(num_records)

    def committed(self, is_ok: bool) -> None:
        """A commit was answered."""
        self._commits.count(_result(is_ok))

    def rebalances(self, kind: str) -> None:
        """Partitions were `assigned`, `revoked` or `lost`."""
        self._rebalances.count(kind)

    def stalled(self, partition: TopicPartition) -> None:
        """This partition cannot be read on; until it is forgotten."""
        self._stalled.add(partition)
        self._num_stalled.set(len(self._stalled))

    def forget_partition(self, partition: TopicPartition) -> None:
        """This partition is another worker's now: its series end here."""
        if self._lags.pop(partition, None) is not None:
            self._commit_lag.remove(self._stage, *partition)
        self._stalled.discard(partition)
        self._num_stalled.set(len(self._stalled))

    def held(self, cause: str) -> None:
        """Work waits for a sick host; `cause` is a reason code."""
        self._holds.count(cause)

    def _counter(self, name: str) -> Counter:
        spec = _spec(name, "counter")
        return Counter(name, spec.help, ("stage", *spec.labels), registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        spec = _spec(name, "gauge")
        return Gauge(name, spec.help, ("stage", *spec.labels), registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        spec, registry = _spec(name, "histogram"), self.registry
        labels = ("stage", *spec.labels)
        return Histogram(name, spec.help, labels, registry=registry, buckets=spec.buckets)


class _Counts:
    """A counter by one more label, whose `labels()` look-up is paid for once a value."""

    def __init__(self, counter: Counter, stage: str) -> None:
        self._counter, self._stage = counter, stage
        self._inc: dict[str, Callable[[], None]] = {}

    def count(self, value: str) -> None:
        inc = self._inc.get(value)
        if inc is None:
            inc = self.touch(value)
        inc()

    def touch(self, value: str) -> Callable[[], None]:
        if value not in self._inc and len(self._inc) >= _MAX_CODES:
            value = "other"
        inc: Callable[[], None] = self._counter.labels(self._stage, value).inc
        return self._inc.setdefault(value, inc)


def _spec(name: str, kind: str) -> Metric:
    spec = next(each for each in METRICS if each.name == name)
    assert spec.kind == kind
    return spec


def _result(is_ok: bool) -> str:
    return "ok" if is_ok else "failed"


def _our_version() -> str:
    try:
        return version("reelstream")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
