"""Tasks that belong to a backend and not to the caller who happened to start them."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Background:
    """Starts tasks that outlive their caller; `aclose` waits for them.

    Not a task group: one that is entered by `__aenter__` has to be left by the same task, which
    neither test fixtures nor frameworks with start-up hooks can promise (ADR 0001).
    """

    def __init__(self) -> None:
        self._running = 0
        self._idle = anyio.Event()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references

    def start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run `function(*args)` to its end; it must not raise."""
        self._running += 1

        trio = sys.modules.get("trio")

        if trio is not None and trio.lowlevel.in_trio_run():
            trio.lowlevel.spawn_system_task(self._run, function, *args)
        else:
            task = asyncio.get_running_loop().create_task(self._run(function, *args))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Wait until every task has ended."""
        while self._running:
            await self._idle.wait()

    async def _run(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await function(*args)
        finally:
            self._running -= 1

            if not self._running:
                idle, self._idle = self._idle, anyio.Event()
                idle.set()
