"""What differs between two workers of one stage: their clocks, and the schemas they write."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import BytesIO

import fastavro

import workers.main
from schemas.codec import Codec, published_versions, single_object_header
from schemas.converters import converters
from schemas.records import BlobRef, Record
from streams.clock import AnchoredClock


class FastClock(AnchoredClock):
    """A worker's clock that is fast by so much, or slow."""

    def __init__(self, ahead_s: float) -> None:
        super().__init__()
        self._offset_s += ahead_s


def set_wall_clock(ahead_s: float) -> None:
    """What this process writes into records as the time of day is fast by so much."""

    def now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=ahead_s)

    setattr(workers.main, "_now", now)  # noqa: B010 - typed as a plain function


class PublishedCodec(Codec):
    """Reads everything, and writes as the release did that had this version of each schema.

    A record whose schema has no such version is written with its newest.
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self._version = version

    def encode(self, record: Record | BlobRef) -> bytes:
        """The record's bytes; what that version had no field for is left out."""
        versions = published_versions(type(record).__name__)
        text = versions.get(self._version)
        if text is None:
            return super().encode(record)
        schema = fastavro.parse_schema(json.loads(text))
        to_avro, _ = converters(schema)
        out = BytesIO()
        out.write(single_object_header(schema))
        fastavro.schemaless_writer(out, schema, to_avro(record))
        return out.getvalue()
