"""Fit a model's preview map: `python -m workers.models.preview MODEL`.

Clips of soft colours go through the VAE's encoder; least squares finds the linear map from a
latent's channels to the mean colour of the pixels it stands for.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streams.errors import PipelineError
from workers.models.card import family_of, read_card
from workers.sampler.families.base import Geometry
from workers.sampler.previews import PREVIEW_FILE, PreviewMap
from workers.torch_device import DeviceSettings, open_place

Array = npt.NDArray[np.float32]

_NUM_CLIPS, _SIDE_CELLS = 24, 16


def main() -> int:
    """Fit, write preview.json beside the model's card, and say how good it is."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.preview", description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    try:
        fitted, explained = fit(words.model, DeviceSettings(words.device))
    except PipelineError as error:
        print(f"preview: {error}", file=sys.stderr)
        return 1
    path = write_preview_map(words.model, fitted)
    print(f"{path}: explains {explained:.0%} of the colours' variance")
    return 0


def fit(
    folder: Path, device: DeviceSettings, clips: Iterable[Array] | None = None
) -> tuple[PreviewMap, float]:
    """The map, and which part of the colours' variance it explains (R squared).

    Args:
        folder: of the model.
        device: where its VAE encodes.
        clips: (F, H, W, 3) in [0, 1] each, of sizes that the model takes; None: soft colours.

    Raises:
        SettingsError: no model, or no such device.
    """
    import torch

    family, card = family_of(folder), read_card(folder)
    geometry = family.geometry(folder)
    decoder = family.decoder(folder, open_place(device), card)
    latents, colours = [], []
    for clip in soft_clips(geometry) if clips is None else clips:
        with torch.inference_mode():
            found = decoder.encode(torch.from_numpy(clip)).float().cpu().numpy()
        ends = np.minimum(1 + geometry.frame_stride * np.arange(found.shape[1]), len(clip))
        begins = [0, *ends[:-1]]
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            latents.append(found[:, number].reshape(len(found), -1).T)
            colours.append(_means(clip[begin:end].mean(0), geometry.scale_px).reshape(-1, 3))
    return _least_squares(np.concatenate(latents), np.concatenate(colours))


def soft_clips(geometry: Geometry) -> Iterator[Array]:
    """Two latent frames of a picture that stands still, each."""
    rng = np.random.default_rng(0)
    side_px = math.lcm(geometry.scale_px, geometry.size_multiple_px)
    side_px *= math.ceil(_SIDE_CELLS * geometry.scale_px / side_px)
    for _ in range(_NUM_CLIPS):
        yield np.repeat(soft_colours(rng, side_px)[None], 1 + geometry.frame_multiple, axis=0)


def _means(picture: Array, cell_px: int) -> Array:
    """(H / cell_px, W / cell_px, 3) of (H, W, 3)."""
    height, width = (side // cell_px for side in picture.shape[:2])
    means: Array = picture.reshape(height, cell_px, width, cell_px, 3).mean((1, 3))
    return means


def soft_colours(rng: np.random.Generator, side_px: int) -> Array:
    """A picture, (side_px, side_px, 3) in [0, 1]: a coarse grid of colours, blended."""
    num = int(rng.integers(2, 6))
    grid = rng.random((num, num, 3), np.float32)
    at = np.linspace(0, num - 1, side_px, dtype=np.float32)
    low = np.minimum(at.astype(int), num - 2)
    part = (at - low)[:, None]
    rows = grid[low] * (1 - part[..., None]) + grid[low + 1] * part[..., None]
    blended: Array = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return blended


def _least_squares(latents: Array, colours: Array) -> tuple[PreviewMap, float]:
    """Of (N, C) and (N, 3)."""
    known = np.concatenate([latents, np.ones((len(latents), 1), np.float32)], axis=1)
    found = np.linalg.lstsq(known.astype(np.float64), colours.astype(np.float64), rcond=None)[0]
    left = colours - known @ found
    explained = 1 - float((left**2).sum() / ((colours - colours.mean(0)) ** 2).sum())
    return PreviewMap(found[:-1].astype(np.float32), found[-1].astype(np.float32)), explained


def write_preview_map(folder: Path, fitted: PreviewMap) -> Path:
    """Beside the model's card; the path."""
    path = folder / PREVIEW_FILE
    said = {"factors": fitted.factors.tolist(), "bias": fitted.bias.tolist()}
    path.write_text(json.dumps(said, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
