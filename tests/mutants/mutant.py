"""What a planted bug is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A bug in words, and as a text of a file, which must stand there exactly once, to be replaced.

    `tests` catch it; by default the simulation.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
