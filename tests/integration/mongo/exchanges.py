"""What a real server answered, kept as files, and a stand-in that answers the same again.

To record anew, with a `mongod` on PATH: `SAYIIR_RECORD_MONGODB=1 pytest <this directory>`.
"""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import bson
from bson import json_util
from pymongo.monitoring import CommandListener
from services.process import free_port

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncGenerator

    from pymongo.monitoring import (
        CommandFailedEvent,
        CommandStartedEvent,
        CommandSucceededEvent,
    )

IS_RECORDING = os.environ.get("SAYIIR_RECORD_MONGODB") == "1"
DIRECTORY = Path(__file__).with_name("recorded")

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
HEADER = struct.Struct("<iiii")
HANDSHAKE = {
    "ismaster": True,
    "maxBsonObjectSize": 16 * 1024 * 1024,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 9,
    "readOnly": False,
    "ok": 1.0,
}


class Recorder(CommandListener):
    """Notes what the server answers to each command."""

    def __init__(self) -> None:
        self.exchanges: list[dict[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._note(event.command_name, event.reply)

    def failed(self, event: CommandFailedEvent) -> None:
        self._note(event.command_name, event.failure)

    def _note(self, name: str, reply: Any) -> None:
        if name not in {"endSessions", "hello", "killCursors"}:
            self.exchanges.append({"command": name, "reply": _kept(name, dict(reply))})

    def save(self, name: str) -> None:
        DIRECTORY.mkdir(exist_ok=True)
        text = json_util.dumps(self.exchanges, json_options=json_util.CANONICAL_JSON_OPTIONS)
        (DIRECTORY / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def _kept(name: str, reply: dict[str, Any]) -> dict[str, Any]:
    """An answer without what says anything of the machine that gave it."""
    if name == "buildInfo":
        return {key: reply[key] for key in ("version", "versionArray", "ok")}

    if name.lower() == "ismaster":
        return HANDSHAKE

    if "ok" not in reply:  # the driver shows of this failure no more than why
        return {"value": None, "writeConcernError": reply, "ok": 1.0}

    if "cursor" in reply and any("accesses" in each for each in reply["cursor"]["firstBatch"]):
        names = [{"name": each["name"]} for each in reply["cursor"]["firstBatch"]]
        reply["cursor"] = {**reply["cursor"], "firstBatch": names}

    return reply


class Replay:
    """Answers commands in the order in which they were recorded, and insists on that order."""

    def __init__(self, name: str) -> None:
        text = (DIRECTORY / f"{name}.json").read_text(encoding="utf-8")
        self.left: list[dict[str, Any]] = json_util.loads(text)
        self.port = free_port()
        self._numbers = count(1)
        self._server: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

        for writer in list(self._writers):
            writer.transport.abort()

        await asyncio.sleep(0)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writers.add(writer)

        try:
            while True:
                head = HEADER.unpack(await reader.readexactly(HEADER.size))
                body = await reader.readexactly(head[0] - HEADER.size)
                writer.write(self._answer(head[1], head[3], body))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.transport.abort()
        finally:
            self._writers.discard(writer)

    def _answer(self, request: int, code: int, body: bytes) -> bytes:
        if code == OP_QUERY:  # flags, the name of a collection, skip, limit
            start = body.index(b"\0", 4) + 9
            reply = bson.encode(self._reply(bson.decode(body[start:])))
            payload = struct.pack("<iqii", 8, 0, 0, 1) + reply
            return self._framed(request, OP_REPLY, payload)

        assert code == OP_MSG
        size = struct.unpack_from("<i", body, 5)[0]
        reply = bson.encode(self._reply(bson.decode(body[5 : 5 + size])))
        return self._framed(request, OP_MSG, b"\0\0\0\0\0" + reply)

    def _framed(self, request: int, code: int, payload: bytes) -> bytes:
        size = HEADER.size + len(payload)
        return HEADER.pack(size, next(self._numbers), request, code) + payload

    def _reply(self, command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        is_handshake = "topologyVersion" in command or "client" in command or "helloOk" in command

        if name.lower() in {"ismaster", "hello"} and (is_handshake or self._expected != name):
            return {**HANDSHAKE, "helloOk": False}

        if name in {"endSessions", "killCursors"}:
            return {"ok": 1.0}

        assert self._expected == name, f"{name} was sent, {self._expected} was recorded"
        return self.left.pop(0)["reply"]

    @property
    def _expected(self) -> str | None:
        return self.left[0]["command"] if self.left else None


@asynccontextmanager
async def replayed(name: str) -> AsyncGenerator[Replay]:
    """A stand-in for the server that was recorded; all that it answered has to be asked for."""
    async with Replay(name) as replay:
        yield replay

        assert not replay.left
