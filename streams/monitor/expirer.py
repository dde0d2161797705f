"""What the expirer measures about itself; names and units as `streams/monitor/metrics.py`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

_STAGE = "expirer"


class ExpirerMetrics:
    """The metrics of one expirer, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._open = self._gauge("reel_open_runs", "Runs read and not ended.")
        self._told = self._counter("reel_expirer_told_total", "Runs ended or begun.", "kind")
        self._not_settled = self._counter(
            "reel_expirer_not_settled_total", "Runs whose fences are not understood.", None
        )
        self._not_understood = self._counter(
            "reel_expirer_not_understood_total", "Records that are none.", "topic"
        )
        self._holds = self._counter("reel_holds_total", "Waits for a sick host or store.", "cause")
        for kind in ("expired", "cancelled", "redrive"):  # zero from the start
            self._told.labels(_STAGE, kind)
        self._not_settled.labels(_STAGE)

    def open_runs(self, number: int) -> None:
        """So many runs are waited for."""
        self._open.labels(_STAGE).set(number)

    def told(self, kind: str) -> None:
        """A run's ending, or its beginning, was acknowledged."""
        self._told.labels(_STAGE, kind).inc()

    def not_settled(self) -> None:
        """A run was put off, since a fence of it is not understood."""
        self._not_settled.labels(_STAGE).inc()

    def not_understood(self, topic: str) -> None:
        """A record was passed over."""
        self._not_understood.labels(_STAGE, topic).inc()

    def held(self, cause: str) -> None:
        """All waits; `cause` is a reason code."""
        self._holds.labels(_STAGE, cause).inc()

    def _counter(self, name: str, text: str, label: str | None) -> Counter:
        labels = ("stage",) if label is None else ("stage", label)
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("stage",), registry=self.registry)
