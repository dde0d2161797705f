"""Which partition a request belongs to under a deployment's settings (streams/core/tiers.py)."""

from __future__ import annotations

from schemas.records import GenerationRequest
from streams.core.tiers import partition_of_job, tier_of
from streams.errors import Rejected
from streams.settings import Settings


def tier_of_request(request: GenerationRequest, settings: Settings) -> str:
    """The tier that a request is counted among; one of none, which will be refused, the default."""
    tier = tier_of(request.tenant_id, request.tier, settings.tenants, settings.default_tier)
    return tier if tier in settings.tiers else settings.default_tier


def home_partition(request: GenerationRequest, settings: Settings) -> int:
    """The partition of a request: its tenant's tier decides, not what the request says.

    Raises:
        Rejected: the tenant is not in the closed table (`unknown_tenant`), or wishes a tier that
            does not exist (`unknown_tier`).
    """
    tenant_id = request.tenant_id
    tier = tier_of(tenant_id, request.tier, settings.tenants, settings.default_tier)
    if tier is None:
        raise Rejected(f"no such tenant: {tenant_id}", reason_code="unknown_tenant")
    if tier not in settings.tiers:
        raise Rejected(f"no such tier: {tier[:128]}", reason_code="unknown_tier")
    return partition_of_job(tier, tenant_id, request.job_id, settings.partitions, settings.tiers)
