"""demo: a prompt becomes a video through a stack that lives just as long."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from schemas.records import VideoDone
from streams.cli.context import make_client, make_store
from streams.cli.jobs import exit_code
from streams.cli.progress import done_line, follow
from streams.cli.stack import num_brokers, running, stack_settings, stopped_by_signals
from streams.cli.terminal import result, say
from streams.cli.wishes import VideoWish
from streams.errors import SettingsError
from streams.local.processes import StartFailed
from streams.local.stack import BrokerKind, LocalStack, StackPlan
from streams.settings import Settings


def run_demo(
    wish: VideoWish,
    broker: BrokerKind | None,
    brokers: int,
    model: Path | None,
    out: Path | None,
) -> int:
    """Run a stack for one job and print the video's path. The exit code.

    The stack's folder is removed, unless something failed: then it is kept, with its logs.
    """
    settings = stack_settings(model, None)
    count = num_brokers(broker, brokers)
    folder = Path(tempfile.mkdtemp(prefix="reel-demo-"))
    plan = StackPlan(
        settings.model_copy(update={"home": folder, "blobs": ""}),
        cache=settings.home.absolute(),
        broker=broker or "embedded",
        num_brokers=count,
    )
    is_spent = False
    try:
        done = _one_video(plan, wish, out)
        is_spent = done is None or done.status == "completed"
    except (KeyboardInterrupt, SettingsError) as fault:
        is_spent = not isinstance(fault, StartFailed)
        raise
    finally:
        if is_spent:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"the logs are kept in {folder}")
    return 1 if done is None else exit_code(done)


def _one_video(plan: StackPlan, wish: VideoWish, out: Path | None) -> VideoDone | None:
    """How the job ended; None if a signal was faster."""
    began_s = time.monotonic()
    with stopped_by_signals() as signals:
        say(f"starting a broker ({plan.broker}) and a worker for every stage")
        with running(plan, signals) as stack:
            say(f"ready in {time.monotonic() - began_s:.1f} s")
            done = asyncio.run(_under_supervision(stack, wish, out, signals.stop))
    if done is None:
        say("stopped")
    return done


async def _under_supervision(
    stack: LocalStack, wish: VideoWish, out: Path | None, stop: threading.Event
) -> VideoDone | None:
    """The job, while another thread looks after the stack; whichever ends first ends the other."""
    job = asyncio.create_task(_one_job(stack.settings, wish, out))
    supervision = asyncio.create_task(asyncio.to_thread(stack.run, stop))
    try:
        await asyncio.wait({job, supervision}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
    if job.done():
        await supervision
        return job.result()
    job.cancel()
    await asyncio.wait({job})
    await supervision  # raises why the stack cannot go on
    return None


async def _one_job(settings: Settings, wish: VideoWish, out: Path | None) -> VideoDone:
    async with make_client(settings, make_store(settings)) as client:
        job_id = await client.submit(**asdict(wish))
        say(f"job {job_id}")
        async with aclosing(client.watch(job_id)) as events:
            done = await follow(events)
        say(done_line(done))
        if done.status == "completed":
            path = out or Path(f"{job_id}.mp4")
            await client.download(done, path)
            result(str(path))
    return done
