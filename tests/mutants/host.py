"""Bugs in whether a failure is the job's or the host's."""

from __future__ import annotations

from tests.mutants.planted import Mutant

MUTANTS = (
    Mutant(
        "gives a job up without asking whether the host is well",
        "streams/core/breaker.py",
        "        is_given_up = is_last_try and bool(self._streak)\n",
        "        is_given_up = False\n",
        ("tests/unit/test_stage_breaker.py", "tests/properties/test_breaker.py"),
    ),
    Mutant(
        "asks the host of every last try, however well the job before it went",
        "streams/core/breaker.py",
        "        is_given_up = is_last_try and bool(self._streak)\n",
        "        is_given_up = is_last_try\n",
        ("tests/unit/test_stage_breaker.py", "tests/properties/test_breaker.py"),
    ),
    Mutant(
        "takes a failure that is no job's last for one that is",
        "streams/core/stage.py",
        "        is_last = fault.fate is Fate.LATER and self.limits.retry.is_last("
        "flight.work.try_number)\n",
        "        is_last = fault.fate is Fate.LATER\n",
        ("tests/unit/test_stage_breaker.py", "tests/unit/test_stage_fates.py"),
    ),
)
