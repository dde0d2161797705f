"""Taking a dead worker out of its consumer group, which it could not leave itself.

Of the classic protocol only: a broker waits out the session timeout of a member that was killed,
and the embedded one waits for ever, so the worker that takes its place would get no partitions.
Under KIP-848 the broker is the one who counts, and the session timeout is enough.
"""

from __future__ import annotations

import asyncio
import logging

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest

from streams.client.connection import Connection

_LIMIT_S = 5.0
_log = logging.getLogger(__name__)


def leave_for(connection: Connection, group: str, pid: int) -> None:
    """Make the members of `group` whose client id ends in `-<pid>` leave it; at most five seconds.

    Best effort: where it fails, the session timeout has to do.
    """
    try:
        asyncio.run(asyncio.wait_for(_leave_for(connection, group, f"-{pid}"), _LIMIT_S))
    except (KafkaError, OSError, TimeoutError) as fault:
        _log.info("%s: member of process %d could not be removed: %s", group, pid, fault)


async def _leave_for(connection: Connection, group: str, suffix: str) -> None:
    client = AIOKafkaClient(**connection.options())
    try:
        await client.bootstrap()
        node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        answer = await client.send(node, DescribeGroupsRequest([group]))
        for *_, members in (described[:6] for described in answer.groups):
            for member_id, client_id, *_rest in members:
                if client_id.endswith(suffix):
                    await client.send(node, LeaveGroupRequest(group, member_id))
    finally:
        await client.close()
