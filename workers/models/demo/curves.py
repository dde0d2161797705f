"""The curves of a training as a PNG, drawn with Pillow, which diffusers brings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH_PX, PANEL_PX = 900, 220
_LEFT_PX, _TOP_PX, _BOTTOM_PX = 70, 26, 24
_INK, _FAINT, _RAW, _SMOOTH = (30, 30, 30), (215, 215, 215), (190, 205, 235), (30, 80, 200)


def write_curves(path: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """A panel per curve, logarithmic: pale the values, dark their running mean."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH_PX, PANEL_PX * max(1, len(curves))), "white")
    pen = ImageDraw.Draw(picture)
    for number, (name, values) in enumerate(curves.items()):
        top = number * PANEL_PX
        logs = [math.log10(max(value, 1e-6)) for value in values]
        low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
        floor_px = top + PANEL_PX - _BOTTOM_PX

        def place(
            at: float,
            log: float,
            floor: int = floor_px,
            span: tuple[int, int] = (low, high),
            count: int = len(logs),
        ) -> tuple[float, float]:
            width, height = WIDTH_PX - _LEFT_PX - 20, PANEL_PX - _TOP_PX - _BOTTOM_PX
            share = (log - span[0]) / (span[1] - span[0])
            return _LEFT_PX + width * at / max(1, count - 1), floor - height * share

        pen.text((_LEFT_PX, top + 6), f"{name}: {values[-1]:.4g} after {len(values)} steps", _INK)
        for power in range(low, high + 1):
            line = [place(0, power), place(len(logs) - 1, power)]
            pen.line(line, _FAINT)
            pen.text((8, line[0][1] - 6), f"1e{power}", _INK)
        if len(logs) > 1:
            pen.line([place(at, log) for at, log in enumerate(logs)], _RAW)
            pen.line([place(at, log) for at, log in enumerate(_running_mean(logs))], _SMOOTH, 2)
    picture.save(path)


def _running_mean(values: Sequence[float], window: int = 50) -> list[float]:
    mean, means = values[0], []
    for number, value in enumerate(values):
        mean += (value - mean) / min(number + 1, window)
        means.append(mean)
    return means
