"""What the tests run in processes of their own; `main` names one of these functions."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import asyncpg
from integration.postgres.support import opened

from sayiir_persist.adapters.postgres.schema import Schema


def say(*words: object) -> None:
    print(*words, flush=True)


async def prepare(url: str, name: str) -> None:
    """Bring the schema up to date, as every process does that starts."""
    async with opened(url, max_size=1) as connections:
        await Schema(name).prepare(connections)
        say("done")


async def die_while_migrating(url: str, name: str, statements: str) -> None:
    """Migrate, and be killed before that statement of the session."""
    left = int(statements)

    def count(run: Any) -> Any:
        async def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1

            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

            return await run(*args, **options)

        return counted

    async with opened(url, max_size=1) as connections:
        asyncpg.Connection.execute = count(asyncpg.Connection.execute)
        asyncpg.Connection.fetch = count(asyncpg.Connection.fetch)
        await Schema(name).prepare(connections)


async def hold_lock(url: str, lock: str) -> None:
    """Take the lock of those who migrate, and do nothing more."""
    connection = await asyncpg.connect(url)
    await connection.execute(f"BEGIN; {lock}")
    say(connection.get_server_pid())
    sys.stdin.readline()
    await connection.close()


def main() -> None:
    name, *arguments = sys.argv[1:]
    asyncio.run(globals()[name](*arguments))
