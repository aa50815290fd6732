from __future__ import annotations

from itertools import count
from os import getpid
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.support import Watch, administrator, with_settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import asyncpg
    from services.pgbouncer import PgBouncer
    from services.postgres import ExternalPostgres, PostgresServer

_numbers = count(1)


@pytest.fixture
def name() -> str:
    """Of the test's own: an application, a schema."""
    return f"test_{getpid()}_{next(_numbers)}"


@pytest.fixture
def url(postgres: ExternalPostgres | PostgresServer, name: str) -> str:
    """Sessions that are opened with it can be told from others."""
    return with_settings(postgres.url, application_name=name)


@pytest.fixture
async def admin(
    postgres: ExternalPostgres | PostgresServer,
) -> AsyncGenerator[asyncpg.Connection[Any]]:
    async with administrator(postgres.url) as connection:
        yield connection


@pytest.fixture
def watch(admin: asyncpg.Connection[Any], name: str) -> Watch:
    return Watch(admin, name)


@pytest.fixture
async def schema(admin: asyncpg.Connection[Any], name: str) -> AsyncGenerator[str]:
    """The name of a schema that is not there, nor afterwards."""
    await admin.execute("SET client_min_messages = warning")
    await admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
    yield name
    await admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
async def table(admin: asyncpg.Connection[Any], schema: str) -> str:
    """A table with one column."""
    await admin.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.marks (mark int)")
    return f"{schema}.marks"


@pytest.fixture(params=["server", "pgbouncer"])
def any_url(request: pytest.FixtureRequest, own_postgres: PostgresServer, name: str) -> str:
    """The way to a server: directly, or through a pool in transaction mode."""
    if request.param == "server":
        return with_settings(own_postgres.url, application_name=name)

    pgbouncer: PgBouncer = request.getfixturevalue("pgbouncer")
    return with_settings(pgbouncer.url, application_name=name)
