"""The object store: memory for all, and each worker's own, faulty view of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from schemas.records import BlobRef
from streams.blobs.base import (
    Found,
    check_fence_body,
    check_key,
    check_ref,
    is_intact,
    read_whole,
    verified,
)
from streams.errors import BlobMissing

Step = Callable[[str, str], None]

ROOT = "file:///simulated"


class Memory:
    """What lies in the store."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.fences: dict[str, bytes] = {}
        self.num_lost = 0  # creates that found another's fence
        self.harmed: set[str] = set()  # keys of blobs that were lost or corrupted, ever


class MemoryStore:
    """Implements `streams.blobs.base.BlobStore`.

    `before(call, key)` and `after(call, key)` stand around every access: they may raise SickHost,
    end the process, or let others act in between.
    """

    root_uri = ROOT

    def __init__(self, memory: Memory, before: Step, after: Step) -> None:
        self._memory, self._before, self._after = memory, before, after

    def put(self, prefix: str, data: Iterable[bytes], media_type: str) -> BlobRef:
        """Store a blob."""
        body = b"".join(data)
        sha256 = hashlib.sha256(body).hexdigest()
        key = check_key(f"{prefix}/{sha256}")
        self._before("put", key)
        self._memory.blobs[key] = body
        self._after("put", key)
        return BlobRef(f"{ROOT}/{key}", sha256, len(body), media_type)

    def get(self, ref: BlobRef) -> Iterator[bytes]:
        """Stream a blob, checked."""
        key = check_ref(ROOT, ref)
        return self._get(key, ref)

    def _get(self, key: str, ref: BlobRef) -> Iterator[bytes]:
        self._before("get", key)
        body = self._memory.blobs.get(key)
        if body is None:
            raise BlobMissing(f"{ref.uri} is not there")
        yield from verified([body], ref)

    def read(self, ref: BlobRef, max_bytes: int) -> bytes:
        """A whole blob."""
        return read_whole(self, ref, max_bytes)

    def verify(self, ref: BlobRef) -> bool:
        """Whether it is there and right."""
        return is_intact(self, ref)

    def create(self, key: str, body: bytes) -> bytes:
        """Create a fence if none stands there."""
        check_fence_body(key, body)
        self._before("create", check_key(key))
        standing = self._memory.fences.setdefault(key, body)
        self._memory.num_lost += standing != body and "/result." in key
        self._after("create", key)
        return standing

    def walk(self, prefix: str) -> Iterator[Found]:
        """Nobody sweeps here."""
        raise NotImplementedError

    def remove(self, key: str) -> None:
        """Nobody sweeps here."""
        raise NotImplementedError

    def load(self, key: str) -> bytes | None:
        """The fence at `key`."""
        self._before("load", check_key(key))
        return self._memory.fences.get(key)
