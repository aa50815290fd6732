"""Each task goes to one claimer and no claimer gets more than it asked for, whatever the plan.

`UPDATE ... WHERE id IN (SELECT ... LIMIT n FOR UPDATE SKIP LOCKED)` keeps neither promise: where
the planner makes a join of it, the inner side may run again and lock further rows.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.support import PATIENCE, sql
from integration.postgres.workloads import TTL, connect, started

from sayiir_persist import AtFork, AtTask

if TYPE_CHECKING:
    import asyncpg

    from sayiir_persist import AcquiredTask
    from sayiir_persist.adapters.postgres import PostgresBackend

CLAIMERS = 16
ALONE = 80
FORKS = 40
TASKS = ALONE + 3 * FORKS

PLANS: dict[str, dict[str, str]] = {
    "as it comes": {},
    "nested loops": {"enable_hashjoin": "off", "enable_mergejoin": "off"},
    "hash joins": {"enable_nestloop": "off", "enable_mergejoin": "off"},
    "merge joins": {"enable_nestloop": "off", "enable_hashjoin": "off"},
    "no joins": {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_nestloop": "off"},
    "costly random pages": {"random_page_cost": "1000000"},
    "free random pages": {"random_page_cost": "0"},
    "no index": {
        "enable_indexscan": "off",
        "enable_bitmapscan": "off",
        "enable_indexonlyscan": "off",
    },
    "no sort": {"enable_sort": "off", "enable_incremental_sort": "off"},
    "no materialization": {"enable_material": "off", "enable_memoize": "off"},
    "generic": {"plan_cache_mode": "force_generic_plan"},
}


async def start_all(backend: PostgresBackend) -> None:
    fork = AtFork("all", {name: AtTask(name) for name in ("a", "b", "c")}, next=AtTask("join"))
    starts = [started(backend, f"alone-{number}") for number in range(ALONE)]
    starts += [started(backend, f"fork-{number}", start_at=fork) for number in range(FORKS)]
    await asyncio.gather(*starts)


async def claim_all(
    backends: list[PostgresBackend], ttl: timedelta | None = TTL
) -> list[AcquiredTask]:
    """Claim with limits from 1 to 5, all at once, until there is nothing left."""
    claimed: list[AcquiredTask] = []
    ready = asyncio.Barrier(CLAIMERS)

    async def claimer(number: int) -> None:
        backend, limit = backends[number % len(backends)], 1 + number % 5
        await ready.wait()

        while len(claimed) < TASKS:
            tasks = await backend.acquire_tasks(worker_id=f"worker-{number}", ttl=ttl, limit=limit)
            assert len(tasks) <= limit
            claimed.extend(tasks)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for number in range(CLAIMERS):
            group.create_task(claimer(number))

    return claimed


async def stored_fences(admin: asyncpg.Connection[Any], schema: str) -> dict[tuple[str, str], int]:
    rows = await admin.fetch(
        sql("SELECT instance_id, claims FROM {schema}.instances", schema=schema)
    )
    return {
        (row["instance_id"], task_id): claim["fence"]
        for row in rows
        for task_id, claim in json.loads(row["claims"]).items()
    }


@pytest.mark.parametrize("plan", PLANS)
async def test_each_task_is_claimed_once_and_none_beyond_the_limit(
    plan: str, url: str, schema: str, admin: asyncpg.Connection[Any]
) -> None:
    options = {"connect_options": {"server_settings": PLANS[plan]}, "max_size": 8}

    if "enable_memoize" in PLANS[plan] and admin.get_server_version().major < 14:
        pytest.skip("this PostgreSQL knows no memoization")

    async with AsyncExitStack() as stack:
        backends = [
            await stack.enter_async_context(connect(url, schema, **options)) for _ in range(2)
        ]
        await start_all(backends[0])

        claimed = await claim_all(backends)

    returned = {(task.instance_id, task.task_id): task.claim.fence for task in claimed}
    assert len(claimed) == len(returned) == TASKS
    assert await stored_fences(admin, schema) == returned
    assert max(Counter(returned.values()).values()) == 1


async def test_expired_claims_are_taken_over_once_each(
    url: str, schema: str, admin: asyncpg.Connection[Any]
) -> None:
    async with connect(url, schema, max_size=8) as one, connect(url, schema, max_size=8) as other:
        await start_all(one)
        dead = await one.acquire_tasks(worker_id="dead", ttl=timedelta(0), limit=TASKS)

        claimed = await claim_all([one, other])

    before = {(task.instance_id, task.task_id): task.claim.fence for task in dead}
    returned = {(task.instance_id, task.task_id): task.claim.fence for task in claimed}
    assert len(before) == len(claimed) == len(returned) == TASKS
    assert await stored_fences(admin, schema) == returned
    assert all(fence > before[task] for task, fence in returned.items())


async def test_nobody_goes_away_empty_where_there_is_a_task_for_each(url: str, schema: str) -> None:
    """Naive: who locks a task that was claimed a moment ago gives up, instead of the next one."""
    ids = range(CLAIMERS // 2)

    async with connect(url, schema, max_size=8) as one, connect(url, schema, max_size=8) as other:
        for turn in range(60):
            await asyncio.gather(*(started(one, f"run-{turn}-{number}") for number in ids))

            claimed = await asyncio.gather(
                *(
                    (one, other)[number % 2].acquire_tasks(worker_id=f"w{number}", ttl=TTL)
                    for number in ids
                )
            )

            assert [len(tasks) for tasks in claimed] == [1 for _ in ids]


async def test_one_task_of_a_kind_goes_to_one_of_16(url: str, schema: str) -> None:
    async with connect(url, schema, max_size=8) as one, connect(url, schema, max_size=8) as other:
        for number in range(40):
            instance_id = f"run-{number}"
            await started(one, instance_id)

            claims = await asyncio.gather(
                *(
                    each.claim_task(instance_id, "charge", worker_id=f"w{worker}", ttl=TTL)
                    for worker in range(CLAIMERS // 2)
                    for each in (one, other)
                )
            )

            [winner] = [claim for claim in claims if claim is not None]
            snapshot = await one.load_snapshot(instance_id)
            await other.commit_task(winner, snapshot.complete_task("charge", b"", next=None))
