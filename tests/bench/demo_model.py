"""Does the demo model do what it is told: every prompt through the pipeline, read from its MP4.

python -m tests.bench.demo_model                 the pipeline, on Apache Kafka (Java 17+, Maven)
python -m tests.bench.demo_model --broker embedded     needs neither, and takes five times as long
python -m tests.bench.demo_model --in-process    diffusers' own WanPipeline: a quick look
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from schemas.records import VideoDone
from streams.cli.context import make_client, make_store
from streams.local.stack import BrokerKind, LocalStack, StackPlan
from streams.settings import Settings, read_settings
from tests.bench.goals import Goals
from workers.finisher.mux import mux_mp4
from workers.models.card import read_card
from workers.models.demo.captions import PLAIN_WORDING, caption
from workers.models.demo.evaluate import (
    FEW,
    HELD_OUT,
    PLAIN,
    Take,
    accuracies,
    make_in_process,
    report_lines,
    takes,
)
from workers.models.demo.model import demo_model_dir
from workers.models.demo.pictures import write_contact_sheet
from workers.models.demo.reader import NOTHING, Reading, frames_of, read_frames
from workers.models.demo.shapes import SCENES

GIVE_UP_S = 1800.0
CLOCKED_THREADS = 2
NUM_ON_SHEET = 12

Readings = list[tuple[Take, Reading]]
Done = Callable[[Take, Any], None]


def main() -> int:
    """Print the scores and the goals; the exit code says whether all are met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.demo_model", description=__doc__)
    parser.add_argument("--model", type=Path, default=demo_model_dir())
    parser.add_argument("--in-process", action="store_true", help="without broker and stages")
    parser.add_argument("--broker", choices=get_args(BrokerKind), default="apache")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of 12 videos, a PNG")
    words = parser.parse_args()
    wanted = takes()
    readings: Readings = []
    shown: dict[int, tuple[str, Any]] = {}
    on_sheet = _on_sheet(wanted)

    def done(take: Take, frames: Any) -> None:
        readings.append((take, NOTHING if frames is None else read_frames(frames)))
        if frames is not None and take in on_sheet:
            shown[on_sheet.index(take)] = (take.prompt, frames)
        if len(readings) % 20 == 0:
            print(f"{len(readings)} of {len(wanted)} videos", file=sys.stderr, flush=True)

    goals = Goals()
    _clock(words.model, goals)
    if words.in_process:
        make_in_process(words.model, wanted, lambda take, frames: done(take, _coded(frames)))
    else:
        _through_the_pipeline(words.model, words.broker, wanted, done)
    if words.sheet is not None:
        write_contact_sheet(words.sheet, [shown[at] for at in sorted(shown)], num_columns=2)
    print(*report_lines(readings), sep="\n")
    _set_goals(goals, readings)
    return goals.report()


def _set_goals(goals: Goals, readings: Readings) -> None:
    found = accuracies(readings)
    goals.at_least("plain_prompts_right_percent", found[PLAIN], 95)
    goals.at_least("held_out_wordings_right_percent", found[HELD_OUT], 90)
    goals.at_least("eight_steps_right_percent", found[FEW], 90)


def _on_sheet(wanted: Sequence[Take]) -> list[Take]:
    """Takes in which every shape, colour and direction occurs."""
    plain = [take for take in wanted if take.group == PLAIN and take.seed == 0]
    return [plain[31 * number % len(SCENES)] for number in range(NUM_ON_SHEET)]


def _coded(frames: Any) -> Any:
    """The frames after the finisher's own H.264."""
    with mux_mp4(frames, frames.shape[2], frames.shape[1], 8) as file:
        return frames_of(file)


def _clock(model: Path, goals: Goals) -> None:
    """One guided clip by diffusers' own pipeline, loading included, imports not."""
    import torch
    from diffusers import WanPipeline

    torch.set_num_threads(CLOCKED_THREADS)
    card = read_card(model)
    began_s = time.perf_counter()
    pipeline: Any = WanPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        caption(SCENES[0], PLAIN_WORDING),
        num_frames=card.num_frames,
        width=card.width_px,
        height=card.height_px,
        num_inference_steps=card.num_inference_steps,
        guidance_scale=card.guidance_scale,
        max_sequence_length=card.text_pad_length,
        output_type="latent",
    ).frames
    sampled_s = time.perf_counter()
    with torch.inference_mode():
        pipeline.vae.decode(latents)
    decoded_s = time.perf_counter()
    goals.at_most("load_and_20_guided_steps_and_decode_s", decoded_s - began_s, 8)
    goals.at_most("vae_decode_s", decoded_s - sampled_s, 1)


def _through_the_pipeline(
    model: Path, broker: BrokerKind, wanted: Sequence[Take], done: Done
) -> None:
    """Submit all takes to a stack of their own; `done` gets the frames of each MP4, or None."""
    with tempfile.TemporaryDirectory(prefix="reel-eval-") as folder:
        settings = Settings(home=Path(folder), model=model.absolute())
        plan = StackPlan(settings, cache=read_settings().home, broker=broker)
        with LocalStack(plan, lambda line: print(line, file=sys.stderr)) as stack:
            asyncio.run(_submit_and_collect(stack.settings, wanted, done))


async def _submit_and_collect(settings: Settings, wanted: Sequence[Take], done: Done) -> None:
    async with asyncio.timeout(GIVE_UP_S), make_client(settings, make_store(settings)) as client:
        waiting = {await _submit(client, take): take for take in wanted}
        async for ended in client.completions():
            if (take := waiting.pop(ended.job_id, None)) is not None:
                done(take, await _frames(client, settings.home, ended))
            if not waiting:
                return


async def _submit(client: Any, take: Take) -> str:
    job_id: str = await client.submit(
        take.prompt,
        seed=take.seed,
        num_inference_steps=take.num_inference_steps,
        num_frames=take.size.num_frames,
        width_px=take.size.width_px,
        height_px=take.size.height_px,
    )
    return job_id


async def _frames(client: Any, folder: Path, ended: VideoDone) -> Any:
    """The frames of a job's MP4; None, and a line, where there is none."""
    if ended.status != "completed":
        print(f"{ended.job_id} {ended.status}: {ended.reason}", file=sys.stderr)
        return None
    path = folder / f"{ended.job_id}.mp4"
    await client.download(ended, path)
    return frames_of(path)


if __name__ == "__main__":
    sys.exit(main())
