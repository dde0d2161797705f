"""Bugs in how the fair queue keeps what it need not."""

from __future__ import annotations

from tests.mutants.planted import Mutant

_QUEUE = "streams/core/fair_queue.py"
_TESTS = ("tests/properties/test_fair_queue.py",)

MUTANTS = (
    Mutant(
        "a line that went before its key was asked for is never ranked again",
        _QUEUE,
        "            if not line.num:\n                line.is_ranked = False\n",
        "            if not line.num:\n",
        _TESTS,
    ),
    Mutant(
        "lines of a key that is gone serve the key that comes after it",
        _QUEUE,
        "        if line is None or line.key is not own_key:\n",
        "        if line is None:\n",
        _TESTS,
    ),
    Mutant(
        "where many newcomers went, those that stay are forgotten too",
        _QUEUE,
        "                each.is_ranked = each.num > 0 or each is line\n",
        "                each.is_ranked = each is line\n",
        _TESTS,
    ),
)
