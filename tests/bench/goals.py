"""Goals of a bench: a line each at the end, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence


class Goals:
    """Collects figures and their bounds while a bench runs.

    >>> goals = Goals()
    >>> goals.at_most("tracker_us_per_record", 0.61234, 3)
    >>> goals.at_least("videos_per_s", 0.5, 2)
    >>> goals.report()
    goal tracker_us_per_record 0.612 <= 3 met
    goal videos_per_s 0.5 >= 2 missed
    1
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._is_missed = False

    def at_most(self, name: str, figure: float, bound: float) -> None:
        """The figure must not be larger than the bound."""
        self._add(f"goal {name} {figure:.3g} <= {bound:g}", figure <= bound)

    def at_least(self, name: str, figure: float, bound: float) -> None:
        """The figure must not be smaller than the bound."""
        self._add(f"goal {name} {figure:.3g} >= {bound:g}", figure >= bound)

    def report(self) -> int:
        """Print a line per goal; 0 if all are met, else 1."""
        print(*self._lines, sep="\n")
        return int(self._is_missed)

    def _add(self, line: str, is_met: bool) -> None:
        self._lines.append(f"{line} {'met' if is_met else 'missed'}")
        self._is_missed = self._is_missed or not is_met


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, numbers to the right.

    >>> print_table(["what", "us"], [["deliver", "0.3"], ["complete", "12.5"]])
    what        us
    deliver    0.3
    complete  12.5
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in (head, *rows):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([cells[0].ljust(widths[0]), *padded[1:]]).rstrip())
