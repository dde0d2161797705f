"""The model of the local stack: the user's folder, checked, or the demo model of this package.

Models are the workers' business: they are checked, and the tiny one is written, by a child process
that imports what it takes, and this one stays light.
"""

from __future__ import annotations

import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from streams.errors import SettingsError
from streams.local.processes import ManagedProcess, require_space
from streams.local.worker_process import python_environment

_WRITE_S = 180.0
_CHECK_S = 60.0
_SPACE_BYTES = 200_000_000

#: Writes beside its place, then renames: whoever finds the folder finds all of it.
_WRITE = """
import os, shutil, sys
from pathlib import Path
from streams.errors import SettingsError
from workers.models.tiny import write_tiny_model
target, seed = Path(sys.argv[1]), int(sys.argv[2])
partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
try:
    write_tiny_model(partial, seed=seed)
    partial.rename(target)
except SettingsError as error:
    sys.exit(str(error))
except OSError as error:
    if not (target / "model_index.json").exists():
        sys.exit(f"{target}: {error.strerror}")
finally:
    shutil.rmtree(partial, ignore_errors=True)
"""
_CHECK = """
import sys
from pathlib import Path
from streams.errors import SettingsError
from workers.models.card import family_of
try:
    family_of(Path(sys.argv[1]))
except SettingsError as error:
    sys.exit(str(error))
"""


class ModelFolder:
    """A model folder that is being made sure of, by a child process in the background."""

    def __init__(self, model: Path | None, logs: Path) -> None:
        """`model` None means the demo model."""
        self.path = model.absolute() if model is not None else demo_model_dir()
        self._is_given = model is not None
        self._logs = logs
        self._child: ManagedProcess | None = None

    def begin(self) -> None:
        """Start checking; the demo model needs none.

        Raises:
            SettingsError: there is no such folder.
        """
        if not self.path.is_dir():
            raise SettingsError(f"no model in {self.path}: want a WanPipeline folder")
        if self._is_given:
            self._child = _child("the model check", _CHECK, [self.path], self._logs)
            self._child.start()

    def wait(self, stop: threading.Event) -> Path:
        """The folder, as soon as it is known to be right, or `stop` is set.

        Raises:
            SettingsError: it is not a model we can run.
        """
        if self._child is not None:
            await_child(self._child, stop)
        return self.path

    def cancel(self) -> None:
        """End the child, if it still runs."""
        if self._child is not None:
            self._child.kill()


def demo_model_dir() -> Path:
    """Where the demo model lies: data of the workers' package, which is found but not imported."""
    spec = find_spec("workers")
    assert spec is not None, "installed with us"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).absolute() / "models" / "demo" / "weights"


def tiny_writer(folder: Path, seed: int, logs: Path) -> ManagedProcess:
    """The process that writes the tiny model to `folder`, which must not exist yet.

    Raises:
        SettingsError: no space, or the folder is taken.
    """
    if folder.exists():
        raise SettingsError(f"{folder} exists already")
    require_space(folder, _SPACE_BYTES)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return _child("the writer of the tiny model", _WRITE, [folder, seed], logs)


def await_child(child: ManagedProcess, stop: threading.Event, limit_s: float = _WRITE_S) -> None:
    """Return when the child has ended well, or `stop` is set.

    Raises:
        SettingsError: it failed (its last line) or took longer than `limit_s`.
    """
    end_s = time.monotonic() + limit_s
    while child.is_running and not stop.wait(0.05):
        if time.monotonic() > end_s:
            child.kill()
            raise SettingsError(f"{child.name} did not end within {limit_s:g} s")
    if child.returncode:
        lines = child.log_tail().splitlines() or ["it said nothing"]
        raise SettingsError(f"{child.name} failed: {lines[-1]}")


def _child(name: str, code: str, words: list[Path | int], logs: Path) -> ManagedProcess:
    return ManagedProcess(
        name,
        [sys.executable, "-c", code, *(str(word) for word in words)],
        log_path=logs / "model.log",
        env=python_environment({}),
    )
