"""A proxy between a client and a server that fails as it is told, and counts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from services.process import free_port

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

CHUNK = 1 << 16
LONGEST_REQUEST = 256


class Connection:
    """One client's connection: what went through it, and whether answers still do."""

    def __init__(self, client: StreamWriter, server: StreamWriter) -> None:
        self.client = client
        self.server = server
        self.is_asking = False
        self.is_muted = False
        self.recent = b""

    def cut(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()

    async def close(self) -> None:
        self.cut()

        for writer in (self.client, self.server):
            with suppress(OSError):
                await writer.wait_closed()


class Proxy:
    """Forwards TCP connections to the server of a URL, while the context is open.

    It needs asyncio, and has no answer while the event loop is blocked. Set `delay` to make every
    request wait that many seconds on its way to the server.

    Counts, over all connections since `reset_counts`:
        round_trips: How often a client spoke first, or after an answer of the server.
        bytes_to_server: What clients sent that was passed on.
        bytes_to_client: What servers sent that was passed on.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self.port = free_port()
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._marker: bytes | None = None
        self._dropped = asyncio.Event()
        self._cuts_after_drop = False
        self.delay = 0.0
        self.reset_counts()

    @property
    def url(self) -> str:
        """The URL of the server with this proxy's address in it."""
        user, at, _ = self._target.netloc.rpartition("@")
        return self._target._replace(netloc=f"{user}{at}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def reset_counts(self) -> None:
        self.round_trips = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0

    def cut(self) -> None:
        """Break every connection there is; new ones are accepted as before."""
        for connection in list(self._connections):
            connection.cut()

    def refuse(self) -> None:
        """Refuse new connections, as a server does that is down; those there are stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept connections again, at the same address."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._forward, "127.0.0.1", self.port, limit=CHUNK
            )

    def drop_replies_after(self, request: bytes = b"", *, cut: bool = False) -> asyncio.Event:
        """Pass on the next request that contains these bytes, and nothing that comes back.

        Its connection stays mute until it is cut; others are not touched.

        Args:
            request: At most 256 bytes; none at all are in every request.
            cut: Break the connection once the server's answer is there.

        Returns:
            Set once the server has answered, which is to say: it has done what it was asked.
        """
        for connection in self._connections:
            connection.recent = b""

        self._marker = request
        self._cuts_after_drop = cut
        self._dropped = asyncio.Event()
        return self._dropped

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        self.cut()

        for task in self._tasks:
            task.cancel()

        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, from_client: StreamReader, to_client: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)

        try:
            await self._connect(from_client, to_client)
        except (OSError, asyncio.CancelledError):
            to_client.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _connect(self, from_client: StreamReader, to_client: StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(
            self._target.hostname, self._target.port, limit=CHUNK
        )
        connection = Connection(to_client, to_server)
        self._connections.add(connection)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_requests(from_client, connection))
                group.create_task(self._pass_replies(from_server, connection))
        finally:
            self._connections.discard(connection)
            await connection.close()

    async def _pass_requests(self, requests: StreamReader, connection: Connection) -> None:
        with suppress(OSError):
            while chunk := await requests.read(CHUNK):
                await asyncio.sleep(self.delay)
                self._note_request(chunk, connection)
                connection.server.write(chunk)
                await connection.server.drain()

            connection.server.write_eof()

    async def _pass_replies(self, replies: StreamReader, connection: Connection) -> None:
        with suppress(OSError):
            while chunk := await replies.read(CHUNK):
                connection.is_asking = False

                if connection.is_muted:
                    self._note_drop(connection)
                    continue

                self.bytes_to_client += len(chunk)
                connection.client.write(chunk)
                await connection.client.drain()

        if not connection.is_muted:
            connection.client.close()

    def _note_request(self, chunk: bytes, connection: Connection) -> None:
        self.bytes_to_server += len(chunk)

        if not connection.is_asking:
            connection.is_asking = True
            self.round_trips += 1

        seen = connection.recent + chunk

        if self._marker is not None and self._marker in seen:
            self._marker = None
            connection.is_muted = True

        connection.recent = seen[-LONGEST_REQUEST:]

    def _note_drop(self, connection: Connection) -> None:
        self._dropped.set()

        if self._cuts_after_drop:
            connection.cut()
