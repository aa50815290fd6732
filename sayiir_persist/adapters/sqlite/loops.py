"""The event loop that opened a driver, as its threads see it: asyncio or trio."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio


class Reply(Protocol):
    """An answer that one task waits for."""

    def arrive(self) -> None:
        """Wake the task; to be called in the loop."""
        ...

    async def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds; whether the answer arrived."""
        ...


class Loop(Protocol):
    """An event loop."""

    def is_current(self) -> bool:
        """Whether the caller runs in it."""
        ...

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Have the loop call a function; from any thread. One that has ended calls nothing."""
        ...

    def reply(self) -> Reply:
        """Make something to wait for."""
        ...


def current_loop() -> Loop:
    """The loop of the caller."""
    trio = sys.modules.get("trio")
    return _TrioLoop() if trio is not None and trio.lowlevel.in_trio_run() else _AsyncioLoop()


class _AsyncioReply:
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[bool] = loop.create_future()

    def arrive(self) -> None:
        self._finish(arrived=True)

    def _finish(self, *, arrived: bool) -> None:
        if not self._future.done():
            self._future.set_result(arrived)

    def _expire(self) -> None:
        self._finish(arrived=False)

    async def wait(self, timeout: float) -> bool:
        timer = self._loop.call_later(timeout, self._expire)

        try:
            return await self._future
        finally:
            timer.cancel()


class _AsyncioLoop:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def is_current(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def post(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def reply(self) -> Reply:
        return _AsyncioReply(self._loop)


class _TrioReply:
    __slots__ = ("_event", "_trio")

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._event = trio.Event()

    def arrive(self) -> None:
        self._event.set()

    async def wait(self, timeout: float) -> bool:
        with self._trio.move_on_after(timeout):
            await self._event.wait()

        return self._event.is_set()


class _TrioLoop:
    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token: trio.lowlevel.TrioToken = trio.lowlevel.current_trio_token()

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def post(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)

    def reply(self) -> Reply:
        return _TrioReply()
