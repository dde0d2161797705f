"""What may be retried, let go of and told to the broker, by what a `World` knows by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from streams.core.events import CommitPoint, Retry, Ticket, TopicPartition, Work
from streams.core.flight import Flight
from streams.core.limits import StageLimits
from streams.core.make_way import MAKES_WAY
from streams.core.offset_map import Crashes, OffsetMap, decode_offset_map
from streams.core.stage import StageState
from streams.core.tiers import OFF_PEAK
from tests.properties.stage_log import job_of, rank_of

if TYPE_CHECKING:
    from tests.properties.stage_world import World, Write


def crashes_of(world: World, ticket: Ticket) -> Crashes:
    """How often it crashed: by the map that this assignment began with, else by its headers."""
    headers = world.log.records[ticket.partition][ticket.offset][0].crashes
    return world.ours[ticket.partition].known.crashes.get(ticket.offset, headers)


def one_more(world: World, ticket: Ticket) -> Crashes:
    """Its count after another crash."""
    before = crashes_of(world, ticket)
    return Crashes(before.num + 1, before.num_alone + (before.num >= 2))


def keeps_window(limits: StageLimits, flights: Mapping[Ticket, Flight]) -> bool:
    """Whether no partition holds more than it may: off-peak none counts, of a tenant so many."""
    total: Counter[TopicPartition] = Counter()
    of_tenant: Counter[tuple[TopicPartition, str]] = Counter()
    for flight in flights.values():
        partition, (tier, tenant_id, *_) = flight.ticket.partition, flight.work.charge
        total[partition] += 1
        of_tenant[partition, tenant_id] += tier != OFF_PEAK
    counted: Counter[TopicPartition] = Counter()
    for (partition, _), num in of_tenant.items():
        counted[partition] += min(num, limits.window_per_tenant)
    is_within = max(counted.values(), default=0) <= limits.window_high
    return is_within and max(total.values(), default=0) <= limits.look_ahead


def check_marked(world: World, ticket: Ticket) -> None:
    """The broker knows that it enters: if the process died now, its count would be one more."""
    partition, offset, _ = ticket
    marked = decode_offset_map(*world.committed[partition]).crashes.get(offset)
    assert marked == one_more(world, ticket), "it starts unmarked"


def check_map(world: World, partition: TopicPartition, told: OffsetMap, is_last: bool) -> int:
    """A map tells the truth; how many records it marks as inside the engine."""
    assignment = world.ours[partition]
    finished = assignment.settled | set(assignment.known.finished())
    assert set(told.finished()) <= finished, "told as finished, and is not"
    assert {each for each in finished if each > told.offset} <= set(told.finished())
    num_marked = 0
    for offset, count in told.crashes.items():
        if offset not in assignment.delivered:
            assert count == assignment.known.crashes[offset], "blamed, and was never here"
            continue
        ticket = Ticket(partition, offset, assignment.epoch)
        assert offset not in assignment.settled, "blamed, and is finished"
        if count != crashes_of(world, ticket):
            assert count == one_more(world, ticket)
            assert ticket not in world.ending, "blamed, and has left the engine"
            assert ticket not in world.writing, "blamed, and has left the engine"
            assert not is_last, "blamed, and is handed back"
            num_marked += 1
    for ticket in world.working:
        if ticket.partition == partition and not is_last:
            assert told.crashes[ticket.offset] == one_more(world, ticket), "no longer marked"
        elif ticket.partition == partition:
            assert ticket.offset not in told.crashes, "a hand-back is no crash"
    return num_marked


def check_handed_back(world: World, partitions: Iterable[TopicPartition]) -> None:
    """What is committed is all that was done, and nothing of it blames anybody."""
    for each in partitions:
        assignment, point = world.ours[each], world.committed[each]
        assert point.offset == assignment.highest_commit(), "not handed back"
        assert check_map(world, each, decode_offset_map(*point), is_last=False) == 0


def check_blame(world: World) -> None:
    """If the process died now, the broker must blame who is inside the engine, and nobody else."""
    for partition, assignment in world.ours.items():
        told = decode_offset_map(*world.committed.get(partition, CommitPoint(0)))
        for offset in assignment.delivered - assignment.settled:
            ticket = Ticket(partition, offset, assignment.epoch)
            headers = world.log.records[partition][offset][0].crashes
            count = told.crashes.get(offset, headers)
            if ticket in world.working:
                assert count == one_more(world, ticket), "it was inside"
            else:  # perhaps it was when that was committed, which `commit` has checked
                assert count in (crashes_of(world, ticket), one_more(world, ticket))


def check_copy(world: World, command: Write) -> None:
    """A retry is the next try, or the same after a crash alone, or as a head that steps aside."""
    if not isinstance(command, Retry):
        return
    own = world.log.records[command.ticket.partition][command.ticket.offset][0]
    work, count = command.work, crashes_of(world, command.ticket)
    is_next_try = work.try_number == own.try_number + 1
    assert work.crashes == count
    if work.num_diverted > own.num_diverted:
        check_same_try(command, own)
        if command.fault == MAKES_WAY:
            check_made_way(world, command, own)
        else:
            check_diverted(world, command)
        return
    assert command.delay_s in world.limits.retry.delays_s
    assert is_next_try or count.num_alone > own.crashes.num_alone
    assert is_next_try or command.delay_s == world.limits.retry.longest_s
    assert work.try_number <= world.limits.retry.max_tries


def check_same_try(command: Retry, own: Work) -> None:
    """What steps aside has not failed."""
    assert command.work == replace(
        own, num_diverted=own.num_diverted + 1, crashes=command.work.crashes, due_s=None
    )


def check_made_way(world: World, command: Retry, own: Work) -> None:
    """It is off-peak, not at work, and its partition takes no more, with too few that count.

    When it is said first: what is not acknowledged is said again.
    """
    if command.ticket in world.made_way:
        return
    world.made_way.add(command.ticket)
    partition, limits = command.ticket.partition, world.limits
    assignment = world.ours[partition]
    records = world.log.records[partition]
    charges = [records[each][0].charge[:2] for each in assignment.delivered - assignment.settled]
    counted = Counter(tenant_id for tier, tenant_id in charges if tier != OFF_PEAK)
    assert own.charge.tier == OFF_PEAK
    assert sum(min(num, limits.window_per_tenant) for num in counted.values()) <= limits.window_low
    assert len(charges) > limits.look_ahead - (limits.window_high - limits.window_low)
    assert partition in world.paused
    assert command.delay_s == limits.retry.aside_s(own.num_diverted)


def check_diverted(world: World, command: Retry) -> None:
    """It is the head; the map is as good as full; all behind it is settled."""
    partition, offset, _ = command.ticket
    assignment = world.ours[partition]
    unsettled = assignment.delivered - assignment.settled
    assert offset == min(unsettled), "not the head"
    last = max(assignment.settled | set(assignment.known.finished()))
    assert last - offset + 1 > 0.9 * world.limits.map_span, "the map has room"
    assert len(unsettled) - 1 < 0.02 * (last - offset), "it is not the head that holds up the rest"
    assert command.delay_s == min(world.limits.retry.delays_s)


def is_cancelled(world: World, work: Work) -> bool:
    """Whether its own tenant has cancelled it, or somebody who did not say whose job it is."""
    tenants = None, work.charge.tenant_id
    return any((each, work.job_id, work.run) in world.cancelled for each in tenants)


def is_outranked(world: World, work: Work, retried: Iterable[Work]) -> bool:
    """Whether a higher copy of its job is delivered and unfinished, or just was retried."""
    mine = rank_of(work)
    higher = [
        world.log.records[each][offset][0]
        for each, assignment in world.ours.items()
        for offset in assignment.delivered - assignment.settled
    ]
    higher += retried
    ranks = [
        rank_of(other)
        for other in higher
        if other.job_id is not None and job_of(other) == job_of(work)
    ]
    return any(rank > mine for rank in ranks)


def snapshot(state: StageState) -> str:
    """All that a stale event might change."""
    trackers = {
        each: (t.assignment_epoch, t.offset_map(), t.next_offset, t.num_unfinished)
        for each, t in state.ours.trackers.items()
    }
    return repr((trackers, state.flights, state.num_waiting, state.stopped))
