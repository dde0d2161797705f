"""What goes to `<topic>.dlt`: the original, untouched, with our findings beside it in headers."""

from __future__ import annotations

from streams.core.events import Fault, Output
from streams.engine import Task
from streams.topology import Stage

PREFIX = "reel-dlt-"


def dead_letter(stage: Stage, task: Task, fault: Fault, worker: str) -> Output:
    """The dead letter of a task: same partition, key, bytes, headers; `reel-dlt-*` headers added.

    The headers are text: stage, topic, partition, offset, timestamp-ms, reason-code, message (which
    never holds prompt text) and worker.
    """
    findings = {
        "stage": stage.name,
        "topic": task.topic,
        "partition": str(task.partition),
        "offset": str(task.offset),
        "timestamp-ms": str(task.timestamp_ms),
        "reason-code": fault.reason_code,
        "message": fault.message[:1000],
        "worker": worker,
    }
    added = tuple((PREFIX + name, text.encode()) for name, text in findings.items())
    return Output(stage.dead_letters, task.partition, task.key, task.value, (*task.headers, *added))
