"""Videos as one picture, to be looked at: a contact sheet, and a VAE's reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NUM_STILLS = 5
_SCALE, _GAP_PX, _TITLE_PX = 2, 4, 18
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def write_contact_sheet(path: Path, videos: Sequence[tuple[str, Array]], num_columns: int) -> None:
    """A strip of stills per video, from its first frame to its last, under its title.

    Args:
        path: of the PNG.
        videos: titles, and (F, height_px, width_px, 3) uint8 of one size.
        num_columns: strips beside one another.
    """
    from PIL import Image, ImageDraw

    strips = [_strip(frames) for _, frames in videos]
    height, width = strips[0].shape[:2]
    cell_width, cell_height = width + 4 * _GAP_PX, height + _TITLE_PX + 3 * _GAP_PX
    num_rows = -(-len(videos) // num_columns)
    sheet = Image.new("RGB", (cell_width * num_columns, cell_height * num_rows), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, ((title, _), strip) in enumerate(zip(videos, strips, strict=True)):
        left = number % num_columns * cell_width + 2 * _GAP_PX
        top = number // num_columns * cell_height + _GAP_PX
        pen.text((left, top + 2), title, _INK)
        sheet.paste(Image.fromarray(strip), (left, top + _TITLE_PX))
    sheet.save(path, optimize=True)


def _strip(frames: Array) -> Array:
    """Stills side by side, enlarged, white between them."""
    chosen = np.linspace(0, len(frames) - 1, NUM_STILLS).round().astype(int)
    stills = frames[chosen].repeat(_SCALE, 1).repeat(_SCALE, 2)
    padded = np.pad(stills, ((0, 0), (0, 0), (0, _GAP_PX), (0, 0)), constant_values=255)
    joined: Array = np.concatenate(list(padded), axis=1)[:, :-_GAP_PX]
    return np.ascontiguousarray(joined)
