"""What every local Kafka broker offers, and two questions in Kafka's own protocol.

Asked by plain sockets, so that whoever starts a broker needs no Kafka client: which requests it
speaks (ApiVersions), which brokers it lists (Metadata), which of them is the controller
(DescribeQuorum, KIP-595: what Metadata calls so is any broker since KRaft).
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Protocol, Self

_METADATA, _API_VERSIONS, _DESCRIBE_QUORUM, _CONSUMER_GROUP_HEARTBEAT = 3, 18, 55, 68
_QUORUM_TOPIC = b"__cluster_metadata"
_MAX_ANSWER_BYTES = 1 << 20


class Broker(Protocol):
    """A Kafka broker, or several, on loopback; `start` returns when clients may come."""

    @property
    def bootstrap(self) -> str:
        """`host:port,...`, fixed before the start."""

    @property
    def speaks_kip848(self) -> bool:
        """Whether `group.protocol=consumer` works; a consumer waits for ever where it doesn't."""

    def start(self) -> None:
        """Start and wait until ready; SettingsError or StartFailed if that can't be."""

    def stop(self) -> None:
        """Stop; the data stays. Nothing of it runs afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None: ...


def api_keys(host: str, port: int, timeout_s: float = 2.0) -> frozenset[int]:
    """The requests that the broker speaks, by Kafka's numbers; needs a plaintext listener.

    Raises:
        OSError: nothing listens there, or what does is not a Kafka broker.
    """
    answer = _ask(host, port, _API_VERSIONS, 0, b"", timeout_s)
    try:
        error_code, count = struct.unpack_from(">hi", answer)
        keys = [struct.unpack_from(">hhh", answer, 6 + 6 * n)[0] for n in range(count)]
    except struct.error as error:
        raise OSError(f"{host}:{port} is no Kafka broker") from error
    if error_code:
        raise OSError(f"{host}:{port} refused ApiVersions with error {error_code}")
    return frozenset(keys)


def speaks_kip848(host: str, port: int) -> bool:
    """Whether the broker there offers KIP-848's consumer groups; OSError as `api_keys`."""
    return _CONSUMER_GROUP_HEARTBEAT in api_keys(host, port)


def listed_brokers(host: str, port: int, timeout_s: float = 2.0) -> frozenset[int]:
    """The ids of the brokers that the one there lists as alive; empty if it does not answer yet."""
    try:
        # Version 1 with an empty list of topics: brokers only.
        answer = _ask(host, port, _METADATA, 1, struct.pack(">i", 0), timeout_s)
        (count,) = struct.unpack_from(">i", answer)
        found, at = set[int](), 4
        for _ in range(count):
            node_id, host_bytes = struct.unpack_from(">ih", answer, at)
            at += 6 + host_bytes + 4  # id and length, name, port
            (rack_bytes,) = struct.unpack_from(">h", answer, at)
            at += 2 + max(rack_bytes, 0)
            found.add(node_id)
    except (OSError, struct.error):
        return frozenset()
    return frozenset(found)


def active_controller(host: str, port: int, timeout_s: float = 2.0) -> int | None:
    """The id of the controller that leads the quorum, as this broker hears; None: nobody, yet."""
    # A flexible version: lengths of compact arrays and strings are one more, a zero ends tags.
    topic = bytes([len(_QUORUM_TOPIC) + 1]) + _QUORUM_TOPIC
    one_partition = b"\x02" + struct.pack(">i", 0) + b"\x00"
    body = b"\x00" + b"\x02" + topic + one_partition + b"\x00" + b"\x00"
    try:
        answer = _ask(host, port, _DESCRIBE_QUORUM, 0, body, timeout_s)
        at = answer.index(_QUORUM_TOPIC) + len(_QUORUM_TOPIC) + 1
        _, error_code, leader = struct.unpack_from(">ihi", answer, at)
    except (OSError, ValueError, struct.error):
        return None
    return int(leader) if error_code == 0 and leader >= 0 else None


def _ask(host: str, port: int, key: int, version: int, body: bytes, timeout_s: float) -> bytes:
    """One request without a client id, and its answer's body."""
    head = struct.pack(">hhih", key, version, 1, -1)
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(head + body)) + head + body)
        size, correlation_id = struct.unpack(">ii", _receive(connection, 8))
        if correlation_id != 1 or not 4 <= size <= _MAX_ANSWER_BYTES:
            raise OSError(f"{host}:{port} is no Kafka broker")
        return _receive(connection, size - 4)


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    got = bytearray()
    while len(got) < num_bytes:
        part = connection.recv(num_bytes - len(got))
        if not part:
            raise ConnectionError("the connection was closed in the middle of an answer")
        got += part
    return bytes(got)
