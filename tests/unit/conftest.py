"""What the unit tests of the engine share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.engine_rig import Rig
from workers import holding


@pytest.fixture
def rig_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store's folder; holds are short here."""
    monkeypatch.setattr(holding, "FIRST_WAIT_S", 0.01)
    return tmp_path / "blobs"


@pytest.fixture
def rig(rig_folder: Path) -> Rig:
    """An engine of the sampler stage; entered by the test."""
    return Rig(rig_folder)
