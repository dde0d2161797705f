"""What keeps others from being delivered, and is not at work itself, makes way for them.

A partition delivers no more while its offset map is full, or its window. So a head that holds up
all behind it steps aside (`head_of_line`). And where the window is full, every `make_way_s`:

- What waits past its deadline, or is no longer wanted, ends: its turn need not come for that.
- Parked requests that hide those of somebody who has room go to the end of their own topic, half
  of them at a time.
- What is off-peak steps aside to a retry topic, the younger half of it, if the window would be
  open without it. Its turn comes where nothing else waits, and who is behind it, unseen, is nothing
  that its worker could know of. The more often it has, the longer it stays away, and those that
  remain are work enough until then.
"""

from __future__ import annotations

from streams.core.events import Fate, Fault, Ticket, TopicPartition
from streams.core.flight import Flight, Phase
from streams.core.flights import Flights
from streams.core.gate import Why
from streams.core.head_of_line import HEAD_OF_LINE, steps_aside
from streams.core.limits import StageLimits
from streams.core.partitions import OurPartitions
from streams.core.tiers import OFF_PEAK

MAKES_WAY = Fault(Fate.LATER, "off_peak", "it filled its partition's window, and was not begun")


class MakeWay:
    """Looks, at every tick, who makes way; what that asks for is in the flights' commands."""

    def __init__(self, here: Flights, ours: OurPartitions, limits: StageLimits) -> None:
        self._here, self._ours = here, ours
        self._policy, self._map_span = limits.retry, limits.map_span
        self._every_s, self._next_s = limits.make_way_s, 0.0

    def look(self, may_start: bool) -> None:
        """`may_start`: work is begun here; else who steps aside would make way for nobody."""
        if may_start:
            self._divert_heads()
        if self._here.now_s < self._next_s:
            return
        self._next_s = self._here.now_s + self._every_s
        for partition, flights in self._held_where_full().items():
            self._end_outdated(flights)
            self._park_again(partition, flights)
            if may_start and self._ours.is_full_of_off_peak(partition):
                self._put_aside(flights)

    def _divert_heads(self) -> None:
        """Heads that hold up all behind them step aside, and the rest goes on."""
        for partition in self._ours.held_up:
            tracker = self._ours.trackers[partition]
            head = Ticket(partition, tracker.commit_offset, tracker.assignment_epoch)
            flight = self._here.by_ticket[head]
            if self._here.is_as_parked(flight):
                self._here.park_again(flight)
            elif steps_aside(flight.phase, tracker.span, self._map_span):
                self._here.step_aside(flight, self._policy.shortest_s, HEAD_OF_LINE)

    def _held_where_full(self) -> dict[TopicPartition, list[Flight]]:
        """What partitions hold whose windows are full, in the order of the log."""
        gate = self._ours.gate
        held: dict[TopicPartition, list[Flight]] = {
            each: [] for each in self._ours.trackers if gate.is_closed(each, Why.WINDOW)
        }
        if held:
            for flight in self._here.by_ticket.values():
                if flight.ticket.partition in held:
                    held[flight.ticket.partition].append(flight)
        for flights in held.values():
            flights.sort(key=lambda flight: flight.ticket.offset)
        return held

    def _end_outdated(self, flights: list[Flight]) -> None:
        for flight in flights:
            if flight.phase is Phase.WAITING and (ending := self._here.ending_due(flight)):
                self._here.batches.remove({flight.ticket})
                self._here.end(flight, ending)

    def _park_again(self, partition: TopicPartition, flights: list[Flight]) -> None:
        """Where parked requests hide those of somebody who has room: put some at the log's end."""
        parked = [flight for flight in flights if self._here.is_as_parked(flight)]
        if not parked:
            return
        assert self._here.admission is not None, "or nothing were parked"
        if self._here.admission.hides_anyone(partition.partition):
            for flight in parked[: (len(parked) + 1) // 2]:
                self._here.park_again(flight)

    def _put_aside(self, flights: list[Flight]) -> None:
        """The oldest stay: they keep their turns, and a window of them is work for long."""
        waiting = [
            flight
            for flight in flights
            if flight.phase is Phase.WAITING and flight.work.charge.tier == OFF_PEAK
        ]
        for flight in waiting[len(waiting) // 2 :]:
            delay_s = self._policy.aside_s(flight.work.num_diverted)
            self._here.step_aside(flight, delay_s, MAKES_WAY)
