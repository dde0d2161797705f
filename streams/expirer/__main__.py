"""`python -m streams.expirer`: one expirer; any number may run. Exit codes as workers.main."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from datetime import datetime
from functools import partial

from schemas.codec import Codec
from streams.blobs.opening import store_of
from streams.clock import AnchoredClock
from streams.core.expiry import ExpiryBook
from streams.errors import PipelineError, SettingsError
from streams.expirer.loop import CLEANED, Expirer
from streams.expirer.settle import EXPIRER, Settler, utc
from streams.monitor.expirer import ExpirerMetrics
from streams.monitor.health import Health
from streams.monitor.logs import configure_logs
from streams.placement import home_partition
from streams.settings import Settings, read_settings
from streams.topology import JOB_CONTROL, REQUESTS, VIDEOS_DONE

log = logging.getLogger(EXPIRER)

MARKER_S = 3600.0
"""How long the ending of a run is remembered: what came before it may be read later."""


def main(arguments: list[str]) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    if arguments:
        print("usage: python -m streams.expirer", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    name = f"{socket.gethostname()}:{os.getpid()}"
    configure_logs(stage=EXPIRER, worker=name)
    try:
        _run(read_settings(), f"reel-expirer-{name.replace(':', '-')}")
    except SettingsError as error:
        print(f"{EXPIRER}: {error}", file=sys.stderr)
        return 2
    except PipelineError as error:
        log.error("expirer ends", extra={"reason": error.reason_code, "error": str(error)})
        return 1
    return 0


def _run(settings: Settings, client_id: str) -> None:
    from streams.kafka.config import patient_tail_config, producer_config
    from streams.kafka.producer import KafkaSink
    from streams.kafka.tail import KafkaTail

    clock, metrics = AnchoredClock(), ExpirerMetrics()
    grace_s = settings.expiry_grace_ms / 1000
    with ExitStack() as stack:
        health = Health(metrics.registry, settings.metrics_host, settings.metrics_port, clock=clock)
        health.missing.add("topics read")
        stack.enter_context(health)
        log.info("listening", extra={"metrics_port": health.port})
        codec = _codec(settings)

        def now() -> datetime:
            return utc(clock.now_s())

        store = store_of(settings)
        home = partial(home_partition, settings=settings)
        settler = Settler(store, codec, home, now, settings.deadline_s, grace_s)
        sink = KafkaSink(producer_config(settings, client_id))
        stack.callback(sink.close)
        # An expirer that was away for as long as a job may be redriven has missed nothing, and
        # retention outlasts just that (DESIGN 2).
        tail = KafkaTail(
            patient_tail_config(settings, client_id),
            [VIDEOS_DONE, JOB_CONTROL],
            [REQUESTS, CLEANED],
            clock.now_s() - settings.needed_s,
        )
        stack.callback(tail.close)
        expirer = Expirer(
            ExpiryBook(grace_s, settings.needed_s, MARKER_S),
            settler.settle, tail, sink, codec, clock, health, metrics,
            longest_deadline_s=settings.deadline_s, num_threads=settings.io_threads,
        )  # fmt: skip
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: expirer.stop())
        expirer.run(settings.poll_ms / 1000)
    log.info("stopped")


def _codec(settings: Settings) -> Codec:
    if settings.schema_registry_url is None:
        return Codec()
    from streams.kafka.registry import RegistrySchemaIds

    return Codec(RegistrySchemaIds(settings.schema_registry_url))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
