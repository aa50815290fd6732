"""What a statement costs follows what it answers, not what is stored.

The server itself tells the plans, those of statements within functions included, by `auto_explain`.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta
from os import getpid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from integration.postgres.support import administrator, sql
from integration.postgres.workloads import TTL, WORKER, connect, next_step, started
from msgspec import Struct

from sayiir_persist import AtDelay, AtSignal, AtTask, Status, WorkflowSnapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator

    from services.postgres import PostgresServer

    from sayiir_persist.adapters.postgres import PostgresBackend

    Operation = Callable[[PostgresBackend], Awaitable[object]]

READY = 300
ENDED = 20_000
PARKED = 15_000
CLAIMED = 5_000

MORE = 16
LANES = 5

SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "client_min_messages": "log",
}

FILL = """
    WITH numbers AS (SELECT generate_series(1, {count}) AS number)
    INSERT INTO {schema}.{table} ({names})
    SELECT {values} FROM {schema}.{table} AS t, numbers WHERE t.instance_id = '{like}'
"""

FILL_THE_REST = """
    INSERT INTO {schema}.results (key, node_id, output)
    SELECT key, '', 'order' FROM {schema}.instances WHERE key > 100000;
    INSERT INTO {schema}.queues
    SELECT namespace, instance_id, 1, 1, 1 FROM {schema}.instances WHERE key > 100000;
    INSERT INTO {schema}.events
    SELECT namespace, instance_id, 'news', 1, 0, '' FROM {schema}.instances WHERE key > 100000;
    INSERT INTO {schema}.event_ids
    SELECT namespace, instance_id, 'news', '1', 1 FROM {schema}.instances WHERE key > 100000;
"""


class Scan(Struct, frozen=True):
    """One look at a table, and how many rows of it were touched, those that did not fit too."""

    table: str
    how: str
    index: str | None
    rows: float


def scans(node: dict[str, Any]) -> Iterator[Scan]:
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        removed = node.get("Rows Removed by Filter", 0)
        removed += node.get("Rows Removed by Index Recheck", 0)
        yield Scan(
            node["Relation Name"],
            node["Node Type"],
            node.get("Index Name"),
            (node["Actual Rows"] + removed) * node["Actual Loops"],
        )

    for child in node.get("Plans", ()):
        yield from scans(child)


class Plans:
    """The plans of every statement that was run since `forget`."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def __call__(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        _, is_one, text = message.message.partition("plan:\n")

        if is_one:
            self.found.append(json.loads(text))

    def forget(self) -> None:
        self.found.clear()

    @property
    def scans(self) -> list[Scan]:
        return [scan for plan in self.found for scan in scans(plan["Plan"])]

    def touched(self, table: str) -> float:
        return sum(scan.rows for scan in self.scans if scan.table == table)

    def assert_by_index(self) -> None:
        """Whatever was looked for in a table was found by an index."""
        assert self.found
        slow = [
            (scan, plan["Query Text"])
            for plan in self.found
            for scan in scans(plan["Plan"])
            if scan.how not in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
        ]
        assert not slow


@pytest.fixture(scope="module", params=["analyzed", "never analyzed"])
def filled(request: pytest.FixtureRequest, own_postgres: PostgresServer) -> Generator[str]:
    """A schema with few ready instances beside very many others."""
    schema = f"plans_{getpid()}_{len(request.param)}"
    asyncio.run(_fill(own_postgres.url, schema, analyze=request.param == "analyzed"))
    yield schema
    asyncio.run(_drop(own_postgres.url, schema))


async def _fill(url: str, schema: str, *, analyze: bool) -> None:
    await fill(url, schema)

    if analyze:
        async with administrator(url) as connection:
            await connection.execute("ANALYZE")


async def fill(url: str, schema: str) -> None:
    async with connect(url, schema) as backend:
        ended = WorkflowSnapshot.start("ended", "v1", start_at="charge").complete(b"")
        await backend.save_snapshot(ended)
        await started(backend, "claimed")
        await backend.acquire_tasks(worker_id="somebody", ttl=timedelta(days=9))
        await started(backend, "parked", start_at=_nap())

    async with administrator(url) as connection:
        for table in ("instances", "entries", "results", "queues", "events", "event_ids"):
            await connection.execute(
                sql(
                    "ALTER TABLE {schema}.{table} SET (autovacuum_enabled = off)",
                    schema=schema,
                    table=table,
                )
            )

        for table in ("instances", "entries"):
            for number, (like, count) in enumerate(
                [("ended", ENDED), ("claimed", CLAIMED), ("parked", PARKED)], start=1
            ):
                await _multiply(connection, schema, table, like, count, 100_000 * number)

        await connection.execute(sql(FILL_THE_REST, schema=schema))

    async with connect(url, schema) as backend:
        await asyncio.gather(*(_start(backend, number) for number in range(READY)))


