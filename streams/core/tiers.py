"""Which partition a job belongs to: tier stripes, then shuffle shards. One hash, pure, forever.

Partition p belongs to the tier at position ``p mod len(tiers)``, so that under the `range`
assignor every worker holds every tier. Inside its tier a tenant owns two partitions (shuffle
sharding: a noisy tenant shares both of them with few others), and a job hashes to one of the two.

The rule for producers in any language, with ``H(s)`` the first 8 bytes of SHA-256 over the UTF-8
of ``s`` as a big-endian integer, ``t`` the tier's position, ``w = num_partitions / len(tiers)``::

    first  = H("shard-0:" + tenant_id) mod w
    second = (first + 1 + H("shard-1:" + tenant_id) mod (w - 1)) mod w     (w = 1: first)
    slot   = first if H("job:" + job_id) is even else second
    partition = slot * len(tiers) + t

Test vectors: ``schemas/vectors/partitions.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

DEFAULT_TIERS = ("enterprise", "pro", "free")
#: Shares of a worker while all tiers wait: 67, 25 and 8 %. The free tier is slow then, never dead:
#: a weight is also the bound on its wait.
DEFAULT_WEIGHTS = {"enterprise": 8.0, "pro": 3.0, "free": 1.0}

#: The tier, in queues only, of deferrable jobs: they go where nothing else waits.
OFF_PEAK = "off-peak"
OFF_PEAK_WEIGHT = 1e-6  # less than any tier's


def stable_hash(text: str) -> int:
    """The first 8 bytes of SHA-256 over UTF-8, big-endian: 0 .. 2**64 - 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def tier_of_partition(partition: int, tiers: Sequence[str] = DEFAULT_TIERS) -> str:
    """The tier whose stripe holds this partition.

    >>> [tier_of_partition(p) for p in range(4)]
    ['enterprise', 'pro', 'free', 'enterprise']
    """
    return tiers[partition % len(tiers)]


def tenant_partitions(
    tier: str, tenant_id: str, num_partitions: int, tiers: Sequence[str] = DEFAULT_TIERS
) -> tuple[int, int]:
    """The two partitions of a tenant in its tier; equal where the tier has only one.

    Raises:
        ValueError: the tier is unknown, or num_partitions is no positive multiple of the tiers.

    >>> tenant_partitions("pro", "acme", num_partitions=24)
    (13, 1)
    """
    if num_partitions < 1 or num_partitions % len(tiers):
        raise ValueError(f"{num_partitions} partitions: need a positive multiple of {len(tiers)}")
    if tier not in tiers:
        raise ValueError(f"unknown tier {tier!r}: one of {', '.join(tiers)}")
    width, position = num_partitions // len(tiers), tiers.index(tier)
    first, second = _shards(tenant_id, width)
    return first * len(tiers) + position, second * len(tiers) + position


@lru_cache(maxsize=4096)
def _shards(tenant_id: str, width: int) -> tuple[int, int]:
    first = stable_hash(f"shard-0:{tenant_id}") % width
    if width == 1:
        return first, first
    return first, (first + 1 + stable_hash(f"shard-1:{tenant_id}") % (width - 1)) % width


def partition_of_job(
    tier: str,
    tenant_id: str,
    job_id: str,
    num_partitions: int,
    tiers: Sequence[str] = DEFAULT_TIERS,
) -> int:
    """The one partition number of a job, on every topic it ever visits.

    >>> partition_of_job("pro", "acme", "job-1", num_partitions=24)
    13
    """
    return tenant_partitions(tier, tenant_id, num_partitions, tiers)[
        stable_hash(f"job:{job_id}") % 2
    ]


def tier_of(
    tenant_id: str, wished: str | None, tenants: Mapping[str, str] | None, default_tier: str
) -> str | None:
    """The tier of a tenant: by the table where there is one, else as wished, else the default.

    None: the table is closed and does not list the tenant. A record carries no credential, so
    what it wishes counts only where every tenant is welcome.

    >>> tier_of("acme", "free", {"acme": "pro"}, "free"), tier_of("who", None, {"acme": "pro"}, "x")
    ('pro', None)
    >>> tier_of("acme", "enterprise", None, "free"), tier_of("acme", None, None, "free")
    ('enterprise', 'free')
    """
    if tenants is not None:
        return tenants.get(tenant_id)
    return wished or default_tier
