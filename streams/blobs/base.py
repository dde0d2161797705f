"""The claim check: what every object store of ours guarantees, and the checks they share.

Records name their bytes by BlobRef (uri, sha256, size, media type); the bytes lie in a store.
Two kinds of object, and no other:

    blob    `<tenant>/<job>/<run>/<stage>/<sha256>`   written by `put`, read by `get`, `read`
    fence   `<tenant>/<job>/...`                      written by `create`, read by `load`

A blob's key holds the hash of its bytes, so writers of one key agree; a fence belongs to whoever
creates it first. Neither is ever changed afterwards; the sweep (streams/blobs/sweep.py) removes
blobs that no live record names, by `walk` and `remove`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from schemas.records import BlobRef
from streams.errors import BlobCorrupt, BlobMissing, InvalidRecord, SettingsError

MAX_FENCE_BYTES: Final = 1 << 20
"""Fences are records (64 KiB) or pointers: anything larger is no fence."""

MAX_KEY_CHARS: Final = 900
"""S3 allows 1024 bytes for prefix and key together."""

CHUNK_BYTES: Final = 1 << 20

DEAD_LETTERS: Final = "dead-letters"
PROBES: Final = "reel-probe"
REDRIVES: Final = "redrives"
OUR_FOLDERS: Final = frozenset({DEAD_LETTERS, PROBES, REDRIVES})
"""Beside the tenants' folders: originals that fit no topic, what probes have put, and who had what
redriven. No tenant has such a name."""

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Found:
    """An object as `walk` finds it. `modified_at` is UTC by the store's clock, to a second."""

    key: str
    size_bytes: int
    modified_at: datetime


class BlobStore(Protocol):
    """An object store; safe to use from several threads and processes at once.

    Every method raises SickHost where the store or the host is at fault (refused, timed out, no
    space, wrong credentials): the same call may succeed later, and repeating it does no harm.
    """

    @property
    def root_uri(self) -> str:
        """`file:///folder` or `s3://bucket/prefix`; every ref's uri begins with it."""
        ...

    def put(self, prefix: str, data: Iterable[bytes], media_type: str) -> BlobRef:
        """Store a blob durably under `<prefix>/<sha256>` and describe it.

        Streams: memory stays flat whatever the size. Nothing is visible before all of it is.
        Idempotent; right bytes that stand there stay untouched, wrong ones are replaced. An error
        that `data` raises passes through, and nothing is left behind.

        Raises:
            InvalidRecord: the prefix is no key.
        """
        ...

    def get(self, ref: BlobRef) -> Iterator[bytes]:
        """Stream a blob's bytes, checked. What was yielded counts only once the iterator has ended.

        Raises:
            InvalidRecord: the ref names nothing that this store may read (at the call).
            BlobMissing: nothing is there (at the first chunk).
            BlobCorrupt: size or sha256 differ from the ref (at the latest at the end; never more
                than `size_bytes` are yielded).
        """
        ...

    def read(self, ref: BlobRef, max_bytes: int) -> bytes:
        """A whole blob, verified; one larger than `max_bytes` is refused before it is read.

        Raises:
            InvalidRecord: as `get`, or with reason `blob_too_large`.
            BlobMissing, BlobCorrupt: as `get`.
        """
        ...

    def verify(self, ref: BlobRef) -> bool:
        """Whether the blob is there and its bytes are right (it reads all of them).

        Raises:
            InvalidRecord: as `get`.
        """
        ...

    def create(self, key: str, body: bytes) -> bytes:
        """Create a fence, durably, if nothing stands at `key`; return what stands there now.

        Of all callers ever, one wins, and all get the winner's bytes. A caller whose answer was
        lost may lose to itself: compare the bytes, not the fact.

        Raises:
            InvalidRecord: the key is none, or the body is larger than MAX_FENCE_BYTES.
        """
        ...

    def load(self, key: str) -> bytes | None:
        """The fence at `key`, or None where none stands.

        Raises:
            InvalidRecord: the key is none.
            BlobCorrupt: what stands there is larger than MAX_FENCE_BYTES.
        """
        ...

    def walk(self, prefix: str) -> Iterator[Found]:
        """Every object below `prefix/`, of all that the store holds where it is "".

        Streams: memory stays flat whatever the number. Keys that share a folder come one after
        the other. What comes or goes meanwhile may be found or not. Strangers' objects are found
        too, under names that need not be keys; what a `put` under way has written is not.

        Raises (at the first object or a later one):
            InvalidRecord: the prefix is no key.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove what stands at `key`, if anything does. Not for fences.

        Raises:
            InvalidRecord: the key is none.
        """
        ...


def open_store(
    uri: str,
    *,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    region: str = "us-east-1",
    connect_timeout_s: float = 5.0,
    read_timeout_s: float = 30.0,
    max_attempts: int = 3,
    max_connections: int = 32,
) -> BlobStore:
    """The store at `file:///folder` (created where missing) or `s3://bucket[/prefix]`.

    All but `uri` concerns S3 only. Nothing is asked of a network here.

    Raises:
        SettingsError: another scheme, a malformed address, or a folder that cannot be made.
    """
    parts = urlsplit(uri)
    if parts.query or parts.fragment:
        raise SettingsError(f"the blob store {uri!r} has a query or fragment: leave it out")
    match parts.scheme:
        case "file":
            # Imported here so that a worker loads only the store that it uses.
            from streams.blobs.local import LocalStore

            return LocalStore(_folder_of(uri, parts.netloc, parts.path))
        case "s3":
            bucket, prefix = _bucket_of(uri, parts.netloc, parts.path)
            from streams.blobs.s3 import S3Store

            return S3Store(
                bucket,
                prefix,
                endpoint=endpoint,
                access_key=access_key,
                secret_key=secret_key,
                region=region,
                connect_timeout_s=connect_timeout_s,
                read_timeout_s=read_timeout_s,
                max_attempts=max_attempts,
                max_connections=max_connections,
            )
        case _:
            raise SettingsError(
                f"the blob store {uri!r} is neither file:///FOLDER nor s3://BUCKET/PREFIX"
            )


