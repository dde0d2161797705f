"""Events and commands in a line each, for those who read a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from streams.core.events import CommitPoint, Output, Ticket, TopicPartition, Work
from streams.core.offset_map import OffsetMap, decode_offset_map


def short(what: Any) -> str:
    """A line that a person can read."""
    match what:
        case str():
            return what
        case TopicPartition(topic, partition):
            return f"{topic}[{partition}]"
        case Ticket(partition, offset, epoch):
            return f"{short(partition)}@{offset} epoch {epoch}"
        case Work():
            crashes = f" crashed {what.crashes.num}" if what.crashes.num else ""
            return f"<{what.job_id} run {what.run} try {what.try_number}{crashes}>"
        case Output():
            return f"{what.topic}[{what.partition}] {(what.key or b'').decode()}"
        case CommitPoint(offset, text):
            return short(decode_offset_map(offset, text))
        case OffsetMap():
            counts = {at: tuple(each) for at, each in what.crashes.items()}
            extras = [str(each) for each in (what.finished(), counts) if each]
            return " ".join([f"@{what.offset}", *extras])
        case Mapping():
            pairs = (f"{short(key)}: {short(value)}" for key, value in what.items())
            return ", ".join(sorted(pairs))  # what comes out of a set has no order of its own
        case tuple():
            return "(" + ", ".join(map(short, what)) + ")"
    if dataclasses.is_dataclass(what):
        fields = (getattr(what, field.name) for field in dataclasses.fields(what))
        return f"{type(what).__name__} " + ", ".join(map(short, fields))
    return str(what)
