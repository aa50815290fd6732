"""What the server sees of us, and ways to be a bad server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import asyncpg
import psutil
from services.pgbouncer import PgBouncer

from sayiir_persist.adapters.postgres.connections import Connections
from sayiir_persist.adapters.postgres.sources import OwnConnections

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from services.postgres import PostgresServer

PATIENCE = 20.0


def sql(text: str, **names: str) -> str:
    """A statement on tables and in schemas that a fixture has named."""
    for placeholder, name in names.items():
        text = text.replace(f"{{{placeholder}}}", name)

    return text


def with_settings(url: str, **settings: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(settings)}"


@asynccontextmanager
async def opened(
    url: str, *, timeout: float = PATIENCE, **options: Any
) -> AsyncGenerator[Connections]:
    connections = Connections(OwnConnections(url, timeout=timeout, **options), timeout=timeout)
    await connections.open()

    try:
        yield connections
    finally:
        await connections.close()


@asynccontextmanager
async def administrator(url: str) -> AsyncGenerator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(url, timeout=PATIENCE)

    try:
        yield connection
    finally:
        await connection.close(timeout=PATIENCE)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE

    while not await condition():
        assert loop.time() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.01)


class Watch:
    """The sessions of one application name."""

    def __init__(self, connection: asyncpg.Connection[Any], application: str) -> None:
        self.connection = connection
        self.application = application

    async def sessions(self) -> dict[int, str]:
        """State by server process; one that ends at the moment is not counted."""
        rows = await self.connection.fetch(
            "SELECT pid, state FROM pg_stat_activity WHERE application_name = $1",
            self.application,
        )
        return {row["pid"]: row["state"] for row in rows}

    async def kill(self) -> int:
        """Terminate them all."""
        rows = await self.connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            self.application,
        )
        return len(rows)

    async def until(self, state: str, count: int) -> None:
        """Wait until that many are in this state."""

        async def reached() -> bool:
            return list((await self.sessions()).values()).count(state) == count

        await eventually(reached, f"{count} sessions are {state}")

    async def assert_clean(self, at_most: int) -> None:
        """All are idle, outside of any transaction, and not too many."""

        async def clean() -> bool:
            states = list((await self.sessions()).values())
            return set(states) <= {"idle"} and len(states) <= at_most

        await eventually(clean, "every session is idle")


class LenientPgBouncer(PgBouncer):
    """One that drops the settings that it does not know, as it is often told to."""

    def prepare(self) -> None:
        super().prepare()
        settings = "statement_timeout, jit, tcp_keepalives_idle, tcp_keepalives_interval"

        with (self.directory / "pgbouncer.ini").open("a") as file:
            file.write(f"\nignore_startup_parameters = {settings}\n")


@contextmanager
def frozen(server: PostgresServer) -> Generator[None]:
    """Stop every process of a server, as a machine does that hangs."""
    postmaster = psutil.Process(server.pid)
    postmaster.suspend()
    stopped = [postmaster, *postmaster.children(recursive=True)]

    for process in stopped[1:]:
        process.suspend()

    try:
        yield
    finally:
        for process in reversed(stopped):
            process.resume()


def start_child(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a function of `children` in a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "from integration.postgres.children import main; main()",
            name,
            *map(str, arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(child: subprocess.Popen[str], said: str = "") -> str:
    """Wait for a child that must end well; what it printed."""
    out, err = child.communicate(said, timeout=120)
    assert child.returncode == 0, err
    return out


@contextmanager
def child(name: str, *arguments: object) -> Generator[subprocess.Popen[str]]:
    """A child that does not outlive the block."""
    with start_child(name, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()
