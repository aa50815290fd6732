"""The storage SPI on one file: jobs for two threads, one that writes and one that reads."""

from __future__ import annotations

import os
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from sayiir_persist.adapters.sqlite.channel import Address, Channel, join, part
from sayiir_persist.adapters.sqlite.connection import (
    Settings,
    caveats,
    check_path,
    open_reader,
    open_writer,
)
from sayiir_persist.adapters.sqlite.loops import Loop, current_loop
from sayiir_persist.adapters.sqlite.session import Session
from sayiir_persist.adapters.sqlite.worker import Job, Worker
from sayiir_persist.driver import (
    Answer,
    ChoreList,
    Chores,
    Extend,
    Extended,
    Opened,
    Page,
    Poll,
    Polled,
    Read,
    Row,
    Take,
    Taken,
    Unit,
    View,
)
from sayiir_persist.errors import (
    BackendClosedError,
    BackendError,
    BackendUnavailableError,
    OutcomeUnknownError,
)
from sayiir_persist.wakeups import ANYTHING, Wakeups

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sayiir_persist.adapters.sqlite.clock import Clock
    from sayiir_persist.claims import WakeHint

T = TypeVar("T")

_CLOSING: Final = 5.0
_LOOK_EVERY: Final = 0.05
_OPENING: Final = 5.0
"""Opening may take that long, however short the time limit of an operation is."""


class _Open:
    """What an open driver holds."""

    def __init__(self, loop: Loop, writer: Worker[Session], reader: Worker[Session]) -> None:
        self.process = os.getpid()
        self.loop = loop
        self.writer = writer
        self.reader = reader
        self.wakeups = Wakeups()
        self.looked_at = 0.0

    def announce(self, hints: Sequence[WakeHint]) -> None:
        """Hand hints to who waits in this loop; called in the loop of whoever wrote."""
        if self.loop.is_current():
            self._notify(hints)
        else:
            self.loop.post(self._notify, hints)

    def _notify(self, hints: Sequence[WakeHint]) -> None:
        for hint in hints:
            self.wakeups.notify(hint)