async def _start(backend: PostgresBackend, number: int) -> None:
    await started(backend, f"ready-{number:03}", tags=("gpu",) if number % 2 else ())


async def _multiply(
    connection: asyncpg.Connection[Any],
    schema: str,
    table: str,
    like: str,
    count: int,
    first_key: int,
) -> None:
    rows = await connection.fetch(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_schema = $1 AND table_name = $2",
        schema,
        table,
    )
    names = [row[0] for row in rows]
    changed = {"key": f"{first_key} + number", "instance_id": "t.instance_id || number"}
    values = ", ".join(changed.get(name, f"t.{name}") for name in names)
    await connection.execute(
        sql(
            FILL,
            schema=schema,
            table=table,
            names=", ".join(names),
            values=values,
            like=like,
            count=str(count),
        )
    )


async def _drop(url: str, schema: str) -> None:
    async with administrator(url) as connection:
        await connection.execute("SET client_min_messages = warning")
        await connection.execute(sql("DROP SCHEMA {schema} CASCADE", schema=schema))


def _nap() -> AtDelay:
    return AtDelay("nap", wake_after=timedelta(days=9), next=AtTask("ship"))


@asynccontextmanager
async def explained(
    url: str, schema: str, *, mode: str
) -> AsyncGenerator[tuple[PostgresBackend, Plans]]:
    """A backend with one connection, and the plans of all that runs there."""
    plans = Plans()

    class Explained(asyncpg.Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.add_log_listener(plans)

    settings = {**SETTINGS, "plan_cache_mode": mode}
    options = {"connection_class": Explained, "server_settings": settings}

    async with connect(url, schema, max_size=1, connect_options=options) as backend:
        plans.forget()
        yield backend, plans


async def run(operation: Operation, backend: PostgresBackend, plans: Plans) -> Any:
    """Run it and have its plans, and no others."""
    await asyncio.sleep(0)
    plans.forget()
    answer = await operation(backend)
    await asyncio.sleep(0)  # listeners are called a moment later
    return answer


MODES = ("auto", "force_generic_plan", "force_custom_plan")

LOOK_UPS: dict[str, Operation] = {
    "load": lambda b: b.load_snapshot("ready-001"),
    "load result": lambda b: b.load_task_result("ready-001", "charge"),
    "signal": lambda b: b.get_signal("ready-001", "cancel"),
    "list": lambda b: b.list_snapshots(after="claimed9", limit=10),
    "list by status": lambda b: b.list_snapshots(
        status=Status.IN_PROGRESS, after="claimed9", limit=10
    ),
    "list by definition": lambda b: b.list_snapshots(
        definition_hash="v1", after="claimed9", limit=10
    ),
    "list by both": lambda b: b.list_snapshots(
        status=Status.IN_PROGRESS, definition_hash="v1", after="claimed9", limit=10
    ),
    "list by a rare status": lambda b: b.list_snapshots(status=Status.PAUSED, limit=10),
    "list by a rare definition": lambda b: b.list_snapshots(definition_hash="v2", limit=10),
    "stalled": lambda b: b.find_stalled(idle_for=timedelta(0), limit=10),
    "sweep": lambda b: b.sweep(limit=10),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", LOOK_UPS)
async def test_look_ups_touch_what_they_answer(
    operation: str, mode: str, filled: str, own_postgres: PostgresServer
) -> None:
    async with explained(own_postgres.url, filled, mode=mode) as (backend, plans):
        for _ in range(8):
            await run(LOOK_UPS[operation], backend, plans)

            plans.assert_by_index()
            assert plans.touched("instances") <= 11
            assert plans.touched("entries") <= 2


# Dispatch.

POLLS: dict[str, Operation] = {
    "find": lambda b: b.find_available_tasks(worker_id=WORKER, limit=5),
    "acquire": lambda b: b.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=5),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", POLLS)
async def test_a_poll_touches_in_proportion_to_its_limit(
    operation: str, mode: str, filled: str, own_postgres: PostgresServer
) -> None:
    async with explained(own_postgres.url, filled, mode=mode) as (backend, plans):
        for _ in range(8):
            tasks = await run(POLLS[operation], backend, plans)

            assert len(tasks) == 5
            plans.assert_by_index()
            candidates = 5 + (MORE if operation == "acquire" else 0)
            assert plans.touched("entries") <= 6 * candidates
            assert plans.touched("instances") <= 3 * candidates
            assert plans.touched("results") <= 4 * candidates
            await give_back(backend, tasks)


async def give_back(backend: PostgresBackend, tasks: list[Any]) -> None:
    for task in tasks:
        if hasattr(task, "claim"):
            await backend.release_task_claim(task.claim)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", POLLS)
async def test_a_poll_that_nothing_fits_looks_at_what_is_ready_once_or_twice(
    operation: str, mode: str, filled: str, own_postgres: PostgresServer
) -> None:
    filters: list[dict[str, Any]] = [{"definition_hashes": ["v2"]}, {"definition_hashes": ["x"]}]

    async with explained(own_postgres.url, filled, mode=mode) as (backend, plans):
        for wanted in filters * 4:
            call: Operation = (
                (lambda b, w=wanted: b.find_available_tasks(worker_id=WORKER, **w))
                if operation == "find"
                else (lambda b, w=wanted: b.acquire_tasks(worker_id=WORKER, ttl=TTL, **w))
            )

            assert await run(call, backend, plans) == []

            plans.assert_by_index()
            assert plans.touched("entries") <= 2 * READY
            assert plans.touched("instances") == 0


@pytest.mark.parametrize("mode", MODES)
async def test_tags_are_looked_at_where_the_index_is_walked(
    mode: str, filled: str, own_postgres: PostgresServer
) -> None:
    async with explained(own_postgres.url, filled, mode=mode) as (backend, plans):
        for _ in range(8):
            tasks = await run(
                lambda b: b.find_available_tasks(worker_id=WORKER, tags=["eu"], limit=10),
                backend,
                plans,
            )

            assert {task.snapshot.tags for task in tasks} == {()}
            plans.assert_by_index()
            assert plans.touched("entries") <= 6 * 10 + 10  # every other one is for "gpu"
            assert plans.touched("instances") <= 3 * 10


async def test_due_advances_are_found_by_their_lane(
    filled: str, own_postgres: PostgresServer
) -> None:
    """The poll, the chores and the moves themselves."""
    over = AtSignal("approval", "approved", wake_after=timedelta(0), next=AtSignal("more", "more"))

    async with explained(own_postgres.url, filled, mode="auto") as (backend, plans):
        for number in range(16):
            await started(backend, f"over-{number:02}", start_at=over)
            call: Operation = (
                (lambda b: b.sweep(limit=10))
                if number % 2
                else (lambda b: b.find_available_tasks(worker_id=WORKER, limit=1))
            )

            await run(call, backend, plans)

            moved = await backend.load_snapshot(f"over-{number:02}")
            assert moved.version == 2
            plans.assert_by_index()
            assert plans.touched("entries") <= 40
            assert plans.touched("instances") <= 20


# Writes.


@pytest.mark.parametrize("mode", MODES)
async def test_writes_touch_what_they_change(
    mode: str, filled: str, own_postgres: PostgresServer
) -> None:
    writes: dict[str, Callable[[PostgresBackend, str], Awaitable[object]]] = {
        "start": lambda b, i: b.start_instance(i, "v1", start_at="charge", tags=["own"]),
        "result": lambda b, i: b.save_task_result(i, "aside", b""),
        "signal": lambda b, i: b.store_signal(i, "cancel"),
        "clear": lambda b, i: b.clear_signal(i, "cancel"),
        "event": lambda b, i: b.send_event(i, "news", b"", event_id="2"),
        "consume": lambda b, i: b.consume_event(i, "news"),
        "revoke": lambda b, i: b.revoke_task_claim(i, "charge"),
        "restart": lambda b, i: b.start_instance(
            i, "v1", start_at="charge", on_conflict="terminate_existing"
        ),
        "update": lambda b, i: b.update_snapshot(i, lambda s: s.count_iteration("n")),
        "claim": lambda b, i: b.claim_task(i, "charge", worker_id=WORKER, ttl=TTL),
        "delete": lambda b, i: b.delete_snapshot(i),
    }

    async with explained(own_postgres.url, filled, mode=mode) as (backend, plans):
        for number in range(8):
            for name, write in writes.items():
                await run(lambda b, w=write, n=number: w(b, f"write-{n}"), backend, plans)

                plans.assert_by_index()
                total = sum(scan.rows for scan in plans.scans)
                assert total <= 20, name


@pytest.mark.parametrize("mode", MODES)
async def test_a_worker_touches_what_is_its_own(
    mode: str, filled: str, own_postgres: PostgresServer
) -> None:
    async with explained(own_postgres.url, filled, mode=mode) as (backend, plans):
        await started(backend, "mine", tags=("mine",))
        claim = await backend.claim_task("mine", "charge", worker_id=WORKER, ttl=TTL)
        assert claim is not None
        snapshot = await backend.load_snapshot("mine")

        for number in range(8):
            claim = await run(lambda b, c=claim: b.extend_task_claim(c, ttl=TTL), backend, plans)
            plans.assert_by_index()
            at = snapshot.ready_tasks()[0].task_id
            following = AtTask(f"step-{number}", tags=())
            step = snapshot.complete_task(at, b"done", next=following)
            commit = await run(
                lambda b, c=claim, s=step: b.commit_task(c, s, claim_next=TTL), backend, plans
            )
            assert commit.next is not None
            claim, snapshot = commit.next.claim, commit.snapshot

            plans.assert_by_index()
            assert sum(scan.rows for scan in plans.scans) <= 6

        await backend.delete_snapshot("mine")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("following", [AtTask("ship"), _nap()], ids=["step", "write"])
async def test_a_batch_of_64_never_walks_the_table(
    following: Any, mode: str, filled: str, own_postgres: PostgresServer
) -> None:
    async with explained(own_postgres.url, filled, mode=mode) as (backend, plans):
        tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=64)
        snapshots = {task.claim: task.snapshot for task in tasks}

        for _ in range(7):

            async def together(
                backend: PostgresBackend, snapshots: dict[Any, Any] = snapshots
            ) -> list[Any]:
                return await asyncio.gather(
                    *(
                        backend.commit_task(
                            claim,
                            snapshot.complete_task(
                                snapshot.ready_tasks()[0].task_id, b"", next=following
                            ),
                        )
                        for claim, snapshot in snapshots.items()
                    )
                )

            await run(together, backend, plans)

            plans.assert_by_index()
            assert plans.touched("instances") <= 64 * 3
            assert plans.touched("entries") <= 64 * 6
            await restore(backend, [claim.instance_id for claim in snapshots])
            tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=64)
            snapshots = {task.claim: task.snapshot for task in tasks}

        for claim in snapshots:
            await backend.release_task_claim(claim)


