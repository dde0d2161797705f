"""A TCP proxy on loopback that breaks what passes through it, in ways a test chooses."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from streams.local.processes import LOOPBACK

Result = TypeVar("Result")
#: By the first bytes that a client sent on its connection: true where a fault is meant for it.
IsMeant = Callable[[bytes], object]

_CHUNK_BYTES = 16 * 1024
#: SO_LINGER on, for zero seconds: closing sends a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class LinkFault:
    """What happens to the bytes; the default is a sound link.

    `latency_s` delays every piece of at most 16 KiB in each direction, `bytes_per_s` bounds each
    direction of each connection (None: no bound). A black hole carries nothing and closes nothing:
    both ends see a peer that is silent. `cut_after_bytes` resets a connection once its client has
    sent that many bytes since the fault began; the server receives exactly these. With
    `drops_answers` the server gets everything and its client hears nothing: whether what it asked
    for is done stays unknown. `answer` is what the proxy itself says to whatever a client sends;
    nothing of that reaches the server, and the connection ends.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    is_black_hole: bool = False
    cut_after_bytes: int | None = None
    drops_answers: bool = False
    answer: bytes | None = None


SLOW = LinkFault(latency_s=0.1, bytes_per_s=3_000_000 / 8)
SILENT = LinkFault(is_black_hole=True)
UNANSWERED = LinkFault(drops_answers=True)


class FaultProxy:
    """Carries connections from `port` to another port of loopback; a context manager.

    Every connection to it meets the current fault, those that were open before it too.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        """Port 0: a free one, known in `port` once the proxy is entered."""
        self.port = port
        self._upstream_port = upstream_port
        self._fault = LinkFault()
        self._is_meant: IsMeant = _everybody
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    def set_fault(self, fault: LinkFault, is_meant: IsMeant | None = None) -> None:
        """From now on the links suffer this fault in place of the one before; or some of them."""
        self._call(lambda: self._begin(fault, is_meant or _everybody))

    def heal(self) -> None:
        """The links are sound again; what a black hole held back goes on its way."""
        self.set_fault(LinkFault())

    def reset_all(self) -> int:
        """Reset all open connections at both ends; returns how many there were."""
        return self._call(self._reset_all)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._serve, LOOPBACK, self.port)
        try:
            self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        except BaseException:
            self._end_loop()
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._reset_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _call(self, function: Callable[[], Result]) -> Result:
        async def call() -> Result:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _begin(self, fault: LinkFault, is_meant: IsMeant) -> None:
        self._fault, self._is_meant = fault, is_meant
        for link in self._links:
            link.begin(fault, is_meant)

    def _reset_all(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection(LOOPBACK, self._upstream_port)
        except OSError:
            _abort(writer)
            return
        link = _Link((reader, writer), upstream)
        link.begin(self._fault, self._is_meant)
        self._links.add(link)
        try:
            await link.carry()
        finally:
            self._links.discard(link)


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._client, self._server = client, server
        self._flows = asyncio.Event()
        self._has_dropped = False
        self._first = b""  # that its client sent
        self._current: tuple[LinkFault, IsMeant] = LinkFault(), _everybody

    def begin(self, fault: LinkFault, is_meant: IsMeant) -> None:
        self._current = fault, is_meant
        fault = fault if is_meant(self._first) else LinkFault()
        self._fault = fault
        self._bytes_left = fault.cut_after_bytes
        if self._has_dropped:  # its client could make no sense of what follows
            self.reset()
        if fault.is_black_hole:
            self._flows.clear()
        else:
            self._flows.set()

    def reset(self) -> None:
        _abort(self._client[1])
        _abort(self._server[1])

    async def carry(self) -> None:
        try:
            # However a connection ends, that is the end of this link and of no other: a reset, or
            # an end that is said to a peer who has gone meanwhile (ENOTCONN).
            with suppress(OSError):
                await asyncio.gather(
                    self._pump(self._client[0], self._server[1], is_from_client=True),
                    self._pump(self._server[0], self._client[1], is_from_client=False),
                )
        finally:
            self.reset()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_from_client: bool
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if is_from_client and not self._first:
                self._first = chunk
                self.begin(*self._current)  # now it is known whom it is meant for
            await self._delay(len(chunk))
            await self._flows.wait()
            if not is_from_client and self._fault.drops_answers:
                self._has_dropped = True
                continue
            if is_from_client and self._fault.answer is not None:
                self._client[1].write(self._fault.answer)
                await self._client[1].drain()
                self._client[1].close()
                raise ConnectionResetError
            is_cut = False
            if is_from_client and self._bytes_left is not None:
                is_cut = len(chunk) >= self._bytes_left
                chunk = chunk[: self._bytes_left]
                self._bytes_left -= len(chunk)
            writer.write(chunk)
            await writer.drain()
            if is_cut:
                # The server reads what it was sent before its connection ends; the client is reset.
                _abort(self._client[1])
                self._server[1].close()
                await self._server[1].wait_closed()
                raise ConnectionResetError
        await self._flows.wait()
        if writer.can_write_eof():
            writer.write_eof()

    async def _delay(self, num_bytes: int) -> None:
        rate = self._fault.bytes_per_s
        delay_s = self._fault.latency_s + (num_bytes / rate if rate else 0.0)
        if delay_s:
            await asyncio.sleep(delay_s)


def _everybody(_first: bytes) -> bool:
    return True


def _abort(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
