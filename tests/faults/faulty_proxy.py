"""A proxy for an S3 server that breaks a share of the requests in one of seven ways, and counts them."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

KINDS = ("500", "503", "reset", "torn upload", "lost answer", "cut answer", "stall")
CODES = {"500": "InternalError", "503": "SlowDown"}


class FaultyProxy:
    """Forwards HTTP requests, one per connection. `rate` may be set at any time: with 0 there are no faults."""

    def __init__(
        self, upstream: str, *, rate: float, seed: int, stall_s: float, kinds: Sequence[str] = KINDS, most: int = 10**9
    ) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self.rate, self.kinds, self.stall_s = rate, kinds, stall_s
        self.most = most  # maximum number of faults
        self.faults: Counter[str] = Counter()
        self.lines: list[str] = []  # the first line of each request
        self._random = random.Random(seed)
        self.url = ""

    async def serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=2**20)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        async with server:
            await server.serve_forever()

    @property
    def requests(self) -> int:
        return len(self.lines)

    def _drawn(self) -> str | None:
        if self.faults.total() >= self.most or self._random.random() >= self.rate:
            return None
        kind = self._random.choice(self.kinds)
        self.faults[kind] += 1
        return kind

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):  # the client went away
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        size = int(headers.get("content-length", 0))
        self.lines.append(lines[0])
        fault = self._drawn()
        if fault == "reset":
            return _reset(writer)
        if fault == "torn upload":
            await reader.readexactly(size // 2)
            return _reset(writer)
        body = await reader.readexactly(size)
        if fault in CODES:
            text = f"<?xml version='1.0'?><Error><Code>{CODES[fault]}</Code><Message>injected</Message></Error>"
            text = "" if head.startswith(b"HEAD") else text
            writer.write(
                f"HTTP/1.1 {fault} X\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()
            )
            return await writer.drain()
        kept = [line for line in lines[:-2] if not line.lower().startswith("connection:")]
        answer = await self._forwarded("\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body)
        if fault == "lost answer":
            return _reset(writer)
        if fault == "stall":
            await asyncio.sleep(self.stall_s)
        if fault == "cut answer":
            begins = answer.index(b"\r\n\r\n") + 4
            cut = begins + (len(answer) - begins) // 2 if len(answer) > begins else begins // 2
            writer.write(answer[:cut])
            await writer.drain()
            await asyncio.sleep(0.05)
            return _reset(writer)
        writer.write(answer)
        return await writer.drain()

    async def _forwarded(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with RST, not FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def faulty_proxy(upstream: str, **how: object) -> Iterator[FaultyProxy]:
    """A running proxy in front of `upstream`, in a thread of its own."""
    proxy = FaultyProxy(upstream, **how)  # type: ignore[arg-type]
    ready, loop = threading.Event(), asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(proxy.serve(ready))
        except asyncio.CancelledError:
            pass
        finally:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(10)
