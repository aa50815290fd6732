"""One statement at a time on a real server, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from traceback import format_exception
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from integration.postgres.support import (
    PATIENCE,
    LenientPgBouncer,
    Watch,
    administrator,
    eventually,
    frozen,
    opened,
    sql,
)
from services.proxy import Proxy

from sayiir_persist import (
    BackendClosedError,
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
    SchemaVersionError,
)
from sayiir_persist.adapters.postgres.connections import Connections
from sayiir_persist.adapters.postgres.sources import BorrowedConnections, OwnConnections
from sayiir_persist.conformance.interrupt import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.pgbouncer import PgBouncer
    from services.postgres import PostgresServer

    Start = Callable[..., PostgresServer]

PID = "SELECT pg_backend_pid()"
SLEEP = "SELECT pg_sleep($1::float8)"
MOST_SUSPENSIONS = 30


def insert(table: str) -> str:
    return sql("INSERT INTO {table} (mark) VALUES ($1::int)", table=table)


def insert_slowly(table: str) -> str:
    return sql("INSERT INTO {table} (mark) SELECT $1::int FROM pg_sleep($2::float8)", table=table)


async def marks(admin: asyncpg.Connection[Any], table: str) -> list[int]:
    rows = await admin.fetch(sql("SELECT mark FROM {table} ORDER BY mark", table=table))
    return [row["mark"] for row in rows]


# Statements.


async def test_a_statement_costs_one_round_trip_once_it_is_prepared(url: str) -> None:
    async with Proxy(url) as proxy, opened(proxy.url) as connections:
        await connections.fetch(PID, writes=False)
        proxy.reset_counts()

        for _ in range(10):
            await connections.fetch(PID, writes=False)

        assert proxy.round_trips == 10
        assert proxy.connections == 1


async def test_built_in_arrays_cost_no_questions(any_url: str) -> None:
    statement = (
        "SELECT $1::bigint[], $2::bytea[], $3::text[], $4::smallint, $5::jsonb, $6::boolean[],"
        " $7::int[], $8::smallint[], $9::jsonb[], $10::json"
    )
    values = (
        [1, None, -(2**63)],
        [b"", b"\0", None],
        ["x", None],
        -7,
        '{"a": 1}',
        [True],
        [5],
        [6],
        ["{}"],
        "[ 1]",
    )

    async with Proxy(any_url) as proxy, opened(proxy.url) as connections:
        proxy.reset_counts()

        [row] = await connections.fetch(statement, *values, writes=False)

        assert tuple(row[number] for number in range(len(row))) == values
        assert proxy.round_trips == 2


async def test_behind_a_pooler_a_statement_costs_one_round_trip_too(pgbouncer: PgBouncer) -> None:
    async with Proxy(pgbouncer.url) as proxy, opened(proxy.url) as connections:
        assert "pooler" in connections.caveats[0]
        assert connections.direct is None
        await connections.fetch(PID, writes=False)
        proxy.reset_counts()

        for _ in range(10):
            await connections.fetch(PID, writes=False)

        assert proxy.round_trips == 10


async def test_a_pooler_is_found_out_though_it_takes_every_setting(
    own_postgres: PostgresServer, pgbouncer: PgBouncer
) -> None:
    with LenientPgBouncer(pgbouncer.binary, own_postgres) as lenient:
        async with opened(lenient.url, max_size=4) as connections:
            assert "pooler" in connections.caveats[0]

            for number in range(20):
                statement = sql("SELECT {n} AS n FROM pg_sleep(0.001)", n=str(number % 3))
                calls = [connections.fetch(statement, writes=False) for _ in range(4)]
                assert {rows[0]["n"] for rows in await asyncio.gather(*calls)} == {number % 3}


async def test_sessions_that_change_under_us_do_not_mix_statements_up(pgbouncer: PgBouncer) -> None:
    async def ask(connections: Connections, number: int) -> None:
        statement = sql("SELECT {n} + $1::int AS sum FROM pg_sleep(0.001)", n=str(number))

        for term in range(20):
            [row] = await connections.fetch(statement, term, writes=False)
            assert row["sum"] == number + term

    async with (
        opened(pgbouncer.url, max_size=5) as one,
        opened(pgbouncer.url, max_size=5) as other,
    ):
        await asyncio.gather(*(ask(c, n) for n in range(10) for c in (one, other)))


async def test_nothing_is_left_set_in_sessions_that_a_pooler_shares(
    pgbouncer: PgBouncer, own_postgres: PostgresServer
) -> None:
    async with opened(pgbouncer.url) as connections, administrator(own_postgres.url) as admin:
        await connections.fetch("SELECT $1::bigint[]", [1], writes=False)

        for setting in ("jit", "statement_timeout", "search_path", "tcp_keepalives_idle"):
            query = f"SELECT current_setting('{setting}') AS value"
            [row] = await connections.fetch(query, writes=False)
            assert row["value"] == await admin.fetchval(query)


async def test_own_sessions_carry_their_settings(url: str) -> None:
    async with opened(url, timeout=10) as connections:
        [row] = await connections.fetch(
            "SELECT current_setting('statement_timeout') AS limit, current_setting('jit') AS jit,"
            " current_setting('application_name') AS name",
            writes=False,
        )

        assert (row["limit"], row["jit"]) == ("9s", "off")
        assert row["name"] in url
        assert connections.caveats == ()


async def test_a_statement_whose_result_changed_is_prepared_anew(
    url: str, admin: asyncpg.Connection[Any], table: str
) -> None:
    async with opened(url, max_size=1) as connections:
        statement = sql("SELECT * FROM {table}", table=table)
        await connections.fetch(statement, writes=False)
        await admin.execute(f"ALTER TABLE {table} ADD COLUMN more text DEFAULT 'x'")
        await admin.execute(sql("INSERT INTO {table} (mark) VALUES (1)", table=table))

        [row] = await connections.fetch(statement, writes=False)

        assert (row["mark"], row["more"]) == (1, "x")


@pytest.mark.parametrize(("failures", "tries"), [(2, 3), (99, 4)])
async def test_a_definite_abort_is_tried_again_a_few_times(
    url: str, admin: asyncpg.Connection[Any], table: str, failures: int, tries: int
) -> None:
    schema = table.partition(".")[0]
    await admin.execute(
        f"""
        CREATE SEQUENCE {schema}.tries;
        CREATE FUNCTION {schema}.unlucky(failures int) RETURNS int LANGUAGE plpgsql AS $$
        DECLARE
            this int := nextval('{schema}.tries');
        BEGIN
            IF this <= failures THEN
                RAISE EXCEPTION 'crossed' USING ERRCODE = '40P01';
            END IF;

            RETURN this;
        END
        $$
        """
    )

    async with opened(url) as connections:
        call = connections.fetch(f"SELECT {schema}.unlucky($1)", failures, writes=True)

        if failures < tries:
            [row] = await call
            assert row[0] == tries
        else:
            with pytest.raises(BackendUnavailableError, match="crossed"):
                await call

    assert (
        await admin.fetchval(sql("SELECT last_value FROM {schema}.tries", schema=schema)) == tries
    )


async def test_an_error_of_a_statement_leaves_the_connection_usable(url: str, watch: Watch) -> None:
    async with opened(url, max_size=1) as connections:
        before = await watch.sessions()

        with pytest.raises(BackendError, match="division by zero"):
            await connections.fetch("SELECT 1 / $1::int", 0, writes=True)

        with pytest.raises(SchemaVersionError, match="nothing_here"):
            await connections.fetch("SELECT nothing_here()", writes=True)

        assert (await connections.fetch("SELECT 1", writes=False))[0][0] == 1
        assert await watch.sessions() == before


async def test_an_argument_that_does_not_fit_is_not_shown(url: str) -> None:
    async with opened(url) as connections:
        argument = "not to be shown"

        with pytest.raises(BackendError) as raised:
            await connections.fetch("SELECT $1::int", argument, writes=True)

        assert argument not in "".join(format_exception(raised.value))
        await connections.fetch("SELECT 1", writes=False)


# How many.


async def test_connections_grow_as_they_are_needed_and_no_further(url: str, watch: Watch) -> None:
    async with opened(url, max_size=4) as connections:
        for _ in range(20):
            await connections.fetch("SELECT 1", writes=False)

        assert len(await watch.sessions()) == 1

        sleeps = [connections.fetch(SLEEP, 0.02, writes=False) for _ in range(50)]
        await asyncio.gather(*sleeps)

        assert len(await watch.sessions()) == 4


async def test_the_least_number_of_connections_is_opened_at_once(url: str, watch: Watch) -> None:
    async with opened(url, min_size=3, max_size=4):
        assert len(await watch.sessions()) == 3


async def test_connections_that_are_idle_for_long_are_closed(url: str, watch: Watch) -> None:
    async with opened(url, max_size=4, max_idle=0.1) as connections:
        await asyncio.gather(*(connections.fetch(SLEEP, 0.05, writes=False) for _ in range(4)))
        assert len(await watch.sessions()) == 4

        await watch.until("idle", 1)


async def test_callers_get_their_turn_in_the_order_in_which_they_came(url: str) -> None:
    async with opened(url, max_size=1) as connections:
        served: list[int] = []

        async def call(number: int) -> None:
            await connections.fetch(SLEEP, 0.001, writes=False)
            served.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(call(number))

        assert served == sorted(served)


async def test_who_gets_no_connection_in_time_was_certainly_not_applied(
    url: str, admin: asyncpg.Connection[Any], table: str
) -> None:
    async with opened(url, max_size=1, timeout=0.2, statement_timeout=0) as connections:
        async with asyncio.TaskGroup() as group:
            holder = group.create_task(_failure(connections.fetch(SLEEP, 5.0, writes=False)))
            await asyncio.sleep(0)

            with pytest.raises(BackendUnavailableError, match="no connection was free"):
                await connections.fetch(insert(table), 1, writes=True)

        assert isinstance(holder.result(), BackendUnavailableError)
        assert await marks(admin, table) == []


async def _failure(call: Any) -> Exception | None:
    try:
        await call
    except Exception as error:  # noqa: BLE001  (the test looks at it)
        return error

    return None


# Cancellation.


async def test_cancelling_a_write_anywhere_leaves_it_whole_or_absent(
    any_url: str, own_postgres: PostgresServer, name: str
) -> None:
    async with opened(any_url, max_size=2) as connections, administrator(own_postgres.url) as admin:
        table = f"public.{name}"
        await admin.execute(f"CREATE TABLE {table} (mark int)")
        returned: list[int] = []

        for at in range(1, MOST_SUSPENSIONS):
            call = partial(connections.fetch, insert(table), at, writes=True)
            outcome = await interrupted(call, at)
            assert outcome.error is None
            landed = await marks(admin, table)

            # What is cancelled has landed by now or never will.
            await connections.fetch("SELECT 1", writes=False)
            await Watch(admin, name).assert_clean(at_most=3)
            assert await marks(admin, table) == landed

            if outcome.returned:
                returned.append(at)
                assert at in landed

            if not outcome.reached:
                break

        assert returned


@pytest.mark.parametrize("max_size", [1, 3])
async def test_cancelling_callers_in_line_loses_no_connection(
    url: str, watch: Watch, max_size: int
) -> None:
    async with opened(url, max_size=max_size) as connections:

        async def call(at: int) -> None:
            await interrupted(lambda: connections.fetch(SLEEP, 0.002, writes=False), at)

        for _ in range(5):
            await asyncio.gather(*(call(at) for at in range(1, 40)))

        await watch.assert_clean(at_most=max_size)
        sleeps = [connections.fetch(SLEEP, 0.01, writes=False) for _ in range(max_size * 2)]
        await asyncio.wait_for(asyncio.gather(*sleeps), PATIENCE)
        await watch.assert_clean(at_most=max_size)


@pytest.mark.parametrize("killed", [False, True])
async def test_who_is_cancelled_at_the_moment_of_his_turn_passes_it_on(
    url: str, watch: Watch, killed: bool
) -> None:
    async with opened(url, max_size=1, timeout=5) as connections:

        async def hold() -> None:
            await _failure(connections.fetch(SLEEP, 30.0 if killed else 0.1, writes=False))
            waiting.cancel()  # his turn has come, and he does not know yet

        holding = asyncio.create_task(hold())
        await watch.until("active", 1)
        waiting = asyncio.create_task(connections.fetch("SELECT 1", writes=False))
        await asyncio.sleep(0)

        if killed:
            await watch.kill()

        await asyncio.wait({holding, waiting})

        assert waiting.cancelled()
        await connections.fetch("SELECT 1", writes=False)


async def test_a_cancelled_write_is_over_before_the_cancellation_goes_on(
    url: str, admin: asyncpg.Connection[Any], watch: Watch, table: str
) -> None:
    async with opened(url, max_size=2) as connections:
        write = asyncio.create_task(connections.fetch(insert_slowly(table), 1, 30.0, writes=True))
        await watch.until("active", 1)
        write.cancel()
        await asyncio.wait({write}, timeout=PATIENCE)

        assert write.cancelled()
        assert "active" not in (await watch.sessions()).values()
        assert await marks(admin, table) == []


async def test_a_cancellation_is_not_held_up_by_a_frozen_server(postgres_durable: Start) -> None:
    server = postgres_durable()

    async with opened(server.url, max_size=2) as connections:
        await connections.fetch(SLEEP, 0.0, writes=True)

        with frozen(server):
            write = asyncio.create_task(connections.fetch(SLEEP, 0.0, writes=True))
            await asyncio.sleep(0.05)
            write.cancel()
            await asyncio.wait_for(asyncio.wait({write}), PATIENCE)
            assert write.cancelled()

        await connections.fetch("SELECT 1", writes=True)


# Servers that fail.


async def test_idle_connections_that_the_server_ended_are_not_noticed(
    url: str, watch: Watch
) -> None:
    async with opened(url, min_size=3, max_size=3) as connections:
        assert await watch.kill() == 3
        await watch.until("idle", 0)
        await asyncio.sleep(0.01)  # the news are on their way

        for _ in range(5):
            await connections.fetch("SELECT 1", writes=True)


@pytest.mark.parametrize("writes", [True, False])
async def test_a_session_that_is_ended_in_mid_statement(
    url: str, watch: Watch, writes: bool
) -> None:
    expected = OutcomeUnknownError if writes else BackendUnavailableError

    async with opened(url, max_size=1) as connections:
        call = asyncio.create_task(_failure(connections.fetch(SLEEP, 30.0, writes=writes)))
        await watch.until("active", 1)
        await watch.kill()

        assert type(await call) is expected
        await connections.fetch("SELECT 1", writes=True)
        await watch.assert_clean(at_most=1)


@pytest.mark.parametrize("cut", [True, False])
async def test_a_lost_answer_to_a_write_is_an_unknown_outcome(
    url: str, admin: asyncpg.Connection[Any], table: str, cut: bool
) -> None:
    async with Proxy(url) as proxy, opened(proxy.url, timeout=1.0) as connections:
        await connections.fetch(insert(table), 1, writes=True)
        proxy.drop_replies_after(cut=cut)

        with pytest.raises(OutcomeUnknownError):
            await connections.fetch(insert(table), 2, writes=True)

        await connections.fetch(insert(table), 3, writes=True)

        assert await marks(admin, table) == [1, 2, 3]


async def test_a_server_that_is_down_is_unavailable_until_it_is_back(
    postgres_durable: Start,
) -> None:
    server = postgres_durable()

    async with opened(server.url, max_size=3) as connections:
        async with asyncio.TaskGroup() as group:
            writes = [
                group.create_task(_failure(connections.fetch(SLEEP, 30.0, writes=True)))
                for _ in range(3)
            ]
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.kill)

        assert {type(write.result()) for write in writes} == {OutcomeUnknownError}

        for _ in range(5):
            with pytest.raises(BackendUnavailableError):
                await connections.fetch("SELECT 1", writes=True)

        await asyncio.to_thread(server.start)
        assert len(await asyncio.gather(*(connections.fetch(PID, writes=True) for _ in "123"))) == 3


async def test_a_frozen_server_holds_nobody_longer_than_the_time_limit(
    postgres_durable: Start,
) -> None:
    server = postgres_durable()

    async with opened(server.url, max_size=2, timeout=0.5) as connections:
        await asyncio.gather(*(connections.fetch(SLEEP, 0.05, writes=True) for _ in "12"))

        with frozen(server):
            calls = [connections.fetch(SLEEP, 0.0, writes=True) for _ in range(2)]
            calls += [connections.fetch(SLEEP, 0.0, writes=False) for _ in range(4)]
            failures = await asyncio.wait_for(asyncio.gather(*map(_failure, calls)), PATIENCE)

            kinds = [type(failure) for failure in failures]
            assert kinds == [OutcomeUnknownError] * 2 + [BackendUnavailableError] * 4

            # Now no connection is left that could be used.
            again = connections.fetch("SELECT 1", writes=True)
            assert isinstance(await asyncio.wait_for(_failure(again), PATIENCE), BackendError)

        async def works() -> bool:
            return await _failure(connections.fetch("SELECT 1", writes=True)) is None

        await eventually(works, "the server is used again")


async def test_the_server_gives_up_before_we_do_so_nothing_was_applied(
    url: str, admin: asyncpg.Connection[Any], table: str
) -> None:
    await admin.execute(sql("INSERT INTO {table} VALUES (1)", table=table))

    update = sql("UPDATE {table} SET mark = mark + 1", table=table)

    async with opened(url, timeout=1.0) as connections, admin.transaction():
        await admin.execute(update)

        with pytest.raises(BackendUnavailableError, match="57014"):
            await connections.fetch(update, writes=True)

    assert await marks(admin, table) == [2]


async def test_a_server_that_became_read_only_is_left(url: str, watch: Watch, table: str) -> None:
    read_only = f"{url}&default_transaction_read_only=on"

    async with opened(read_only, max_size=1) as connections:
        before = await watch.sessions()

        with pytest.raises(BackendUnavailableError, match="25006"):
            await connections.fetch(insert(table), 1, writes=True)

        await connections.fetch("SELECT 1", writes=False)
        assert not before.keys() & (await watch.sessions()).keys()


# Opening and closing.


@pytest.mark.parametrize(
    ("change", "expected", "says"),
    [
        (("/postgres?", "/no_such_database?"), ConfigurationError, "no_such_database"),
        (("//postgres@", "//nobody_here@"), ConfigurationError, "nobody_here"),
        (("127.0.0.1:", "127.0.0.1:1"), ConfigurationError, "URL"),
        (("//postgres@", "//postgres:pa#ss@"), ConfigurationError, "percent-encoded"),
        (("?", "?sslmode=wrong&"), ConfigurationError, "sslmode"),
        (("?", "?no_such_setting=1&"), BackendError, "no_such_setting"),
    ],
)
async def test_what_is_wrong_with_a_url_is_said_without_its_secrets(
    own_postgres: PostgresServer,
    name: str,
    change: tuple[str, str],
    expected: type[Exception],
    says: str,
) -> None:
    url = f"{own_postgres.url}?application_name={name}".replace(*change)

    with pytest.raises(expected, match=says) as raised:
        async with opened(url):
            pass

    assert "'pa'" not in "".join(format_exception(raised.value))


async def test_nobody_at_the_address_is_unavailable() -> None:
    with pytest.raises(BackendUnavailableError):
        async with opened("postgresql://postgres@127.0.0.1:9/postgres"):
            pass


async def test_a_database_in_another_encoding_is_refused(
    own_postgres: PostgresServer, name: str
) -> None:
    async with administrator(own_postgres.url) as admin:
        await admin.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        )

    with pytest.raises(ConfigurationError, match="LATIN1"):
        async with opened(own_postgres.database_url(name)):
            pass


async def test_closing_ends_who_waits_and_lets_run_what_runs(
    url: str, admin: asyncpg.Connection[Any], watch: Watch, table: str
) -> None:
    async with opened(url, max_size=1) as connections:
        running = asyncio.create_task(connections.fetch(insert_slowly(table), 1, 0.3, writes=True))
        await watch.until("active", 1)
        waiting = asyncio.create_task(_failure(connections.fetch(insert(table), 2, writes=True)))
        await asyncio.sleep(0)

        await asyncio.gather(connections.close(), connections.close())

        await running
        assert isinstance(await waiting, BackendClosedError)
        assert await marks(admin, table) == [1]
        await watch.until("idle", 0)

        with pytest.raises(BackendClosedError):
            await connections.fetch("SELECT 1", writes=False)

        await connections.close()


async def test_closing_during_many_calls_leaves_no_task_and_no_session(
    url: str, watch: Watch
) -> None:
    async with opened(url, max_size=3) as connections:
        calls = [
            asyncio.create_task(_failure(connections.fetch(SLEEP, 0.05, writes=False)))
            for _ in range(20)
        ]
        await watch.until("active", 3)
        await connections.close()
        failures = await asyncio.gather(*calls)

    assert {type(failure) for failure in failures} == {type(None), BackendClosedError}
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await watch.until("idle", 0)


async def test_what_was_closed_can_be_opened_again(url: str) -> None:
    connections = Connections(OwnConnections(url), timeout=PATIENCE)

    for _ in range(2):
        await connections.open()
        await connections.fetch("SELECT 1", writes=False)
        await connections.close()


async def test_opening_that_is_cancelled_anywhere_leaves_no_session(url: str, watch: Watch) -> None:
    for at in range(1, MOST_SUSPENSIONS):
        connections = Connections(OwnConnections(url, min_size=2), timeout=PATIENCE)
        outcome = await interrupted(connections.open, at)
        assert outcome.error is None

        if outcome.returned:
            await connections.close()

        await watch.until("idle", 0)

        if not outcome.reached:
            return

    pytest.fail("opening never ended")


def test_another_loop_is_told(own_postgres: PostgresServer) -> None:
    connections = Connections(OwnConnections(own_postgres.url), timeout=PATIENCE)

    async def misuse() -> None:
        with pytest.raises(BackendError, match="event loop"):
            await connections.fetch("SELECT 1", writes=False)

        await connections.close()

    with asyncio.Runner() as one, asyncio.Runner() as other:
        one.run(connections.open())
        other.run(misuse())

        async def parted() -> bool:
            await asyncio.sleep(0)
            return True

        one.run(eventually(parted, "what was posted to this loop is done"))


async def test_a_fork_is_told_and_the_parent_goes_on(url: str, watch: Watch) -> None:
    async with opened(url, min_size=2) as connections:
        child = os.fork()

        if child == 0:
            code = 1

            try:
                with pytest.raises(BackendClosedError, match="fork"):
                    connections.check_open()

                closing = connections.close()

                with pytest.raises(StopIteration):
                    closing.send(None)

                code = 0
            finally:
                os._exit(code)

        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert status == 0
        assert len(await watch.sessions()) == 2
        await connections.fetch("SELECT 1", writes=False)


# The caller's pool.


async def test_a_pool_of_the_callers_is_used_and_left_open(url: str, watch: Watch) -> None:
    async with asyncpg.create_pool(url, min_size=1, max_size=6) as pool:
        connections = Connections(BorrowedConnections(pool), timeout=PATIENCE)
        await connections.open()
        await asyncio.gather(*(connections.fetch(SLEEP, 0.02, writes=False) for _ in range(20)))
        assert len(await watch.sessions()) == 3, "half of what it may have"

        await connections.close()

        assert pool.get_idle_size() == pool.get_size() == 3
        assert await pool.fetchval("SELECT 1") == 1


async def test_borrowed_connections_cost_one_round_trip_too(url: str) -> None:
    async with (
        Proxy(url) as proxy,
        asyncpg.create_pool(proxy.url, min_size=1, max_size=2) as pool,
    ):
        connections = Connections(BorrowedConnections(pool), timeout=PATIENCE)
        await connections.open()
        await connections.fetch("SELECT $1::bigint[]", [1], writes=False)
        proxy.reset_counts()

        for _ in range(10):
            await connections.fetch("SELECT $1::bigint[]", [1], writes=False)

        assert proxy.round_trips == 10
        await connections.close()


async def test_a_pool_of_one_serves_both(url: str) -> None:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        source = BorrowedConnections(pool)
        source.max_idle = 10 * PATIENCE  # what others may be waiting for is not kept at all
        connections = Connections(source, timeout=PATIENCE)
        await connections.open()

        async def theirs() -> None:
            for _ in range(20):
                await pool.fetchval("SELECT 1", timeout=PATIENCE)

        async def ours() -> None:
            for _ in range(20):
                await connections.fetch("SELECT 1", writes=False)

        await asyncio.wait_for(asyncio.gather(theirs(), ours()), PATIENCE)
        await connections.close()


async def test_a_pool_gets_its_connections_back_whatever_is_cancelled(
    url: str, admin: asyncpg.Connection[Any], watch: Watch, table: str
) -> None:
    async with asyncpg.create_pool(url, min_size=0, max_size=2) as pool:
        connections = Connections(BorrowedConnections(pool, max_size=2), timeout=PATIENCE)
        await connections.open()

        for at in range(1, MOST_SUSPENSIONS):
            call = partial(connections.fetch, insert(table), at, writes=True)
            outcome = await interrupted(call, at)
            assert outcome.error is None
            await connections.fetch("SELECT 1", writes=False)
            await watch.assert_clean(at_most=2)
            assert not outcome.returned or at in await marks(admin, table)

            if not outcome.reached:
                break

        await watch.kill()
        await watch.until("idle", 0)
        await asyncio.sleep(0.01)
        await connections.fetch("SELECT 1", writes=True)
        await connections.close()

        async with pool.acquire(timeout=PATIENCE), pool.acquire(timeout=PATIENCE):
            pass
