"""The public face of the PostgreSQL store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, final

from sayiir_persist.adapters.postgres.connections import Connections
from sayiir_persist.adapters.postgres.driver import PostgresDriver
from sayiir_persist.adapters.postgres.listener import Listener
from sayiir_persist.adapters.postgres.schema import DEFAULT_SCHEMA, Schema
from sayiir_persist.adapters.postgres.sources import BorrowedConnections, OwnConnections
from sayiir_persist.backend import StandardBackend
from sayiir_persist.options import read_options
from sayiir_persist.validation import check_duration

if TYPE_CHECKING:
    from datetime import timedelta

    from sayiir_persist.options import Options
    from sayiir_persist.protocols import PersistentBackend, WakeupSource


@final
class PostgresBackend(StandardBackend[PostgresDriver]):
    """Workflows in PostgreSQL 13 or later, on asyncio; any number of processes may share them.

    Every operation is one statement in a transaction of its own, decided by the server's clock
    under the lock of the instance's row. What is acknowledged is as durable as the server's
    `synchronous_commit` makes it. Wake hints travel by `NOTIFY`, after the commit.

    Args:
        pool: An open `asyncpg.Pool` of yours, which is never closed here. Half of it is used at
            most, see `max_size`.
        schema: Where the tables are.
        max_size: How many connections of the pool are used at most.
        listen_url: Where to listen for hints; without it other processes' work is found by polling.
        notify: Whether to send and to listen for hints.
        connect_options: Further arguments of `asyncpg.connect` for `listen_url`.
        options: Those of every backend, see `sayiir_persist.connect`.

    Raises:
        ConfigurationError: An option cannot be used; says what to give.
        InvalidArgumentError: An option breaks its limit.

    Example:
        >>> async def main(pool) -> None:
        ...     async with PostgresBackend(pool, namespace="orders") as backend:
        ...         await backend.start_instance("order-7", "v1", start_at="charge")
    """

    def __init__(
        self,
        pool: Any,
        *,
        schema: str = DEFAULT_SCHEMA,
        max_size: int | None = None,
        listen_url: str | None = None,
        notify: bool = True,
        connect_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        source = (
            pool
            if isinstance(pool, OwnConnections)
            else BorrowedConnections(pool, max_size=max_size)
        )

        def driver(chosen: Options) -> PostgresDriver:
            timeout = chosen.operation_timeout.total_seconds()
            connections = Connections(source, timeout=timeout)
            direct = None

            if listen_url:
                direct = OwnConnections(listen_url, timeout=timeout, options=connect_options)

            listener = Listener(
                connections,
                schema=schema,
                namespace=chosen.namespace,
                direct=direct,
                notify=notify,
            )
            tables = Schema(schema, migrate=chosen.migrate)
            return PostgresDriver(connections, tables, listener, chosen.namespace)

        super().__init__(driver, **options)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        min_size: int = 1,
        max_size: int = 10,
        statement_timeout: timedelta | None = None,
        statement_cache_size: int | None = None,
        listen_url: str | None = None,
        notify: bool = True,
        connect_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Build a backend with connections of its own, opened and closed by `async with`.

        Args:
            url: As `asyncpg.connect` takes it, `postgresql://user:password@host/database`.
            schema: Where the tables are; made by the first who enters, unless `migrate=False`.
            min_size: How many connections are kept.
            max_size: How many there are at most, beside the one that listens.
            statement_timeout: When the server gives a statement up; zero: never; default: nine
                tenths of `operation_timeout`.
            statement_cache_size: 0 behind a pooler that cannot keep prepared statements; it is
                found out where it is not said.
            listen_url: Where to listen for hints, where `url` leads to a pooler.
            notify: Whether to send and to listen for hints; without, polling finds all work.
            connect_options: Further arguments of `asyncpg.connect`: `password`, `ssl`, ...; for
                `listen_url`, too.
            options: Those of every backend, see `sayiir_persist.connect`.

        Raises:
            ConfigurationError: An option cannot be used; says what to give.
            InvalidArgumentError: An option breaks its limit.
        """
        patience: float | None = None

        if statement_timeout is not None:
            check_duration("statement_timeout", statement_timeout)
            patience = statement_timeout.total_seconds()

        connections = OwnConnections(
            url,
            timeout=read_options(options).operation_timeout.total_seconds(),
            min_size=min_size,
            max_size=max_size,
            statement_timeout=patience,
            statement_cache_size=statement_cache_size,
            options=connect_options,
        )
        return cls(
            connections,
            schema=schema,
            listen_url=listen_url,
            notify=notify,
            connect_options=connect_options,
            **options,
        )


def from_url(url: str, **options: Any) -> PostgresBackend:
    """Build the backend that `postgresql://` or `postgres://` names."""
    return PostgresBackend.connect(url, **options)


if TYPE_CHECKING:
    _backend: type[PersistentBackend] = PostgresBackend
    _wakeups: type[WakeupSource] = PostgresBackend
