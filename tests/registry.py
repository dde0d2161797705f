"""A schema registry in memory that may be away."""

from __future__ import annotations

from streams.errors import StoreAway


class Registry:
    """Implements `schemas.codec.SchemaIds`; knows what was registered while it was there."""

    def __init__(self) -> None:
        self.is_away, self.num_refused = False, 0
        self._schemas: list[str] = []

    def id_of(self, name: str, schema: str) -> int:
        """Its place in the list."""
        self._answer()
        if schema not in self._schemas:
            self._schemas.append(schema)
        return self._schemas.index(schema)

    def schema_of(self, schema_id: int) -> str:
        """What lies there."""
        self._answer()
        return self._schemas[schema_id]

    def _answer(self) -> None:
        if self.is_away:
            self.num_refused += 1
            raise StoreAway("the schema registry does not answer")
