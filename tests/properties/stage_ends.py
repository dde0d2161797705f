"""What holds of a `World` after every event, and how it ends when everybody answers."""

from __future__ import annotations

from collections import Counter

from streams.core.flight import Phase
from tests.properties.stage_rules import keeps_window
from tests.properties.stage_world import World


def check(world: World) -> None:
    """The invariants that no single command shows."""
    flights = world.state.flights
    assert world.state.ours.trackers.keys() == world.ours.keys()
    assert keeps_window(world.limits, flights)
    assert all(world.is_current(ticket) for ticket in flights)
    at_work = Counter(
        flight.work.job_id
        for flight in flights.values()
        if flight.work.job_id and flight.phase is not Phase.BEHIND
    )
    assert max(at_work.values(), default=0) <= 1, "one flight of a job at a time"
    delayed = {each.ticket.partition for each in flights.values() if each.phase is Phase.DELAYED}
    assert delayed <= world.paused, "what is not due keeps its partition closed"
    unsettled = {
        (partition, offset)
        for partition, each in world.ours.items()
        for offset in each.delivered - each.settled
    }
    known = {(ticket.partition, ticket.offset) for ticket in flights}
    assert known <= unsettled
    assert known == unsettled or world.drain_until_s is not None


def cooperate(world: World) -> None:
    """Answer all that is asked, well, until nothing more happens."""
    world.pause_stage(False)
    world.recover()
    world.assign([each for each in world.log.partitions if each not in world.ours])
    for _ in range(30 * sum(map(len, world.log.records.values())) + 60):
        for partition in world.log.partitions:
            world.poll(partition, 3)
        if world.is_probing:
            world.answer_probe(is_ok=True)
        for ticket in list(world.working):
            world.answer_work(ticket)
        for ticket in list(world.ending):
            world.answer_end(ticket)
        for ticket in list(world.writing):
            world.answer_write(ticket)
        if world.committing:
            world.answer_commit(is_ok=True)
        world.tick(0.5)
        check(world)
        if is_quiet(world):
            assert world.log.unproven() == [], "a job is lost"
            return
    raise AssertionError(f"stuck: {world.state.flights}")


def is_quiet(world: World) -> bool:
    """Whether everything on the log has been worked and committed."""
    busy = world.working or world.ending or world.writing or world.committing
    return not (busy or world.state.flights) and all(
        world.committed.get(each, (-1,))[0] == world.log.end[each] for each in world.log.partitions
    )
