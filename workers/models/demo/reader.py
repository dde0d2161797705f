"""What a video shows: which shape, which colour, which way; or nothing.

Classical image analysis, so that it judges a model without being one: the background is what the
border shows, the shape is what differs from it, and each of the known shapes is held against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from workers.models.demo.shapes import COLOURS, DIRECTIONS, SHAPES, Scene, distance_px

Array = npt.NDArray[Any]

_MIN_CONTRAST = 50.0  # of 255, shape against background
_MIN_AREA_PX, _MAX_AREA_SHARE = 100, 0.3
_MIN_SEEN_SHARE = 0.75  # of the frames must show the shape
_MIN_OVERLAP = 0.8  # with the ideal shape, as intersection over union
_MAX_COLOUR_DISTANCE = 90.0  # in RGB; the known colours are 170 and more apart
_MIN_TRAVEL_PX = 7.0
_AREA_OF_RADIUS_1 = {"circle": math.pi, "square": 1.8**2, "triangle": 3 * math.sqrt(3) * 0.65**2}


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen; None for an attribute that is none of the known ones."""

    shape: str | None = None
    colour: str | None = None
    direction: str | None = None

    def shows(self, scene: Scene) -> bool:
        """Whether all three attributes are the scene's."""
        return self == Reading(scene.shape, scene.colour, scene.direction)

    def __str__(self) -> str:
        if self == NOTHING:
            return "nothing there"
        return f"{self.colour or '?'} {self.shape or '?'} {self.direction or '?'}"


NOTHING = Reading()


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The shape in one frame: (x, y) of its middle, mean colour inside, overlap with each shape."""

    middle_px: Array
    colour: Array
    overlaps: Array


def read_mp4(source: str | Path | IO[bytes]) -> Reading:
    """What a video file shows."""
    return read_frames(frames_of(source))


def frames_of(source: str | Path | IO[bytes]) -> Array:
    """(F, height_px, width_px, 3) uint8 RGB of a video file."""
    import av

    with av.open(str(source) if isinstance(source, Path) else source, "r") as container:
        return np.stack([each.to_ndarray(format="rgb24") for each in container.decode(video=0)])


def read_frames(frames: Array) -> Reading:
    """What frames show, (F, height_px, width_px, 3) uint8 RGB."""
    sightings = [_sighting(frame.astype(np.float32)) for frame in frames]
    numbers = [number for number, each in enumerate(sightings) if each is not None]
    seen = [each for each in sightings if each is not None]
    if len(seen) < max(1, _MIN_SEEN_SHARE * len(frames)):
        return NOTHING
    return Reading(_shape(seen), _colour(seen), _direction(numbers, seen, len(frames)))


def _sighting(frame: Array) -> _Sighting | None:
    """The one shape of a frame, if there is one."""
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    difference = abs(frame - np.median(border, axis=0)).max(axis=2)
    # The smallest shape covers more than the brightest 2 % of a frame.
    contrast = float(np.percentile(difference, 98))
    if contrast < _MIN_CONTRAST:
        return None
    mask = difference > contrast / 2
    body = _largest_part(mask)
    area = int(body.sum())
    # Several things, or one that fills the picture, are no shape of ours.
    if not _MIN_AREA_PX <= area <= _MAX_AREA_SHARE * mask.size or area < 0.8 * mask.sum():
        return None
    y, x = np.nonzero(body)
    middle = np.array([x.mean() + 0.5, y.mean() + 0.5])
    inside = frame[(difference > 0.8 * contrast) & body]
    return _Sighting(middle, np.median(inside, axis=0), _overlaps(body, middle, area))


def _overlaps(body: Array, middle: Array, area: float) -> Array:
    """Intersection over union with each of SHAPES, ideal, of the same area and middle."""
    height, width = body.shape
    x = np.arange(width)[None, :] + 0.5 - middle[0]
    y = np.arange(height)[:, None] + 0.5 - middle[1]
    overlaps = []
    for shape in SHAPES:
        radius = math.sqrt(area / _AREA_OF_RADIUS_1[shape])
        ideal = distance_px(shape, radius, x, y) < 0
        overlaps.append((ideal & body).sum() / (ideal | body).sum())
    return np.array(overlaps)


def _shape(seen: Sequence[_Sighting]) -> str | None:
    overlaps = np.median([each.overlaps for each in seen], axis=0)
    best = int(overlaps.argmax())
    return SHAPES[best] if overlaps[best] >= _MIN_OVERLAP else None


def _colour(seen: Sequence[_Sighting]) -> str | None:
    colour = np.median([each.colour for each in seen], axis=0)
    distances = {name: float(np.linalg.norm(colour - each)) for name, each in COLOURS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= _MAX_COLOUR_DISTANCE else None


def _direction(numbers: Sequence[int], seen: Sequence[_Sighting], num_frames: int) -> str | None:
    """The way of a straight line through the middles, if it is long and not slanted."""
    if len(seen) < 2:
        return None
    middles = np.array([each.middle_px for each in seen])
    travel = np.polyfit(numbers, middles, 1)[0] * (num_frames - 1)
    for name, step in DIRECTIONS.items():
        along = float(travel @ np.array(step))
        across = float(abs(travel @ np.array(step[::-1])))
        if along >= _MIN_TRAVEL_PX and along > 2 * across:
            return name
    return None


def _largest_part(mask: Array) -> Array:
    """The largest part of a mask whose pixels touch side by side."""
    height, width = mask.shape
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    largest: list[tuple[int, int]] = []
    while left:
        part = [left.pop()]
        for y, x in part:  # grows while it is walked
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left:
                    left.remove(near)
                    part.append(near)
        largest = max(largest, part, key=len)
    body = np.zeros((height, width), dtype=bool)
    if largest:
        body[tuple(np.array(largest).T)] = True
    return body
