"""The crew itself, without servers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.settings import Settings
from tests.chaos.crew import Crew, Member

STARTS_WITHIN_S = 60.0


def test_its_folder_may_be_named_from_where_the_test_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("row").mkdir()
    member = Crew(Settings(home=tmp_path), Path("row"), {}).members["prompt-1"]
    member.step(0.0)
    try:
        wait_for(member, (tmp_path / "row" / "work.log").exists)
    finally:
        member.kill()
    assert member.log_path == tmp_path / "row" / "prompt-1.log"


def test_who_does_not_drain_is_told(tmp_path: Path) -> None:
    times = {"commit_interval_ms": 100, "drain_ms": 100, "grace_ms": 500}
    crew = Crew(Settings(home=tmp_path).model_copy(update=times), tmp_path, {})
    silent, young = crew.members["prompt-1"], crew.members["prompt-2"]
    silent.step(0.0)
    wait_for(silent, lambda: "listening" in silent.log_path.read_text())  # and heeds SIGTERM
    silent.pause()
    young.step(0.0)
    assert crew.dismiss() == ["prompt-1 did not drain: exit code -9"]
    assert not silent.is_running
    assert not young.is_running
    assert crew.dismiss() == []


def test_who_ends_by_an_error_that_nobody_foresaw_has_crashed(tmp_path: Path) -> None:
    crew = Crew(Settings(home=tmp_path), tmp_path, {"CHAOS_SEED": "odd"})
    member = crew.members["prompt-1"]
    member.step(0.0)
    wait_to_end(member)
    said = "ValueError: invalid literal for int() with base 10: 'odd'"
    assert crew.crashes() == [f"prompt-1 did not catch {said}: {member.log_path}"]


def test_who_is_killed_by_the_system_has_crashed(tmp_path: Path) -> None:
    crew = Crew(Settings(home=tmp_path), tmp_path, {})
    ended, killed = crew.members["prompt-1"], crew.members["prompt-2"]
    for member, number in ((ended, signal.SIGSEGV), (killed, signal.SIGKILL)):
        member.step(0.0)
        wait_for(member, member.log_path.exists)
        os.kill(member.pids[-1], number)
        wait_to_end(member)
    assert crew.crashes() == [f"prompt-1 died of SIGSEGV: {ended.log_path}"]


def wait_to_end(member: Member) -> None:
    member.is_wanted = False
    give_up_s = time.monotonic() + STARTS_WITHIN_S
    while not member.exits:
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
        member.step(time.monotonic())


def wait_for(member: Member, is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + STARTS_WITHIN_S
    while not is_so():
        assert member.is_running, member.log_path.read_text()
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
