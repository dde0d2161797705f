"""`python -m workers.main STAGE`: one worker of one stage. Here, and only here, it is all wired.

Exit codes: 0 drained after SIGTERM or SIGINT, 1 the process cannot go on (whoever started it may
start it again), 2 wrong use (starting it again changes nothing).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from schemas.codec import Codec, SchemaIds
from streams.blobs.base import BlobStore
from streams.blobs.opening import store_of
from streams.clock import AnchoredClock
from streams.core.fair_queue import Fairness
from streams.core.limits import StageLimits
from streams.core.retry import RetryPolicy
from streams.core.stage import StageState
from streams.costs import CostBook, cost_path
from streams.engine import Task
from streams.errors import FatalError, PipelineError, SettingsError, SickHost
from streams.intake import Intake
from streams.letters import StageLetters
from streams.monitor.health import Health
from streams.monitor.logs import configure_logs
from streams.monitor.metrics import WorkerMetrics
from streams.monitor.watch import WorkerWatch
from streams.placement import home_partition, tier_of_request
from streams.runner import Feed, StageRunner
from streams.settings import Settings, read_settings
from streams.topology import REQUESTS, Stage, worker_stages
from workers.batch_engine import MicroBatchEngine
from workers.engine import RowEngine
from workers.fenced import FencedWork
from workers.prompt.admit import AdmissionRules
from workers.prompt.shares import LEDGER_TOPICS, RequestShares, quotas_of
from workers.stage_work import AdmittingWork, StageWork, SteppedWork
from workers.step_engine import StepEngine, StepSettings
from workers.torch_device import DeviceSettings, device_kind

log = logging.getLogger("worker")


BuildWork = Callable[[Stage, Settings, BlobStore], StageWork]


def build_work(stage: Stage, settings: Settings, store: BlobStore) -> StageWork:
    """The stage's own work; torch is imported only when it loads."""
    if stage.name == "finisher":
        from workers.finisher.work import FinisherWork

        return FinisherWork(store)
    if settings.model is None:
        raise SettingsError("no model: set REEL_MODEL to a diffusers pipeline's folder")
    device, distilled = _device(settings), settings.distilled_model
    match stage.name:
        case "prompt":
            from workers.prompt.work import PromptWork

            return PromptWork(settings.model, device, store, _rules(settings), distilled)
        case "sampler":
            from workers.sampler.work import SamplerWork

            return SamplerWork(settings.model, device, store, distilled)
        case "decoder":
            from workers.decoder.work import DecoderWork

            return DecoderWork(settings.model, device, store, distilled)
        case name:
            raise AssertionError(f"stage {name} has no work")


def main(
    arguments: list[str], build: BuildWork = build_work, worker_type: type[Worker] | None = None
) -> int:
    """Run the worker that the arguments name; its exit code. `worker_type` None: `Worker`."""
    names = [each.name for each in worker_stages()]
    if len(arguments) != 1 or arguments[0] not in names:
        print(f"usage: python -m workers.main {'|'.join(names)}", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    stage = next(each for each in worker_stages() if each.name == arguments[0])
    worker = f"{socket.gethostname()}:{os.getpid()}"
    configure_logs(stage=stage.name, worker=worker)
    try:
        (worker_type or Worker)(stage, read_settings(), worker, build).run()
    except SettingsError as error:
        print(f"{stage.name}: {error}", file=sys.stderr)
        return 2
    except PipelineError as error:
        # Of a foreign error only where it came from: its message may quote a prompt.
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)[-5:]
        where = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        log.error(
            "worker ends", extra={"reason": error.reason_code, "error": str(error), "where": where}
        )
        return 1
    return 0


@dataclass(slots=True)
class _Stop:
    """What SIGTERM and SIGINT do: before the loop turns they end the start, then they drain."""

    is_wanted: bool = False
    _drain: Callable[[], None] | None = None

    def __call__(self, _signal: int, _frame: object) -> None:
        self.is_wanted = True
        if self._drain is not None:
            self._drain()

    def drains(self, drain: Callable[[], None]) -> None:
        """From now on that is done, at once where one of them has come already."""
        self._drain = drain
        if self.is_wanted:  # while clients were made, which takes seconds on a busy machine
            drain()


