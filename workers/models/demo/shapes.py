"""The drawn data: one coloured shape that moves one way over a plain grey background.

Everything is a function of its arguments and a numpy generator, so that any clip of the training
can be drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

SHAPES = ("circle", "square", "triangle")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (35, 190, 55),
    "blue": (45, 75, 230),
    "yellow": (235, 220, 40),
    "white": (245, 245, 245),
    "magenta": (215, 45, 215),
}
#: (x, y) of one step; y grows downwards, as rows do.
DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}

MIN_RADIUS_PX, MAX_RADIUS_PX = 9.0, 12.0
#: Darker than every colour, so that white and yellow stand out after H.264 too.
MIN_SHADE, MAX_SHADE = 15, 105
#: Shortest and longest way, in pixels, that a shape goes in a clip of so many frames.
TRAVEL_PX: Mapping[int, tuple[float, float]] = {
    1: (0.0, 0.0),
    5: (7.0, 14.0),
    9: (12.0, 20.0),
    17: (16.0, 30.0),
    33: (18.0, 32.0),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt asks for and a clip shows."""

    shape: str
    colour: str
    direction: str


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a clip: frames, and pixels of a frame."""

    num_frames: int
    width_px: int
    height_px: int


#: All 72, in one order.
SCENES = tuple(Scene(*each) for each in product(SHAPES, COLOURS, DIRECTIONS))
DEFAULT_SIZE = Size(17, 64, 64)
#: Each its own batch key in the pipeline.
SIZES = (DEFAULT_SIZE, Size(9, 64, 64), Size(33, 64, 64), Size(17, 96, 64))


@dataclass(frozen=True, slots=True)
class Drawing:
    """The chances of one clip; pixels, and the middle of the shape in the first and last frame."""

    radius_px: float
    shade: int
    first_px: tuple[float, float]
    last_px: tuple[float, float]


def random_scene(rng: np.random.Generator) -> Scene:
    """One of the 72."""
    return SCENES[int(rng.integers(len(SCENES)))]


def random_drawing(scene: Scene, size: Size, rng: np.random.Generator) -> Drawing:
    """A random background, radius, speed and start, so that the shape stays in the picture."""
    radius = float(rng.uniform(MIN_RADIUS_PX, MAX_RADIUS_PX))
    shade = int(rng.integers(MIN_SHADE, MAX_SHADE + 1))
    margin = 1.3 * radius + 1  # a triangle reaches farthest
    room = np.array([size.width_px, size.height_px]) - 2 * margin
    step = np.array(DIRECTIONS[scene.direction], dtype=float)
    travel = min(float(rng.uniform(*TRAVEL_PX[size.num_frames])), float(room @ abs(step)))
    low = margin + travel * np.clip(-step, 0, None)
    high = margin + room - travel * np.clip(step, 0, None)
    first = rng.uniform(low, np.maximum(high, low))
    last = first + travel * step
    return Drawing(
        radius, shade, (float(first[0]), float(first[1])), (float(last[0]), float(last[1]))
    )


def draw(
    scene: Scene, size: Size, drawing: Drawing
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The clip of a scene, edges smooth.

    Returns:
        frames: (num_frames, height_px, width_px, 3), RGB.
        coverage: (num_frames, height_px, width_px), the share of each pixel that is the shape's.
    """
    along = np.linspace(0.0, 1.0, size.num_frames)[:, None]
    middle = np.array(drawing.first_px) * (1 - along) + np.array(drawing.last_px) * along
    x = np.arange(size.width_px)[None, None, :] + 0.5 - middle[:, 0, None, None]
    y = np.arange(size.height_px)[None, :, None] + 0.5 - middle[:, 1, None, None]
    distance = distance_px(scene.shape, drawing.radius_px, x, y)
    coverage = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
    colour = np.array(COLOURS[scene.colour], dtype=np.float32)
    frames = drawing.shade + coverage[..., None] * (colour - drawing.shade)
    return np.rint(frames).astype(np.uint8), coverage


def random_clip(
    scene: Scene, size: Size, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """`draw` with `random_drawing`."""
    return draw(scene, size, random_drawing(scene, size, rng))


def distance_px(
    shape: str, radius: float, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """How far outside the shape a point is (inside: below 0); x and y from the shape's middle.

    The three reach about as far, so that size tells little of the shape.
    """
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.9 * radius
    # Equilateral, a corner on top, its middle 1.3 radii from each corner.
    slope = math.sqrt(3) / 2
    return np.maximum(y, slope * abs(x) - 0.5 * y) - 0.65 * radius
