"""What bounds a stage's state: sizes and times, all from the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from streams.core.admission import Quotas
from streams.core.fair_queue import Fairness
from streams.core.offset_map import BACK_PRESSURE_SPAN
from streams.core.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class StageLimits:
    """How much a worker holds and when it acts. Times in seconds, sizes in records."""

    window_high: int = 64
    window_low: int = 32
    window_per_tenant: int = 16  # that count; what is beyond is looked past
    look_ahead: int = 256  # the most that a partition ever holds
    fairness: Fairness = field(default_factory=Fairness)
    quotas: Quotas = field(default_factory=Quotas)  # of the stage that lets requests in
    make_way_s: float = 5.0  # between two looks what in a full window may hide others
    batch_max: int = 4
    batch_age_s: float = 0.2
    max_batches: int = 2  # one computing, one fetching its inputs
    has_room_for_heavier: bool = False  # a tier's batches count only with those that weigh more
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker_limit: int = 5  # failures in a row, of different jobs
    probe_wait_s: float = 0.5  # after a probe that failed, doubling up to the longest
    longest_probe_wait_s: float = 30.0
    leave_after_s: float = 300.0  # a sick host leaves the group
    ask_again_s: float = 1.0  # after a produce or an ending that was refused
    map_span: int = BACK_PRESSURE_SPAN  # offsets from the commit on; a partition takes no more
    longest_run_s: float = 86_400.0  # wishes of longer ago concern nobody
    commit_interval_s: float = 1.0
    drain_s: float = 20.0
    poll_s: float = 0.1
    busy_poll_s: float = 0.01  # at most, while answers of engine or producer are due
    shortest_poll_s: float = 0.001  # while a start marker, or what comes soon, is due
