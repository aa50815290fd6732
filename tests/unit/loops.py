"""Running a test on asyncio and on trio, and yielding to what else wants to run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BACKENDS = ("asyncio", "trio")
TOO_LONG = 10
"""Seconds after which a test that waits for an event has failed."""

on_both_loops = pytest.mark.parametrize("loop", BACKENDS)


def execute(loop: str, function: Callable[[], Awaitable[Any]]) -> None:
    """Run a coroutine function to its end on the event loop of that name."""

    async def in_time() -> None:
        with anyio.fail_after(TOO_LONG):
            await function()

    anyio.run(in_time, backend=loop)


async def settle_down() -> None:
    """Let every task that can run do so, several times."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
