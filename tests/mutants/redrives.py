"""Bugs in redrives, in reading others' dead letters, and in letting a head step aside."""

from __future__ import annotations

from tests.mutants.planted import Mutant

FLIGHTS = "streams/core/flights.py"

MUTANTS = (
    Mutant(
        "lets a head step aside without a copy",
        FLIGHTS,
        "            self.retry(flight, self._policy.shortest_s,"
        " flight.work.try_number, HEAD_OF_LINE)\n",
        "            self.finish(flight)\n            return\n",
    ),
    Mutant(
        "lets a head step aside whose copy does not outrank it",
        FLIGHTS,
        "            num_diverted = flight.work.num_diverted + 1\n",
        "            num_diverted = flight.work.num_diverted\n",
        ("tests/unit/test_head_of_line.py",),
    ),
    Mutant(
        "blames the head for others that are unfinished",
        "streams/core/head_of_line.py",
        "num_behind - (num_unfinished - 1) > MOSTLY_FINISHED * num_behind",
        "num_behind > 0",
        ("tests/properties/test_head_of_line.py",),
    ),
    Mutant(
        "says of a run that another began that this order did",
        "streams/client/client.py",
        "            if record.author != author:\n",
        "            if False:\n",
        ("tests/contract/test_redrive.py",),
    ),
    Mutant(
        "reads Spring's numbers the wrong way round",
        "streams/client/foreign_letters.py",
        'int.from_bytes(value, "big", signed=True)',
        'int.from_bytes(value, "little", signed=True)',
        ("tests/unit/test_foreign_letters.py",),
    ),
)
