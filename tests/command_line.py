"""`reel` run in this process, as its tests meet it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from streams.cli import main
from streams.local.stack import as_environment
from streams.settings import Settings


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Reel(Protocol):
    """`reel("jobs", REEL_HOME=...)`."""

    def __call__(self, *words: str, **settings: str) -> Ran: ...


def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> Reel:
    """Runs a command in this process, at home in `home`, under no other settings of ours."""
    for name in [name for name in os.environ if name.startswith("REEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REEL_HOME", str(home))

    def run(*words: str, **settings: str) -> Ran:
        for name, text in settings.items():
            monkeypatch.setenv(name, text)
        monkeypatch.setattr(sys, "argv", ["reel", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, *capsys.readouterr())

    return run


def environment_of(settings: Settings) -> dict[str, str]:
    """What makes a command talk to the pipeline of these settings."""
    return {f"REEL_{name.upper()}": str(text) for name, text in as_environment(settings).items()}
