"""New job ids, and who asks for something."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid


def new_job_id(now_ms: int | None = None) -> str:
    """A UUIDv7 (RFC 9562): unique, and sorted by the millisecond in which it was made.

    >>> new_job_id(1_700_000_000_000)[:15]
    '018bcfe5-6800-7'
    """
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    random_bits = int.from_bytes(os.urandom(10), "big")
    high, low = random_bits >> 68, random_bits & ((1 << 62) - 1)
    return str(uuid.UUID(int=now_ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low))


def issuer() -> str:
    """Who wishes, as wishes and claims say it: user@host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
