"""What a worker exports, and the page it exports it on."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser as open_metrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse

from streams.core.events import TopicPartition
from streams.errors import SettingsError
from streams.monitor.health import Health
from streams.monitor.metrics import METRICS, WorkerMetrics


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"stage": "sampler", **labels})


P5, P6 = TopicPartition("prompts.cleaned", 5), TopicPartition("prompts.cleaned", 6)


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics("sampler")


def test_the_exported_metrics_are_exactly_these(metrics: WorkerMetrics) -> None:
    families = [family for family in metrics.registry.collect() if family.name.startswith("reel_")]
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }
    assert names == {spec.name for spec in METRICS} == {
        "reel_records_in_total",
        "reel_records_out_total",
        "reel_dead_letters_total",
        "reel_retries_total",
        "reel_probes_total",
        "reel_offset_maps_ignored_total",
        "reel_holding",
        "reel_breaker_open",
        "reel_batch_records",
        "reel_step_rows",
        "reel_step_seconds",
        "reel_stage_seconds",
        "reel_in_flight_records",
        "reel_waiting_records",
        "reel_tier_partitions",
        "reel_tier_waiting_records",
        "reel_tier_waiting_gpu_seconds",
        "reel_tier_wait_seconds",
        "reel_parked_records",
        "reel_requests_parked_total",
        "reel_requests_refused_total",
        "reel_ledger_unread_partitions",
        "reel_cost_ratio",
        "reel_compiled_graphs",
        "reel_commit_lag_records",
        "reel_commits_total",
        "reel_rebalances_total",
        "reel_stalled_partitions",
        "reel_holds_total",
        "reel_build_info",
    }  # fmt: skip


def test_names_follow_the_rules_of_prometheus() -> None:
    for spec in METRICS:
        assert re.fullmatch(r"reel_[a-z]+(_[a-z]+)*", spec.name)
        units = (
            "_total",
            "_seconds",
            "_records",
            "_rows",
            "_partitions",
            "_ratio",
            "_graphs",
            "_info",
            "_holding",
            "_open",
        )
        assert spec.name.endswith(units)
        assert spec.help.endswith(".")
        assert not {"job", "job_id", "tenant", "tenant_id"} & set(spec.labels)
        assert list(spec.buckets) == sorted(set(spec.buckets))
        assert bool(spec.buckets) == (spec.kind == "histogram")


def test_what_happens_is_counted(metrics: WorkerMetrics) -> None:
    metrics.records_in("prompts.cleaned")
    metrics.records_in("prompts.cleaned")
    metrics.records_out("latents.ready")
    metrics.dead_letters("input_lost")
    metrics.batch_started(3)
    metrics.stage_seconds(2.5)
    metrics.in_flight(7)
    metrics.waiting(4)
    metrics.committed(True)
    metrics.committed(False)
    metrics.rebalances("revoked")
    metrics.held("sick_host")
    assert value(metrics, "reel_records_in_total", topic="prompts.cleaned") == 2
    assert value(metrics, "reel_records_out_total", topic="latents.ready") == 1
    assert value(metrics, "reel_dead_letters_total", reason_code="input_lost") == 1
    assert value(metrics, "reel_batch_records_sum") == 3
    assert value(metrics, "reel_stage_seconds_sum") == 2.5
    assert value(metrics, "reel_in_flight_records") == 7
    assert value(metrics, "reel_waiting_records") == 4
    assert value(metrics, "reel_commits_total", result="ok") == 1
    assert value(metrics, "reel_commits_total", result="failed") == 1
    assert value(metrics, "reel_rebalances_total", kind="revoked") == 1
    assert value(metrics, "reel_holds_total", cause="sick_host") == 1
    metrics.retries("flaky")
    metrics.probed(False)
    metrics.map_ignored()
    metrics.holding(True)
    assert value(metrics, "reel_retries_total", reason_code="flaky") == 1
    assert value(metrics, "reel_probes_total", result="failed") == 1
    assert value(metrics, "reel_offset_maps_ignored_total") == 1
    assert value(metrics, "reel_holding") == 1


def test_tiers_are_told_apart(metrics: WorkerMetrics) -> None:
    metrics.tier("pro", 8, 3, 12.5)
    metrics.tier("free", 4, 0, 0.0)
    metrics.waited("pro", 7.0)
    metrics.cost_ratio(1.2)
    assert value(metrics, "reel_tier_partitions", tier="pro") == 8
    assert value(metrics, "reel_tier_partitions", tier="free") == 4
    assert value(metrics, "reel_tier_waiting_records", tier="pro") == 3
    assert value(metrics, "reel_tier_waiting_gpu_seconds", tier="pro") == 12.5
    assert value(metrics, "reel_tier_wait_seconds_sum", tier="pro") == 7
    assert value(metrics, "reel_cost_ratio_sum") == 1.2


def test_what_will_happen_in_any_case_is_zero_from_the_start(metrics: WorkerMetrics) -> None:
    assert value(metrics, "reel_records_in_total", topic="prompts.cleaned") == 0
    assert value(metrics, "reel_records_out_total", topic="latents.ready") == 0
    assert value(metrics, "reel_rebalances_total", kind="lost") == 0
    assert value(metrics, "reel_stalled_partitions") == 0


def test_a_partition_that_goes_away_takes_its_series_along(metrics: WorkerMetrics) -> None:
    metrics.commit_lag(P5, 12)
    metrics.stalled(P5)
    metrics.stalled(P5)
    metrics.stalled(P6)
    assert value(metrics, "reel_commit_lag_records", topic="prompts.cleaned", partition="5") == 12
    assert value(metrics, "reel_stalled_partitions") == 2
    metrics.forget_partition(P5)
    metrics.forget_partition(P5)
    assert value(metrics, "reel_commit_lag_records", topic="prompts.cleaned", partition="5") is None
    assert value(metrics, "reel_stalled_partitions") == 1
    metrics.commit_lag(P5, 1)
    assert value(metrics, "reel_commit_lag_records", topic="prompts.cleaned", partition="5") == 1


def test_reason_codes_without_end_do_not_become_series_without_end(metrics: WorkerMetrics) -> None:
    for number in range(1000):
        metrics.dead_letters(f"code_{number}")
    samples = [
        sample
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "reel_dead_letters_total"
    ]
    assert len(samples) == 65
    assert sum(sample.value for sample in samples) == 1000


def test_two_workers_in_one_process_do_not_share_a_registry(metrics: WorkerMetrics) -> None:
    other = WorkerMetrics("decoder")
    other.records_in("latents.ready")
    assert value(metrics, "reel_records_in_total", topic="latents.ready") is None


# ---- the page


class HandClock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def health(metrics: WorkerMetrics, clock: HandClock) -> Iterator[Health]:
    with Health(metrics.registry, "127.0.0.1", 0, max_turn_age_s=10, clock=clock) as served:
        yield served


def ask(health: Health, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, content type and text."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{health.port}{path}", method=method, headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers["Content-Type"], refused.read().decode()


def test_metrics_are_served_as_text_and_as_open_metrics(
    health: Health, metrics: WorkerMetrics
) -> None:
    metrics.records_in("prompts.cleaned")
    status, kind, text = ask(health, "/metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    families = {family.name for family in parse(text)}
    assert {"reel_records_in", "reel_stage_seconds", "process_resident_memory_bytes"} <= families
    assert "_created" not in text
    open_metrics = "application/openmetrics-text; version=1.0.0"
    status, kind, text = ask(health, "/metrics", Accept=open_metrics)
    assert (status, kind.split(";")[0]) == (200, "application/openmetrics-text")
    parsed = open_metrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    assert "reel_build_info" in {family.name for family in parsed}


def test_a_loop_that_turns_is_alive_and_one_that_does_not_is_not(
    health: Health, clock: HandClock
) -> None:
    health.turned(clock.now_s())
    clock.time_s += 10
    assert ask(health, "/healthz")[::2] == (200, "ok\n")
    clock.time_s += 2.5
    assert ask(health, "/healthz")[::2] == (503, "the loop turned 12.5 s ago; it may take 10\n")
    health.turned(clock.now_s())
    assert ask(health, "/healthz")[0] == 200


def test_ready_means_that_nothing_is_missing(health: Health) -> None:
    health.missing.update({"model loaded", "assigned"})
    assert ask(health, "/readyz")[::2] == (503, "missing: assigned, model loaded\n")
    health.done("model loaded")
    assert ask(health, "/readyz")[::2] == (503, "missing: assigned\n")
    health.done("assigned")
    health.done("assigned")
    assert ask(health, "/readyz")[::2] == (200, "ok\n")


def test_a_worker_that_drains_is_alive_but_not_ready(health: Health) -> None:
    health.drain()
    assert ask(health, "/readyz")[::2] == (503, "draining\n")
    assert ask(health, "/healthz")[0] == 200


def test_other_paths_are_not_found_and_a_head_has_no_body(health: Health) -> None:
    assert ask(health, "/")[0] == 404
    assert ask(health, "/healthz?verbose=1")[0] == 200
    assert ask(health, "/metrics", method="HEAD")[::2] == (200, "")


def test_a_client_that_says_nothing_keeps_nobody_waiting(health: Health) -> None:
    with socket.create_connection(("127.0.0.1", health.port)):
        assert ask(health, "/healthz")[0] == 200


def test_a_taken_port_is_told_in_one_line(health: Health) -> None:
    with pytest.raises(SettingsError, match=f"REEL_METRICS_PORT: port {health.port} on 127") as no:
        Health(CollectorRegistry(), "127.0.0.1", health.port)
    assert "\n" not in str(no.value)


def test_a_host_that_is_not_ours_is_told_in_one_line() -> None:
    with pytest.raises(SettingsError, match=r"REEL_METRICS_HOST: cannot listen on 192\.0\.2\.1"):
        Health(CollectorRegistry(), "192.0.2.1", 0)


def test_a_stopped_page_frees_its_port_and_its_thread(metrics: WorkerMetrics) -> None:
    served = Health(metrics.registry, "127.0.0.1", 0)
    served.start()
    port = served.port
    served.stop()
    served.stop()
    assert "health" not in {thread.name for thread in threading.enumerate()}
    with Health(metrics.registry, "127.0.0.1", port) as again:
        assert ask(again, "/healthz")[0] == 200


def test_metrics_and_page_take_less_than_three_megabytes() -> None:
    """On top of what a worker has without them."""
    program = """
import prometheus_client, streams.runner, http.server, urllib.request, sys
assert not any(name.startswith("streams.monitor") for name in sys.modules)
def resident_kb():
    return int(open("/proc/self/statm").read().split()[1]) * 4
before_kb = resident_kb()
from streams.monitor.metrics import WorkerMetrics
from streams.monitor.health import Health
metrics = WorkerMetrics("sampler")
with Health(metrics.registry, "127.0.0.1", 0) as health:
    for path in ("metrics", "healthz", "readyz") * 10:
        urllib.request.urlopen(f"http://127.0.0.1:{health.port}/{path}").read()
    print(resident_kb() - before_kb)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * 1024
