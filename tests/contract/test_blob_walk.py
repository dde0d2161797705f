"""One contract for every blob store: what stands there is found, and what is removed is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice

import pytest

from streams.blobs.base import BlobStore
from streams.errors import BlobMissing, InvalidRecord, SickHost
from tests.contract.places import LocalPlace, Place, S3Place

PREFIX = "acme/order-7/1/decoder"


def test_all_that_was_put_and_created_is_found(place: Place, store: BlobStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # S3 tells whole seconds
    blob = store.put(PREFIX, [b"latents"], "a/b")
    store.create("acme/order-7/request", b"mine")
    store.create("acme/order-7/1/outcome", b"")
    found = {each.key: each for each in store.walk("")}
    assert {key: each.size_bytes for key, each in found.items()} == {
        f"{PREFIX}/{blob.sha256}": 7,
        "acme/order-7/request": 4,
        "acme/order-7/1/outcome": 0,
    }
    after = datetime.now(UTC) + timedelta(seconds=2)
    assert all(before < each.modified_at < after for each in found.values())
    assert all(each.modified_at.utcoffset() == timedelta() for each in found.values())
    assert set(found) == place.keys()


def test_an_empty_place_has_nothing(store: BlobStore) -> None:
    assert list(store.walk("")) == []
    assert list(store.walk("acme")) == []


def test_a_prefix_ends_at_a_slash(store: BlobStore) -> None:
    for key in ("acme/a", "acme-2/a", "acme.x/a", "zoo/acme/a"):
        store.create(key, b"")
    assert [found.key for found in store.walk("acme")] == ["acme/a"]
    assert [found.key for found in store.walk("zoo/acme")] == ["zoo/acme/a"]
    assert list(store.walk("acme/a")) == []
    for no_key in ("/", "acme/", "../acme", ".tmp"):
        with pytest.raises(InvalidRecord):
            list(store.walk(no_key))


def test_keys_that_share_a_folder_come_one_after_the_other(store: BlobStore) -> None:
    jobs = ["a/1", "a/1-2", "a/1.2", "a/10", "a-b/1", "a0/1", "A/1"]
    for job in jobs:
        for name in ("request", "1/outcome", "10/outcome", "1-x/outcome", "1/a/b"):
            store.create(f"{job}/{name}", b"")
    keys = [found.key for found in store.walk("")]
    assert len(keys) == len(set(keys)) == 5 * len(jobs)
    for depth in (1, 2, 3):
        folders = [tuple(key.split("/")[:depth]) for key in keys]
        runs = [folder for folder, _ in groupby(folders)]
        assert len(runs) == len(set(runs)), depth


def test_more_than_one_page_is_found_once_each(place: Place, store: BlobStore) -> None:
    keys = {f"acme/job-{n % 7}/{n}" for n in range(1_100)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: place.plant(key, b"x"), keys))
    found = [each.key for each in store.walk("")]
    assert (len(found), set(found)) == (len(keys), keys)


def test_a_walk_begins_to_tell_before_it_has_seen_all(place: Place, store: BlobStore) -> None:
    for n in range(3):
        place.plant(f"acme/job/{n}", b"x")
    walk = store.walk("")
    assert len(list(islice(walk, 2))) == 2


def test_what_is_removed_is_gone_and_may_be_removed_again(place: Place, store: BlobStore) -> None:
    blob = store.put(PREFIX, [b"latents"], "a/b")
    other = store.put(PREFIX, [b"frames"], "a/b")
    for _ in range(2):
        store.remove(f"{PREFIX}/{blob.sha256}")
        assert place.keys() == {f"{PREFIX}/{other.sha256}"}
    with pytest.raises(BlobMissing):
        store.read(blob, 100)
    store.remove("nobody/ever/was/here")
    for no_key in ("", "/", "acme/../x", ".tmp/a"):
        with pytest.raises(InvalidRecord):
            store.remove(no_key)
    assert store.put(PREFIX, [b"latents"], "a/b") == blob


def test_what_others_remove_during_a_walk_stops_nobody(place: Place, store: BlobStore) -> None:
    keys = [f"acme/job-{n}/1/decoder/blob" for n in range(20)]
    for key in keys:
        place.plant(key, b"x")
    walk = store.walk("")
    first = next(walk).key
    for key in keys:
        if key != first:
            place.take_away(key)
    assert {found.key for found in walk} <= set(keys) - {first}


def test_what_a_put_under_way_has_written_is_not_found(local_place: LocalPlace) -> None:
    store = local_place.open()

    def looking() -> list[bytes]:
        assert list(store.walk("")) == []
        return [b"latents"]

    store.put(PREFIX, (chunk for _ in (1,) for chunk in looking()), "a/b")
    (local_place.root / ".tmp" / ".tmp-1-leftover").write_bytes(b"x")
    assert len(list(store.walk(""))) == 1


def test_links_lead_a_walk_nowhere(local_place: LocalPlace) -> None:
    store = local_place.open()
    outside = local_place.root.with_name("outside")
    outside.mkdir()
    (outside / "secret").write_bytes(b"x")
    (local_place.root / "evil").symlink_to(outside)
    (local_place.root / "file").symlink_to(outside / "secret")
    assert list(store.walk("")) == []
    for key in ("evil/secret", "file"):
        with pytest.raises(InvalidRecord, match="symbolic link"):
            store.remove(key)
    assert (outside / "secret").exists()


def test_a_folder_that_is_unmounted_is_a_sick_host(local_place: LocalPlace) -> None:
    store = local_place.open()
    store.create("acme/order-7/request", b"mine")
    local_place.root.rename(local_place.root.with_name("elsewhere"))
    with pytest.raises(SickHost):
        list(store.walk(""))
    with pytest.raises(SickHost):
        store.remove("acme/order-7/request")


def test_a_bucket_or_server_that_is_not_there_is_a_sick_host(s3_place: S3Place) -> None:
    nobody = s3_place.open(endpoint="http://127.0.0.1:9", max_attempts=1)
    gone = s3_place.open(uri="s3://no-such-bucket/x")
    wrong = s3_place.open(secret_key="wrong")
    for sick in (nobody, gone, wrong):
        with pytest.raises(SickHost):
            list(sick.walk(""))
    for sick in (nobody, wrong):
        with pytest.raises(SickHost):
            sick.remove("acme/order-7/request")