async def restore(backend: PostgresBackend, instance_ids: list[str]) -> None:
    for instance_id in instance_ids:
        number = int(instance_id.rpartition("-")[2])
        await backend.delete_snapshot(instance_id)
        await _start(backend, number)


async def test_plans_that_were_made_for_empty_tables_are_good_ones_when_they_are_full(
    schema: str, own_postgres: PostgresServer
) -> None:
    """Generic plans are kept for as long as nobody analyzes the tables."""

    async def everything(backend: PostgresBackend) -> None:
        for number in range(4):
            await started(backend, f"early-{number}")

        tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=4)
        await asyncio.gather(*(backend.commit_task(it.claim, next_step(it)) for it in tasks))

        for number in range(4):
            await backend.send_event(f"early-{number}", "news", b"", event_id="1")
            await backend.store_signal(f"early-{number}", "cancel")

        await backend.sweep()
        await backend.list_snapshots(after="early", limit=4)
        await backend.find_stalled(idle_for=timedelta(0))

        for number in range(4):
            await backend.load_snapshot(f"early-{number}")
            await backend.delete_snapshot(f"early-{number}")

    async with explained(own_postgres.url, schema, mode="force_generic_plan") as (backend, plans):
        await everything(backend)
        await fill(own_postgres.url, schema)

        await run(everything, backend, plans)

        plans.assert_by_index()
