"""One contract for every blob store: what is put comes back, whole and checked, or an error."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from schemas.records import BlobRef
from streams.blobs.base import (
    MAX_FENCE_BYTES,
    BlobStore,
    check_key,
    open_store,
)
from streams.errors import BlobCorrupt, BlobMissing, InvalidRecord, SettingsError
from tests.contract.places import Place

PREFIX = "acme/order-7/1/decoder"
MIB = 1 << 20


def some_bytes(size: int, seed: int = 7) -> bytes:
    """Bytes that no compression or sparse file makes smaller."""
    return random.Random(seed).randbytes(size)


def key_of(store: BlobStore, ref: BlobRef) -> str:
    return ref.uri.removeprefix(store.root_uri + "/")


# -- round trip --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([], id="no chunk"),
        pytest.param([b""], id="an empty chunk"),
        pytest.param([b"a", b"", b"bc"], id="three bytes"),
        pytest.param([some_bytes(MIB, seed) for seed in range(7)] + [b"end"], id="7 MiB"),
    ],
)
def test_what_is_put_comes_back(store: BlobStore, chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    ref = store.put(PREFIX, iter(chunks), "video/mp4")
    sha256 = hashlib.sha256(whole).hexdigest()
    assert ref == BlobRef(f"{store.root_uri}/{PREFIX}/{sha256}", sha256, len(whole), "video/mp4")
    assert b"".join(store.get(ref)) == whole
    assert store.read(ref, max_bytes=len(whole)) == whole
    assert store.verify(ref)


def test_a_blob_above_the_size_of_one_request_comes_back(store: BlobStore) -> None:
    chunks = [some_bytes(MIB, seed) for seed in range(41)]
    ref = store.put(PREFIX, chunks, "video/mp4")
    whole = b"".join(store.get(ref))
    assert hashlib.sha256(whole).digest() == hashlib.sha256(b"".join(chunks)).digest()
    assert store.put(PREFIX, chunks, "video/mp4") == ref


def test_putting_the_same_bytes_again_changes_nothing(place: Place, store: BlobStore) -> None:
    first = store.put(PREFIX, [b"latents"], "a/b")
    assert store.put(PREFIX, [b"lat", b"ents"], "a/b") == first
    assert place.open().put(PREFIX, [b"latents"], "a/b") == first
    assert place.keys() == {key_of(store, first)}


def test_a_second_store_at_the_same_place_reads_what_the_first_put(
    place: Place, store: BlobStore
) -> None:
    ref = store.put(PREFIX, [b"latents"], "a/b")
    assert place.open().read(ref, 100) == b"latents"


def test_twenty_writers_of_one_blob_agree(place: Place, store: BlobStore) -> None:
    body = some_bytes(MIB)
    with ThreadPoolExecutor(20) as pool:
        refs = set(pool.map(lambda _: store.put(PREFIX, [body], "a/b"), range(20)))
    (ref,) = refs
    assert store.read(ref, MIB) == body
    assert place.keys() == {key_of(store, ref)}


def test_an_error_of_the_data_passes_through_and_leaves_nothing(
    place: Place, store: BlobStore
) -> None:
    def broken() -> Iterator[bytes]:
        yield b"begun"
        raise OSError("the encoder broke")

    with pytest.raises(OSError, match="the encoder broke"):
        store.put(PREFIX, broken(), "a/b")
    assert place.keys() == set()


def test_memory_stays_flat_whatever_the_size(store: BlobStore) -> None:
    num_chunks, chunk = 200, some_bytes(MIB)
    tracemalloc.start()
    try:
        ref = store.put(PREFIX, (bytes([n]) + chunk[1:] for n in range(num_chunks)), "video/mp4")
        assert sum(len(part) for part in store.get(ref)) == num_chunks * MIB
        assert store.verify(ref)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 32 * MIB


# -- what is wrong is noticed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planted", "why"),
    [
        (b"LATENTS", "sha256"),
        (b"laten", "5 bytes"),
        (b"", "0 bytes"),
        (b"latents and more", "16 bytes"),
    ],
)
def test_bytes_changed_behind_the_stores_back_are_corrupt(
    place: Place, store: BlobStore, planted: bytes, why: str
) -> None:
    ref = store.put(PREFIX, [b"latents"], "a/b")
    place.plant(key_of(store, ref), planted)
    with pytest.raises(BlobCorrupt, match=why):
        list(store.get(ref))
    with pytest.raises(BlobCorrupt, match=why):
        store.read(ref, 100)
    assert not store.verify(ref)


def test_a_flipped_byte_in_a_large_blob_is_found_at_the_end(place: Place, store: BlobStore) -> None:
    body = bytearray(some_bytes(3 * MIB))
    ref = store.put(PREFIX, [bytes(body)], "a/b")
    body[2 * MIB] ^= 1
    place.plant(key_of(store, ref), bytes(body))
    chunks = store.get(ref)
    assert next(chunks)
    with pytest.raises(BlobCorrupt):
        list(chunks)


def test_putting_again_heals_corrupt_bytes(place: Place, store: BlobStore) -> None:
    """Else the next edition of a deterministic stage would be as corrupt as the last."""
    ref = store.put(PREFIX, [b"latents"], "a/b")
    for planted in (b"LATENTS", b"lat"):
        place.plant(key_of(store, ref), planted)
        assert store.put(PREFIX, [b"latents"], "a/b") == ref
        assert store.verify(ref)


def test_a_blob_that_is_gone_is_missing(place: Place, store: BlobStore) -> None:
    ref = store.put(PREFIX, [b"latents"], "a/b")
    place.take_away(key_of(store, ref))
    with pytest.raises(BlobMissing):
        next(store.get(ref))
    with pytest.raises(BlobMissing):
        store.read(ref, 100)
    assert not store.verify(ref)
    assert store.put(PREFIX, [b"latents"], "a/b") == ref
    assert store.verify(ref)


def test_a_ref_to_a_prefix_is_missing(store: BlobStore) -> None:
    ref = store.put(PREFIX, [b"latents"], "a/b")
    with pytest.raises(BlobMissing):
        next(store.get(replace(ref, uri=f"{store.root_uri}/{PREFIX}")))
    with pytest.raises(BlobMissing):
        next(store.get(replace(ref, uri=f"{ref.uri}/below")))


@pytest.mark.parametrize("size_bytes", [0, 6, 8, 1 << 60])
def test_a_ref_that_lies_about_the_size_is_corrupt(store: BlobStore, size_bytes: int) -> None:
    ref = replace(store.put(PREFIX, [b"latents"], "a/b"), size_bytes=size_bytes)
    with pytest.raises(BlobCorrupt):
        list(store.get(ref))
    assert not store.verify(ref)


def test_a_blob_over_the_limit_is_refused_before_it_is_read(store: BlobStore) -> None:
    absent = BlobRef(f"{store.root_uri}/{PREFIX}/{'0' * 64}", "0" * 64, 101, "a/b")
    with pytest.raises(InvalidRecord) as refused:
        store.read(absent, max_bytes=100)
    assert refused.value.reason_code == "blob_too_large"
    with pytest.raises(BlobMissing):
        store.read(absent, max_bytes=101)


@pytest.mark.parametrize(
    "change",
    [
        {"uri": "file:///etc/passwd"},
        {"uri": "s3://another-bucket/acme/order-7/1/decoder/x"},
        {"uri": "http://169.254.169.254/latest"},
        {"uri": ""},
        {"uri": "{root}"},
        {"uri": "{root}/"},
        {"uri": "{root}-twin/acme/order-7"},
        {"uri": "{root}/../secret"},
        {"uri": "{root}/acme/../../secret"},
        {"uri": "{root}/acme/%2e%2e/secret"},
        {"uri": "{root}/acme//order"},
        {"uri": "{root}//etc/passwd"},
        {"uri": "{root}/.tmp/x"},
        {"uri": "{root}/acme/x\0"},
        {"uri": "{root}/acme/x\n"},
        {"uri": "{root}/acme/" + "x" * 129},
        {"uri": "{root}" + "/acme" * 300},
        {"sha256": ""},
        {"sha256": "a" * 63},
        {"sha256": "A" * 64},
        {"sha256": "a" * 64 + "\n"},
        {"size_bytes": -1},
    ],
)
def test_a_ref_that_names_nothing_of_this_store_is_refused(
    store: BlobStore, change: dict[str, Any]
) -> None:
    ref = store.put(PREFIX, [b"latents"], "a/b")
    if "uri" in change:
        change = {"uri": change["uri"].replace("{root}", store.root_uri)}
    bad = replace(ref, **change)
    for use in (store.get, store.verify, lambda ref: store.read(ref, 100)):
        with pytest.raises(InvalidRecord) as refused:
            use(bad)
        assert refused.value.reason_code in ("bad_blob_ref", "bad_blob_key")
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "a/..",
        "../a",
        ".a",
        "a/.b",
        "a b",
        "a\\b",
        "ä",
        "a:b",
    ],
)
def test_a_key_that_could_climb_is_no_key(store: BlobStore, key: str) -> None:
    with pytest.raises(InvalidRecord):
        check_key(key)
    with pytest.raises(InvalidRecord):
        store.create(key, b"")
    with pytest.raises(InvalidRecord):
        store.load(key)
    with pytest.raises(InvalidRecord):
        store.put(key, [b""], "a/b")


# -- fences ------------------------------------------------------------------------------------


def test_the_first_create_wins_and_all_see_its_bytes(place: Place, store: BlobStore) -> None:
    assert store.load("acme/job/request") is None
    assert store.create("acme/job/request", b"first") == b"first"
    assert store.create("acme/job/request", b"second") == b"first"
    assert store.create("acme/job/request", b"first") == b"first"
    assert place.open().load("acme/job/request") == b"first"
    assert place.keys() == {"acme/job/request"}


def test_an_empty_fence_stands_too(store: BlobStore) -> None:
    assert store.create("acme/job/request", b"") == b""
    assert store.create("acme/job/request", b"late") == b""
    assert store.load("acme/job/request") == b""


def test_a_fence_has_a_largest_size(place: Place, store: BlobStore) -> None:
    largest = some_bytes(MAX_FENCE_BYTES)
    assert store.create("acme/job/request", largest) == largest
    with pytest.raises(InvalidRecord):
        store.create("acme/other/request", largest + b"!")
    place.plant("acme/third/request", largest + b"!")
    with pytest.raises(BlobCorrupt):
        store.load("acme/third/request")


def test_of_twenty_racing_threads_one_wins_and_all_agree(place: Place) -> None:
    stores = [place.open(), place.open()]
    with ThreadPoolExecutor(20) as pool:
        for race in range(place.num_races):
            key = f"acme/job/{race}/outcome"
            bodies = [f"{race} by {n}".encode() for n in range(20)]
            seen = set(pool.map(lambda n: stores[n % 2].create(key, bodies[n]), range(20)))  # noqa: B023
            (winner,) = seen
            assert winner in bodies
            assert stores[0].load(key) == winner


def create_in_a_row(
    settings: dict[str, Any], name: str, keys: list[str], together: Any, answers: Any
) -> None:
    """In a process of its own: create every key at the moment when the others do."""
    store = open_store(**settings)
    seen = []
    for key in keys:
        together.wait(60)
        seen.append(store.create(key, name.encode()))
    answers.put(seen)


def test_racing_processes_agree(place: Place) -> None:
    spawn = multiprocessing.get_context("spawn")
    together, answers = spawn.Barrier(3), spawn.Queue()
    keys = [f"acme/job/{race}/outcome" for race in range(place.num_races)]
    racers = [
        spawn.Process(target=create_in_a_row, args=(place.settings, name, keys, together, answers))
        for name in ("one", "two", "three")
    ]
    for racer in racers:
        racer.start()
    first, *others = [answers.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join(30)
    assert others == [first, first]
    assert set(first) <= {b"one", b"two", b"three"}
    store = place.open()
    assert [store.load(key) for key in keys] == first


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "blobs",
        "/srv/blobs",
        "http://host/blobs",
        "file:",
        "file:blobs",
        "file:///",
        "file://host/blobs",
        "file:///blobs?x=1",
        "s3:///prefix",
        "s3://ab",
        "s3://Bucket",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://key:secret@bucket",
    ],
)
def test_an_address_that_names_no_store_is_wrong_use(uri: str) -> None:
    with pytest.raises(SettingsError, match="blob store"):
        open_store(uri)
