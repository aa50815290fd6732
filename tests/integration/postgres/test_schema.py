"""A schema on its way from one state to the next, whoever is on the way as well."""

from __future__ import annotations

import asyncio
import re
import subprocess
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil
import pytest
from integration.postgres.support import (
    PATIENCE,
    administrator,
    child,
    eventually,
    finish,
    opened,
    sql,
    start_child,
    with_settings,
)
from services.proxy import Proxy

from sayiir_persist import (
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    SchemaVersionError,
)
from sayiir_persist.adapters.postgres.connections import Connections
from sayiir_persist.adapters.postgres.schema import (
    Migration,
    Schema,
    ddl,
    grants,
    quote_schema,
    read_migrations,
)
from sayiir_persist.adapters.postgres.sources import BorrowedConnections

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from services.pgbouncer import PgBouncer
    from services.postgres import PostgresServer

ONE = Migration(1, "0001_one", "CREATE TABLE {schema}.one (id int PRIMARY KEY);")
TWO = Migration(2, "0002_two", "ALTER TABLE {schema}.one ADD COLUMN more text;")


async def prepare(url: str, name: str, *migrations: Migration, **options: Any) -> None:
    async with opened(url, max_size=1) as connections:
        await Schema(name, migrations=migrations, **options).prepare(connections)


async def contents(admin: asyncpg.Connection[Any], name: str) -> list[tuple[str, ...]]:
    """All there is in a schema, in words that do not contain its name."""
    rows = await admin.fetch(
        """
        SELECT 'column', table_name || '.' || column_name || ordinal_position,
            concat_ws(' ', data_type, is_nullable, column_default, collation_name)
        FROM information_schema.columns WHERE table_schema = $1
        UNION ALL
        SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = $1
        UNION ALL
        SELECT 'constraint', conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = to_regnamespace($1)
        UNION ALL
        SELECT 'function', oid::regprocedure::text, pg_get_functiondef(oid)
        FROM pg_proc WHERE pronamespace = to_regnamespace($1)
        UNION ALL
        SELECT 'view', viewname, definition FROM pg_views WHERE schemaname = $1
        UNION ALL
        SELECT 'sequence', sequencename, concat_ws(' ', data_type, cache_size, increment_by)
        FROM pg_sequences WHERE schemaname = $1
        ORDER BY 1, 2, 3
        """,
        name,
    )
    words = [tuple(str(value) for value in row.values()) for row in rows]
    return [tuple(re.sub(rf"\b{name}\b", "schema", word) for word in each) for each in words]


async def ledger(admin: asyncpg.Connection[Any], name: str) -> list[tuple[int, str, str]]:
    query = sql("SELECT version, name, checksum FROM {name}.migrations ORDER BY 1", name=name)
    return [(row["version"], row["name"], row["checksum"]) for row in await admin.fetch(query)]


def lock_of(name: str) -> str:
    found = re.search(r"SELECT pg_advisory_xact_lock\(-?\d+\);", ddl(name))
    assert found is not None
    return found[0]


async def locks(admin: asyncpg.Connection[Any]) -> int:
    count: int = await admin.fetchval(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    )
    return count


# What is applied.


async def test_everything_is_applied_once(
    url: str, admin: asyncpg.Connection[Any], schema: str
) -> None:
    await prepare(url, schema)
    before = await contents(admin, schema)
    await prepare(url, schema)

    known = [(each.version, each.name, each.checksum) for each in read_migrations()]
    assert await ledger(admin, schema) == known
    assert await contents(admin, schema) == before
    assert len(before) > 10
    assert "{schema}" not in str(before)


async def test_a_schema_that_is_up_to_date_costs_one_statement(url: str, schema: str) -> None:
    await prepare(url, schema)

    async with Proxy(url) as proxy, opened(proxy.url) as connections:
        proxy.reset_counts()
        await Schema(schema).prepare(connections)

        assert proxy.round_trips == 2, "it is prepared, and run"


async def test_a_pool_of_the_callers_will_do(url: str, schema: str) -> None:
    async with asyncpg.create_pool(url, min_size=0, max_size=1) as pool:
        connections = Connections(BorrowedConnections(pool), timeout=PATIENCE)
        await connections.open()
        await Schema(schema).prepare(connections)
        await Schema(schema, migrate=False).prepare(connections)
        await connections.close()


