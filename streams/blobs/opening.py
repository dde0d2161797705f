"""The object store that the settings name."""

from __future__ import annotations

from streams.blobs.base import BlobStore, open_store
from streams.settings import Settings


def store_of(settings: Settings) -> BlobStore:
    """The store of a process; nothing is asked of a network here.

    Raises:
        SettingsError: `open_store`.
    """
    return open_store(
        settings.blobs_uri,
        endpoint=settings.s3_endpoint,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        region=settings.s3_region,
        connect_timeout_s=settings.store_connect_ms / 1000,
        read_timeout_s=settings.store_read_ms / 1000,
    )
