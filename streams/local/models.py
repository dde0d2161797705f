"""The model of the local stack: the user's folder, checked, or the tiny one, written once.

Models are the workers' business, and the tiny one needs torch to be written: so both are done by a
child process, and this one stays light.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from streams.errors import SettingsError
from streams.local.processes import ManagedProcess, require_space
from streams.local.worker_process import python_environment

TINY_SEED = 0
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
from workers.models.card import check_model_dir
try:
    check_model_dir(Path(sys.argv[1]))
except SettingsError as error:
    sys.exit(str(error))
"""


class ModelFolder:
    """A model folder that is being made sure of, by a child process in the background."""

    def __init__(self, model: Path | None, cache: Path, logs: Path) -> None:
        """`model` None means the tiny one in `cache`."""
        self.path = (model or cache / "models" / "tiny").absolute()
        self._is_given = model is not None
        self._logs = logs
        self._child: ManagedProcess | None = None

    def begin(self) -> None:
        """Start checking or writing.

        Raises:
            SettingsError: the given folder is none.
        """
        if self._is_given:
            if not self.path.is_dir():
                raise SettingsError(f"no model in {self.path}: want a WanPipeline folder")
            self._child = _child("the model check", _CHECK, [self.path], self._logs)
        elif not (self.path / "model_index.json").exists():
            self._child = tiny_writer(self.path, TINY_SEED, self._logs)
        if self._child is not None:
            self._child.start()

    def wait(self, stop: threading.Event) -> Path:
        """The folder, as soon as it is there and right, or `stop` is set.

        Raises:
            SettingsError: it is not a model we can run, or could not be written.
        """
        if self._child is not None:
            await_child(self._child, stop)
        return self.path

    def cancel(self) -> None:
        """End the child, if it still runs."""
        if self._child is not None:
            self._child.kill()


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
