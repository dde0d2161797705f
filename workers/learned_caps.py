"""Step caps by shape, kept in a file between runs, so a worker that starts need not learn anew."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from streams.core.step_caps import CapFigures, StepCap

log = logging.getLogger(__name__)

MAX_SHAPES = 512  # of which caps are remembered: tenants may ask for any number of shapes


class LearnedCaps:
    """The caps of one model on one kind of device; engine thread only, but for `write`.

    A file that is not there, or not ours, means that nothing is known yet: it costs a few steps.
    """

    def __init__(
        self, folder: Path | None, identity: str, most_rows: int, memory_bytes: int | None
    ) -> None:
        """`identity`: all that step times depend on besides the shape. No folder: no file."""
        self._identity, self._most_rows = identity, most_rows
        self._memory_bytes = memory_bytes
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._path = None if folder is None else folder / f"{digest}.json"
        self._caps: OrderedDict[Hashable, StepCap] = OrderedDict()
        self._found = self._read()

    def of(self, key: Hashable) -> StepCap:
        """The cap of a step key; a new one begins with what a former run has learned."""
        cap = self._caps.get(key)
        if cap is None:
            cap = StepCap(self._most_rows, self._memory_bytes, self._found.pop(repr(key), None))
            self._caps[key] = cap
            if len(self._caps) > MAX_SHAPES:
                self._caps.popitem(last=False)
        self._caps.move_to_end(key)
        return cap

    def dump(self) -> bytes:
        """What is known, as JSON: to be written elsewhere, for files take their time."""
        learned = {repr(key): cap.figures() for key, cap in self._caps.items()}
        figures = {**self._found, **learned}
        shapes = {
            key: {
                "step_s": each.step_s,
                "peak_bytes": each.peak_bytes,
                "failed_at_rows": each.failed_at_rows,
            }
            for key, each in list(figures.items())[-MAX_SHAPES:]
        }
        return json.dumps({"identity": self._identity, "shapes": shapes}, indent=1).encode()

    def write(self, data: bytes) -> None:
        """Keep it for the next run; workers that share the folder overwrite one another."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as file:
                file.write(data)
            os.replace(file.name, self._path)
        except OSError as error:
            log.warning("learned caps are not kept", extra={"error": str(error)})

    def _read(self) -> dict[str, CapFigures]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            said = json.loads(self._path.read_bytes())
            if said["identity"] != self._identity:
                return {}
            return {key: _figures(each) for key, each in said["shapes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("learned caps are not readable", extra={"error": repr(error)})
            return {}


def _figures(said: Any) -> CapFigures:
    failed_at = said["failed_at_rows"]
    return CapFigures(
        {int(rows): float(step_s) for rows, step_s in said["step_s"].items()},
        {int(rows): float(peak) for rows, peak in said["peak_bytes"].items()},
        None if failed_at is None else int(failed_at),
    )
