"""LearnedCaps: what one run has learned the next one begins with; a bad file costs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.engine_rig import tasks_of
from tests.unit.step_rig import StepRig
from workers.learned_caps import MAX_SHAPES, LearnedCaps

SHAPE = (16, 5, 8, 8)


def learned(folder: Path | None, identity: str = "model cpu") -> LearnedCaps:
    return LearnedCaps(folder, identity, most_rows=64, memory_bytes=None)


def keep_one(folder: Path) -> int:
    """A cap learned and kept; its rows."""
    caps = learned(folder)
    cap = caps.of(SHAPE)
    for rows in (2, 4, 8, 16, 32):
        for _ in range(3):
            cap.took(rows, 0.010 + 0.004 * rows)
    caps.write(caps.dump())
    return cap.rows


def test_a_new_run_begins_with_what_the_last_has_learned(tmp_path: Path) -> None:
    rows = keep_one(tmp_path)
    assert learned(tmp_path).of(SHAPE).rows == rows == 23
    assert learned(tmp_path).of((1, 1, 1, 1)).rows == 2, "of other shapes nothing is known"


def test_what_found_no_memory_is_remembered(tmp_path: Path) -> None:
    caps = learned(tmp_path)
    caps.of(SHAPE).found_no_memory(8)
    caps.write(caps.dump())
    assert not learned(tmp_path).of(SHAPE).has_room(8)


def test_another_device_or_model_learns_for_itself(tmp_path: Path) -> None:
    keep_one(tmp_path)
    assert learned(tmp_path, "model H200").of(SHAPE).rows == 2


def test_what_was_not_asked_for_in_this_run_is_kept_for_the_next(tmp_path: Path) -> None:
    rows = keep_one(tmp_path)
    caps = learned(tmp_path)
    caps.of((1, 1, 1, 1))
    caps.write(caps.dump())
    assert learned(tmp_path).of(SHAPE).rows == rows


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"identity": "model cpu", "shapes": {"a": 1}}'])
def test_a_file_that_is_no_such_file_is_ignored(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep_one(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    assert learned(tmp_path).of(SHAPE).rows == 2
    assert "learned caps are not readable" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    caps = learned(tmp_path / "file" / "caps")
    caps.write(caps.dump())
    assert "learned caps are not kept" in caplog.text


def test_only_so_many_shapes_are_remembered(tmp_path: Path) -> None:
    caps = learned(tmp_path)
    for size in range(MAX_SHAPES + 10):
        caps.of(size).found_no_memory(8)
    assert len(json.loads(caps.dump())["shapes"]) == MAX_SHAPES
    assert caps.of(0).has_room(8), "the first is forgotten"
    assert not caps.of(MAX_SHAPES + 9).has_room(8)


def test_an_engine_that_stops_keeps_its_caps(rig_folder: Path, tmp_path: Path) -> None:
    class KeepingRig(StepRig):
        caps_folder = tmp_path / "caps"

    for _ in range(2):
        with KeepingRig(rig_folder) as rig:
            rig.start(*tasks_of("a-5"))
            rig.wait_for(1)
    (path,) = (tmp_path / "caps").iterdir()
    assert json.loads(path.read_bytes())["shapes"]["'key'"]["step_s"].keys() == {"1"}
