"""Does the model do what it is told? The requests of an evaluation, and what their videos scored.

Who makes the videos is the caller's choice: the pipeline, or `make_in_process` for a quick look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workers.models.card import read_card
from workers.models.demo.captions import HELD_OUT_WORDINGS, PLAIN_WORDING, caption
from workers.models.demo.reader import NOTHING, Reading
from workers.models.demo.shapes import (
    COLOURS,
    DEFAULT_SIZE,
    DIRECTIONS,
    SCENES,
    SHAPES,
    SIZES,
    Scene,
    Size,
)

FEW_STEPS = 8
_SCENES_PER_HELD_OUT = 24
_SCENES_PER_SIZE = 12
#: The attributes, and what they may be.
_ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "direction": tuple(DIRECTIONS),
}


@dataclass(frozen=True, slots=True)
class Take:
    """A request of the evaluation; `group` is what its score counts for."""

    group: str
    scene: Scene
    prompt: str
    seed: int
    num_inference_steps: int | None = None  # None: the model's default
    size: Size = DEFAULT_SIZE


PLAIN, HELD_OUT, FEW = "plain", "held out", f"{FEW_STEPS} steps"
OTHER_SIZES = tuple(size for size in SIZES if size != DEFAULT_SIZE)


def size_group(size: Size) -> str:
    """The group of a size's takes."""
    return f"{size.num_frames} frames, {size.width_px}x{size.height_px}"


def takes() -> list[Take]:
    """All of them: 72 prompts x 2 seeds, wordings held out, few steps, the other sizes."""
    plain = [(scene, caption(scene, PLAIN_WORDING)) for scene in SCENES]
    found = [Take(PLAIN, scene, text, seed) for seed in (0, 1) for scene, text in plain]
    found += [Take(FEW, scene, text, 2, FEW_STEPS) for scene, text in plain]
    for number, wording in enumerate(HELD_OUT_WORDINGS):
        for scene in _some_scenes(number, _SCENES_PER_HELD_OUT):
            found.append(Take(HELD_OUT, scene, caption(scene, wording), 3))
    for number, size in enumerate(OTHER_SIZES):
        for scene in _some_scenes(100 + number, _SCENES_PER_SIZE):
            text = caption(scene, PLAIN_WORDING)
            found.append(Take(size_group(size), scene, text, 4, size=size))
    return found


def _some_scenes(seed: int, count: int) -> list[Scene]:
    chosen = np.random.default_rng(seed).permutation(len(SCENES))[:count]
    return [SCENES[int(each)] for each in chosen]


def accuracies(readings: Sequence[tuple[Take, Reading]]) -> dict[str, float]:
    """For each group the share, in percent, that was read back right in all three attributes."""
    right, total = Counter[str](), Counter[str]()
    for take, reading in readings:
        total[take.group] += 1
        right[take.group] += reading.shows(take.scene)
    return {group: 100 * right[group] / count for group, count in total.items()}


def report_lines(readings: Sequence[tuple[Take, Reading]]) -> Iterator[str]:
    """Scores by group, what was taken for what, and every video that was wrong."""
    yield f"{'group':<20}{'videos':>8}{'right':>8}"
    counts = Counter(take.group for take, _ in readings)
    for group, accuracy in accuracies(readings).items():
        yield f"{group:<20}{counts[group]:>8}{accuracy:>7.1f}%"
    for attribute, names in _ATTRIBUTES.items():
        yield ""
        yield from _confusion_lines(attribute, names, readings)
    yield ""
    for take, reading in readings:
        if not reading.shows(take.scene):
            yield f"wrong: {take.prompt!r}, seed {take.seed}, {take.group}: {reading}"


def _confusion_lines(
    attribute: str, names: Sequence[str], readings: Sequence[tuple[Take, Reading]]
) -> Iterator[str]:
    """A row for what was asked, a column for what was seen."""
    seen = Counter(
        (
            getattr(take.scene, attribute),
            "nothing" if reading == NOTHING else getattr(reading, attribute) or "unclear",
        )
        for take, reading in readings
    )
    columns = [*names, "unclear", "nothing"]
    yield f"{attribute + ', asked / seen':<24}" + "".join(f"{name:>10}" for name in columns)
    for asked in names:
        row = "".join(f"{seen[asked, name] or '.':>10}" for name in columns)
        yield f"{asked:<24}{row}"


def make_in_process(
    folder: Path, wanted: Sequence[Take], done: Callable[[Take, Any], None]
) -> None:
    """Every take by diffusers' own WanPipeline, in batches of one shape.

    Args:
        folder: of the model.
        wanted: what to make.
        done: is given each take with its frames, (F, height_px, width_px, 3) uint8.
    """
    import torch
    from diffusers import WanPipeline

    card = read_card(folder)
    pipeline: Any = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    batches: dict[tuple[Size, int], list[Take]] = {}
    for take in wanted:
        steps = take.num_inference_steps or card.num_inference_steps
        batches.setdefault((take.size, steps), []).append(take)
    for (size, steps), batch in batches.items():
        for first in range(0, len(batch), 8):
            some = batch[first : first + 8]
            frames = pipeline(
                prompt=[take.prompt for take in some],
                negative_prompt=[""] * len(some),
                num_frames=size.num_frames,
                width=size.width_px,
                height=size.height_px,
                num_inference_steps=steps,
                guidance_scale=card.guidance_scale,
                max_sequence_length=card.text_pad_length,
                generator=[torch.Generator().manual_seed(take.seed) for take in some],
                output_type="np",
            ).frames
            for take, video in zip(some, frames, strict=True):
                done(take, (video * 255).round().astype(np.uint8))