async def test_later_migrations_follow_the_earlier_ones(
    url: str, admin: asyncpg.Connection[Any], schema: str
) -> None:
    await prepare(url, schema, ONE)
    assert [row[0] for row in await ledger(admin, schema)] == [1]

    await prepare(url, schema, ONE, TWO)

    assert [row[0] for row in await ledger(admin, schema)] == [1, 2]
    await admin.execute(sql("INSERT INTO {schema}.one VALUES (1, 'more')", schema=schema))


async def test_a_migration_that_fails_leaves_nothing(
    url: str, admin: asyncpg.Connection[Any], schema: str
) -> None:
    broken = Migration(2, "0002_two", f"{TWO.sql} SELECT 1 / 0;")

    with pytest.raises(BackendError, match="division by zero"):
        await prepare(url, schema, ONE, broken)

    assert [row[0] for row in await ledger(admin, schema)] == [1]
    await prepare(url, schema, ONE, TWO)
    assert [row[0] for row in await ledger(admin, schema)] == [1, 2]


async def test_verifying_writes_nothing_and_names_what_is_missing(
    url: str, admin: asyncpg.Connection[Any], schema: str
) -> None:
    with pytest.raises(SchemaVersionError, match=read_migrations()[0].name):
        await prepare(url, schema, migrate=False)

    assert not await admin.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema)

    await prepare(url, schema, ONE)

    with pytest.raises(SchemaVersionError, match="0002_two"):
        await prepare(url, schema, ONE, TWO, migrate=False)

    await prepare(url, schema, ONE, migrate=False)


@pytest.mark.parametrize("migrate", [True, False])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("INSERT INTO {schema}.migrations VALUES (3, '0003_new', 'x')", "upgrade"),
        ("UPDATE {schema}.migrations SET checksum = 'x' WHERE version = 2", "0002_two"),
        ("UPDATE {schema}.migrations SET name = '0002_other' WHERE version = 2", "0002_other"),
        ("DELETE FROM {schema}.migrations WHERE version = 1", "gap"),
    ],
)
async def test_a_schema_of_another_release_is_refused(
    url: str,
    admin: asyncpg.Connection[Any],
    schema: str,
    change: str,
    says: str,
    migrate: bool,
) -> None:
    await prepare(url, schema, ONE, TWO)
    await admin.execute(sql(change, schema=schema))
    before = await contents(admin, schema)

    with pytest.raises(SchemaVersionError, match=says):
        await prepare(url, schema, ONE, TWO, migrate=migrate)

    assert await contents(admin, schema) == before


async def test_a_schema_of_somebody_else_is_refused(
    url: str, admin: asyncpg.Connection[Any], table: str
) -> None:
    name = table.partition(".")[0]
    await admin.execute(f"CREATE TABLE {name}.migrations (id int, migration text)")

    with pytest.raises(ConfigurationError, match="not ours"):
        await prepare(url, name)


@pytest.mark.parametrize("name", ["", "Upper", "a-b", "1a", 'a"b', "pg_x", "ä", "a" * 64, "a.b"])
def test_names_that_need_care_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        Schema(name)


def test_reserved_words_are_names(own_postgres: PostgresServer) -> None:
    async def main() -> None:
        for name in ("select", "user", "_", "a" * 63):
            await prepare(own_postgres.url, name, ONE, TWO)
            await prepare(own_postgres.url, name, ONE, TWO, migrate=False)

    asyncio.run(main())
    assert quote_schema("user") == '"user"'


# Many at once.


@pytest.mark.parametrize("way", ["server", "pgbouncer"])
async def test_24_processes_may_be_the_first_at_once(
    own_postgres: PostgresServer, name: str, way: str, request: pytest.FixtureRequest
) -> None:
    through: PostgresServer | PgBouncer = (
        own_postgres if way == "server" else request.getfixturevalue("pgbouncer")
    )

    with ExitStack() as stack:
        children = [stack.enter_context(child("prepare", through.url, name)) for _ in range(24)]
        said = await asyncio.gather(*(asyncio.to_thread(finish, each) for each in children))

    assert said == ["done\n"] * 24

    async with administrator(own_postgres.url) as admin:
        await prepare(own_postgres.url, f"{name}_reference")
        assert await contents(admin, name) == await contents(admin, f"{name}_reference")
        assert len(await ledger(admin, name)) == len(read_migrations())
        assert await locks(admin) == 0