def _folder_of(uri: str, netloc: str, path: str) -> Path:
    folder = Path(unquote(path))
    if netloc not in ("", "localhost") or not folder.is_absolute() or folder == Path("/"):
        raise SettingsError(f"the blob store {uri!r} must name a folder, as in file:///srv/blobs")
    return folder


def _bucket_of(uri: str, bucket: str, path: str) -> tuple[str, str]:
    if _BUCKET.fullmatch(bucket) is None:
        raise SettingsError(f"the blob store {uri!r} must name a bucket, as in s3://reel/blobs")
    prefix = path.strip("/")
    if prefix:
        try:
            check_key(prefix)
        except InvalidRecord as error:
            raise SettingsError(f"the prefix of the blob store {uri!r} is {error}") from error
    return bucket, prefix


def check_segment(segment: str) -> str:
    """The segment itself if it may stand between two slashes of a key.

    >>> check_segment("acme-7")
    'acme-7'
    >>> check_segment("..")
    Traceback (most recent call last):
    streams.errors.InvalidRecord: not a key: a segment is '..'

    Raises:
        InvalidRecord: it is not 1 to 128 of `A-Za-z0-9._-`, or begins with a dot.
    """
    if _SEGMENT.fullmatch(segment) is None:
        raise InvalidRecord(
            f"not a key: a segment is {_shortened(segment)}", reason_code="bad_blob_key"
        )
    return segment


def check_key(key: str) -> str:
    """The key itself if it can only name something below a store's root.

    Raises:
        InvalidRecord: a segment fails `check_segment`, or the key is too long.
    """
    if len(key) > MAX_KEY_CHARS:
        raise InvalidRecord(
            f"not a key: longer than {MAX_KEY_CHARS} characters", reason_code="bad_blob_key"
        )
    for segment in key.split("/"):
        check_segment(segment)
    return key


def check_ref(root_uri: str, ref: BlobRef) -> str:
    """The key that a ref names in the store at `root_uri`.

    Raises:
        InvalidRecord: its uri does not lie below the root, or hash or size cannot be right.
    """
    root = root_uri + "/"
    if not ref.uri.startswith(root):
        raise InvalidRecord(
            f"{_shortened(ref.uri)} does not lie below {root}", reason_code="bad_blob_ref"
        )
    if _SHA256.fullmatch(ref.sha256) is None:
        raise InvalidRecord("sha256 is not 64 lower-case hex digits", reason_code="bad_blob_ref")
    if ref.size_bytes < 0:
        raise InvalidRecord(f"size_bytes is {ref.size_bytes}", reason_code="bad_blob_ref")
    return check_key(ref.uri[len(root) :])


def check_fence_body(key: str, body: bytes) -> None:
    """Refuse a body that is no fence record.

    Raises:
        InvalidRecord: it is larger than MAX_FENCE_BYTES.
    """
    if len(body) > MAX_FENCE_BYTES:
        raise InvalidRecord(
            f"{key}: {len(body)} bytes, a fence has at most {MAX_FENCE_BYTES}",
            reason_code="fence_too_large",
        )


def check_size(ref: BlobRef, found_bytes: int) -> None:
    """Refuse a blob whose size is known to be wrong before its bytes are read.

    Raises:
        BlobCorrupt: the sizes differ.
    """
    if found_bytes != ref.size_bytes:
        raise BlobCorrupt(f"{ref.uri}: {found_bytes} bytes, {ref.size_bytes} expected")


def measured(data: Iterable[bytes], write: Callable[[bytes], object]) -> tuple[str, int]:
    """Write every chunk; return (sha256 as hex, size in bytes) of them all."""
    digest = hashlib.sha256()
    size_bytes = 0
    for chunk in data:
        digest.update(chunk)
        size_bytes += len(chunk)
        write(chunk)
    return digest.hexdigest(), size_bytes


def verified(chunks: Iterable[bytes], ref: BlobRef) -> Iterator[bytes]:
    """The chunks again, never more than `ref.size_bytes` of them; the hash is checked at the end.

    Raises:
        BlobCorrupt: size or sha256 differ from the ref.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > ref.size_bytes:
            raise BlobCorrupt(f"{ref.uri}: more than the {ref.size_bytes} bytes expected")
        digest.update(chunk)
        yield chunk
    check_size(ref, size_bytes)
    if digest.hexdigest() != ref.sha256:
        raise BlobCorrupt(f"{ref.uri}: sha256 is {digest.hexdigest()}, {ref.sha256} expected")


def read_whole(store: BlobStore, ref: BlobRef, max_bytes: int) -> bytes:
    """`BlobStore.read` in terms of `get`."""
    check_ref(store.root_uri, ref)
    if ref.size_bytes > max_bytes:
        raise InvalidRecord(
            f"{ref.uri}: {ref.size_bytes} bytes, at most {max_bytes} are read here",
            reason_code="blob_too_large",
        )
    return b"".join(store.get(ref))


def is_intact(store: BlobStore, ref: BlobRef) -> bool:
    """`BlobStore.verify` in terms of `get`."""
    try:
        for _ in store.get(ref):
            pass
    except (BlobMissing, BlobCorrupt):
        return False
    return True


def _shortened(text: str) -> str:
    """For a message: a stranger's text, quoted and bounded."""
    return repr(text if len(text) <= 200 else text[:200] + "...")
