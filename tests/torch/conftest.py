"""The tiny model, once per test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.models.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WanPipeline folder with seeded random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder
