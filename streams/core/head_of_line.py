"""A head that holds up its partition: when it steps aside, to a retry topic, and the rest goes on.

What is finished behind an unfinished record is told in the offset map, and a partition whose map is
full delivers no more. So one record whose turn does not come (a deferrable job under a load that
never ends), or whose work does not end, would stop all that come after it. The rule, but for what
may be cancelled, is that of uForwarder's HeadBlockingDetector: the map is more than nine tenths
full, and more than 98 % of what lies behind the head is finished.

What waits steps aside at once; what is parked goes to the end of its own topic, and so does another
request under its job's id, which is behind it. What is inside the engine is paid for, so it has
until the map is full; then it is dropped there, as on a cancel: work in steps leaves a checkpoint,
and nobody is blamed. Every other phase asks for somebody's answer, which is on its way. The window
is not looked at: it counts what is unfinished alone, of which a head is one record.
"""

from __future__ import annotations

from streams.core.events import Fate, Fault
from streams.core.flight import Phase

NEARLY_FULL = 0.9
MOSTLY_FINISHED = 0.98
HEAD_OF_LINE = Fault(Fate.LATER, "head_of_line", "all behind it was finished, and it was not begun")


def is_held_up(span: int, num_unfinished: int, max_span: int) -> bool:
    """Whether one record keeps a partition's offset map nearly full.

    Args:
        span: offsets from the lowest unfinished one, the head, to the last finished one.
        num_unfinished: delivered records that are not finished, the head among them.
        max_span: where the map is full.

    >>> is_held_up(95, 2, 100), is_held_up(95, 4, 100), is_held_up(90, 1, 100)
    (True, False, False)
    """
    if span <= NEARLY_FULL * max_span:
        return False
    num_behind = span - 1
    return num_behind - (num_unfinished - 1) > MOSTLY_FINISHED * num_behind


def steps_aside(phase: Phase, span: int, max_span: int) -> bool:
    """Whether a head that holds up its partition can go to a retry topic as things stand.

    What is parked, or behind that, has a topic of its own to go to.
    """
    return phase is Phase.WAITING or (phase is Phase.RUNNING and span >= max_span)
