"""The Python client: submit a job, follow it, fetch its video. asyncio, aiokafka, no torch.

::

    async with Client("127.0.0.1:9092", blobs=store) as client:
        job_id = await client.submit("a red circle moving right")
        async for event in client.watch(job_id):
            ...
        await client.download(await client.get(job_id), Path("circle.mp4"))
"""

from streams.client.client import Client
from streams.client.connection import (
    BrokerUnreachable,
    ClientError,
    Connection,
    NotDone,
    UnknownJob,
    WrongRequest,
)
from streams.client.job_rows import JobRow

__all__ = [
    "BrokerUnreachable",
    "Client",
    "ClientError",
    "Connection",
    "JobRow",
    "NotDone",
    "UnknownJob",
    "WrongRequest",
]
