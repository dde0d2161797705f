"""What the unit tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.engine_rig import Rig
from tests.unit.step_rig import StepRig
from workers import engine, holding


@pytest.fixture
def worth_a_thread_s() -> float:
    """0.0: rows are fetched and stored on I/O threads; infinity: on the engine's."""
    return 0.0


@pytest.fixture
def rig_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth_a_thread_s: float) -> Path:
    """A store's folder; holds are short here."""
    monkeypatch.setattr(holding, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(engine, "_WORTH_A_THREAD_S", worth_a_thread_s)
    return tmp_path / "blobs"


@pytest.fixture
def rig(rig_folder: Path) -> Rig:
    """An engine of the sampler stage; entered by the test."""
    return Rig(rig_folder)


@pytest.fixture
def step_rig(rig_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepRig]:
    """A sampler's engine whose caps are the settings'; left with every step free, so it can end."""
    monkeypatch.setattr("streams.core.step_caps.StepCap.rows", property(lambda cap: cap._most))
    rig = StepRig(rig_folder)
    with rig:
        yield rig
        rig.steps.is_free = True
        rig.steps.turns.release(1000)
