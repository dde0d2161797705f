"""Bugs in redrives, in expiry, in reading others' dead letters, and in who steps aside."""

from __future__ import annotations

from tests.mutants.planted import Mutant

FLIGHTS = "streams/core/flights.py"
WAY = ("tests/unit/test_make_way.py",)

MUTANTS = (
    Mutant(
        "lets a head step aside without a copy",
        "streams/core/make_way.py",
        "                self._here.step_aside(flight, self._policy.shortest_s, HEAD_OF_LINE)\n",
        "                self._here.finish(flight)\n                return\n",
    ),
    Mutant(
        "lets a head step aside whose copy does not outrank it",
        FLIGHTS,
        "num_diverted=flight.work.num_diverted + 1)",
        "num_diverted=flight.work.num_diverted)",
        ("tests/unit/test_head_of_line.py",),
    ),
    Mutant(
        "deferrable jobs close the window to who is behind them",
        "streams/core/partitions.py",
        "    return None if charge.tier == OFF_PEAK else charge.tenant_id\n",
        "    return charge.tenant_id\n",
        WAY,
    ),
    Mutant(
        "what is off-peak steps aside where its going lets nobody in",
        "streams/core/make_way.py",
        "if may_start and self._ours.is_full_of_off_peak(partition):",
        "if may_start:",
        WAY,
    ),
    Mutant(
        "the oldest of what is off-peak step aside, and lose their turns",
        "streams/core/make_way.py",
        "waiting[len(waiting) // 2 :]",
        "waiting[: (len(waiting) + 1) // 2]",
        WAY,
    ),
    Mutant(
        "what waits past its deadline keeps its place in a full window",
        "streams/core/make_way.py",
        "            self._end_outdated(flights)\n",
        "",
        WAY,
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
    Mutant(
        "forgets at once that a run has ended which it had seen begin",
        "streams/core/expiry.py",
        "        self.let_go(key)\n        self._ended.pop(key, None)\n",
        "        if key in self:\n            self.let_go(key)\n            return\n",
        ("tests/properties/test_expiry.py",),
    ),
)
