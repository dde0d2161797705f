"""How the client reaches the brokers, and what it says when it cannot."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from streams.errors import SettingsError

REQUEST_TIMEOUT_MS = 15_000


class ClientError(Exception):
    """The client could not do what it was asked; the message is one line for people."""


class BrokerUnreachable(ClientError):
    """No broker answers."""


class WrongRequest(ClientError):
    """The request cannot be sent as it is: the caller's fault, nothing was sent."""


class UnknownJob(ClientError):
    """No topic knows of this job."""


class NotDone(ClientError):
    """The job has not ended yet."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the brokers are and how to talk to them. `extra` is in librdkafka's words, of which the
    TLS and SASL ones are translated; the rest is about workers and is passed over."""

    bootstrap: str
    extra: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Keyword arguments of every aiokafka client."""
        options: dict[str, Any] = {
            "bootstrap_servers": [part.strip() for part in self.bootstrap.split(",")],
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        for theirs, ours in _TRANSLATED.items():
            if theirs in self.extra:
                options[ours] = self.extra[theirs]
        options["security_protocol"] = options.get("security_protocol", "PLAINTEXT").upper()
        if options["security_protocol"].endswith("SSL"):
            options["ssl_context"] = self._tls()
        return options

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.extra.get("ssl.ca.location"))
            if certificate := self.extra.get("ssl.certificate.location"):
                context.load_cert_chain(
                    certificate,
                    self.extra.get("ssl.key.location"),
                    self.extra.get("ssl.key.password"),
                )
        except (OSError, ssl.SSLError) as fault:
            raise SettingsError(f"REEL_KAFKA_EXTRA: TLS files: {fault}") from fault
        return context

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turn aiokafka's errors inside the block into one-line ClientErrors."""
        try:
            yield
        except (KafkaConnectionError, KafkaTimeoutError) as fault:
            raise BrokerUnreachable(
                f"no Kafka broker answers at {self.bootstrap} (REEL_BOOTSTRAP);"
                " `reel up` starts a local one"
            ) from fault
        except KafkaError as fault:
            raise ClientError(f"Kafka at {self.bootstrap}: {fault}") from fault
        except ValueError as fault:  # aiokafka's own check of host:port
            raise SettingsError(f"{self.bootstrap!r} are no bootstrap servers: {fault}") from fault

    async def num_partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """The partition count of each topic.

        Raises ClientError where one is missing. Topics are listed, never asked for by name: brokers
        may create a topic that somebody asks for, with a partition count of their own.
        """
        with self.faults():
            client = AIOKafkaClient(**self.options())
            try:
                await client.bootstrap()
                cluster = await client.fetch_all_metadata()
            finally:
                await client.close()
        found = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        if missing := sorted(topic for topic, count in found.items() if not count):
            raise ClientError(
                f"no topic {missing[0]} at {self.bootstrap}: run `reel topics apply` first"
            )
        return found


_TRANSLATED = {
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
}
