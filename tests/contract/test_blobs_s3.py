"""What S3 as blob store has to stand beyond the common contract: a network and credentials."""

from __future__ import annotations

import random
import socket
from dataclasses import replace

import pytest

from schemas.records import BlobRef
from streams.blobs.base import BlobStore, open_store
from streams.errors import SettingsError, SickHost
from streams.local.object_store import S3Server
from tests.contract.places import S3Place, cut_connections

PREFIX = "acme/order-7/1/decoder"
MIB = 1 << 20


def assert_reading_holds(store: BlobStore, ref: BlobRef) -> None:
    for use in (
        lambda: list(store.get(ref)),
        lambda: store.read(ref, 100),
        lambda: store.verify(ref),
        lambda: store.load("acme/order-7/request"),
    ):
        with pytest.raises(SickHost):
            use()


def assert_writing_holds(store: BlobStore) -> None:
    for use in (
        lambda: store.put(PREFIX, [b"small"], "a/b"),
        lambda: store.put(PREFIX, [bytes(MIB)] * 33, "a/b"),
        lambda: store.create("acme/order-7/request", b"mine"),
    ):
        with pytest.raises(SickHost):
            use()


def test_a_server_that_is_down_is_a_sick_host(s3_place: S3Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = s3_place.open(endpoint=f"http://127.0.0.1:{port}", max_attempts=1)
    assert_reading_holds(store, s3_place.open().put(PREFIX, [b"latents"], "a/b"))
    assert_writing_holds(store)


def test_a_server_that_never_answers_is_a_sick_host_in_time(s3_place: S3Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = s3_place.open(
            endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}",
            read_timeout_s=0.3,
            max_attempts=2,
        )
        with pytest.raises(SickHost):
            store.load("acme/order-7/request")
        silent.setblocking(False)
        for _ in range(2):  # one connection each attempt: it stopped waiting for the first
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_wrong_secret_is_a_sick_host(s3_place: S3Place) -> None:
    ref = s3_place.open().put(PREFIX, [b"latents"], "a/b")
    store = s3_place.open(secret_key="wrong")
    assert_reading_holds(store, ref)
    assert_writing_holds(store)
    assert s3_place.keys() == {f"{PREFIX}/{ref.sha256}"}


def test_a_bucket_that_is_not_there_is_a_sick_host(s3_place: S3Place) -> None:
    """Never an empty store: every input of every job would seem lost."""
    ref = s3_place.open().put(PREFIX, [b"latents"], "a/b")
    store = s3_place.open(uri="s3://no-such-bucket/x")
    # Reading only: SeaweedFS makes a bucket for whoever writes as administrator.
    assert_reading_holds(store, replace(ref, uri=f"{store.root_uri}/{PREFIX}/{ref.sha256}"))


def test_a_create_whose_answer_is_lost_wins_against_itself(
    s3_place: S3Place, s3_server: S3Server
) -> None:
    with cut_connections(s3_server.endpoint, num_cut=1, after_bytes=0) as endpoint:
        store = s3_place.open(endpoint=endpoint)
        assert store.create("acme/order-7/request", b"mine") == b"mine"
    assert s3_place.open().create("acme/order-7/request", b"late") == b"mine"


def test_a_create_whose_every_answer_is_lost_is_found_done_at_the_next_try(
    s3_place: S3Place, s3_server: S3Server
) -> None:
    with cut_connections(s3_server.endpoint, num_cut=2, after_bytes=0) as endpoint:
        store = s3_place.open(endpoint=endpoint, max_attempts=2)
        with pytest.raises(SickHost):
            store.create("acme/order-7/request", b"mine")
        assert store.create("acme/order-7/request", b"mine") == b"mine"
    assert s3_place.keys() == {"acme/order-7/request"}


@pytest.mark.parametrize("num_mib", [1, 33])
def test_a_put_whose_answers_are_lost_may_be_done_again(
    s3_place: S3Place, s3_server: S3Server, num_mib: int
) -> None:
    body = random.Random(num_mib).randbytes(num_mib * MIB)
    with cut_connections(s3_server.endpoint, num_cut=1, after_bytes=0) as endpoint:
        ref = s3_place.open(endpoint=endpoint).put(PREFIX, [body], "a/b")
    assert s3_place.open().verify(ref)
    assert len(s3_place.keys()) == 1


def test_a_blob_whose_stream_breaks_is_not_taken_for_a_corrupt_one(
    s3_place: S3Place, s3_server: S3Server
) -> None:
    ref = s3_place.open().put(PREFIX, [bytes(3 * MIB)], "a/b")
    with cut_connections(s3_server.endpoint, num_cut=2, after_bytes=MIB) as endpoint:
        store = s3_place.open(endpoint=endpoint)
        with pytest.raises(SickHost):
            list(store.get(ref))
        with pytest.raises(SickHost):
            store.verify(ref)
        assert store.verify(ref)


def test_one_key_without_the_other_is_wrong_use() -> None:
    with pytest.raises(SettingsError, match="both"):
        open_store("s3://bucket", access_key="a")


def test_an_endpoint_that_is_no_address_is_wrong_use() -> None:
    with pytest.raises(SettingsError, match="no address"):
        open_store("s3://bucket", endpoint="no address", access_key="a", secret_key="b")
