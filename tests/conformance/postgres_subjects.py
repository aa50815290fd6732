"""PostgreSQL as the kit sees it: a schema for each subject, on the server's clock or on ours."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from os import getpid
from typing import TYPE_CHECKING, Any

import asyncpg
from anyio import sleep

from sayiir_persist.adapters.postgres import PostgresBackend, ddl

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from sayiir_persist import PersistentBackend
    from sayiir_persist.driver import Opened

_numbers = count(1)

START = datetime(2026, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

MOVED_BY_HAND = """
    CREATE TABLE {schema}.moved_clock (now bigint NOT NULL);
    INSERT INTO {schema}.moved_clock VALUES ({now});
    CREATE OR REPLACE FUNCTION {schema}.clock() RETURNS bigint
    LANGUAGE sql VOLATILE AS 'SELECT now FROM {schema}.moved_clock';
"""
"""The function that all others ask for the time, replaced within one schema."""


class PostgresSubject:
    """Backends with connections of their own to one schema."""

    def __init__(
        self, url: str, schema: str, *, direct_url: str | None, pooled: bool, **options: Any
    ) -> None:
        self.schema = schema
        self._url = url
        self._direct_url = direct_url or url
        self._pooled = pooled
        self._options = {"schema": schema, "listen_url": direct_url, **options}

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        options = {"namespace": namespace, **self._options, **options}

        if self._pooled:
            return on_a_pool(self._url, **options)

        return PostgresBackend.connect(self._url, **options)

    async def elapse(self, duration: timedelta) -> None:
        await sleep(duration.total_seconds())

    async def corrupt(self, namespace: str, instance_id: str) -> None:
        await self.execute(
            "UPDATE {schema}.instances SET body = 'damaged' "
            "WHERE namespace = $1 AND instance_id = $2",
            namespace,
            instance_id,
        )

    async def execute(self, statement: str, *args: Any) -> None:
        connection = await asyncpg.connect(self._direct_url)

        try:
            await connection.execute(statement.replace("{schema}", self.schema), *args)
        finally:
            await connection.close()


class ManualPostgresSubject(PostgresSubject):
    """The same, but the time stands still until the test moves it."""

    manual_clock = True

    async def elapse(self, duration: timedelta) -> None:
        await self.execute(
            "UPDATE {schema}.moved_clock SET now = now + $1", duration // MICROSECOND
        )


def on_a_pool(url: str, **options: Any) -> PostgresBackend:
    """A backend on a pool that is opened right before it and closed right after."""
    pool = asyncpg.create_pool(url, min_size=1, max_size=8)
    backend = PostgresBackend(pool, **options)
    driver = backend._engine._driver
    open_driver, close_driver = driver.open, driver.close

    async def open_both() -> Opened:
        try:
            await pool
            return await open_driver()
        except BaseException:
            pool.terminate()
            raise

    async def close_both() -> None:
        try:
            await close_driver()
            await pool.close()
        except BaseException:
            pool.terminate()
            raise

    driver.open, driver.close = open_both, close_both
    return backend


def postgres_subject(
    url: str,
    *,
    manual_clock: bool = False,
    direct_url: str | None = None,
    pooled: bool = False,
    **options: Any,
) -> Callable[[], AbstractAsyncContextManager[PostgresSubject]]:
    """Make subjects on the server at `url`; `options` go to each backend.

    Args:
        url: Where the backends connect.
        manual_clock: Whether the time stands still until a check moves it.
        direct_url: Of the server itself, where `url` leads to a pooler.
        pooled: Whether each backend gets a pool instead of connecting itself.
        options: Of the backends.
    """

    @asynccontextmanager
    async def subject() -> AsyncGenerator[PostgresSubject]:
        schema = f"kit_{getpid()}_{next(_numbers)}"
        kind = ManualPostgresSubject if manual_clock else PostgresSubject
        made = kind(url, schema, direct_url=direct_url, pooled=pooled, **options)
        script = ddl(schema)

        if manual_clock:
            now = (START - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND
            script += MOVED_BY_HAND.replace("{schema}", schema).replace("{now}", str(now))

        await made.execute(script)

        try:
            yield made
        finally:
            await made.execute("SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE")

    return subject
