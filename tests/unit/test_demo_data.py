"""The demo model's drawn data and captions."""

from __future__ import annotations

import numpy as np
import pytest

from workers.models.demo.captions import HELD_OUT_WORDINGS, WORDINGS, caption, random_caption
from workers.models.demo.shapes import (
    COLOURS,
    DIRECTIONS,
    SCENES,
    SHAPES,
    SIZES,
    Scene,
    Size,
    random_clip,
    random_drawing,
)


def test_every_scene_is_there_once() -> None:
    assert len(set(SCENES)) == len(SHAPES) * len(COLOURS) * len(DIRECTIONS) == 72


def test_the_same_generator_draws_the_same_clip_and_another_one_another() -> None:
    first, again, other = (
        random_clip(SCENES[7], SIZES[0], np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_shape_is_whole_and_large_in_every_frame(size: Size) -> None:
    rng = np.random.default_rng(3)
    for scene in SCENES:
        frames, coverage = random_clip(scene, size, rng)
        assert frames.shape == (size.num_frames, size.height_px, size.width_px, 3)
        assert coverage[:, [0, -1]].max() == coverage[:, :, [0, -1]].max() == 0
        areas = coverage.sum(axis=(1, 2))
        assert areas.min() > 170
        assert areas.max() - areas.min() < 0.05 * areas.max()


def test_a_shape_goes_the_way_it_should_and_no_other() -> None:
    rng = np.random.default_rng(4)
    for scene in SCENES:
        drawing = random_drawing(scene, SIZES[0], rng)
        travel = np.subtract(drawing.last_px, drawing.first_px)
        along = float(travel @ DIRECTIONS[scene.direction])
        assert 16 <= along <= 30
        assert np.linalg.norm(travel) == pytest.approx(along)


def test_captions_name_all_three_attributes_and_only_these() -> None:
    rng = np.random.default_rng(5)
    for scene in SCENES:
        for _ in range(20):
            text = random_caption(scene, rng).lower()
            assert scene.shape in text
            assert [name for name in COLOURS if name in text] == [scene.colour]
            ends = {"up": ("up", "top"), "down": ("down", "bottom")}
            assert any(word in text for word in ends.get(scene.direction, (scene.direction,)))


def test_captions_are_the_same_for_the_same_seed() -> None:
    one, other = (
        [random_caption(scene, rng) for scene in SCENES]
        for rng in (np.random.default_rng(6), np.random.default_rng(6))
    )
    assert one == other
    assert len(set(one)) == len(SCENES)


def test_no_wording_that_is_held_out_is_trained() -> None:
    scene = Scene("circle", "red", "left")
    trained = {caption(scene, wording) for wording in WORDINGS}
    assert len(trained) == len(WORDINGS)
    assert trained.isdisjoint(caption(scene, wording) for wording in HELD_OUT_WORDINGS)
