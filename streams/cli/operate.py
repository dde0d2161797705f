"""topology, topics, models, stages: what an operator asks and tells."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Literal

from streams.cli.terminal import print_table, result, say
from streams.errors import SettingsError
from streams.settings import read_settings
from streams.topology import STAGES


def print_topology() -> None:
    """The pipeline's table."""
    delays_s = read_settings().retry_delays_s
    columns = ("stage", "reads", "group", "writes", "retries", "dead letters", "does")
    print_table(
        columns,
        [
            (
                stage.name,
                stage.reads,
                stage.group,
                stage.writes or "-",
                " ".join(name.rpartition(".")[2] for name in stage.retries(delays_s)) or "-",
                stage.dead_letters if stage.is_worker else "-",
                stage.does,
            )
            for stage in STAGES
        ],
    )


def apply(from_start: str | None) -> int:
    """Create and set topics, or place a group at the log's start. The exit code."""
    from streams.cli.context import client_settings
    from streams.kafka.admin import apply_topics, reset_to_start

    stages = {stage.name: stage for stage in STAGES}
    if from_start is not None and from_start not in stages:
        raise SettingsError(f"no stage {from_start!r}: one of {', '.join(stages)}")
    settings = client_settings()
    changes = apply_topics(settings)
    if from_start is not None:
        changes += reset_to_start(settings, stages[from_start])
    for change in changes:
        result(change.text)
    if not changes:
        say("nothing to do")
    return 0


def check() -> int:
    """Print what differs. The exit code: 1 if anything does."""
    from streams.cli.context import client_settings
    from streams.kafka.admin import check_topics

    problems = check_topics(client_settings())
    for problem in problems:
        result(problem.text)
    if not problems:
        say("all as it must be")
    return 1 if problems else 0


def grow(num_partitions: int) -> int:
    """Give the pipeline's topics more partitions. The exit code."""
    from streams.cli.context import client_settings
    from streams.kafka.migration import grow_topics

    changes = grow_topics(client_settings(), num_partitions)
    for change in changes:
        result(change.text)
    say(
        f"start all anew with REEL_PARTITIONS={num_partitions}: finisher, decoder, sampler, then "
        "the whole prompt stage at once, then producers"
        if changes
        else "nothing to do"
    )
    return 0


def drained() -> int:
    """Print what no worker has finished yet. The exit code: 1 if there is any."""
    from streams.cli.context import client_settings
    from streams.kafka.migration import unfinished

    remainders = unfinished(client_settings())
    for each in remainders:
        result(each.text)
    if not remainders:
        say("nothing is left to do")
    return 1 if remainders else 0


def write_tiny(folder: Path, seed: int) -> int:
    """Write the tiny model; prints its folder. The exit code."""
    from streams.local.models import await_child, tiny_writer

    home = read_settings().home.absolute()
    with tiny_writer(folder.absolute(), seed, home / "logs") as child:
        await_child(child, threading.Event())
    result(str(folder))
    return 0


def control(stage: str, state: Literal["paused", "running"]) -> int:
    """Pause or resume a stage. The exit code."""
    from streams.cli.context import client_settings, make_client

    async def run() -> None:
        async with make_client(client_settings()) as client:
            await client.control_stage(stage, state)

    asyncio.run(run())
    say(f"{stage}: {state}")
    return 0
