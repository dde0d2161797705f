"""Printing: results to stdout, talk to stderr, tables that suit a terminal or a pipe."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence


def result(line: str) -> None:
    """A line of the command's result."""
    print(line, flush=True)


def say(line: str) -> None:
    """A line for the person who waits."""
    print(line, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal; lines of tab-separated columns, with a heading, in a pipe."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            result("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def duration(seconds: float) -> str:
    """A time span in the one unit that suits it.

    >>> duration(4.25), duration(300), duration(7200), duration(200_000)
    ('4.2 s', '5 min', '2 h', '2 d')
    """
    for limit_s, unit_s, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit_s:
            return f"{seconds / unit_s:.1f} s" if unit == "s" else f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def quiet_libraries() -> None:
    """Our own warnings go to stderr; those of aiokafka would only repeat what we say ourselves."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL + 1)
