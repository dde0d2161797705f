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
    Mutant(
        "takes a device that refuses a shape for a sick one",
        "workers/engine.py",
        "            return RetryableError(str(error), reason_code=error.reason_code)\n",
        "            raise error\n",
        ("tests/unit/test_engine_sick.py",),
    ),
    Mutant(
        "holds for a CUDA context that is lost for good",
        "workers/torch_device.py",
        "            raise FatalError(said,",
        "            raise SickHost(said,",
        ("tests/unit/test_device_faults.py",),
    ),
)
