"""S3 and what speaks like it as object store (boto3).

Fences and small blobs are written with `If-None-Match: *`, so the store itself decides who was
first. Large blobs go up in parts and appear when the last is confirmed.
"""

from __future__ import annotations

import base64
import ipaddress
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

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
from streams.errors import (
    BlobCorrupt,
    BlobMissing,
    PipelineError,
    RetryableError,
    SettingsError,
    StoreAway,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, GetObjectOutputTypeDef

PART_BYTES: Final = 8 << 20
"""One part of a multipart upload, held in memory; 10,000 of them make the largest blob: 80 GiB."""

MULTIPART_ABOVE_BYTES: Final = 32 << 20
"""Up to this size a blob goes up in one request."""

_SPOOL_MEMORY_BYTES: Final = 4 << 20
_CONFLICT_TRIES: Final = 8
_CONFLICT_PAUSE_S: Final = 0.05

# 4xx codes that say something of this host, its clock, its credentials or the bucket; and
# NoSuchUpload: the upload ended while its answer was lost, the next try finds out.
_HOST_CODES: Final = frozenset(
    {
        "BadDigest",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "NoSuchBucket",
        "NoSuchUpload",
        "RequestTimeTooSkewed",
        "RequestTimeout",
        "SignatureDoesNotMatch",
        "XAmzContentSHA256Mismatch",
    }
)


class S3Store:
    """A BlobStore in a bucket; one client, shared by all threads.

    Without keys the standard AWS chain finds the credentials (environment, files, web identity,
    container), except the metadata service of EC2 instances, which hangs where there is none.
    The principal needs ListBucket: without it S3 answers 403 for an object that is not there.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        region: str = "us-east-1",
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 30.0,
        max_attempts: int = 3,
        max_connections: int = 32,
    ) -> None:
        """Make the client; nothing is asked of the network.

        Raises:
            SettingsError: one key without the other, or an endpoint that is no http address.
        """
        if (access_key is None) != (secret_key is None):
            raise SettingsError("S3: give both access key and secret key, or neither")
        self._bucket = bucket
        self._below = f"{prefix}/" if prefix else ""
        self._uri = f"s3://{bucket}/{prefix}".rstrip("/")
        session = botocore.session.Session()
        session.get_component("credential_provider").remove("iam-role")
        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": max_attempts},
            max_pool_connections=max_connections,
            # Servers other than AWS have no host name per bucket.
            s3={"addressing_style": "path" if endpoint is not None else "auto"},
            # We send and verify SHA-256 ourselves; the default CRC needs trailers that some lack.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A proxy set for the machine has no business between us and a loopback address.
            proxies={} if _is_loopback(endpoint) else None,
        )
        try:
            self._client: S3Client = boto3.session.Session(botocore_session=session).client(
                "s3",
                endpoint_url=endpoint,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                region_name=region,
                config=config,
            )
        except (ValueError, BotoCoreError) as error:
            raise SettingsError(f"S3 at {endpoint or region}: {error}") from error

    @property
    def root_uri(self) -> str:
        """`s3://bucket` or `s3://bucket/prefix`."""
        return self._uri

    def close(self) -> None:
        """Close idle connections; the store is not to be used afterwards."""
        self._client.close()

    def put(self, prefix: str, data: Iterable[bytes], media_type: str) -> BlobRef:
        """See BlobStore.put. The hash is known only at the end, so bytes spool to disk first."""
        check_key(f"{prefix}/{'0' * 64}")
        with SpooledTemporaryFile(max_size=_SPOOL_MEMORY_BYTES) as spool:

            def write(chunk: bytes) -> None:
                # Here and not around the loop: an error of `data` itself is not the disk's.
                with _host_faults(f"spooling a blob of {prefix}"):
                    spool.write(chunk)

            sha256_hex, size_bytes = measured(data, write)
            key = f"{prefix}/{sha256_hex}"
            ref = BlobRef(f"{self._uri}/{key}", sha256_hex, size_bytes, media_type)
            if size_bytes > MULTIPART_ABOVE_BYTES:
                if not self.verify(ref):
                    self._put_parts(key, spool, media_type)
            elif not self._put_new(key, spool, sha256_hex, media_type) and not self.verify(ref):
                self._put_over(key, spool, sha256_hex, media_type)
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
        if self._put_new(key, body, sha256(body).hexdigest(), "application/octet-stream"):
            return body
        standing = self.load(key)
        if standing is None:
            raise StoreAway(f"{key}: the fence that stood there is gone")
        return standing

    def load(self, key: str) -> bytes | None:
        """See BlobStore.load."""
        check_key(key)
        answer = self._fetch(key)
        if answer is None:
            return None
        with closing(answer["Body"]) as body, _host_faults(f"reading {key}"):
            if answer["ContentLength"] > MAX_FENCE_BYTES:
                raise BlobCorrupt(f"{key}: larger than a fence may be, {MAX_FENCE_BYTES} bytes")
            # Unbounded on purpose: only a read to the end notices a connection cut short.
            return body.read()

    def walk(self, prefix: str) -> Iterator[Found]:
        """See BlobStore.walk. Objects of upload parts are none of it."""
        below = f"{self._below}{check_key(prefix)}/" if prefix else self._below
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=below
        )
        with _host_faults(f"listing {prefix or 'the store'}"):
            for page in pages:
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._below)
                    yield Found(key, item["Size"], item["LastModified"].astimezone(UTC))

    def remove(self, key: str) -> None:
        """See BlobStore.remove."""
        with _host_faults(f"removing {check_key(key)}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._below + key)

    def _fetch(self, key: str) -> GetObjectOutputTypeDef | None:
        """The opened object, or None where there is none."""
        with _host_faults(f"reading {key}"):
            try:
                return self._client.get_object(Bucket=self._bucket, Key=self._below + key)
            except self._client.exceptions.NoSuchKey:
                return None

    def _chunks(self, key: str, ref: BlobRef) -> Iterator[bytes]:
        answer = self._fetch(key)
        if answer is None:
            raise BlobMissing(f"{ref.uri}: not there")
        with closing(answer["Body"]) as body:
            check_size(ref, answer["ContentLength"])
            while True:
                # A connection cut short raises here, so it is never taken for a corrupt blob.
                with _host_faults(f"reading {key}"):
                    chunk = body.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def _put_new(self, key: str, body: bytes | IO[bytes], sha256_hex: str, media_type: str) -> bool:
        """Write the object if there is none; False if there is."""
        for attempt in range(_CONFLICT_TRIES):
            try:
                self._put_once(key, body, sha256_hex, media_type, only_if_new=True)
            except ClientError as error:
                match _status_of(error):
                    case 412:
                        return False
                    case 409:  # writers met in the very moment: nobody has won yet, ask again
                        time.sleep(_CONFLICT_PAUSE_S * 2**attempt)
                    case _:
                        raise _fault(f"creating {key}", error) from error
            else:
                return True
        raise StoreAway(f"creating {key}: {_CONFLICT_TRIES} conflicts in a row")

    def _put_over(
        self, key: str, body: bytes | IO[bytes], sha256_hex: str, media_type: str
    ) -> None:
        """Write the object over what is there."""
        try:
            self._put_once(key, body, sha256_hex, media_type, only_if_new=False)
        except ClientError as error:
            raise _fault(f"writing {key}", error) from error

    def _put_once(
        self,
        key: str,
        body: bytes | IO[bytes],
        sha256_hex: str,
        media_type: str,
        *,
        only_if_new: bool,
    ) -> None:
        """One write; the answers of the server pass through, all other errors are the host's."""
        with _host_faults(f"writing {key}", except_answers=True):
            if not isinstance(body, bytes):
                body.seek(0)
            checksum = base64.b64encode(bytes.fromhex(sha256_hex)).decode()
            if only_if_new:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._below + key,
                    Body=body,
                    ContentType=media_type,
                    ChecksumSHA256=checksum,
                    IfNoneMatch="*",
                )
            else:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._below + key,
                    Body=body,
                    ContentType=media_type,
                    ChecksumSHA256=checksum,
                )

    def _put_parts(self, key: str, spool: IO[bytes], media_type: str) -> None:
        bucket, name = self._bucket, self._below + key
        with _host_faults(f"writing {key}"):
            spool.seek(0)
            upload = self._client.create_multipart_upload(
                Bucket=bucket, Key=name, ContentType=media_type, ChecksumAlgorithm="SHA256"
            )["UploadId"]
            try:
                parts: list[CompletedPartTypeDef] = []
                while chunk := spool.read(PART_BYTES):
                    checksum = base64.b64encode(sha256(chunk).digest()).decode()
                    answer = self._client.upload_part(
                        Bucket=bucket,
                        Key=name,
                        UploadId=upload,
                        PartNumber=len(parts) + 1,
                        Body=chunk,
                        ChecksumSHA256=checksum,
                    )
                    parts.append(
                        {
                            "PartNumber": len(parts) + 1,
                            "ETag": answer["ETag"],
                            "ChecksumSHA256": checksum,
                        }
                    )
                self._client.complete_multipart_upload(
                    Bucket=bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
                )
            except BaseException:
                # Best effort: a lifecycle rule of the bucket has to remove what stays.
                with suppress(ClientError, BotoCoreError):
                    self._client.abort_multipart_upload(Bucket=bucket, Key=name, UploadId=upload)
                raise


@contextmanager
def _host_faults(doing: str, *, except_answers: bool = False) -> Iterator[None]:
    """What fails in here takes the fate of its fault; `except_answers` lets ClientError pass."""
    try:
        yield
    except ClientError as error:
        if except_answers:
            raise
        raise _fault(doing, error) from error
    except ParamValidationError:
        raise  # our own bug, found before anything was sent
    except (BotoCoreError, OSError) as error:
        raise StoreAway(f"{doing}: {error}") from error


def _status_of(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _fault(doing: str, error: ClientError) -> PipelineError:
    """Which fate an answer of the server means for the record."""
    status = _status_of(error)
    code = error.response["Error"]["Code"]
    text = f"{doing}: {code} ({status})"
    is_hosts = status < 400 or status >= 500 or status in (401, 403, 408, 429)
    return StoreAway(text) if is_hosts or code in _HOST_CODES else RetryableError(text)


def _is_loopback(endpoint: str | None) -> bool:
    host = urlsplit(endpoint or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
