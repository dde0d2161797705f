"""The reader on drawn clips that went through the finisher's own H.264."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from workers.finisher.mux import mux_mp4
from workers.models.demo.reader import NOTHING, Reading, read_frames, read_mp4
from workers.models.demo.shapes import SCENES, SIZES, Drawing, Scene, Size, draw, random_clip

Array = npt.NDArray[Any]
SMALL = Size(9, 64, 64)


def read_coded(frames: Array) -> Reading:
    with mux_mp4(frames, frames.shape[2], frames.shape[1], 8) as file:
        return read_mp4(file)


def a_clip(scene: Scene, radius_px: float = 10.0, shade: int = 60) -> Array:
    path = {"left": ((46, 32), (18, 32)), "right": ((18, 32), (46, 32))}
    first, last = path.get(scene.direction, ((32, 46), (32, 18)))
    return draw(scene, SMALL, Drawing(radius_px, shade, first, last))[0]


@pytest.mark.parametrize("scene", SCENES[:: len(SCENES) // 12], ids=str)
def test_a_drawn_clip_is_read_back(scene: Scene) -> None:
    rng = np.random.default_rng(SCENES.index(scene))
    for size in SIZES:
        assert read_coded(random_clip(scene, size, rng)[0]).shows(scene), size


def test_every_scene_is_told_from_every_other() -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES:
        reading = read_frames(random_clip(scene, SMALL, rng)[0])
        assert [each for each in SCENES if reading.shows(each)] == [scene]


@pytest.mark.parametrize("shade", [15, 105])
def test_noise_and_blur_do_not_mislead_it(shade: int) -> None:
    scene = Scene("triangle", "magenta", "up")
    clean = a_clip(scene, shade=shade).astype(float)
    blurred = (
        clean + np.roll(clean, 1, 1) + np.roll(clean, 1, 2) + np.roll(clean, (1, 1), (1, 2))
    ) / 4
    noise = np.random.default_rng(1).normal(0, 8, clean.shape)
    assert read_coded((blurred + noise).clip(0, 255).astype(np.uint8)).shows(scene)


def test_a_plain_background_shows_nothing() -> None:
    assert read_coded(np.full((9, 64, 64, 3), 70, np.uint8)) == NOTHING


@pytest.mark.parametrize("spread", [5, 120])
def test_noise_shows_nothing(spread: int) -> None:
    noise = np.random.default_rng(2).integers(128 - spread, 129 + spread, (9, 64, 64, 3))
    assert read_coded(noise.clip(0, 255).astype(np.uint8)) == NOTHING


def test_two_shapes_are_not_one() -> None:
    one, other = (
        draw(Scene("circle", "red", "up"), SMALL, Drawing(10, 60, (x, 46), (x, 18)))[0]
        for x in (16, 48)
    )
    assert read_frames(np.maximum(one, other)) == NOTHING


def test_a_shape_that_is_seen_in_half_of_the_frames_is_not_there() -> None:
    frames = a_clip(Scene("square", "blue", "left"))
    frames[4:] = 60
    assert read_frames(frames) == NOTHING


def test_what_stands_still_has_no_direction() -> None:
    still = draw(Scene("square", "blue", "left"), SMALL, Drawing(10, 60, (32, 32), (30, 32)))[0]
    assert read_frames(still) == Reading("square", "blue", None)


def test_what_goes_askew_has_no_direction() -> None:
    askew = draw(Scene("circle", "green", "left"), SMALL, Drawing(10, 60, (20, 20), (44, 44)))[0]
    assert read_frames(askew) == Reading("circle", "green", None)


def test_a_shape_that_is_none_of_the_three_is_unclear() -> None:
    bar = np.full((9, 64, 64, 3), 60, np.uint8)
    for number in range(9):
        bar[number, 28:36, 6 + 2 * number : 40 + 2 * number] = (225, 35, 35)
    assert read_frames(bar) == Reading(None, "red", "right")


def test_a_colour_that_is_none_of_the_six_is_unclear() -> None:
    frames = a_clip(Scene("circle", "white", "right"))
    frames[frames > 150] = 150
    assert read_frames(frames) == Reading("circle", None, "right")
