"""The fault proxy between real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from streams.local.processes import LOOPBACK
from tests.chaos.proxy import FaultProxy, LinkFault


class EchoServer:
    """Sends back what it receives, and keeps it in `received`."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.has_ended = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with self._listener, peer:
            try:
                while data := peer.recv(65_536):
                    self.received += data
                    peer.sendall(data)
            except ConnectionError:
                pass  # what some of these tests are for
            self.has_ended.set()


@pytest.fixture
def server() -> EchoServer:
    return EchoServer()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, proxy.port), timeout=10) as client:
        assert exchange(client, b"hello") == b"hello"
        yield client


def exchange(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    back = bytearray()
    while len(back) < len(data):
        piece = client.recv(65_536)
        assert piece, "the connection ended"
        back += piece
    return bytes(back)


def drain(client: socket.socket) -> None:
    while client.recv(64):
        pass


def test_a_sound_link_carries_bytes_and_the_end(client: socket.socket) -> None:
    data = bytes(range(256)) * 1_000
    assert exchange(client, data) == data
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


@pytest.mark.parametrize("fault", [LinkFault(latency_s=0.1), LinkFault(bytes_per_s=100)])
def test_a_slow_link_takes_at_least_its_time(
    proxy: FaultProxy, client: socket.socket, fault: LinkFault
) -> None:
    proxy.set_fault(fault)
    start_s = time.monotonic()
    assert exchange(client, b"0123456789") == b"0123456789"
    assert time.monotonic() - start_s >= 0.19  # both ways: a lower bound, whatever the machine


def test_a_black_hole_is_silent_until_it_heals(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    proxy.set_fault(LinkFault(is_black_hole=True))
    client.sendall(b"later")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(1)
    assert bytes(server.received) == b"hello"
    client.settimeout(10)
    proxy.heal()
    assert client.recv(5) == b"later"


def test_a_reset_ends_both_ends_at_once(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    assert proxy.reset_all() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert server.has_ended.wait(10)


def test_a_cut_lets_exactly_so_many_bytes_through(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    proxy.set_fault(LinkFault(cut_after_bytes=7))
    client.sendall(b"0123456789")
    assert server.has_ended.wait(10)
    assert bytes(server.received) == b"hello0123456"
    with pytest.raises(ConnectionResetError):
        drain(client)


def test_dropped_answers_are_answers_to_what_was_done(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    proxy.set_fault(LinkFault(drops_answers=True))
    client.sendall(b"do it")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(1)
    assert bytes(server.received) == b"hellodo it"
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_an_answer_of_the_proxys_own_keeps_the_server_out(
    proxy: FaultProxy, client: socket.socket, server: EchoServer
) -> None:
    proxy.set_fault(LinkFault(answer=b"go away"))
    client.sendall(b"do it")
    assert client.recv(64) == b"go away"
    assert server.has_ended.wait(10)
    assert bytes(server.received) == b"hello"


def test_a_server_that_is_away_is_a_reset() -> None:
    with socket.create_server((LOOPBACK, 0)) as gone:
        port = gone.getsockname()[1]
    with FaultProxy(port) as proxy, socket.create_connection((LOOPBACK, proxy.port)) as client:
        client.settimeout(10)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_fault_may_be_meant_for_some_clients_by_what_they_say_first() -> None:
    servers = EchoServer(), EchoServer()
    with FaultProxy(servers[0].port) as first, FaultProxy(servers[1].port) as second:
        for proxy in (first, second):
            proxy.set_fault(LinkFault(is_black_hole=True), lambda said: b"worker-7" in said)
        with (
            socket.create_connection((LOOPBACK, first.port), timeout=10) as one,
            socket.create_connection((LOOPBACK, second.port), timeout=10) as other,
        ):
            one.sendall(b"worker-7 is here")
            assert exchange(other, b"worker-8") == b"worker-8"
            assert exchange(other, b"worker-7") == b"worker-7", "it is known by what it said first"
            assert servers[0].received == b""
            first.heal()
            assert one.recv(64) == b"worker-7 is here"
            first.set_fault(LinkFault(is_black_hole=True), lambda said: b"worker-8" in said)
            assert exchange(one, b"worker-8") == b"worker-8"
