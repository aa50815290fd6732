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
import logging
import os
import random
from collections import deque
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

import anyio

from sayiir_persist.adapters.postgres.errors import (
    harmless,
    in_our_words,
    is_definite_abort,
    is_refused_parameter,
    is_stale_statement,
    leaves_usable,
)
from sayiir_persist.errors import (
    BackendClosedError,
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping

logger = logging.getLogger(__name__)

_asyncpg: Final[Any] = import_module("asyncpg")  # its types are incomplete

APPLICATION_NAME: Final = "sayiir_persist"

_OLDEST: Final = 13
_OPENING: Final = 5.0
"""Opening may take that long, however short the time limit of an operation is."""
_CLOSING: Final = 5.0
_SETTLING: Final = 2.0
_PARTING: Final = 2.0
_TRIES: Final = 4
_PROBE: Final = "SELECT pg_backend_pid() AS pid, current_setting('server_encoding') AS encoding"
_CACHED: Final = 100
_WRITERS: Final = 2
"""More of them share less: while two are on their way, all other writes gather."""

_PLAIN: Final = {"application_name": APPLICATION_NAME}  # PgBouncer knows this one
_POOLER: Final = (
    "a connection pooler stands in between: statements are parsed anew each time, "
    "unless statement_cache_size says that it keeps prepared ones"
)
_ARRAYS: Final = tuple(
    {
        "oid": oid,
        "ns": "pg_catalog",
        "name": f"_{element}",
        "kind": b"b",
        "basetype": None,
        "elemtype": element_oid,
        "elemdelim": ",",
        "elemtype_name": element,
        "range_subtype": None,
        "attrtypoids": None,
    }
    for oid, element_oid, element in (
        (1000, 16, "bool"),
        (1001, 17, "bytea"),
        (1005, 21, "int2"),
        (1007, 23, "int4"),
        (1016, 20, "int8"),
        (3807, 3802, "jsonb"),
    )
)
"""Built-in arrays that `asyncpg` would ask each new session about, in three statements."""


class Row(Protocol):
    """What is used of `asyncpg.Record`."""

    def __getitem__(self, key: str | int, /) -> Any: ...

    def __len__(self) -> int: ...


class Connection(Protocol):
    """What is used of `asyncpg.Connection`."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str: ...

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Row]: ...

    async def prepare(
        self, query: str, *, name: str | None = None, timeout: float | None = None
    ) -> Any: ...

    def is_closed(self) -> bool: ...

    async def close(self, *, timeout: float | None = None) -> None: ...

    def terminate(self) -> None: ...

    def get_settings(self) -> Any: ...

    def get_server_pid(self) -> int: ...

    def get_server_version(self) -> tuple[Any, ...]: ...

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None: ...

    def add_termination_listener(self, callback: Callable[[Any], None]) -> None: ...


class _Run(Protocol):
    async def __call__(self, *args: object, timeout: float | None = None) -> list[Row]: ...


class Pool(Protocol):
    """What is used of `asyncpg.Pool`."""

    def acquire(self, *, timeout: float | None = None) -> Any: ...

    async def release(self, connection: Any, *, timeout: float | None = None) -> None: ...

    def get_size(self) -> int: ...

    def get_max_size(self) -> int: ...

    def get_idle_size(self) -> int: ...


class Source(Protocol):
    """Where connections come from."""

    @property
    def min_size(self) -> int:
        """How many are kept, however long they are idle."""
        ...

    @property
    def max_size(self) -> int:
        """How many there are at once, at most."""
        ...

    @property
    def max_idle(self) -> float:
        """After how many idle seconds one is parted with."""
        ...

    @property
    def is_scarce(self) -> bool:
        """Whether others want what is idle here."""
        ...

    async def connect(self, timeout: float) -> Connection:
        """Make or borrow one that is ready to use."""
        ...

    async def prepare(self, connection: Connection, statement: str, timeout: float) -> _Run:
        """What runs the statement with the arguments and `timeout` given to it."""
        ...

    async def part(self, connection: Connection) -> None:
        """Close or give back one that is idle."""
        ...

    def adapt(self, *, is_pooled: bool) -> bool:
        """Take note of what the first one showed; whether another has to take its place."""
        ...


class OwnConnections:
    """Connections to a URL, which are ours.

    Settings that come with each (`application_name`, `statement_timeout`, `jit`, keepalives)
    are left out where the URL has them, and where a pooler refuses them. Behind a pooler that
    hands out another session for each transaction, statements are parsed anew each time, in the
    same round trip, unless `statement_cache_size` says that it can do better.

    Args:
        url: As `asyncpg.connect` takes it.
        timeout: The time limit of an operation, in seconds.
        min_size: How many connections are opened at first and kept.
        max_size: How many there are at most.
        max_idle: After how many seconds an idle one above `min_size` is closed.
        statement_timeout: When the server gives a statement up, in seconds; 0: never. By default
            nine tenths of `timeout`: its error proves that nothing was applied, our silence not.
        statement_cache_size: `None`: find out; 0: parse anew each time; else: prepare once.
        options: Further arguments of `asyncpg.connect`: `password`, `ssl`, and so on.
    """

    is_scarce: bool = False

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        min_size: int = 1,
        max_size: int = 10,
        max_idle: float = 180.0,
        statement_timeout: float | None = None,
        statement_cache_size: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= min_size <= max_size or max_size < 1:
            raise ConfigurationError("pool sizes are 0 <= min_size <= max_size, and max_size >= 1")

        self.min_size = min_size
        self.max_size = max_size
        self.max_idle = max_idle
        self._url = url
        self._options = dict(options or {})
        self._is_plain = False
        self._cached = statement_cache_size
        patience = 0.9 * timeout if statement_timeout is None else statement_timeout
        self._settings = {
            "application_name": APPLICATION_NAME,
            "statement_timeout": str(round(patience * 1000)),
            "jit": "off",
            "tcp_keepalives_idle": "60",
            "tcp_keepalives_interval": "10",
        }

    async def connect(self, timeout: float) -> Connection:
        if not self._is_plain:
            try:
                return await self._connect(timeout, self._settings)
            except _asyncpg.PostgresError as error:
                if not is_refused_parameter(error):
                    raise

                if self._cached is None:  # only poolers are so particular
                    self._cached = 0

        connection = await self._connect(timeout, _PLAIN)
        self._is_plain = True
        return connection

    async def _connect(self, timeout: float, settings: Mapping[str, str]) -> Connection:
        own: Mapping[str, str] = self._options.get("server_settings", {})
        given = {name for name, _ in parse_qsl(urlsplit(self._url).query)}
        wanted = {name: value for name, value in settings.items() if name not in given}
        options = {
            "statement_cache_size": _CACHED if self._cached is None else self._cached,
            "max_cached_statement_lifetime": 0,
            **self._options,
            "server_settings": {**wanted, **own},
        }
        connection: Connection = await _asyncpg.connect(self._url, timeout=timeout, **options)
        _learn_arrays(connection)
        return connection

    async def prepare(self, connection: Connection, statement: str, timeout: float) -> _Run:
        name = None if self._cached else ""  # what has no name is parsed anew each time
        run: _Run = (await connection.prepare(statement, name=name, timeout=timeout)).fetch
        return run

    async def part(self, connection: Connection) -> None:
        await connection.close(timeout=_PARTING)

    def adapt(self, *, is_pooled: bool) -> bool:
        if self._cached is not None:
            return False

        self._cached = 0 if is_pooled else _CACHED
        return is_pooled


class BorrowedConnections:
    """Connections of the caller's pool, which is never closed here.

    One that was borrowed is kept while there is work for it and given back when it was idle for
    a moment, or at once where the pool has nothing else left to hand out: giving back costs the
    pool a round trip, so doing it after each statement would halve what a connection does.

    Args:
        pool: An open `asyncpg.Pool`.
        max_size: How many are borrowed at most; default: half of the pool.
    """

    min_size: int = 0
    max_idle: float = 0.05

    def __init__(self, pool: Pool, *, max_size: int | None = None) -> None:
        self.max_size = max(1, pool.get_max_size() // 2) if max_size is None else max_size
        self._pool = pool

        if self.max_size < 1:
            raise ConfigurationError("max_size is at least 1")

    @property
    def is_scarce(self) -> bool:
        pool = self._pool
        return pool.get_size() >= pool.get_max_size() and not pool.get_idle_size()

    async def connect(self, timeout: float) -> Connection:
        connection: Connection = await self._pool.acquire(timeout=timeout)
        _learn_arrays(connection)
        return connection

    async def prepare(self, connection: Connection, statement: str, timeout: float) -> _Run:
        del timeout
        return partial(connection.fetch, statement)  # its own cache outlives what we borrow

    async def part(self, connection: Connection) -> None:
        await self._pool.release(connection, timeout=_PARTING)

    def adapt(self, *, is_pooled: bool) -> bool:
        del is_pooled
        return False


class _Slot:
    __slots__ = ("connection", "idle_since", "statements")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.idle_since = 0.0
        self.statements: dict[str, _Run] = {}

    def is_closed(self) -> bool:
        try:
            return self.connection.is_closed()
        except _asyncpg.InterfaceError:  # a pool took back what its server closed
            return True

    def terminate(self) -> None:
        with suppress(_asyncpg.InterfaceError, RuntimeError):
            self.connection.terminate()


class _Slots:
    """What is open: every slot is idle, with one caller, or on its way from or to the source."""

    def __init__(self, source: Source) -> None:
        self.loop = asyncio.get_running_loop()
        self.process = os.getpid()
        self.size = 0
        self.is_closing = False
        self._source = source
        self._all: set[_Slot] = set()
        self._idle: list[_Slot] = []
        self._waiting: deque[asyncio.Future[_Slot | None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._parting = 0
        self._empty = asyncio.Event()

    # --- Taking and giving back ---

    def take_idle(self) -> _Slot | None:
        """The one that was used last, if any is idle."""
        while self._idle:
            slot = self._idle.pop()

            if not slot.is_closed():
                return slot

            self.discard(slot)

        return None

    async def take(self, deadline: float) -> _Slot:
        """Connect, or wait in line."""
        if self.size < self._source.max_size:
            self.size += 1
            return await self._connect(deadline)

        turn: asyncio.Future[_Slot | None] = self.loop.create_future()
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

    def _withdraw(self, turn: asyncio.Future[_Slot | None]) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn.done() and not turn.cancelled() and turn.exception() is None:
            slot = turn.result()
            self.give_back(slot) if slot else self._vacate()

    async def _connect(self, deadline: float) -> _Slot:
        try:
            connection = await self._source.connect(_left(self.loop, deadline))
        except BaseException as error:
            self._vacate()

            if isinstance(error, Exception):
                raise in_our_words(error, writes=False, sent=False) from harmless(error)

            raise

        slot = _Slot(connection)
        self._all.add(slot)

        if self.is_closing:
            self.discard(slot)
            raise BackendClosedError("the backend was closed")

        return slot

    def give_back(self, slot: _Slot) -> None:
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

    def discard(self, slot: _Slot) -> None:
        """Throw away one that is broken or in an unknown state."""
        slot.terminate()
        self._forget(slot)

    def settle(self, slot: _Slot) -> asyncio.Task[None]:
        """Find out in a task of its own whether one that was left in mid-statement is usable."""
        return self._start(self._settle(slot))

    async def _settle(self, slot: _Slot) -> None:
        # `asyncpg` has asked the server to cancel the statement, and waits for its end here.
        try:
            async with asyncio.timeout(_SETTLING):  # its own does not always cover that wait
                await slot.connection.execute("SELECT 1")
        except BaseException as error:
            self.discard(slot)

            if not isinstance(error, Exception):
                raise
        else:
            self.give_back(slot)

    def _part(self, slot: _Slot) -> None:
        self._parting += 1
        self._start(self._parted(slot))

    async def _parted(self, slot: _Slot) -> None:
        try:
            await self._source.part(slot.connection)
        except BaseException as error:
            slot.terminate()

            if not isinstance(error, Exception):
                raise
        finally:
            self._parting -= 1
            self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
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


_abandoned: Final[list[_Slots]] = []
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
        self._slots: _Slots | None = None
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

        slots = self._slots = _Slots(self._source)

        try:
            await self._look_at_server(slots)
            await self._grow(slots)
        except BaseException:
            self._slots = None

            with anyio.CancelScope(shield=True):
                await slots.close()

            raise

    async def _look_at_server(self, slots: _Slots) -> None:
        deadline = slots.loop.time() + max(self._timeout, _OPENING)
        slot = await slots.take(deadline)

        try:
            pid = await self._probe(slot.connection, _left(slots.loop, deadline))
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

    async def _grow(self, slots: _Slots) -> None:
        deadline = slots.loop.time() + max(self._timeout, _OPENING)
        more = [slots.take(deadline) for _ in range(slots.size, self._source.min_size)]
        found = await asyncio.gather(*more, return_exceptions=True)

        for each in found:
            if isinstance(each, _Slot):
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

    def _opened(self) -> _Slots:
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
                    left = _left(slots.loop, deadline)
                    run = await self._source.prepare(slot.connection, statement, left)
                    slot.statements[statement] = run

                left = _left(slots.loop, deadline)
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

    def _after(self, slots: _Slots, slot: _Slot, error: Exception) -> None:
        if is_stale_statement(error):
            slot.statements.clear()

        if leaves_usable(error):
            slots.give_back(slot)
        elif isinstance(error, TimeoutError):
            slots.settle(slot)
        else:
            slots.discard(slot)

    async def _left_alone(self, slots: _Slots, slot: _Slot, *, wait: bool) -> None:
        settling = slots.settle(slot)

        if wait:  # or a later write could overtake this one
            with anyio.move_on_after(_SETTLING, shield=True):
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


def _left(loop: asyncio.AbstractEventLoop, deadline: float) -> float:
    left = deadline - loop.time()

    if left <= 0:
        raise BackendUnavailableError("there was no time left to send the statement")

    return left


def _expire(turn: asyncio.Future[_Slot | None]) -> None:
    if not turn.done():
        turn.set_exception(
            BackendUnavailableError("no connection was free in time (operation_timeout)")
        )


def _learn_arrays(connection: Connection) -> None:
    """Spare every new session the questions about what is the same on every server."""
    with suppress(AttributeError, KeyError, TypeError):
        connection.get_settings().register_data_types(_ARRAYS)
