"""PostgreSQL, and what the same work costs in raw statements, through asyncpg."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache
from importlib import import_module
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import FLOOR, Floor, Target
from benchmarks.stores.common import FLAT_DISPATCH
from benchmarks.workloads import ACQUIRED_AT_ONCE, COMMIT_CLAIMING, OUTPUT
from sayiir_persist.adapters.postgres import PostgresBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from benchmarks.harness import Scale, Stopwatch
    from sayiir_persist import PersistentBackend

_asyncpg: Final[Any] = import_module("asyncpg")  # its types are incomplete

URL: Final = "SAYIIR_TEST_POSTGRES_URL"

# The floor has what any durable checkpoint needs: a row for each instance, and results beside it.
SCHEMA: Final = """
CREATE TABLE {schema}.instances (
    instance_id text COLLATE "C" PRIMARY KEY,
    status text NOT NULL,
    version bigint NOT NULL,
    body bytea NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX ready ON {schema}.instances (instance_id) WHERE status = 'ready';
CREATE TABLE {schema}.results (
    instance_id text COLLATE "C" NOT NULL,
    node_id text COLLATE "C" NOT NULL,
    output bytea NOT NULL,
    PRIMARY KEY (instance_id, node_id)
);
"""
FILL: Final = """
INSERT INTO {schema}.instances SELECT 'run-' || n, 'ready', 0, $2 FROM generate_series(0, $1 - 1) n
"""
COMMIT_ONE: Final = """
WITH moved AS (
    UPDATE {schema}.instances SET version = version + 1, body = $3
    WHERE instance_id = $1 AND version = $2
    RETURNING instance_id
)
INSERT INTO {schema}.results SELECT instance_id, $4, $5 FROM moved RETURNING instance_id
"""
INSERT_MANY: Final = """
INSERT INTO {schema}.results SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])
"""
LOAD_INSTANCE: Final = "SELECT * FROM {schema}.instances WHERE instance_id = $1"
LOAD_RESULTS: Final = "SELECT node_id, output FROM {schema}.results WHERE instance_id = $1"
CLAIM: Final = """
UPDATE {schema}.instances SET status = 'claimed', version = version + 1
WHERE instance_id = ANY (ARRAY(
    SELECT instance_id FROM {schema}.instances WHERE status = 'ready'
    ORDER BY instance_id LIMIT $1 FOR UPDATE SKIP LOCKED
))
RETURNING instance_id, version, body
"""
COMPLETE: Final = """
WITH moved AS (
    UPDATE {schema}.instances AS t SET status = 'completed', version = t.version + 1, body = $3
    FROM unnest($1::text[], $2::bigint[]) AS u (instance_id, version)
    WHERE t.instance_id = u.instance_id AND t.version = u.version
    RETURNING t.instance_id
)
INSERT INTO {schema}.results SELECT instance_id, $4, $5 FROM moved RETURNING instance_id
"""
BODY: Final = b"b" * 300
CONNECTIONS: Final = 10
MANY: Final = 64
MANY_ROWS: Final = f"{MANY} rows in each INSERT"
POOL: Final = "floor on asyncpg.Pool"

SLOW_DISK: Final = MappingProxyType({"commit_delay": "1000", "commit_siblings": "0"})
"""Each flush takes a millisecond longer, and those who come meanwhile share it."""

_numbers = count()


@lru_cache
def _url() -> str:
    """The server that the environment names, or a durable one of our own."""
    if url := os.environ.get(URL):
        return url

    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    services: Any = import_module("services.postgres")
    binaries = services.find_postgres()

    if binaries is None:
        raise SystemExit(f"no PostgreSQL to measure: {services.LOOKED_AT}")

    url = services.PostgresServer(binaries, durable=True).start().url  # ends with this process
    assert isinstance(url, str)
    return url


class Postgres:
    """`PostgresBackend` with its defaults on a durable server, a new schema each time.

    The server is the one that `SAYIIR_TEST_POSTGRES_URL` names, as a superuser, or one that is
    started for it; `TMPDIR` does not move that, its data lie below `/tmp`.

    Args:
        settings: Of every session.
    """

    name = "postgres"
    targets: Sequence[Target] = (
        Target("commit", COMMIT_CLAIMING, FLOOR, 1.6),
        Target("W1", "10,000 steps", "10 steps", 1.2),
        Target("W2", FLOOR, "workflows at once", 1.0, at_least=True),
        Target("W3", "load_snapshot", FLOOR, 2),
        Target("W4", FLOOR, "8 workers", 0.4, at_least=True),
        *FLAT_DISPATCH,
    )

    def __init__(self, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self._options: dict[str, Any] = {"server_settings": dict(settings)}
        self.floors: Mapping[str, Mapping[str, Floor]] = MappingProxyType(
            {
                "commit": {FLOOR: self._commits},
                "group": {FLOOR: self._group, MANY_ROWS: self._group_of_rows},
                "W2": {
                    FLOOR: self._workflows,
                    POOL: self._workflows_on_a_pool,
                    MANY_ROWS: self._rows,
                },
                "W3": {FLOOR: self._loads},
                "W4": {FLOOR: self._drain},
            }
        )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[PersistentBackend]:
        """A backend on a new schema."""
        schema = f"bench_{os.getpid()}_{next(_numbers)}"

        try:
            async with PostgresBackend.connect(
                _url(), schema=schema, connect_options=self._options
            ) as backend:
                yield backend
        finally:
            await self._drop(schema)

    def describe(self) -> str:
        """The server and its settings."""

        async def ask() -> str:
            async with self._connection() as connection:
                [row] = await connection.fetch(
                    "SELECT current_setting('server_version'), current_setting('fsync'), "
                    "current_setting('synchronous_commit')"
                )
                return "PostgreSQL {}, fsync={}, synchronous_commit={}".format(*row)

        with ThreadPoolExecutor(1) as thread:  # an event loop runs in this one
            server = thread.submit(asyncio.run, ask()).result()

        return f"{server}, asyncpg {_asyncpg.__version__}"

    # --- Floors ---

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Any]:
        connection = await _asyncpg.connect(_url(), **self._options)

        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def _raw(self, instances: int, connections: int = 1) -> AsyncGenerator[_Raw]:
        """A new schema with instances."""
        schema = f"floor_{os.getpid()}_{next(_numbers)}"

        try:
            async with AsyncExitStack() as stack:
                opened = [
                    await stack.enter_async_context(self._connection()) for _ in range(connections)
                ]
                raw = _Raw(schema, opened)
                await raw.execute(f"CREATE SCHEMA {schema};" + SCHEMA)
                await (await raw.prepared(FILL))(instances, BODY)
                yield raw
        finally:
            await self._drop(schema)

    async def _drop(self, schema: str) -> None:
        """When nobody uses it any more: what was prepared and never run holds locks."""
        async with self._connection() as connection:
            await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE", timeout=60)

    async def _commits(self, scale: Scale, watch: Stopwatch) -> int:
        """F1: one statement for each step, one after the other."""
        async with self._raw(scale.commits) as raw:
            commit = await raw.prepared(COMMIT_ONE)

            with watch:
                for number in range(scale.commits):
                    assert await commit(f"run-{number}", 0, BODY, "t9", OUTPUT)

        return scale.commits

    async def _group(self, scale: Scale, watch: Stopwatch) -> int:
        return await self._commit_at_once(scale.committers, scale.steps_per_committer, watch)

    async def _workflows(self, scale: Scale, watch: Stopwatch) -> int:
        return await self._commit_at_once(scale.workflows, scale.steps_per_workflow, watch)

    async def _commit_at_once(self, workflows: int, steps: int, watch: Stopwatch) -> int:
        """F2: as many tasks as workflows, on ten connections that they hand on to each other."""
        async with self._raw(workflows, CONNECTIONS) as raw:
            idle: asyncio.LifoQueue[Callable[..., Awaitable[Any]]] = asyncio.LifoQueue()

            for number in range(CONNECTIONS):
                idle.put_nowait(await raw.prepared(COMMIT_ONE, number))

            async def run(workflow: int) -> None:
                for step in range(steps):
                    commit = await idle.get()
                    assert await commit(f"run-{workflow}", step, BODY, f"t{step}", OUTPUT)
                    idle.put_nowait(commit)

            with watch:
                await asyncio.gather(*map(run, range(workflows)))

        return workflows * steps

    async def _workflows_on_a_pool(self, scale: Scale, watch: Stopwatch) -> int:
        """F2 as most would write it; the pool resets what is given back, which is a round trip."""
        async with (
            self._raw(scale.workflows) as raw,
            _asyncpg.create_pool(
                _url(), min_size=CONNECTIONS, max_size=CONNECTIONS, **self._options
            ) as pool,
        ):
            commit = raw.rendered(COMMIT_ONE)

            async def run(workflow: int) -> None:
                for step in range(scale.steps_per_workflow):
                    assert await pool.fetch(
                        commit, f"run-{workflow}", step, BODY, f"t{step}", OUTPUT
                    )

            with watch:
                await asyncio.gather(*map(run, range(scale.workflows)))

        return scale.workflows * scale.steps_per_workflow

    async def _group_of_rows(self, scale: Scale, watch: Stopwatch) -> int:
        return await self._insert_many(scale.steps_per_committer, watch)

    async def _rows(self, scale: Scale, watch: Stopwatch) -> int:
        return await self._insert_many(scale.steps_per_workflow, watch)

    async def _insert_many(self, times: int, watch: Stopwatch) -> int:
        """F3: nothing but results, 64 at once."""
        async with self._raw(MANY) as raw:
            insert = await raw.prepared(INSERT_MANY)
            instance_ids = [f"run-{number}" for number in range(MANY)]

            with watch:
                for number in range(times):
                    await insert(instance_ids, [f"t{number}"] * MANY, [OUTPUT] * MANY)

        return times * MANY

    async def _loads(self, scale: Scale, watch: Stopwatch) -> int:
        """Read the row and its results."""
        async with self._raw(1) as raw:
            count, node_ids = scale.results, [f"n{number}" for number in range(scale.results)]
            await (await raw.prepared(INSERT_MANY))(["run-0"] * count, node_ids, [OUTPUT] * count)
            load, load_results = await raw.prepared(LOAD_INSTANCE), await raw.prepared(LOAD_RESULTS)

            with watch:
                for _ in range(scale.loads):
                    assert len(await load("run-0")) == 1
                    assert len(dict(await load_results("run-0"))) == count

        return scale.loads

    async def _drain(self, scale: Scale, watch: Stopwatch) -> int:
        """F4: claim 50 in one statement, complete these 50 in another, until none is left."""
        finished = 0

        async with self._raw(scale.instances) as raw:
            claim, complete = await raw.prepared(CLAIM), await raw.prepared(COMPLETE)

            with watch:
                while due := await claim(ACQUIRED_AT_ONCE):
                    ids, versions = [row[0] for row in due], [row[1] for row in due]
                    assert len(await complete(ids, versions, BODY, "t0", OUTPUT)) == len(due)
                    finished += len(due)

        assert finished == scale.instances
        return finished


class _Raw:
    """Connections, and the schema that statements are for."""

    def __init__(self, schema: str, connections: Sequence[Any]) -> None:
        self._schema = schema
        self._connections = connections

    def rendered(self, statement: str) -> str:
        return statement.replace("{schema}", self._schema)

    async def execute(self, script: str) -> None:
        await self._connections[0].execute(self.rendered(script))

    async def prepared(self, statement: str, on: int = 0) -> Callable[..., Awaitable[Any]]:
        prepared = await self._connections[on].prepare(self.rendered(statement))
        run: Callable[..., Awaitable[Any]] = prepared.fetch
        return run