class SqliteDriver:
    """One namespace of one file.

    Writes of concurrent tasks share a transaction on a thread of its own, reads never wait for
    them, and the event loop waits for neither.

    Args:
        settings: How the file is opened.
        namespace: The only one that it sees.
        clock: What the time is; called from several threads.
        timeout: The time limit of an operation, in seconds.
    """

    name = "sqlite"

    def __init__(self, settings: Settings, namespace: str, clock: Clock, timeout: float) -> None:
        self.namespace = namespace
        self._settings = settings
        self._clock = clock
        self._timeout = timeout
        self._channel: Channel | None = None
        self._open: _Open | None = None

    # --- Life ---

    async def open(self) -> Opened:
        loop = current_loop()
        label = f"sayiir-sqlite-{Path(self._settings.path).name}"
        state = _Open(
            loop,
            Worker(f"{label}-writer", self._open_writer, loop),
            Worker(f"{label}-reader", self._open_reader, loop),
        )
        timeout = max(self._timeout, _OPENING)

        try:
            await state.writer.start(timeout)
            await state.reader.start(timeout)
            self._open = state
            await self._read(Session.foreign_wakeup)
            self._joined.listen(state.announce)
        except BaseException:
            self._open = None
            await self._end(state)
            raise

        return Opened(f"SQLite {sqlite3.sqlite_version}", caveats(self._settings))

    def _open_writer(self, given_up: Callable[[], bool]) -> Session:
        check_path(self._settings)
        connection = open_writer(self._settings, given_up)
        file = os.stat(self._settings.path)
        address: Address = (file.st_dev, file.st_ino, self.namespace)
        self._channel = channel = join(address)
        return Session(
            connection,
            self.namespace,
            self._clock,
            channel,
            writes=True,
            on_close=partial(part, address, channel),
        )

    def _open_reader(self, given_up: Callable[[], bool]) -> Session:
        del given_up
        connection = open_reader(self._settings)
        return Session(connection, self.namespace, self._clock, self._joined, writes=False)

    @property
    def _joined(self) -> Channel:
        if self._channel is None:
            raise BackendClosedError("the backend is not open")

        return self._channel

    async def close(self) -> None:
        state, self._open = self._open, None

        if state is None or state.process != os.getpid():
            return

        self._joined.leave(state.announce)
        await self._end(state)

    async def _end(self, state: _Open) -> None:
        # The reader goes first: the last connection that is closed tidies up the log.
        state.reader.stop()

        if not state.loop.is_current():
            state.loop.post(state.wakeups.close)
            state.writer.stop()
            return

        state.wakeups.close()

        with anyio.CancelScope(shield=True):
            await state.reader.join(_CLOSING)
            state.writer.stop()
            await state.writer.join(_CLOSING)

    # --- Jobs ---

    def _opened(self) -> _Open:
        state = self._open

        if state is None:
            raise BackendClosedError("the backend is not open")

        if state.process != os.getpid():
            raise BackendClosedError("the backend was opened before a fork: open one of your own")

        if not state.loop.is_current():
            raise BackendError("the backend was opened in another event loop: open one in this")

        return state

    async def _read(self, step: Callable[[Session], T]) -> T:
        [outcome] = await self._outcomes(self._opened().reader, (step,), writes=False)
        return _raised(outcome)

    async def _write(self, step: Callable[[Session], T]) -> T:
        [outcome] = await self._outcomes(self._opened().writer, (step,), writes=True)
        return _raised(outcome)

    async def _outcomes(
        self, worker: Worker[Session], steps: Sequence[Callable[[Session], T]], *, writes: bool
    ) -> Sequence[T | Exception]:
        job = Job(steps, self._opened().loop.reply())
        worker.submit(job)

        try:
            arrived = await job.reply.wait(self._timeout)
        except BaseException:
            job.take()
            raise

        if arrived:
            return job.outcomes

        if job.take() or not writes:
            raise BackendUnavailableError(
                f"the database was busy for {self._timeout:g} s (operation_timeout)"
            )

        raise OutcomeUnknownError(
            f"the write was not finished within {self._timeout:g} s (operation_timeout)"
        )

    # --- The SPI ---

    async def now(self) -> int:
        _ = self._opened()
        return self._clock()

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        steps = [partial(Session.read, read=each) for each in reads]
        outcomes = await self._outcomes(self._opened().reader, steps, writes=False)
        return [_raised(outcome) for outcome in outcomes]

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer | Exception]:
        steps = [partial(Session.apply, unit=unit) for unit in units]
        return await self._outcomes(self._opened().writer, steps, writes=True)

    async def claim(self, take: Take) -> Taken:
        return await self._write(lambda session: session.claim(take))

    async def extend(self, extend: Extend) -> Extended:
        return await self._write(lambda session: session.extend(extend))

    async def poll(self, query: Poll) -> Polled:
        if not query.claim:
            return await self._read(lambda session: session.dispatching.poll(query))

        # Idle workers never take the write lock.
        seen = await self._read(lambda session: session.dispatching.look(query))

        if seen is not None:
            return seen

        return await self._write(lambda session: session.dispatching.poll(query))

    async def page(self, query: Page) -> Sequence[Row]:
        return await self._read(lambda session: session.page(query))

    async def chores(self, query: Chores) -> ChoreList:
        found, to_purge = await self._read(lambda session: session.dispatching.chores(query))

        if not to_purge:
            return found

        purged, more = await self._write(lambda session: session.dispatching.purge(query))
        return ChoreList(instances=found.instances, purged=purged, more=found.more or more)

    async def wait(self, timeout: float) -> WakeHint | None:
        state = self._opened()
        deadline = time.monotonic() + timeout

        while True:
            await self._look(state)
            left = deadline - time.monotonic()
            hint = await state.wakeups.wait(max(0, min(left, _LOOK_EVERY)))

            if hint is not None or left <= _LOOK_EVERY:
                return hint

    async def _look(self, state: _Open) -> None:
        """Look whether other processes made something executable, not too often."""
        now = time.monotonic()

        if now - state.looked_at < _LOOK_EVERY:
            return

        state.looked_at = now

        try:
            woken = await self._read(Session.foreign_wakeup)
        except BackendUnavailableError:
            return

        if woken:
            state.wakeups.notify(ANYTHING)


def _raised(outcome: T | Exception) -> T:
    if isinstance(outcome, Exception):
        raise outcome

    return outcome
