"""tenants: who waits how long, and why."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from streams.cli.context import client_settings, make_codec
from streams.cli.terminal import duration, print_table, quiet_libraries, result, say
from streams.client.tenant_rows import fold_tenants
from streams.costs import PRIORS


def list_tenants(tenant: str | None, *, is_json: bool) -> int:
    """Print a row for each tenant and reason, or a JSON array of them. The exit code."""
    from streams.kafka.backlog import Backlog

    quiet_libraries()
    settings = client_settings()
    backlog, now_s = Backlog(settings, make_codec(settings)), time.time()
    rows = [
        row
        for row in fold_tenants(
            backlog.sightings(now_s), backlog.paused(), PRIORS["sampler"], now_s
        )
        if tenant is None or row.tenant_id == tenant
    ]
    if is_json:
        result(json.dumps([asdict(row) for row in rows]))
        return 0
    if not rows:
        say("nobody waits")
        return 0
    print_table(
        ("tenant", "tier", "jobs", "longest", "GPU s", "why"),
        [
            (
                row.tenant_id,
                row.tier,
                str(row.num_jobs),
                duration(row.waited_s),
                "-" if row.gpu_s is None else f"{row.gpu_s:.0f}",
                row.why,
            )
            for row in rows
        ],
    )
    return 0
