"""Places for stores under test: what lies there is seen and changed behind the store's back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import boto3

from streams.blobs.base import BlobStore, open_store
from streams.blobs.s3 import S3Store
from streams.local.object_store import S3Server


class Place(Protocol):
    """One root; `settings` are the arguments of `open_store`, fit for another process."""

    num_races: int

    @property
    def settings(self) -> dict[str, Any]: ...
    def open(self) -> BlobStore: ...
    def plant(self, key: str, body: bytes) -> None: ...
    def take_away(self, key: str) -> None: ...
    def keys(self) -> set[str]: ...


class LocalPlace:
    """A folder; `root` need not exist before `open`."""

    num_races = 50

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings: dict[str, Any] = {"uri": root.as_uri()}

    def open(self) -> BlobStore:
        return open_store(**self.settings)

    def plant(self, key: str, body: bytes) -> None:
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        (self.root / key).write_bytes(body)

    def take_away(self, key: str) -> None:
        (self.root / key).unlink()

    def keys(self) -> set[str]:
        """What is visible: temporary files are not, but see `temporary_files`."""
        files = {str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file()}
        return {key for key in files if not key.startswith(".tmp/")}

    def temporary_files(self) -> set[Path]:
        return set(self.root.glob(".tmp/.tmp-*"))


class S3Place:
    """A prefix of the server's bucket."""

    # SeaweedFS guards a conditional create by a lock that losers ask for once a second.
    num_races = 8

    def __init__(self, server: S3Server, prefix: str, cleanup: ExitStack) -> None:
        self.prefix = prefix
        self._server = server
        self._cleanup = cleanup
        self.settings: dict[str, Any] = {
            "uri": f"s3://{server.bucket}/{prefix}",
            "endpoint": server.endpoint,
            "access_key": server.access_key,
            "secret_key": server.secret_key,
            "connect_timeout_s": 2.0,
        }
        self._raw = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name="us-east-1",
        )
        cleanup.callback(self._raw.close)

    def open(self, **changed: Any) -> S3Store:
        store = open_store(**{**self.settings, **changed})
        assert isinstance(store, S3Store)
        self._cleanup.callback(store.close)
        return store

    def plant(self, key: str, body: bytes) -> None:
        self._raw.put_object(Bucket=self._server.bucket, Key=f"{self.prefix}/{key}", Body=body)

    def take_away(self, key: str) -> None:
        self._raw.delete_object(Bucket=self._server.bucket, Key=f"{self.prefix}/{key}")

    def keys(self) -> set[str]:
        pages = self._raw.get_paginator("list_objects_v2").paginate(
            Bucket=self._server.bucket, Prefix=f"{self.prefix}/"
        )
        found = (item["Key"] for page in pages for item in page.get("Contents", ()))
        return {key.removeprefix(f"{self.prefix}/") for key in found}


@contextmanager
def cut_connections(endpoint: str, *, num_cut: int, after_bytes: int) -> Iterator[str]:
    """A proxy's endpoint; its first connections break once that many bytes were answered.

    With 0 bytes the server has done what was asked and the answer is lost.
    """
    host, port = endpoint.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    sockets = [listener]
    threads: list[threading.Thread] = []

    def copy(source: socket.socket, target: socket.socket, left_bytes: float) -> None:
        with suppress(OSError):
            while (chunk := source.recv(65536)) and left_bytes >= len(chunk):
                target.sendall(chunk)
                left_bytes -= len(chunk)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def start(*arguments: Any, target: Any) -> None:
        threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        threads[-1].start()

    def accept() -> None:
        num_accepted = 0
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                sockets.extend((client, server))
                is_cut = num_accepted < num_cut
                num_accepted += 1
                start(client, server, float("inf"), target=copy)
                start(server, client, after_bytes if is_cut else float("inf"), target=copy)

    start(target=accept)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for end in sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5.0)
        for end in sockets:
            end.close()
