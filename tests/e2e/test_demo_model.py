"""The demo model through Kafka: each video shows what its own request asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streams.cli.context import make_client, make_store
from tests.e2e.conftest import Pipeline
from workers.models.demo.reader import read_mp4
from workers.models.demo.shapes import Scene

pytestmark = [pytest.mark.kafka, pytest.mark.torch]

GIVE_UP_S = 240.0
SCENES = (
    Scene("circle", "red", "right"),
    Scene("square", "blue", "up"),
    Scene("triangle", "yellow", "left"),
    Scene("circle", "magenta", "down"),
)


def test_videos_show_what_was_asked_for(pipeline: Pipeline, tmp_path: Path) -> None:
    async def run() -> dict[Scene, str]:
        settings, shown = pipeline.settings, {}
        async with (
            asyncio.timeout(GIVE_UP_S),
            make_client(settings, make_store(settings)) as client,
        ):
            jobs = {
                await client.submit(
                    f"a {scene.colour} {scene.shape} moving {scene.direction}", seed=1
                ): scene
                for scene in SCENES
            }
            async for done in client.completions():
                if (scene := jobs.pop(done.job_id, None)) is not None:
                    path = tmp_path / f"{done.job_id}.mp4"
                    await client.download(done, path)
                    shown[scene] = str(read_mp4(path))
                if not jobs:
                    break
        return shown

    wanted = {scene: f"{scene.colour} {scene.shape} {scene.direction}" for scene in SCENES}
    assert asyncio.run(run()) == wanted
