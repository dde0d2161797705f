"""Deadlines beside a backlog, the demo model on Apache Kafka: refused early, or met with less."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from schemas.records import VideoDone
from streams.cli.context import make_client
from streams.client.client import Client
from streams.local.stack import LocalStack, StackPlan
from streams.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.torch]

log = logging.getLogger(__name__)

GIVE_UP_S = 240.0
#: The ledger tells a rate once it has seen so much (streams/core/ledger.py).
RATE_AFTER_S, NUM_BACKLOG, NUM_ENDED = 12.0, 24, 6
#: Of the time that is left a prediction may take so much: what is in time here is so with ease.
MARGIN = 0.25
STEPS, MOST_STEPS = 10, 100


@pytest.fixture
def stack(kafka_home: Path, tmp_path: Path) -> Iterator[LocalStack]:
    """One partition a tier, and deadlines are asked about."""
    settings = Settings(home=tmp_path, torch_threads=1, partitions=3, deadline_margin=MARGIN)
    plan = StackPlan(settings, cache=kafka_home, broker="apache")
    with LocalStack(plan, log.info) as stack:
        yield stack


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
                elapsed_s = (done.finished_at - ended[0].finished_at).total_seconds()
                if len(ended) > NUM_ENDED and elapsed_s > RATE_AFTER_S:
                    # Beside as much of others' work again the whole job takes twice of what it
                    # would alone; it is given the half of that, and four times that by the clock.
                    alone_s = elapsed_s / len(ended) * MOST_STEPS / STEPS
                    deadline = datetime.now(UTC) + timedelta(seconds=alone_s / MARGIN)
                    for name, allowed in (("whole", ()), ("less", ("fewer_steps", "smaller"))):
                        job_id = await submit(
                            tenant_id="bolt", deadline=deadline, num_inference_steps=MOST_STEPS,
                            allowed_degradations=allowed,
                        )  # fmt: skip
                        names[job_id] = name
            if len(found) == 2:
                return found
        raise AssertionError("completions go on for ever")

    found = asyncio.run(run())
    whole, less = found["whole"], found["less"]
    assert (whole.status, whole.reason_code) == ("rejected", "deadline_unreachable")
    assert whole.retry_at is not None
    assert less.status == "completed"
    assert less.degradations
    assert set(less.degradations) <= {"fewer_steps", "smaller"}
    assert less.finished_at > whole.finished_at
