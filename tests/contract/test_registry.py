"""RegistrySchemaIds on the client's registry in memory and on one that speaks HTTP."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from schemas.codec import RECORD_NAMES, Codec, UndecodableRecord
from schemas.records import VideoDone
from streams.errors import FatalError, SettingsError, SickHost
from streams.kafka.registry import RegistrySchemaIds
from tests.golden import SAMPLES

pytest.importorskip("confluent_kafka.schema_registry", reason="needs the extra `registry`")

SCHEMA = '{"type": "record", "name": "VideoDone", "namespace": "reelstream", "fields": []}'


class Registry(ThreadingHTTPServer):
    """The two calls of Confluent's API that we use; `answer`, once set, is given to all calls."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.schemas: list[dict[str, Any]] = []
        self.subjects: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self.answer: tuple[int, bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Api(BaseHTTPRequestHandler):
    server: Registry

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request not in self.server.schemas:
            self.server.schemas.append(request)
        schema_id = self.server.schemas.index(request) + 1
        subject = self.path.split("/")[2]
        self.server.subjects.setdefault(subject, []).append(schema_id)
        self.reply(200, {"id": schema_id})

    def do_GET(self) -> None:
        schema_id = int(self.path.rsplit("/", 1)[-1].split("?")[0])
        if 0 < schema_id <= len(self.server.schemas):
            self.reply(200, self.server.schemas[schema_id - 1])
        else:
            self.reply(404, {"error_code": 40403, "message": "Schema not found"})

    def reply(self, status: int, body: object) -> None:
        self.server.calls.append(self.path)
        payload = json.dumps(body).encode()
        if self.server.answer is not None:
            status, payload = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry over HTTP, empty."""
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(params=["mock", "http"])
def url(request: pytest.FixtureRequest) -> str:
    """Each registry's address."""
    if request.param == "mock":
        return f"mock://{uuid.uuid4()}"
    server: Registry = request.getfixturevalue("registry")
    return server.url


def test_every_record_travels_with_a_registry(url: str) -> None:
    codec = Codec(RegistrySchemaIds(url))
    ids = set()
    for name in RECORD_NAMES:
        data = codec.encode(SAMPLES[name])
        assert data[0] == 0
        ids.add(data[1:5])
        assert SAMPLES[name] == codec.decode(data, type(SAMPLES[name]))
    assert len(ids) == len(RECORD_NAMES)


def test_the_same_schema_has_the_same_id(url: str) -> None:
    ids = RegistrySchemaIds(url)
    first = ids.id_of("reelstream.VideoDone", SCHEMA)
    assert first == ids.id_of("reelstream.VideoDone", SCHEMA)
    assert json.loads(ids.schema_of(first)) == json.loads(SCHEMA)


def test_an_id_that_nobody_registered_is_a_key_error_and_an_undecodable_record(url: str) -> None:
    ids = RegistrySchemaIds(url)
    with pytest.raises(KeyError):
        ids.schema_of(4242)
    with pytest.raises(UndecodableRecord, match="no schema 4242"):
        Codec(ids).decode(b"\0" + (4242).to_bytes(4, "big") + b"abc", VideoDone)


def test_another_process_reads_what_one_wrote_and_each_asks_once(registry: Registry) -> None:
    done = SAMPLES["VideoDone"]
    writer, reader = (Codec(RegistrySchemaIds(registry.url)) for _ in range(2))
    for _ in range(3):
        assert done == reader.decode(writer.encode(done), VideoDone)
    assert registry.subjects == {"reelstream.VideoDone": [1]}
    assert len(registry.calls) == 2


@pytest.mark.parametrize(
    "answer",
    [
        (500, b'{"error_code": 50001, "message": "store down"}'),
        (503, b"busy"),
        (429, b"{}"),
        (401, b"{}"),
        (404, b"<html>a proxy that knows no such path</html>"),
        (200, b"<html>a proxy's page</html>"),
    ],
)
def test_a_registry_that_cannot_answer_is_a_sick_host(
    registry: Registry, answer: tuple[int, bytes]
) -> None:
    registry.answer = answer
    ids = RegistrySchemaIds(registry.url)
    with pytest.raises(SickHost):
        ids.id_of("reelstream.VideoDone", SCHEMA)
    with pytest.raises(SickHost):
        ids.schema_of(1)

    registry.answer = None  # and it recovers
    assert ids.id_of("reelstream.VideoDone", SCHEMA) == 1


def test_a_registry_that_is_not_there_is_a_sick_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ids = RegistrySchemaIds(f"http://127.0.0.1:{port}")
    with pytest.raises(SickHost):
        ids.id_of("reelstream.VideoDone", SCHEMA)
    with pytest.raises(SickHost):
        Codec(ids).decode(b"\0\0\0\0\x01abc", VideoDone)


def test_a_registry_that_does_not_reply_is_a_sick_host_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ids = RegistrySchemaIds(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1)
        with pytest.raises(SickHost):
            ids.schema_of(1)


def test_a_schema_that_the_registry_refuses_is_fatal(registry: Registry) -> None:
    registry.answer = (409, b'{"error_code": 409, "message": "not compatible"}')
    with pytest.raises(FatalError, match=r"refuses reelstream\.VideoDone: not compatible"):
        RegistrySchemaIds(registry.url).id_of("reelstream.VideoDone", SCHEMA)


def test_an_address_that_is_none_is_wrong_use_and_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as wrong:
        RegistrySchemaIds("ftp://user:password@host")
    assert "password" not in str(wrong.value)