async def test_many_starters_in_one_process_take_turns(
    any_url: str, own_postgres: PostgresServer, name: str
) -> None:
    migrations = [
        Migration(number, f"{number:04}_m", f"CREATE TABLE {{schema}}.t{number} ();")
        for number in range(1, 8)
    ]

    await asyncio.gather(*(prepare(any_url, name, *migrations) for _ in range(12)))

    async with administrator(own_postgres.url) as admin:
        assert [row[0] for row in await ledger(admin, name)] == list(range(1, 8))
        assert await locks(admin) == 0


async def test_who_holds_the_lock_is_named(
    own_postgres: PostgresServer, any_url: str, name: str
) -> None:
    with child("hold_lock", own_postgres.url, lock_of(name)) as holder:
        assert holder.stdout is not None
        pid = (await asyncio.to_thread(holder.stdout.readline)).strip()
        psutil.Process(holder.pid).suspend()

        with pytest.raises(BackendUnavailableError, match=rf"server process {pid}\b"):
            await prepare(any_url, name, timeout=0.3)

        holder.kill()
        await asyncio.to_thread(holder.communicate)

    await prepare(any_url, name, timeout=PATIENCE)


async def test_a_migrator_that_froze_loses_its_lock_in_the_end(
    own_postgres: PostgresServer, name: str
) -> None:
    async with opened(own_postgres.url) as connections, connections.borrow() as connection:
        begin = ddl(name).partition("SELECT")[0]
        assert "idle_in_transaction_session_timeout = '60s'" in begin
        await connection.execute(begin.replace("60s", "50ms") + lock_of(name), timeout=5)

        await prepare(own_postgres.url, name, timeout=PATIENCE)


async def test_a_migration_gives_way_to_those_who_use_its_tables(
    own_postgres: PostgresServer, name: str
) -> None:
    url = own_postgres.url
    await prepare(url, name, ONE)
    query = sql("SELECT count(*) FROM {name}.one", name=name)

    async with administrator(url) as user, administrator(url) as other:
        async with user.transaction():
            await user.fetch(query)

            with pytest.raises(BackendUnavailableError, match="use its tables"):
                async with asyncio.timeout(PATIENCE):
                    await prepare(url, name, ONE, TWO, timeout=0.1)

            migrating = asyncio.create_task(prepare(url, name, ONE, TWO, timeout=PATIENCE))

            for _ in range(20):
                await other.fetchval(query, timeout=5)
                await asyncio.sleep(0.05)

            assert not migrating.done()

        await migrating
        assert [row[0] for row in await ledger(user, name)] == [1, 2]


# Crashes.


async def test_a_start_goes_on_after_a_migration_that_was_killed(
    own_postgres: PostgresServer, name: str
) -> None:
    reference = f"{name}_reference"
    await prepare(own_postgres.url, reference)

    async with administrator(own_postgres.url) as admin:
        expected = await contents(admin, reference)
        killed = 0

        for statements in range(12):
            with start_child("die_while_migrating", own_postgres.url, name, statements) as victim:
                _, err = await asyncio.to_thread(victim.communicate)
                killed += victim.returncode < 0
                assert victim.returncode in (0, -9), err

            found = await contents(admin, name)
            assert found in ([], expected)

            await prepare(own_postgres.url, name)
            assert await contents(admin, name) == expected
            await admin.execute(f"SET client_min_messages = error; DROP SCHEMA {name} CASCADE")

            if victim.returncode == 0:
                break

        assert victim.returncode == 0, "at last it was not killed any more"
        assert killed >= 7


async def test_a_session_that_is_ended_in_a_migration_leaves_nothing(
    own_postgres: PostgresServer, name: str
) -> None:
    url = with_settings(own_postgres.url, application_name=name)
    slow = Migration(1, "0001_one", f"{ONE.sql} SELECT pg_sleep(30);")

    async with administrator(own_postgres.url) as admin:
        migrating = asyncio.create_task(prepare(url, name, slow))
        kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query ~ $1"

        async def killed() -> bool:
            return bool(await admin.fetchval(kill, "^CREATE TABLE.*pg_sleep[(]30"))

        await eventually(killed, "the migration has begun")

        with pytest.raises(BackendUnavailableError):
            await migrating

        assert await contents(admin, name) == []

    await prepare(url, name, ONE)


# Roles, and hands.


@asynccontextmanager
async def role_of(server: PostgresServer, name: str) -> AsyncGenerator[str]:
    async with administrator(server.url) as admin:
        await admin.execute(f'CREATE ROLE "{name}" LOGIN')
        yield server.url.replace("//postgres@", f"//{name}@")


