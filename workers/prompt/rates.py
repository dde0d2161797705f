"""Requests a minute: a tenant over its tier's rate is refused, and told when to come again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streams.core.rates import RateLimit
from streams.core.tiers import tenant_partitions
from streams.engine import Task
from streams.errors import Rejected
from streams.placement import tier_of_request
from streams.settings import Settings
from streams.topology import REQUESTS


class RequestRates:
    """Counts a tenant's requests where its jobs are let in: in each of its partitions by itself.

    A tenant has two partitions and half of its rate in each, since their owners share nothing. Who
    gets a partition counts from zero, so a rebalance is worth at most a minute's requests more.
    """

    def __init__(self, settings: Settings, now_s: Callable[[], float]) -> None:
        """`now_s`: epoch seconds, never going back."""
        self._settings, self._now_s = settings, now_s
        self._limit, self._lock = RateLimit(), threading.Lock()

    def __call__(self, task: Task) -> None:
        """Take a request; on any thread. What a redrive made, or is tried again, was taken before.

        Raises:
            Rejected: `rate_limited`, with the time from which another one is taken.
        """
        request, settings = task.record, self._settings
        tier = tier_of_request(request, settings)
        rate = settings.tier_rates.get(tier)
        if rate is None or request.run > 1 or task.topic != REQUESTS:
            return
        own = {*tenant_partitions(tier, request.tenant_id, settings.partitions, settings.tiers)}
        with self._lock:
            now_s = self._now_s()
            wait_s = self._limit.wait_s(
                (task.partition, request.tenant_id), request.job_id, rate / len(own), now_s
            )
        if wait_s:
            raise Rejected(
                f"more than {rate:g} requests a minute: try again in {wait_s:.0f} s",
                reason_code="rate_limited",
                retry_at_s=now_s + wait_s,
            )
