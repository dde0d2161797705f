"""Deadlines beside a backlog, the demo model on Apache Kafka: refused early, or met with less."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from schemas.records import VideoDone
from streams.cli.context import make_client
from streams.client.client import Client
from streams.local.models import demo_model_dir
from streams.local.stack import LocalStack, StackPlan
from streams.settings import Settings
from workers.models.card import CARD_FILE

pytestmark = [pytest.mark.kafka, pytest.mark.torch]

log = logging.getLogger(__name__)

GIVE_UP_S = 240.0
#: The ledger tells a rate once it has seen so much (streams/core/ledger.py).
RATE_AFTER_S, NUM_BACKLOG = 12.0, 14
#: Of the time that is left a prediction may take so much: what is in time here is so with ease.
MARGIN = 0.25
#: What a prediction may come to, where 1 is the whole job's time without others.
PREDICTED = 1.4
STEPS, MOST_STEPS, FAST_STEPS = 10, 100, 8
ALLOWED: dict[str, tuple[str, ...]] = {
    "whole": (),
    "less": ("fewer_steps", "smaller"),
    "moved": ("distilled_model",),
}


@pytest.fixture
def stack(kafka_home: Path, tmp_path: Path) -> Iterator[LocalStack]:
    """One partition a tier, a model that takes few steps beside, and deadlines are asked about."""
    settings = Settings(
        home=tmp_path, torch_threads=1, partitions=3, deadline_margin=MARGIN,
        distilled_model=write_fast(tmp_path / "fast"),
    )  # fmt: skip
    plan = StackPlan(settings, cache=kafka_home, broker="apache")
    with LocalStack(plan, log.info) as stack:
        yield stack


def write_fast(folder: Path) -> Path:
    """The demo model again, as one that takes few steps."""
    shutil.copytree(demo_model_dir(), folder)
    card = json.loads((folder / CARD_FILE).read_bytes())
    fast = {"name": "fast", "num_inference_steps": FAST_STEPS, "guidance_scale": 1.0}
    (folder / CARD_FILE).write_text(json.dumps(card | fast))
    return folder


def test_what_cannot_be_in_time_is_refused_early_and_what_may_be_less_is_in_time(
    stack: LocalStack,
) -> None:
    async def supervise() -> None:
        while True:
            stack.step()
            await asyncio.sleep(0.05)

    async def run() -> dict[str, VideoDone]:
        keeper = asyncio.create_task(supervise())
        try:
            async with asyncio.timeout(GIVE_UP_S), make_client(stack.settings) as client:
                return await beside_a_backlog(client)
        finally:
            keeper.cancel()

    async def beside_a_backlog(client: Client) -> dict[str, VideoDone]:
        submit = partial(client.submit, "a ball", num_frames=33, width_px=128, height_px=128)
        began = datetime.now(UTC)  # the ledger's rate is that of all the time in which jobs wait
        backlog = {
            await submit(tenant_id="acme", num_inference_steps=STEPS) for _ in range(NUM_BACKLOG)
        }
        names: dict[str, str] = {}
        found: dict[str, VideoDone] = {}
        ended: list[VideoDone] = []
        async for done in client.completions():
            if done.job_id in names:
                found[names[done.job_id]] = done
            elif done.job_id in backlog and not names:
                ended.append(done)
                backlog.add(await submit(tenant_id="acme", num_inference_steps=STEPS))
                elapsed_s = (done.finished_at - began).total_seconds()
                # What waits now came when its cost was known: the first were let in by a guess.
                if len(ended) > NUM_BACKLOG and elapsed_s > RATE_AFTER_S:
                    # Beside as much of others' work again the whole job takes twice of what it
                    # would alone, and with half the steps as long; by the clock both have more.
                    alone_s = elapsed_s / len(ended) * MOST_STEPS / STEPS
                    deadline = datetime.now(UTC) + timedelta(seconds=PREDICTED * alone_s / MARGIN)
                    for name, allowed in ALLOWED.items():
                        job_id = await submit(
                            tenant_id="bolt", deadline=deadline, num_inference_steps=MOST_STEPS,
                            allowed_degradations=allowed,
                        )  # fmt: skip
                        names[job_id] = name
            if len(found) == len(ALLOWED):
                return found
        raise AssertionError("completions go on for ever")

    found = asyncio.run(run())
    whole, less = found["whole"], found["less"]
    assert (whole.status, whole.reason_code) == ("rejected", "deadline_unreachable")
    assert whole.retry_at is not None
    assert less.status == "completed", less.reason
    assert less.degradations
    assert set(less.degradations) <= {"fewer_steps", "smaller"}
    assert less.finished_at > whole.finished_at
    moved = found["moved"]
    assert (moved.status, moved.degradations) == ("completed", ("distilled_model",)), moved.reason
