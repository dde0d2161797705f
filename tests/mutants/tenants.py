"""Bugs in what keeps apart two tenants' jobs of one id."""

from __future__ import annotations

from tests.mutants.planted import Mutant

_STAGE = ("tests/unit/test_one_id_two_tenants.py",)

MUTANTS = (
    Mutant(
        "a cancel stops another tenant's job of that id",
        "streams/core/copies.py",
        "wished in (flight.run_of_job, whosever(flight.run_of_job))",
        "wished[2] == flight.work.run",
        _STAGE,
    ),
    Mutant(
        "a wish that names no tenant is taken for nobody's",
        "streams/core/runs.py",
        "    return None, run_of_job.job_id, run_of_job.run\n",
        "    return run_of_job\n",
        _STAGE,
    ),
    Mutant(
        "a run is a job's of whichever tenant",
        "streams/core/flight.py",
        "RunOfJob(work.charge.tenant_id, work.job_id, work.run)",
        'RunOfJob("", work.job_id, work.run)',
        _STAGE,
    ),
    Mutant(
        "an old cancel, which names no tenant, means nobody who comes later",
        "streams/core/wishes.py",
        " or whosever(run_of_job) in self._cancelled",
        "",
        ("tests/unit/test_wishes.py",),
    ),
    Mutant(
        "an old deadline counts although a later one names the tenant",
        "streams/core/wishes.py",
        "(unnamed is not None and unnamed.number > named.number)",
        "unnamed is not None",
        _STAGE,
    ),
    Mutant(
        "an old deadline, which names no tenant, prolongs nobody's share",
        "streams/core/ledger.py",
        "            return [each for each in self.entries if whosever(each) == wished]\n",
        "            return []\n",
        _STAGE,
    ),
    Mutant(
        "stages are not told whose job a client cancels",
        "streams/kafka/controls.py",
        "JobCancelled(job.job_id, job.run, issued_s, job.tenant_id)",
        "JobCancelled(job.job_id, job.run, issued_s)",
        ("tests/contract/test_controls.py",),
    ),
    Mutant(
        "what the log tells of one tenant's job it tells of another's",
        "workers/prompt/shares.py",
        "RunOfJob(told.tenant_id, told.job_id, told.run)",
        'RunOfJob("acme", told.job_id, told.run)',
        ("tests/unit/test_shares.py",),
    ),
)
