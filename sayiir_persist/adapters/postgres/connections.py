"""Connections that run one statement each, from a stock of our own or from the caller's pool.

Usage::

    connections = Connections(OwnConnections(url, max_size=10, timeout=10.0), timeout=10.0)
    connections = Connections(BorrowedConnections(pool), timeout=10.0)  # never closes the pool

    await connections.open()  # connects once; finds out about poolers and encodings
    rows = await connections.fetch("SELECT * FROM s.f($1)", argument, writes=True)

    async with connections.borrow() as connection:  # for set-up: several statements
        await connection.execute("BEGIN", timeout=5)  # what the block raises ends the session

    await connections.close()

`fetch` is one statement in its own transaction: one round trip, two where the connection runs the
statement for the first time. It sets no session state, so there is nothing to reset, and raises
only errors of this package. After `open`, `server` names the server and `caveats` says what this
deployment cannot do. `writers` is how many calls of `apply` are worth having on their way at once.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import anyio

from sayiir_persist.adapters.postgres.errors import (
    harmless,
    in_our_words,
    is_definite_abort,
    is_stale_statement,
    leaves_usable,
)
from sayiir_persist.adapters.postgres.slots import SETTLING, Slot, Slots, time_left
from sayiir_persist.adapters.postgres.sources import OwnConnections
from sayiir_persist.errors import (
    BackendClosedError,
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sayiir_persist.adapters.postgres.sources import Connection, Row, Source

_OLDEST: Final = 13
_OPENING: Final = 5.0
"""Opening may take that long, however short the time limit of an operation is."""
_TRIES: Final = 4
_PROBE: Final = "SELECT pg_backend_pid() AS pid, current_setting('server_encoding') AS encoding"
_WRITERS: Final = 2
"""More of them share less: while two are on their way, all other writes gather."""
_POOLER: Final = (
    "a connection pooler stands in between: statements are parsed anew each time, "
    "unless statement_cache_size says that it keeps prepared ones"
)

_abandoned: Final[list[Slots]] = []
"""Of a parent process: collecting them as garbage would end its sessions."""


class Connections:
    """Runs single statements, each in its own transaction, on as many connections as it may.

    Cancelling a call ends its statement, or lets it finish, before the cancellation goes on, as
    long as the server answers; a connection that was left in mid-statement is used again only
    after it proved to be idle. Callers wait for a connection in the order in which they came.

    Args:
        source: Where connections come from.
        timeout: How long a call takes at most, in seconds, the wait for a connection included.
    """

    def __init__(self, source: Source, *, timeout: float) -> None:
        self.server: str = ""
        self.caveats: tuple[str, ...] = ()
        self.writers: int = min(_WRITERS, source.max_size)
        self._source = source
        self._timeout = timeout
        self._slots: Slots | None = None
        self._is_pooled = False

    # --- Life ---

    async def open(self) -> None:
        """Connect, and look at what answers.

        Raises:
            ConfigurationError: Wrong URL, password, database, version or encoding.
            BackendUnavailableError: Nobody answers.
        """
        if self._slots is not None:
            raise BackendError("the backend is open already")

        slots = self._slots = Slots(self._source)

        try:
            await self._look_at_server(slots)
            await self._grow(slots)
        except BaseException:
            self._slots = None

            with anyio.CancelScope(shield=True):
                await slots.close()

            raise

    async def _look_at_server(self, slots: Slots) -> None:
        deadline = slots.loop.time() + max(self._timeout, _OPENING)
        slot = await slots.take(deadline)

        try:
            pid = await self._probe(slot.connection, time_left(slots.loop, deadline))
            is_pooled = pid != slot.connection.get_server_pid()
        except BaseException as error:
            slots.discard(slot)

            if isinstance(error, Exception):
                raise in_our_words(error, writes=False, sent=True) from error

            raise

        self._is_pooled = is_pooled

        if is_pooled and isinstance(self._source, OwnConnections):
            self.caveats = (_POOLER,)

        if self._source.adapt(is_pooled=is_pooled):
            slots.discard(slot)
            slot = await slots.take(deadline)

        slots.give_back(slot)

    async def _probe(self, connection: Connection, timeout: float) -> int:
        major, _, minor = connection.get_server_version()[:3]
        self.server = f"PostgreSQL {major}.{minor}"

        if major < _OLDEST:
            raise ConfigurationError(f"PostgreSQL {_OLDEST} or later is needed, not {major}")

        # Without a name it is safe behind any pooler.
        probe = await connection.prepare(_PROBE, name="", timeout=timeout)
        [row] = await probe.fetch(timeout=timeout)

        if row["encoding"] != "UTF8":
            raise ConfigurationError(
                f"the database has the encoding {row['encoding']}: use one that has UTF8"
            )

        return int(row["pid"])

    async def _grow(self, slots: Slots) -> None:
        deadline = slots.loop.time() + max(self._timeout, _OPENING)
        more = [slots.take(deadline) for _ in range(slots.size, self._source.min_size)]
        found = await asyncio.gather(*more, return_exceptions=True)

        for each in found:
            if isinstance(each, Slot):
                slots.give_back(each)

        for each in found:
            if isinstance(each, BaseException):
                raise each

    async def close(self) -> None:
        """Give up who waits, let running statements finish for some seconds. Idempotent."""
        slots, self._slots = self._slots, None

        if slots is None:
            return

        if slots.process != os.getpid():
            _abandoned.append(slots)
            return

        if slots.loop is not asyncio.get_running_loop():
            with suppress(RuntimeError):  # it has ended
                slots.loop.call_soon_threadsafe(slots.terminate)

            return

        await slots.close()

    @property
    def direct(self) -> OwnConnections | None:
        """Where further connections to the server itself come from, if there is a way."""
        source = self._source
        return source if isinstance(source, OwnConnections) and not self._is_pooled else None

    def check_open(self) -> None:
        """Raise what every call raises that comes too early, too late or from elsewhere.

        Raises:
            BackendClosedError: Not open, or opened before a fork.
            BackendError: Opened in another event loop.
        """
        _ = self._opened()

    def _opened(self) -> Slots:
        slots = self._slots

        if slots is None:
            raise BackendClosedError("the backend is not open")

        if slots.process != os.getpid():
            raise BackendClosedError("the backend was opened before a fork: open one of your own")

        if slots.loop is not asyncio.get_running_loop():
            raise BackendError("the backend was opened in another event loop: open one in this")

        return slots

    # --- Statements ---

    async def fetch(self, statement: str, *args: object, writes: bool) -> list[Row]:
        """Run one statement in a transaction of its own; a definite abort is tried again.

        Args:
            statement: Always the same text for the same statement: it is prepared once.
            args: Its parameters.
            writes: Whether it may change what is stored.

        Raises:
            BackendUnavailableError: It certainly was not applied.
            OutcomeUnknownError: It may have been.
            BackendClosedError: Not open.
            PersistError: Others, see `in_our_words`.
        """
        slots = self._opened()
        deadline = slots.loop.time() + self._timeout
        tries = 1

        while True:
            slot = slots.take_idle() or await slots.take(deadline)
            sent = False

            try:
                run = slot.statements.get(statement)

                if run is None:
                    left = time_left(slots.loop, deadline)
                    run = await self._source.prepare(slot.connection, statement, left)
                    slot.statements[statement] = run

                left = time_left(slots.loop, deadline)
                sent = True
                rows = await run(*args, timeout=left)
            except Exception as error:  # noqa: BLE001  (translated, or tried again)
                self._after(slots, slot, error)

                if tries >= _TRIES or not _is_worth_a_try(error):
                    raise self._failure(error, writes=writes, sent=sent) from harmless(error)
            except BaseException:
                await self._left_alone(slots, slot, wait=writes and sent)
                raise
            else:
                slots.give_back(slot)
                return rows

            await asyncio.sleep(random.uniform(0, 0.005 * tries))  # noqa: S311
            tries += 1

    def _after(self, slots: Slots, slot: Slot, error: Exception) -> None:
        if is_stale_statement(error):
            slot.statements.clear()

        if leaves_usable(error):
            slots.give_back(slot)
        elif isinstance(error, TimeoutError):
            slots.settle(slot)
        else:
            slots.discard(slot)

    async def _left_alone(self, slots: Slots, slot: Slot, *, wait: bool) -> None:
        settling = slots.settle(slot)

        if wait:  # or a later write could overtake this one
            with anyio.move_on_after(SETTLING, shield=True):
                await asyncio.wait({settling})

    def _failure(self, error: Exception, *, writes: bool, sent: bool) -> Exception:
        if self._slots is None and not isinstance(error, TimeoutError) and not (writes and sent):
            return BackendClosedError("the backend was closed")

        if not isinstance(error, TimeoutError):
            return in_our_words(error, writes=writes, sent=sent)

        kind = OutcomeUnknownError if writes and sent else BackendUnavailableError
        return kind(f"PostgreSQL did not answer within {self._timeout:g} s (operation_timeout)")

    @asynccontextmanager
    async def borrow(self) -> AsyncGenerator[Connection]:
        """One connection for several statements; it is thrown away if the block raises."""
        slots = self._opened()
        deadline = slots.loop.time() + max(self._timeout, _OPENING)
        slot = slots.take_idle() or await slots.take(deadline)

        try:
            yield slot.connection
        except BaseException:
            slots.discard(slot)
            raise

        slots.give_back(slot)


def _is_worth_a_try(error: Exception) -> bool:
    return is_definite_abort(error) or is_stale_statement(error)
