"""The crew itself, without servers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from streams.settings import Settings
from tests.chaos.crew import Crew

STARTS_WITHIN_S = 60.0


def test_its_folder_may_be_named_from_where_the_test_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("row").mkdir()
    member = Crew(Settings(home=tmp_path), Path("row"), {}).members["prompt-1"]
    member.step(0.0)
    give_up_s = time.monotonic() + STARTS_WITHIN_S
    try:
        while not (tmp_path / "row" / "work.log").exists():
            assert member.is_running, member.log_path.read_text()
            assert time.monotonic() < give_up_s
            time.sleep(0.05)
    finally:
        member.kill()
