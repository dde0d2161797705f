"""`reel` run in this process, as its tests meet it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from streams.cli import main


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
