"""What names one run of a job, and what a wish may call it."""

from __future__ import annotations

from typing import NamedTuple


class RunOfJob(NamedTuple):
    """One run of a job. The tenant is part of it: another tenant's job of that id is another."""

    tenant_id: str
    job_id: str
    run: int


Wished = tuple[str | None, str, int]
"""The run that a wish names. Without a tenant it is older than that field: whosever job it is."""


def whosever(run_of_job: RunOfJob) -> Wished:
    """What a wish calls a run that names no tenant."""
    return None, run_of_job.job_id, run_of_job.run