async def test_a_role_needs_no_rights_but_those_that_are_granted(
    own_postgres: PostgresServer, name: str
) -> None:
    await prepare(own_postgres.url, name)

    async with (
        role_of(own_postgres, f"{name}_worker") as url,
        administrator(own_postgres.url) as admin,
    ):
        with pytest.raises(ConfigurationError, match="permission denied"):
            await prepare(url, name)

        await admin.execute(grants(f"{name}_worker", name))
        await prepare(url, name)
        await prepare(url, name, migrate=False)

        async with administrator(url) as worker:
            for table in ("instances", "entries"):
                await worker.execute(sql("DELETE FROM {s}.{t}", s=name, t=table))

            with pytest.raises(Exception, match="permission denied"):
                await worker.execute(sql("DELETE FROM {s}.migrations", s=name))

            with pytest.raises(Exception, match="permission denied"):
                await worker.execute(f"CREATE TABLE {name}.more ()")


async def test_a_role_without_rights_is_told_so(own_postgres: PostgresServer, name: str) -> None:
    async with role_of(own_postgres, name) as url:
        with pytest.raises(ConfigurationError, match="permission denied"):
            await prepare(url, name)


async def test_a_role_that_owns_the_schema_and_nothing_else_can_migrate(
    own_postgres: PostgresServer, name: str
) -> None:
    async with (
        role_of(own_postgres, f"{name}_owner") as url,
        administrator(own_postgres.url) as admin,
    ):
        await admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}_owner")
        await prepare(url, name)


async def test_grants_quote_any_role(own_postgres: PostgresServer, name: str) -> None:
    await prepare(own_postgres.url, name)
    role = f'{name} "the" worker; --'

    async with administrator(own_postgres.url) as admin:
        await admin.execute("CREATE ROLE " + '"' + role.replace('"', '""') + '"')
        await admin.execute(grants(role, name))
        assert await admin.fetchval("SELECT has_schema_privilege($1, $2, 'USAGE')", role, name)

    with pytest.raises(ConfigurationError):
        grants("")


async def test_what_is_printed_is_what_is_applied(own_postgres: PostgresServer, name: str) -> None:
    psql = own_postgres.binaries / "psql"

    if not psql.exists():
        pytest.skip("no psql here")

    def apply(script: str) -> None:
        subprocess.run(
            [psql, "-v", "ON_ERROR_STOP=1", "-q", "-o", "/dev/null", own_postgres.url],
            input=script,
            text=True,
            check=True,
        )

    by_hand, reference = f"{name}_by_hand", f"{name}_reference"
    await asyncio.to_thread(apply, ddl(by_hand))
    await prepare(own_postgres.url, by_hand, migrate=False)
    await prepare(own_postgres.url, reference)

    async with administrator(own_postgres.url) as admin:
        assert await contents(admin, by_hand) == await contents(admin, reference)
        assert await ledger(admin, by_hand) == await ledger(admin, reference)

    await asyncio.to_thread(apply, ddl(by_hand, after=len(read_migrations())))
    await prepare(own_postgres.url, by_hand, migrate=False)


# Files.


def write_package(path: Path, files: dict[str, str]) -> None:
    for name, text in {"__init__.py": "", **files}.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_functions_lie_in_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = f"package_{name}"
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "migrations/0001_one.sql": "one;\n",
        "functions/01_f.sql": "f;\n",
        "functions/02_g.sql": "g;\n",
    }
    write_package(tmp_path / package, files)
    [loose] = read_migrations(package)
    assert loose.sql.split() == ["one;", "f;", "g;"]

    frozen = "one;\n-- include functions/01_f.sql\n-- include functions/02_g.sql\n"
    later = {
        "migrations/0001_one.sql": frozen,
        "migrations/0002_two.sql": "two;\n",
        "functions/02_g_2.sql": "g 2;\n",
    }
    write_package(tmp_path / package, later)
    one, two = read_migrations(package)

    assert one.checksum == loose.checksum
    assert two.sql.split("\n")[:2] == ["two;", "g 2;"]


def test_numbers_of_migrations_have_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = f"package_{name}"
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "migrations/0001_one.sql": "",
        "migrations/0003_three.sql": "",
        "functions/f.sql": "",
    }
    write_package(tmp_path / package, files)

    with pytest.raises(ConfigurationError, match="0003_three"):
        read_migrations(package)
