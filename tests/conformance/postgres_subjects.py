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

    def __init__(self, url: str, schema: str, **options: Any) -> None:
        self.url = url
        self.schema = schema
        self._options = options

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        return PostgresBackend.connect(
            self.url, schema=self.schema, namespace=namespace, **self._options, **options
        )

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
        connection = await asyncpg.connect(self.url)

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


def postgres_subject(
    url: str, *, manual_clock: bool = False, **options: Any
) -> Callable[[], AbstractAsyncContextManager[PostgresSubject]]:
    """Make subjects on the server at `url`; `options` go to each backend."""

    @asynccontextmanager
    async def subject() -> AsyncGenerator[PostgresSubject]:
        schema = f"kit_{getpid()}_{next(_numbers)}"
        kind = ManualPostgresSubject if manual_clock else PostgresSubject
        made = kind(url, schema, **options)
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