class Worker:
    """One member of a stage's group, with its health page, engine and Kafka clients."""

    def __init__(self, stage: Stage, settings: Settings, worker: str, build: BuildWork) -> None:
        self.stage, self.settings, self.name = stage, settings, worker
        self._build = build
        self.stop = _Stop()
        self.clock = AnchoredClock()
        self.metrics = WorkerMetrics(stage.name)
        self.codec = Codec(_schema_ids(settings))
        self.store = store_of(settings)
        self._costs: CostBook | None = None  # what a device costs is known when it is open

    def run(self) -> None:
        """Load, join, work, drain.

        The group is joined only when the model is loaded: partitions must not wait for a worker
        that cannot work yet.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        settings = self.settings
        health = Health(
            self.metrics.registry, settings.metrics_host, settings.metrics_port, clock=self.clock
        )
        health.missing.update({"model loaded", "controls read", "assigned"})
        health.start()
        log.info("listening", extra={"metrics_port": health.port})
        work = self._build(self.stage, settings, self.store)
        shared = work, self.stage, self.store, self.codec, _now
        if self.stage.name == "prompt":
            place = partial(home_partition, settings=settings)
            fenced = FencedWork(*shared, place, self._measured)
        else:
            fenced = FencedWork(*shared, measured=self._measured)
        engine = self._engine(fenced)
        try:
            self._wait_for_model(engine, health)
            if not self.stop.is_wanted:
                runner = self._join(engine, fenced, health)
                runner.run()
                if (reason := runner.state.left_because) is not None:
                    raise FatalError(f"this host is sick, others may be well: {reason}")
        finally:
            engine.stop()
            if self._costs is not None:
                self._costs.save()
            health.stop()
        log.info("drained")

    def _measured(self, task: Task, seconds: float) -> None:
        assert self._costs is not None, "opened before any record is read"
        self.metrics.cost_ratio(self._costs.measured(task, seconds))

    def _open_costs(self) -> CostBook:
        settings, stage = self.settings, self.stage.name
        # The finisher computes on the host, whatever the device of other stages.
        device = "cpu" if stage == "finisher" else device_kind(_device(settings))
        tier_of = partial(tier_of_request, settings=settings)
        path = cost_path(settings.home, stage, device)
        self._costs = CostBook(stage, path, tier_of, self.clock.now_s)
        return self._costs

    def _engine(self, fenced: FencedWork) -> RowEngine:
        settings, metrics = self.settings, self.metrics
        shared = fenced, self.name, settings.io_threads, metrics.held, metrics.stage_seconds
        if isinstance(fenced.work, SteppedWork):
            metrics.compiled_graphs(fenced.work.num_compiled_graphs)
            return StepEngine(
                *shared,
                metrics.stepped,
                StepSettings(
                    settings.step_rows_max,
                    settings.checkpoint_ms / 1000,
                    settings.preview_ms / 1000 or math.inf,
                    settings.home / "caps",
                    settings.weights,
                ),
            )
        return MicroBatchEngine(*shared)

    def _wait_for_model(self, engine: RowEngine, health: Health) -> None:
        while not engine.loaded.wait(timeout=0.1) and not self.stop.is_wanted:
            health.turned(self.clock.now_s())
        list(engine.completions())  # raises what went wrong
        health.done("model loaded")

    def _join(self, engine: RowEngine, fenced: FencedWork, health: Health) -> StageRunner:
        from streams.kafka.admin import group_protocol_supported, require_topics
        from streams.kafka.config import consumer_config, controls_config, producer_config
        from streams.kafka.consumer import KafkaSource
        from streams.kafka.controls import KafkaControls
        from streams.kafka.producer import KafkaSink

        settings = self.settings
        if settings.group_protocol == "consumer" and group_protocol_supported(settings) is False:
            raise SettingsError(
                f"the broker at {settings.bootstrap} does not speak the new group protocol "
                "(KIP-848): set REEL_GROUP_PROTOCOL=classic"
            )
        try:
            require_topics(settings, self.stage)
        except SickHost as error:  # the clients below are patient, and say so
            log.warning("topics not checked", extra={"error": str(error)})
        client_id = f"reel-{self.stage.name}-{self.name.replace(':', '-')}"
        controls = KafkaControls(controls_config(settings, client_id), self.stage.name, self.codec)
        watch = WorkerWatch(
            self.metrics, health, controls, settings.join_timeout_ms / 1000, settings.tiers
        )
        limits, shares, feed = self._limits_and_shares(fenced.work, client_id)
        runner = StageRunner(
            StageState(limits),
            KafkaSource(
                consumer_config(settings, self.stage.group, client_id),
                [self.stage.reads, *self.stage.also_reads(settings.retry_delays_s)],
                Intake(
                    self.stage,
                    self.codec,
                    fenced.work.batch_key,
                    settings.retry_delays_s,
                    self._open_costs().charge,
                    shares,
                ),
                watch.stalled,
            ),
            KafkaSink(producer_config(settings, client_id)),
            engine,
            controls,
            self.clock,
            watch,
            StageLetters(self.stage, self.name, _versions(), fenced.announce),
            feed,
        )
        self.stop.drains(runner.drain)
        return runner

    def _limits_and_shares(
        self, work: StageWork, client_id: str
    ) -> tuple[StageLimits, RequestShares | None, Feed | None]:
        """Quotas are asked where requests are let in, and a ledger is read only where there are."""
        settings = self.settings
        limits, quotas = _limits(settings, isinstance(work, SteppedWork)), quotas_of(settings)
        if self.stage.reads != REQUESTS or not quotas.is_any:
            return limits, None, None
        assert isinstance(work, AdmittingWork), "or it could not make jobs of requests"
        from streams.kafka.config import tail_config
        from streams.kafka.ledger_feed import KafkaLedgerFeed

        shares = RequestShares(settings, self.codec, work.job)
        feed = KafkaLedgerFeed(
            tail_config(settings, f"{client_id}-ledger"),
            LEDGER_TOPICS,
            shares.seen,
            settings.longest_run_s,
            self.clock.now_s,
        )
        return replace(limits, quotas=quotas), shares, feed


def _rules(settings: Settings) -> AdmissionRules:
    return AdmissionRules(
        settings.tiers, settings.default_tier, settings.tenants, settings.deadline_s
    )


def _device(settings: Settings) -> DeviceSettings:
    return DeviceSettings(
        settings.device,
        settings.dtype,
        settings.torch_threads,
        settings.attention,
        settings.compile,
        settings.offload,
        settings.vae_tiling,
    )


def _schema_ids(settings: Settings) -> SchemaIds | None:
    if settings.schema_registry_url is None:
        return None
    from streams.kafka.registry import RegistrySchemaIds

    return RegistrySchemaIds(settings.schema_registry_url)


def _limits(settings: Settings, is_stepped: bool) -> StageLimits:
    """Work in steps takes each record as it comes, up to the resident set."""
    return StageLimits(
        window_high=settings.window,
        window_low=settings.window_resume,
        window_per_tenant=settings.window_per_tenant,
        look_ahead=settings.look_ahead,
        fairness=Fairness(settings.weights, settings.ageing_ms / 1000),
        batch_max=1 if is_stepped else settings.batch_max,
        batch_age_s=0.0 if is_stepped else settings.batch_age_ms / 1000,
        max_batches=settings.resident_max if is_stepped else StageLimits().max_batches,
        has_room_for_heavier=is_stepped,
        retry=RetryPolicy(settings.retry_delays_s, settings.max_tries),
        breaker_limit=settings.breaker_limit,
        leave_after_s=settings.sick_ms / 1000,
        longest_run_s=settings.longest_run_s,
        commit_interval_s=settings.commit_interval_ms / 1000,
        drain_s=settings.drain_ms / 1000,
        poll_s=settings.poll_ms / 1000,
    )


def _versions() -> str:
    """What a dead letter says it was made with; reads metadata, imports nothing."""
    found = []
    for package in ("reelstream", "confluent-kafka", "torch", "diffusers", "av"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
