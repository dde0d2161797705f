"""up: the local stack in the foreground."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from streams.cli.terminal import say
from streams.errors import SettingsError
from streams.local.stack import BrokerKind, LocalStack, StackPlan
from streams.settings import Settings, read_settings


def run_stack(
    broker: BrokerKind | None,
    brokers: int,
    bootstrap: str | None,
    model: Path | None,
    port: int,
    workers: Mapping[str, int],
    folder: Path | None,
) -> int:
    """Run the stack until a signal. The exit code."""
    began_s = time.monotonic()
    settings = stack_settings(model, folder)
    if broker and bootstrap:
        raise SettingsError("--broker starts one, --bootstrap uses yours: give one of them")
    if bootstrap:
        settings = settings.model_copy(update={"bootstrap": bootstrap})
    theirs = not broker and (bootstrap or "bootstrap" in settings.model_fields_set)
    plan = StackPlan(
        settings,
        cache=settings.home,
        broker=None if theirs else broker or "embedded",
        num_brokers=num_brokers(broker, brokers),
        port=port or None,
        workers=workers,
    )
    with stopped_by_signals() as signals, running(plan, signals) as stack:
        took_s = time.monotonic() - began_s
        where = f"bootstrap {stack.settings.bootstrap}, logs {stack.logs}"
        hint = "" if folder is None else f" (other commands: REEL_HOME={settings.home})"
        say(f"ready in {took_s:.1f} s: {where}{hint}")
        stack.run(signals.stop)
        say("stopping")
    return 0


def stack_settings(model: Path | None, folder: Path | None) -> Settings:
    """The environment's settings under the command line's."""
    given: dict[str, object] = {}
    if model is not None:
        given["model"] = model.absolute()
    if folder is not None:
        given["home"] = folder.absolute()
    return read_settings(**given)


def num_brokers(broker: BrokerKind | None, brokers: int) -> int:
    """The number asked for, if that broker can be as many."""
    if brokers not in (1, 3):
        raise SettingsError(f"--brokers {brokers}: one or three")
    if brokers == 3 and broker != "apache":
        raise SettingsError("--brokers 3 needs --broker apache")
    return brokers


class Signals:
    """What SIGINT and SIGTERM do: interrupt a start, later set `stop`; never cut a stop short."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.interrupts = True

    def __call__(self, number: int, _frame: object) -> None:
        """Handle one signal."""
        self.stop.set()
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt


@contextmanager
def stopped_by_signals() -> Iterator[Signals]:
    """Handle both signals in the block; they are what they were afterwards."""
    signals = Signals()
    before = {number: signal.signal(number, signals) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def running(plan: StackPlan, signals: Signals) -> Iterator[LocalStack]:
    """The stack, ready unless a signal came; stopped, in order, when the block ends."""
    stack = LocalStack(plan, say)
    try:
        stack.start(signals.stop)
        signals.interrupts = False
        yield stack
    finally:
        signals.interrupts = False
        stack.stop()
