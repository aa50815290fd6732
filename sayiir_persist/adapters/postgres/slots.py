"""A stock of connections, one user at a time for each.

Usage::

    slots = Slots(source)  # in a running event loop, which it belongs to
    slot = slots.take_idle() or await slots.take(deadline)

    slots.give_back(slot)  # or `discard` what is broken, or `settle` what is in doubt

    await slots.close()
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import anyio

from sayiir_persist.adapters.postgres.errors import harmless, in_our_words
from sayiir_persist.errors import BackendClosedError, BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sayiir_persist.adapters.postgres.sources import Connection, Run, Source

_asyncpg: Final[Any] = import_module("asyncpg")  # its types are incomplete

SETTLING: Final = 2.0
"""How long finding out about one that was left in mid-statement may take, in seconds."""
_CLOSING: Final = 5.0


class Slot:
    """One connection, and the statements that it has prepared."""

    __slots__ = ("connection", "idle_since", "statements")

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection = connection
        self.idle_since: float = 0.0
        self.statements: dict[str, Run] = {}

    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        try:
            return self.connection.is_closed()
        except _asyncpg.InterfaceError:  # a pool took back what its server closed
            return True

    def terminate(self) -> None:
        """End the session at once, and the statement that runs in it."""
        with suppress(_asyncpg.InterfaceError, RuntimeError):
            self.connection.terminate()


class Slots:
    """What is open: every slot is idle, with one caller, or on its way from or to the source."""

    def __init__(self, source: Source) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.process: int = os.getpid()
        self.size: int = 0
        self.is_closing: bool = False
        self._source = source
        self._all: set[Slot] = set()
        self._idle: list[Slot] = []
        self._waiting: deque[asyncio.Future[Slot | None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._parting = 0
        self._empty = asyncio.Event()

    # --- Taking and giving back ---

    def take_idle(self) -> Slot | None:
        """The one that was used last, if any is idle."""
        while self._idle:
            slot = self._idle.pop()

            if not slot.is_closed():
                return slot

            self.discard(slot)

        return None

    async def take(self, deadline: float) -> Slot:
        """Connect, or wait in line."""
        if self.size < self._source.max_size:
            self.size += 1
            return await self._connect(deadline)

        turn: asyncio.Future[Slot | None] = self.loop.create_future()
        timer = self.loop.call_at(deadline, _expire, turn)
        self._waiting.append(turn)

        try:
            slot = await turn
        except BaseException:
            self._withdraw(turn)
            raise
        finally:
            timer.cancel()

        if slot is None:
            return await self._connect(deadline)

        if slot.is_closed():  # since it was handed over
            self.discard(slot)
            return await self.take(deadline)

        return slot

    def _withdraw(self, turn: asyncio.Future[Slot | None]) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn.done() and not turn.cancelled() and turn.exception() is None:
            slot = turn.result()
            self.give_back(slot) if slot else self._vacate()

    async def _connect(self, deadline: float) -> Slot:
        try:
            connection = await self._source.connect(time_left(self.loop, deadline))
        except BaseException as error:
            self._vacate()

            if isinstance(error, Exception):
                raise in_our_words(error, writes=False, sent=False) from harmless(error)

            raise

        slot = Slot(connection)
        self._all.add(slot)

        if self.is_closing:
            self.discard(slot)
            raise BackendClosedError("the backend was closed")

        return slot

    def give_back(self, slot: Slot) -> None:
        """Hand it to whoever waits longest, or keep it."""
        if slot.is_closed():
            self.discard(slot)
            return

        if self.is_closing:
            self._part(slot)
            return

        while self._waiting:
            turn = self._waiting.popleft()

            if not turn.done():
                turn.set_result(slot)
                return

        if self._source.is_scarce:
            self._part(slot)
            return

        slot.idle_since = self.loop.time()
        self._idle.append(slot)

        if self._reaper is None:
            self._reaper = self.loop.call_later(self._source.max_idle, self._reap)

    def discard(self, slot: Slot) -> None:
        """Throw away one that is broken or in an unknown state."""
        slot.terminate()
        self._forget(slot)

    def settle(self, slot: Slot) -> asyncio.Task[None]:
        """Find out in a task of its own whether one that was left in mid-statement is usable."""
        return self._start(self._settle(slot))

    async def _settle(self, slot: Slot) -> None:
        # `asyncpg` has asked the server to cancel the statement, and waits for its end here.
        try:
            async with asyncio.timeout(SETTLING):  # its own does not always cover that wait
                await slot.connection.execute("SELECT 1")
        except BaseException as error:
            self.discard(slot)

            if not isinstance(error, Exception):
                raise
        else:
            self.give_back(slot)

    def _part(self, slot: Slot) -> None:
        self._parting += 1
        self._start(self._parted(slot))

    async def _parted(self, slot: Slot) -> None:
        try:
            await self._source.part(slot.connection)
        except BaseException as error:
            slot.terminate()

            if not isinstance(error, Exception):
                raise
        finally:
            self._parting -= 1
            self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        if slot in self._all:
            self._all.remove(slot)
            self._vacate()

    def _vacate(self) -> None:
        self.size -= 1

        while self._waiting and not self.is_closing:
            turn = self._waiting.popleft()

            if not turn.done():
                self.size += 1
                turn.set_result(None)
                return

        if not self.size:
            self._empty.set()

    def _reap(self) -> None:
        self._reaper = None
        spare = max(0, self.size - self._parting - self._source.min_size)
        longest = self.loop.time() - self._source.max_idle

        while spare and self._idle and self._idle[0].idle_since <= longest:
            self._part(self._idle.pop(0))
            spare -= 1

        if spare and self._idle:
            due = self._idle[0].idle_since + self._source.max_idle
            self._reaper = self.loop.call_at(due, self._reap)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- The end ---

    async def close(self) -> None:
        """Give up who waits, let run what runs, for a while."""
        self.is_closing = True

        if self._reaper is not None:
            self._reaper.cancel()

        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(BackendClosedError("the backend was closed"))

        self._waiting.clear()

        while self._idle:
            self._part(self._idle.pop())

        with anyio.move_on_after(_CLOSING, shield=True):
            while self.size:
                self._empty.clear()
                await self._empty.wait()

        self.terminate()

        with anyio.move_on_after(_CLOSING, shield=True):
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def terminate(self) -> None:
        """Throw all away."""
        for slot in tuple(self._all):
            self.discard(slot)


def time_left(loop: asyncio.AbstractEventLoop, deadline: float) -> float:
    """How many seconds there are.

    Raises:
        BackendUnavailableError: There are none.
    """
    left = deadline - loop.time()

    if left <= 0:
        raise BackendUnavailableError("there was no time left to send the statement")

    return left


def _expire(turn: asyncio.Future[Slot | None]) -> None:
    if not turn.done():
        turn.set_exception(
            BackendUnavailableError("no connection was free in time (operation_timeout)")
        )
