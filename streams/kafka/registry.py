"""Schema ids from a Confluent-compatible schema registry.

Subjects follow RecordNameStrategy (`reelstream.VideoDone`), because a record type means the same on
every topic that carries it (`requests`, `requests.deferred`, retry and dead-letter topics), so one
subject holds its one history. Readers go by id alone, so records of producers that name their
subjects otherwise read just as well.

The registry client needs packages that plain confluent-kafka does not bring, so it is imported only
where a registry is set.
"""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

from streams.errors import FatalError, SettingsError, StoreAway

_NOT_FOUND_STATUS = 404
_HOST_FAULT_STATUSES = frozenset({401, 403, 408, 429})


class RegistrySchemaIds:
    """`schemas.codec.SchemaIds` from the registry at `url`; each answer is asked for once.

    Calls wait `timeout_s` at most for a connection and for each piece of the answer, and are not
    retried here: StoreAway makes the caller hold its record and come again. Thread-safe.
    `mock://NAME` is a registry in memory, for tests.
    """

    def __init__(self, url: str, *, timeout_s: float = 3.0) -> None:
        try:
            self._api: Any = importlib.import_module("confluent_kafka.schema_registry")
            # The module that the client itself took its HTTP errors from.
            compat = "confluent_kafka.schema_registry.common._httpx_compat"
            self._http: Any = importlib.import_module(compat).httpx
        except ImportError as missing:
            raise SettingsError(
                f"a schema registry needs the package {missing.name}: install reelstream[registry]"
            ) from missing
        conf = {"url": url, "timeout": timeout_s, "max.retries": 0}
        try:
            self._client = self._api.SchemaRegistryClient.new_client(conf)
        except (TypeError, ValueError) as fault:
            # The message leaves the address out: it may hold a password.
            raise SettingsError("REEL_SCHEMA_REGISTRY_URL must begin with http(s)://") from fault
        # A proxy's error page is ValueError: 200, but no JSON.
        self._faults = (self._http.HTTPError, OSError, ValueError)
        self._ids: dict[tuple[str, str], int] = {}
        self._schemas: dict[int, str] = {}

    def id_of(self, name: str, schema: str) -> int:
        """The id of `schema` under subject `name`, registered if it was not yet.

        Raises StoreAway where the registry cannot answer, FatalError where it refuses the schema
        (not compatible with what the subject holds): nobody may write such a record.
        """
        known = self._ids.get((name, schema))
        if known is not None:
            return known
        try:
            new = self._client.register_schema(name, self._api.Schema(schema, "AVRO"))
        except self._api.SchemaRegistryError as fault:
            if _is_host_fault(fault):
                _raise_sick(fault)
            raise FatalError(f"the schema registry refuses {name}: {fault}") from fault
        except self._faults as fault:
            _raise_sick(fault)
        return self._ids.setdefault((name, schema), int(new))

    def schema_of(self, schema_id: int) -> str:
        """The schema (JSON) of an id.

        Raises KeyError for an id that the registry does not know, StoreAway where it cannot answer.
        """
        known = self._schemas.get(schema_id)
        if known is not None:
            return known
        try:
            found = self._client.get_schema(schema_id)
        except self._api.SchemaRegistryError as fault:
            if fault.http_status_code == _NOT_FOUND_STATUS and not _is_host_fault(fault):
                raise KeyError(schema_id) from fault
            _raise_sick(fault)
        except self._faults as fault:
            _raise_sick(fault)
        if found.schema_type not in (None, "AVRO") or found.schema_str is None:
            raise KeyError(schema_id)
        return self._schemas.setdefault(schema_id, str(found.schema_str))


def _is_host_fault(fault: Any) -> bool:
    status = fault.http_status_code
    if status == _NOT_FOUND_STATUS:  # with a code of theirs (404xx) it says so, else a proxy does
        return bool(fault.error_code // 100 != _NOT_FOUND_STATUS)
    return status >= 500 or status in _HOST_FAULT_STATUSES


def _raise_sick(fault: Exception) -> NoReturn:
    raise StoreAway(
        f"the schema registry does not answer: {fault}", reason_code="schema_registry_down"
    ) from fault
