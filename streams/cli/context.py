"""Which pipeline a command talks to, and the client for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.settings import Settings, read_settings

if TYPE_CHECKING:
    from schemas.codec import Codec
    from streams.blobs.base import BlobStore
    from streams.client import Client


def client_settings() -> Settings:
    """Where REEL_BOOTSTRAP says; else the local stack of REEL_HOME, if one runs; else defaults."""
    from streams.local.stack_file import running_stack

    settings = read_settings()
    if "bootstrap" in settings.model_fields_set:
        return settings
    stack = running_stack(settings.home)
    if stack is None:
        return settings
    found: dict[str, object] = {
        "bootstrap": stack.bootstrap,
        "group_protocol": stack.group_protocol,
        "partitions": stack.num_partitions,
        "replication_factor": stack.replication_factor,
    }
    if not settings.blobs:
        found["blobs"] = stack.blobs
    return settings.model_copy(update=found)


def make_client(settings: Settings, blobs: BlobStore | None = None) -> Client:
    """The client of that pipeline."""
    from streams.cli.terminal import quiet_libraries
    from streams.client import Client

    quiet_libraries()
    return Client(
        settings.bootstrap,
        blobs,
        tiers=settings.tiers,
        default_tier=settings.default_tier,
        tenants=settings.tenants,
        kafka_extra=settings.kafka_extra,
        codec=make_codec(settings),
    )


def make_codec(settings: Settings) -> Codec:
    """The codec of that pipeline: Confluent's wire format with a registry."""
    from schemas.codec import Codec

    if settings.schema_registry_url is None:
        return Codec()
    from streams.kafka.registry import RegistrySchemaIds

    return Codec(RegistrySchemaIds(settings.schema_registry_url))


def known_store(settings: Settings) -> BlobStore | None:
    """The object store, where one is set or a local stack runs; None where it would be a guess."""
    return make_store(settings) if settings.blobs else None


def make_store(settings: Settings) -> BlobStore:
    """The object store of that pipeline."""
    from streams.blobs.opening import store_of  # S3's client takes a while to import

    return store_of(settings)
