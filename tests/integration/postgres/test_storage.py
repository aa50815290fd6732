"""A checkpoint writes the step and not the workflow, and leaves little behind to be vacuumed."""

from __future__ import annotations

import asyncio
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.support import eventually, sql
from integration.postgres.workloads import TTL, acquired, connect, started

from sayiir_persist import AtTask, MsgpackCodec

if TYPE_CHECKING:
    import asyncpg
    from services.postgres import PostgresServer

    from sayiir_persist import AcquiredTask
    from sayiir_persist.adapters.postgres import PostgresBackend


async def step(backend: PostgresBackend, task: AcquiredTask, number: int) -> AcquiredTask:
    done = task.snapshot.complete_task(
        task.task_id, b"o" * 100, next=AtTask(f"task-{number + 1:05}")
    )
    commit = await backend.commit_task(task.claim, done, claim_next=TTL)
    assert commit.next is not None
    return commit.next


async def written(admin: asyncpg.Connection[Any]) -> int:
    return await admin.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")


@pytest.mark.parametrize("codec", [None, MsgpackCodec()], ids=["json", "msgpack"])
async def test_a_commit_writes_no_more_at_step_1000_than_at_step_10(
    codec: Any, own_postgres: PostgresServer, schema: str, admin: asyncpg.Connection[Any]
) -> None:
    sizes: list[int] = []
    options = {} if codec is None else {"codec": codec}
    await admin.execute("CHECKPOINT")
    assert await admin.fetchval("SHOW full_page_writes") == "off"

    async with connect(own_postgres.url, schema, **options) as backend:
        await started(backend, input=b"i" * 100_000, start_at="task-00000")
        task = await acquired(backend)

        for number in range(1000):
            before = await written(admin)
            task = await step(backend, task, number)
            sizes.append(int(await written(admin) - before))

    early, late = median(sizes[10:40]), median(sizes[-100:])
    print(f"WAL bytes of a commit: {early} at step 10, {late} at step 1000")
    assert late <= 1.2 * early
    assert late < 4_000


async def test_a_commit_leaves_the_input_and_earlier_results_where_they_are(
    url: str, schema: str, admin: asyncpg.Connection[Any]
) -> None:
    async def places() -> dict[str, tuple[Any, Any]]:
        rows = await admin.fetch(
            sql(
                "SELECT node_id, ctid::text, xmin::text, xmax::text FROM {schema}.results",
                schema=schema,
            )
        )
        return {row["node_id"]: tuple(row)[1:] for row in rows}

    async with connect(url, schema) as backend:
        await started(backend, start_at="task-00000")
        task = await acquired(backend)

        for number in range(20):
            before = await places()
            task = await step(backend, task, number)
            after = await places()

            assert before.items() <= after.items()
            assert len(after) == len(before) + 1

        by_load = (await backend.load_snapshot("run")).complete_task(
            task.task_id, b"", next=AtTask("last")
        )
        before = await places()
        await backend.save_snapshot(by_load)
        await backend.store_signal("run", "pause")
        await backend.check_and_pause("run")
        await backend.unpause("run")

        assert before.items() <= (await places()).items()


async def test_commits_of_a_linear_workflow_are_hot_updates(
    url: str, schema: str, admin: asyncpg.Connection[Any]
) -> None:
    """The row of the instance keeps its place in every index; that of its task is found anew."""
    runs, steps = 16, 60

    async with connect(url, schema) as backend:

        async def run(number: int) -> None:
            tag = f"run-{number}"
            await started(backend, tag, tags=(tag,), start_at="task-00000")
            task = await acquired(backend, tags=(tag,))

            for step_number in range(steps):
                task = await step(backend, task, step_number)

        await asyncio.gather(*map(run, range(runs)))

    ratios = await hot_ratios(admin, schema, at_least=runs * steps)
    print(f"HOT ratios: {ratios}")
    assert ratios["instances"] > 0.9


async def test_heartbeats_are_hot_updates(
    url: str, schema: str, admin: asyncpg.Connection[Any]
) -> None:
    async with connect(url, schema) as backend:
        await started(backend)
        claim = (await acquired(backend)).claim

        for _ in range(200):
            claim = await backend.extend_task_claim(claim, ttl=TTL)

    assert (await hot_ratios(admin, schema, at_least=200))["instances"] > 0.9


async def hot_ratios(
    admin: asyncpg.Connection[Any], schema: str, *, at_least: int
) -> dict[str, float]:
    """Of the updates of each table; sessions tell of theirs when they end."""

    async def told() -> bool:
        updates = await admin.fetchval(
            "SELECT n_tup_upd FROM pg_stat_user_tables "
            "WHERE schemaname = $1 AND relname = 'instances'",
            schema,
        )
        return updates >= at_least

    await eventually(told, "statistics of the updates")
    rows = await admin.fetch(
        "SELECT relname, n_tup_hot_upd::float / n_tup_upd AS ratio FROM pg_stat_user_tables "
        "WHERE schemaname = $1 AND n_tup_upd > 0",
        schema,
    )
    return {row["relname"]: round(row["ratio"], 3) for row in rows}
