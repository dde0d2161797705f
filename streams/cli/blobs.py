"""blobs sweep: what may go from the object store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from streams.cli.terminal import print_table, say


def sweep(older_than_h: float, *, is_applied: bool) -> int:
    """Print what may go, or went. The exit code."""
    from streams.blobs.sweep import Ages, Sweep
    from streams.cli.context import client_settings, make_codec, make_store

    settings = client_settings()
    ages = Ages(
        grace=timedelta(hours=older_than_h),
        longest_run=timedelta(seconds=settings.longest_run_s),
        retention=timedelta(seconds=settings.retention_s),
    )
    store, codec = make_store(settings), make_codec(settings)
    pass_over = Sweep(store, codec, datetime.now(UTC), ages)
    gone = "removed" if is_applied else "to remove"
    try:
        pass_over.run(is_applied=is_applied)
    finally:  # of a pass cut short too: what it says has happened
        print_table(
            ("kind", "objects", "bytes", gone, f"bytes {gone}"),
            [
                (sort, *map(str, (each.objects, each.size_bytes, each.removed, each.removed_bytes)))
                for sort, each in pass_over.counts.items()
            ],
        )
    if not is_applied:
        say("nothing was removed: --apply does it")
    return 0
