"""Whether brokers speak KIP-848, asked by hand: librdkafka does not tell.

It matters because a broker that doesn't leaves a consumer with `group.protocol=consumer` waiting
for ever, without an error.
"""

from __future__ import annotations

from collections.abc import Iterator

from streams.local.broker import speaks_kip848
from streams.settings import Settings

_DEFAULT_PORT = "9092"  # librdkafka's


def group_protocol_supported(settings: Settings) -> bool:
    """False if the brokers say that `REEL_GROUP_PROTOCOL=consumer` does not work there.

    The first of the bootstrap servers that answers decides. True also where none can be asked: the
    listener wants TLS or a login, or nobody answers. Then the join timeout has to find out. Blocks
    for some seconds a server at most; never raises.
    """
    if settings.kafka_extra.get("security.protocol", "plaintext").lower() != "plaintext":
        return True
    for host, port in _addresses(settings.bootstrap):
        try:
            return speaks_kip848(host, port)
        except OSError:
            continue
    return True


def _addresses(bootstrap: str) -> Iterator[tuple[str, int]]:
    """Host and port of each `[scheme://]host[:port]`; what is neither is librdkafka's to refuse.

    >>> list(_addresses("a:1, PLAINTEXT://b, [::1]:2,c:x"))
    [('a', 1), ('b', 9092), ('::1', 2)]
    """
    for server in bootstrap.split(","):
        host, colon, port = server.strip().rpartition("://")[2].rpartition(":")
        if not colon or port.endswith("]"):  # no port: a name, or the end of an IPv6 address
            host, port = host + colon + port, _DEFAULT_PORT
        if port.isdecimal():
            yield host.strip("[]"), int(port)
