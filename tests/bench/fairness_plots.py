"""Plots of waits as PNG: the share of jobs that waited at most so long, each curve by its name.

Drawn with Pillow, which the demo model's pictures need anyway: one axis is not worth a library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

WIDTH_PX, HEIGHT_PX, MARGIN_PX = 720, 420, 56
COLOURS = ("#1f5fa8", "#c2452d", "#3c8d40", "#7d4fa3")
LEAST_S, DECADES = 0.01, 5  # a logarithmic axis from 10 ms to 1,000 s


class Curve(NamedTuple):
    """Waits of one run, ascending, on the plot of that name."""

    plot: str
    name: str
    waits_s: Sequence[float]


def plot_waits(folder: Path, curves: Iterable[Curve]) -> Iterator[Path]:
    """Write a PNG for each plot's curves; gives their paths.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, list[Curve]] = {}
    for curve in curves:
        plots.setdefault(curve.plot, []).append(curve)
    for name, drawn in plots.items():
        path = folder / f"waits-{name}-floods.png"
        _draw(name, drawn).save(path)
        yield path


def _draw(name: str, curves: Sequence[Curve]) -> Image.Image:
    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN_PX, 16), f"{name} floods: enterprise jobs of others that waited at most x s",
             fill="black")  # fmt: skip
    for decade in range(DECADES + 1):
        at_s = LEAST_S * 10**decade
        pen.line([_point(at_s, 0.0), _point(at_s, 1.0)], fill="#dddddd")
        x_px, y_px = _point(at_s, 0.0)
        pen.text((x_px - 10, y_px + 8), f"{at_s:g}", fill="black")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        pen.line([_point(LEAST_S, share), _point(1e9, share)], fill="#dddddd")
        x_px, y_px = _point(LEAST_S, share)
        pen.text((x_px - 40, y_px - 6), f"{share:.0%}", fill="black")
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        num = len(curve.waits_s)
        points = [_point(each, (rank + 1) / num) for rank, each in enumerate(curve.waits_s)]
        pen.line(points, fill=colour, width=3)
        pen.text((WIDTH_PX - 130, HEIGHT_PX - 110 + 18 * number), curve.name, fill=colour)
    return image


def _point(wait_s: float, share: float) -> tuple[float, float]:
    """Where that is on the picture; waits beyond the axis at its ends."""
    along = math.log10(max(wait_s, LEAST_S) / LEAST_S) / DECADES
    width_px, height_px = WIDTH_PX - 2 * MARGIN_PX, HEIGHT_PX - 2 * MARGIN_PX
    return MARGIN_PX + min(along, 1.0) * width_px, HEIGHT_PX - MARGIN_PX - share * height_px
