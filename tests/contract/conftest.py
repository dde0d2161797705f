"""The places that the contract of the blob stores is held against."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streams.blobs.base import BlobStore
from streams.local.object_store import S3Server
from tests.contract.places import LocalPlace, Place, S3Place


@pytest.fixture
def local_place(tmp_path: Path) -> LocalPlace:
    """An empty folder of its own."""
    return LocalPlace(tmp_path / "blobs")


@pytest.fixture
def s3_place(s3_server: S3Server) -> Iterator[S3Place]:
    """An empty prefix of its own."""
    with ExitStack() as cleanup:
        yield S3Place(s3_server, f"contract/{uuid.uuid4().hex}", cleanup)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of place in turn."""
    chosen: Place = request.getfixturevalue(f"{request.param}_place")
    return chosen


@pytest.fixture
def store(place: Place) -> BlobStore:
    """A store at that place."""
    return place.open()
