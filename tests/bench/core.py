"""`make bench-core`: what one record costs the pure core, in CPU time on one core.

Medians over repeats. The goals are the tracker's; the rest is there to be looked at.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry

from schemas.codec import Codec
from streams import topology
from streams.core.events import (
    Acknowledged,
    Assigned,
    Commit,
    Committed,
    Emitted,
    Event,
    Produce,
    Start,
    Tick,
)
from streams.core.limits import StageLimits
from streams.core.offset_map import OffsetMap, decode_offset_map, encode_offset_map
from streams.core.offsets import OffsetTracker
from streams.core.stage import StageState
from streams.engine import Task
from streams.intake import Intake
from streams.monitor.health import Health
from tests.bench.goals import Goals, print_table
from tests.builders import P0, a_cleaned_prompt, a_delivery, a_start_offset, a_task, an_output

WINDOW = 256
MAP_EVERY = 8
REPEATS = 9
EPOCH = 1


def main() -> int:
    """Measure, print, and hold against the goals."""
    measures: dict[str, list[float]] = {
        f"tracker, window {WINDOW}, random order": _repeat(_tracker_costs()),
        f"tracker with map, window {WINDOW}, head blocked": _repeat(_map_costs()),
        f"stage state, delivered to finished, window {WINDOW}": _repeat(_stage_costs()),
        "codec, encode a CleanedPrompt": _repeat(_encode_costs()),
        "intake, bytes to event": _repeat(_intake_costs()),
        "health page, told that the loop turned": _repeat(_turned_costs()),
    }
    rows = [
        [what, f"{statistics.median(costs):.2f}", f"{min(costs):.2f}", f"{max(costs):.2f}"]
        for what, costs in measures.items()
    ]
    print(f"CPU time a record, {REPEATS} repeats")
    print_table(["what", "median us", "least us", "most us"], rows)
    goals = Goals()
    tracker_us, map_us, *_, turned_us = (statistics.median(costs) for costs in measures.values())
    goals.at_most("tracker_us_per_record", tracker_us, 3)
    goals.at_most("tracker_with_map_us_per_record", map_us, 5)
    goals.at_most("turned_us_per_turn", turned_us, 1)
    return goals.report()


def _repeat(measure: Callable[[], tuple[int, float]]) -> list[float]:
    """Microseconds a record of each repeat; the first one warms up and does not count."""
    costs = []
    for _ in range(REPEATS + 1):
        gc.collect()
        num_records, cpu_s = measure()
        costs.append(1e6 * cpu_s / num_records)
    return costs[1:]


def _finishing_order(num_records: int) -> list[int]:
    """Offsets in an order in which at most WINDOW are unfinished: each time any of those."""
    chance = random.Random(20_250_607)
    window, order = list(range(WINDOW)), []
    for offset in range(WINDOW, num_records + WINDOW):
        place = chance.randrange(len(window))
        order.append(window[place])
        if offset < num_records:
            window[place] = offset
        else:
            window[place] = window[-1]
            window.pop()
    return order


def _tracker_costs(num_records: int = 100_000) -> Callable[[], tuple[int, float]]:
    """Each record is delivered, finished, and the commit offset is asked for."""
    order = _finishing_order(num_records)

    def measure() -> tuple[int, float]:
        tracker = OffsetTracker(EPOCH, OffsetMap(0))
        started_s = time.process_time()
        for offset in range(WINDOW):
            tracker.deliver(offset)
        for following, finished in enumerate(order, start=WINDOW):
            tracker.complete(finished, EPOCH)
            _ = tracker.commit_offset
            if following < num_records:
                tracker.deliver(following)
        cpu_s = time.process_time() - started_s
        assert tracker.commit_offset == num_records
        return num_records, cpu_s

    return measure


def _map_costs(num_records: int = 100_000) -> Callable[[], tuple[int, float]]:
    """A window's records finish behind its head, then the head; every 8th encodes the map."""
    chance = random.Random(11)
    behind = list(range(1, WINDOW))
    chance.shuffle(behind)
    num_records -= num_records % WINDOW

    def measure() -> tuple[int, float]:
        tracker, text, fullest = OffsetTracker(EPOCH, OffsetMap(0)), "", ""
        started_s = time.process_time()
        for head in range(0, num_records, WINDOW):
            for offset in range(head, head + WINDOW):
                tracker.deliver(offset)
            for finished, distance in enumerate(behind):
                tracker.complete(head + distance, EPOCH)
                if finished % MAP_EVERY == 0:
                    text = encode_offset_map(tracker.offset_map())
            fullest = text
            tracker.complete(head, EPOCH)
        cpu_s = time.process_time() - started_s
        assert tracker.commit_offset == num_records
        assert len(decode_offset_map(0, fullest).finished()) > WINDOW - 2 * MAP_EVERY
        return num_records, cpu_s

    return measure


def _stage_costs(num_records: int = 20_000) -> Callable[[], tuple[int, float]]:
    """Each record passes through all of StageState; a turn of the loop delivers a full window."""
    limits = StageLimits(
        window_high=WINDOW + 1, window_low=1, look_ahead=WINDOW + 1, batch_max=4,
        max_batches=WINDOW,
    )  # fmt: skip
    deliveries = [a_delivery(offset) for offset in range(num_records)]
    outputs = (an_output(),)

    def measure() -> tuple[int, float]:
        state = StageState(limits)
        state.handle(Assigned({P0: a_start_offset()}), 0.0)
        chance, answers = random.Random(7), deque[Event]()
        started_s = time.process_time()
        for first in range(0, num_records, WINDOW):
            for delivery in deliveries[first : first + WINDOW]:
                state.handle(delivery, float(first))
            answers.append(Tick())
            while answers or state.flights:
                event = answers.popleft() if answers else Tick()
                for command in state.handle(event, float(first + 1)):
                    match command:
                        case Start(batch):
                            done = [Emitted(ticket, outputs) for ticket, _ in batch]
                            chance.shuffle(done)
                            answers.extend(done)
                        case Produce(ticket):
                            answers.append(Acknowledged(ticket))
                        case Commit():
                            answers.append(Committed(True))
        cpu_s = time.process_time() - started_s
        assert state.ours.trackers[P0].commit_offset == num_records
        return num_records, cpu_s

    return measure


def _encode_costs(num_records: int = 5_000) -> Callable[[], tuple[int, float]]:
    codec, record = Codec(), a_cleaned_prompt()

    def measure() -> tuple[int, float]:
        started_s = time.process_time()
        for _ in range(num_records):
            codec.encode(record)
        return num_records, time.process_time() - started_s

    return measure


def _intake_costs(num_records: int = 5_000) -> Callable[[], tuple[int, float]]:
    intake = Intake(topology.stage("sampler"), Codec(), lambda task: task.partition)
    tasks: Sequence[Task] = [a_task(offset=offset) for offset in range(num_records)]

    def measure() -> tuple[int, float]:
        started_s = time.process_time()
        for task in tasks:
            intake(task)
        return num_records, time.process_time() - started_s

    return measure


def _turned_costs(num_turns: int = 100_000) -> Callable[[], tuple[int, float]]:
    """What each turn of a worker's loop pays for its liveness page."""

    def measure() -> tuple[int, float]:
        with Health(CollectorRegistry(), "127.0.0.1", 0) as health:
            started_s = time.process_time()
            for _ in range(num_turns):
                health.turned(1.0)
            return num_turns, time.process_time() - started_s

    return measure


if __name__ == "__main__":
    sys.exit(main())
