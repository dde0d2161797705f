"""A folder as object store: one machine, any number of threads and processes.

Whatever stands under a key is whole and on disk: it was written to a temporary file, synced, and
only then linked to its name. `os.link` refuses a name that is taken, which makes it the
conditional create.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from schemas.records import BlobRef
from streams.blobs.base import (
    CHUNK_BYTES,
    MAX_FENCE_BYTES,
    Found,
    check_fence_body,
    check_key,
    check_ref,
    check_size,
    is_intact,
    measured,
    read_whole,
    verified,
)
from streams.errors import BlobCorrupt, BlobMissing, InvalidRecord, SettingsError, SickHost

# No key can name these: no segment of a key begins with a dot.
_TEMPORARY_FOLDER: Final = ".tmp"
_TEMPORARY_PREFIX: Final = ".tmp-"
_LEFTOVER_AGE_S: Final = 24 * 3600.0


class LocalStore:
    """A BlobStore in a folder of a file system that has hard links.

    The folder is created where missing. Links below it are not followed: a key behind one is an
    InvalidRecord. Temporary files of killed processes are removed at opening once a day old.
    """

    def __init__(self, root: Path) -> None:
        """Open the folder `root`.

        Raises:
            SettingsError: it does not exist and cannot be made.
        """
        root = Path(os.path.abspath(root))
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"the blob folder {root}: {error.strerror}") from error
        self._uri = root.as_uri()
        # The uri keeps the path as given, so that it means the same on another machine.
        self._root = root.resolve()
        self._temporary = self._root / _TEMPORARY_FOLDER
        self._remove_leftovers()

    @property
    def root_uri(self) -> str:
        """`file:///folder`, as opened."""
        return self._uri

    def put(self, prefix: str, data: Iterable[bytes], media_type: str) -> BlobRef:
        """See BlobStore.put."""
        check_key(f"{prefix}/{'0' * 64}")
        with self._temporary_file() as (file, path):

            def write(chunk: bytes) -> None:
                # Here and not around the loop: an OSError of `data` itself is not the disk's.
                with _host_faults(f"writing a blob of {prefix}"):
                    file.write(chunk)

            sha256, size_bytes = measured(data, write)
            key = f"{prefix}/{sha256}"
            ref = BlobRef(f"{self._uri}/{key}", sha256, size_bytes, media_type)
            with _host_faults(f"writing {key}"):
                _sync(file)
                if not self._link(path, key) and not self.verify(ref):
                    os.replace(path, self._path(key))
                _sync_folder(self._path(key).parent)
        return ref

    def get(self, ref: BlobRef) -> Iterator[bytes]:
        """See BlobStore.get."""
        return verified(self._chunks(check_ref(self._uri, ref), ref), ref)

    def read(self, ref: BlobRef, max_bytes: int) -> bytes:
        """See BlobStore.read."""
        return read_whole(self, ref, max_bytes)

    def verify(self, ref: BlobRef) -> bool:
        """See BlobStore.verify."""
        return is_intact(self, ref)

    def create(self, key: str, body: bytes) -> bytes:
        """See BlobStore.create."""
        check_key(key)
        check_fence_body(key, body)
        with (
            self._temporary_file() as (file, path),
            _host_faults(f"creating {key}"),
        ):
            file.write(body)
            _sync(file)
            has_won = self._link(path, key)
            # The loser too: it acts on the winner's bytes, which must outlive a power cut.
            _sync_folder(self._path(key).parent)
        if has_won:
            return body
        standing = self.load(key)
        if standing is None:
            raise SickHost(f"{key}: the fence that stood there is gone")
        return standing

    def load(self, key: str) -> bytes | None:
        """See BlobStore.load."""
        file = self._open(check_key(key))
        if file is None:
            return None
        with file, _host_faults(f"reading {key}"):
            body = file.read(MAX_FENCE_BYTES + 1)
        if len(body) > MAX_FENCE_BYTES:
            raise BlobCorrupt(f"{key}: larger than a fence may be, {MAX_FENCE_BYTES} bytes")
        return body

    def walk(self, prefix: str) -> Iterator[Found]:
        """See BlobStore.walk. Links are neither followed nor found."""
        folder = self._path(check_key(prefix)) if prefix else self._root
        with _host_faults(f"listing {prefix or 'the store'}"):
            if not self._root.is_dir():
                raise SickHost(f"the blob folder {self._root} is gone")
            yield from self._walk(folder)

    def remove(self, key: str) -> None:
        """See BlobStore.remove. Its folders stay: a writer may be about to use them."""
        path = self._path(check_key(key))
        with _host_faults(f"removing {key}"):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError) as error:
                if not self._root.is_dir():
                    raise SickHost(f"the blob folder {self._root} is gone") from error

    def _walk(self, folder: Path) -> Iterator[Found]:
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):  # gone, or never there
            return
        for name in names:
            path = folder / name
            if path == self._temporary:
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:  # removed meanwhile
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(path)
            elif stat.S_ISREG(status.st_mode):
                modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
                key = path.relative_to(self._root).as_posix()
                yield Found(key, status.st_size, modified_at)

    def _chunks(self, key: str, ref: BlobRef) -> Iterator[bytes]:
        file = self._open(key)
        if file is None:
            raise BlobMissing(f"{ref.uri}: not there")
        with file:
            check_size(ref, os.fstat(file.fileno()).st_size)
            while True:
                with _host_faults(f"reading {key}"):
                    chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def _path(self, key: str) -> Path:
        """Where a key lies. Raises InvalidRecord where a link stands on the way."""
        path = self._root / key
        if os.path.realpath(path) != str(path):
            raise InvalidRecord(f"{key}: behind a symbolic link", reason_code="bad_blob_ref")
        return path

    def _open(self, key: str) -> BinaryIO | None:
        """The file at a key, or None where there is none."""
        path = self._path(key)
        with _host_faults(f"opening {key}"):
            try:
                # O_NONBLOCK: a fifo somebody put there must not hang the worker.
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError) as error:
                if not self._root.is_dir():
                    # An unmounted store must not look like one that lost every blob.
                    raise SickHost(f"the blob folder {self._root} is gone") from error
                return None
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                return None
            return open(descriptor, "rb", buffering=0)

    def _link(self, source: Path, key: str) -> bool:
        """Give a synced file its name; False if the name is taken. The file's bytes stay."""
        target = self._path(key)
        self._make_folder(target.parent)
        try:
            os.link(source, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise SickHost(f"{self._root}: its file system has no hard links") from error
            raise
        return True

    def _make_folder(self, folder: Path) -> None:
        """Create a folder below the root, durably."""
        if not self._root.is_dir():
            raise SickHost(f"the blob folder {self._root} is gone")
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            with suppress(FileExistsError):  # another writer was quicker
                new.mkdir()
            _sync_folder(new.parent)

    @contextmanager
    def _temporary_file(self) -> Iterator[tuple[BinaryIO, Path]]:
        """A new file in the store's own file system; its temporary name goes in any case."""
        path = self._temporary / f"{_TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
        with _host_faults("making a temporary file"):
            self._make_folder(self._temporary)
            file = open(path, "xb", buffering=CHUNK_BYTES)  # noqa: SIM115 - closed below
        try:
            yield file, path
        finally:
            # Closing writes what is buffered and fails where the disk is full; nobody needs it.
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                path.unlink()

    def _remove_leftovers(self) -> None:
        oldest_s = time.time() - _LEFTOVER_AGE_S
        with suppress(OSError):  # an unwritable store may still be read; a twin may clean too
            for path in self._temporary.glob(f"{_TEMPORARY_PREFIX}*"):
                with suppress(OSError):
                    if path.lstat().st_mtime < oldest_s:
                        path.unlink()


@contextmanager
def _host_faults(doing: str) -> Iterator[None]:
    """Whatever the file system refuses in here is the host's fault, not the record's."""
    try:
        yield
    except OSError as error:
        raise SickHost(f"{doing}: {error.strerror or error}") from error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
