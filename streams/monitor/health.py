"""`/metrics`, `/healthz` and `/readyz` of a worker, on a thread of their own.

/healthz   200 while the loop turns, else 503: whoever started the process should restart it
/readyz    200 when nothing is missing and nothing drains, else 503 and what is missing
/metrics   Prometheus text, or OpenMetrics if asked for
"""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Protocol, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streams.clock import AnchoredClock
from streams.errors import SettingsError

log = logging.getLogger(__name__)

MAX_TURN_AGE_S = 60.0
"""A loop that has not turned for so long hangs: a turn takes 0.1 s, a revoke some seconds."""

_REQUEST_S = 5.0  # a client that is slower than this is cut off


class Clock(Protocol):
    """The clock whose `now_s` the loop hands to `turned`."""

    def now_s(self) -> float:
        """Seconds since the epoch, never going back."""


class Health:
    """Whether this worker lives and may be sent work. Listens from `start` to `stop`.

    `missing` holds what a worker that is not ready still lacks, in words for people; the loop's
    thread owns it.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        *,
        max_turn_age_s: float = MAX_TURN_AGE_S,
        clock: Clock | None = None,
    ) -> None:
        """Take the port; 0 means any free one.

        Raises:
            SettingsError: the port is taken, or this machine has no such address.
        """
        self.missing: set[str] = set()
        self._registry = registry
        self._clock = clock or AnchoredClock()
        self._max_turn_age_s = max_turn_age_s
        self._turned_s = self._clock.now_s()
        self._is_draining = False
        self._thread: threading.Thread | None = None
        self._server = _listen(self, host, port)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def turned(self, now_s: float) -> None:
        """The loop has turned once."""
        self._turned_s = now_s

    def done(self, what: str) -> None:
        """This is missing no more."""
        self.missing.discard(what)

    def drain(self) -> None:
        """Not ready from now on, whatever comes."""
        self._is_draining = True

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, name="health"
        )
        self._thread.daemon = True  # a worker that crashes must not be kept alive by its page
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port; may be called twice."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def page(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of the answer to a GET of `path`."""
        match path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return HTTPStatus.OK, content_type, encode(self._registry)
            case "/healthz":
                return _text(self._what_hangs())
            case "/readyz":
                return _text(self._what_lacks())
        body = b"/metrics /healthz /readyz\n"
        return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", body

    def _what_hangs(self) -> str | None:
        age_s = self._clock.now_s() - self._turned_s
        if age_s <= self._max_turn_age_s:
            return None
        return f"the loop turned {age_s:.1f} s ago; it may take {self._max_turn_age_s:g}"

    def _what_lacks(self) -> str | None:
        if self._is_draining:
            return "draining"
        missing = sorted(self.missing.copy())  # one step: the loop may change it meanwhile
        return "missing: " + ", ".join(missing) if missing else None


def _text(trouble: str | None) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if trouble is None else HTTPStatus.SERVICE_UNAVAILABLE
    return status, "text/plain; charset=utf-8", f"{trouble or 'ok'}\n".encode()


def _listen(health: Health, host: str, port: int) -> _Server:
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return _Server(health, info[0][0], info[0][4])
    except OSError as fault:
        if fault.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "is in use" if fault.errno == errno.EADDRINUSE else "may not be taken"
            raise SettingsError(
                f"REEL_METRICS_PORT: port {port} on {host} {why}: choose another, or 0 for any"
            ) from fault
        raise SettingsError(f"REEL_METRICS_HOST: cannot listen on {host}: {fault}") from fault


class _Server(socketserver.ThreadingTCPServer):
    """A thread per request, so that a slow client never keeps a probe waiting."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(
        self, health: Health, family: socket.AddressFamily, address: Sequence[object]
    ) -> None:
        self.address_family = family
        self.health = health
        super().__init__((str(address[0]), int(str(address[1]))), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a client of the health page went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "reel", ""
    timeout = _REQUEST_S

    def do_GET(self) -> None:
        """Answer with the page."""
        status, content_type, body = self.server.health.page(
            self.path, self.headers.get("Accept", "")
        )
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: not worth a line."""
