"""Where connections come from: a URL, or a pool of the caller's.

Both are a `Source`: they make or borrow single connections and part with them again. How many
there are, and who uses them when, is the business of `Slots`.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

from sayiir_persist.adapters.postgres.errors import is_refused_parameter
from sayiir_persist.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_asyncpg: Final[Any] = import_module("asyncpg")  # its types are incomplete

APPLICATION_NAME: Final = "sayiir_persist"

_PARTING: Final = 2.0
_CACHED: Final = 100
_PLAIN: Final = {"application_name": APPLICATION_NAME}  # PgBouncer knows this one
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


class Run(Protocol):
    """Runs one prepared statement."""

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

    async def prepare(self, connection: Connection, statement: str, timeout: float) -> Run:
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

    async def prepare(self, connection: Connection, statement: str, timeout: float) -> Run:
        name = None if self._cached else ""  # what has no name is parsed anew each time
        run: Run = (await connection.prepare(statement, name=name, timeout=timeout)).fetch
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
        half = max(1, pool.get_max_size() // 2)
        self.max_size: int = half if max_size is None else max_size
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

    async def prepare(self, connection: Connection, statement: str, timeout: float) -> Run:
        del timeout
        return partial(connection.fetch, statement)  # its own cache outlives what we borrow

    async def part(self, connection: Connection) -> None:
        await self._pool.release(connection, timeout=_PARTING)

    def adapt(self, *, is_pooled: bool) -> bool:
        del is_pooled
        return False


def _learn_arrays(connection: Connection) -> None:
    """Spare every new session the questions about what is the same on every server."""
    with suppress(AttributeError, KeyError, TypeError):
        connection.get_settings().register_data_types(_ARRAYS)
