"""Everything at once, from two backends: nobody waits for ever, and nobody is told nonsense."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.support import sql
from integration.postgres.workloads import connect, started

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtSignal,
    AtTask,
    ConflictError,
    ConflictPolicy,
    EventQueueFullError,
    InstanceExistsError,
    InvalidTransitionError,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from sayiir_persist import AcquiredTask, Position, TaskClaim, WorkflowSnapshot
    from sayiir_persist.adapters.postgres import PostgresBackend

    Operation = Callable[[PostgresBackend, str, Random], Awaitable[object]]

OPERATIONS = int(os.environ.get("SAYIIR_TEST_STORM", "150"))
"""For each of those who are at it at once."""
AT_ONCE = 16
SAFETY = 120.0
TTL = timedelta(milliseconds=50)

REFUSALS = (
    ConflictError,
    InvalidTransitionError,
    InstanceExistsError,
    EventQueueFullError,
    LookupError,
)
"""What the contract lets a call answer while others are at the same instance."""


@pytest.fixture
async def deadlocks(admin: asyncpg.Connection[Any]) -> Callable[[], Awaitable[int]]:
    """How many deadlocks the server has found since the test began, in sessions that are over."""

    async def count() -> int:
        return await admin.fetchval(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )

    before = await count()

    async def since() -> int:
        return await count() - before

    return since


def position(chance: Random) -> Position:
    name = f"t{chance.randrange(4)}"
    match chance.randrange(5):
        case 0:
            wait = AtSignal("wait", "news", wake_after=TTL, next=AtTask(name))
            return AtFork("all", {"left": AtTask("left"), "right": wait}, next=AtTask("join"))
        case 1:
            return AtDelay("nap", wake_after=TTL, next=AtTask(name))
        case 2:
            return AtSignal("wait", "news", next=AtTask(name))
        case _:
            return AtTask(name)


async def commit(backend: PostgresBackend, task: AcquiredTask, chance: Random) -> None:
    """Go on as long as there is something to do, and one is lucky."""
    claim: TaskClaim = task.claim
    at = task.task_id

    while True:
        following = position(chance)

        def step(snapshot: WorkflowSnapshot, at: str = at, to: Position = following) -> Any:
            to = to if snapshot.position == AtTask(at) else AtTask(f"{at}'")
            return snapshot.complete_task(at, os.urandom(4), next=to)

        done = await backend.commit_task(claim, step, claim_next=TTL)

        if done.next is None or chance.random() < 0.3:
            return

        claim, at = done.next.claim, done.next.task_id


async def work(backend: PostgresBackend, _: str, chance: Random) -> None:
    limit = chance.randrange(1, 4)

    for task in await backend.acquire_tasks(worker_id="w", ttl=TTL, limit=limit):
        await commit(backend, task, chance)


async def claim(backend: PostgresBackend, instance_id: str, chance: Random) -> None:
    snapshot = await backend.load_snapshot(instance_id)

    for task in snapshot.ready_tasks():
        held = await backend.claim_task(instance_id, task.task_id, worker_id="c", ttl=TTL)

        if held is not None:
            held = await backend.extend_task_claim(held, ttl=TTL)
            await backend.save_task_result(instance_id, task.task_id, b"x", claim=held)
            await backend.release_task_claim(held)


async def control(backend: PostgresBackend, instance_id: str, chance: Random) -> None:
    match chance.randrange(6):
        case 0:
            await backend.request_signal(instance_id, "pause")
        case 1:
            await backend.unpause(instance_id)
        case 2:
            await backend.store_signal(instance_id, "pause")
        case 3:
            await backend.check_control_signals(instance_id)
        case 4:
            await backend.clear_signal(instance_id, "pause")
        case _:
            await backend.revoke_task_claim(instance_id, "t0")


async def events(backend: PostgresBackend, instance_id: str, chance: Random) -> None:
    match chance.randrange(3):
        case 0:
            await backend.consume_event(instance_id, "news")
        case 1:
            await backend.drain_signal(instance_id)
        case _:
            await backend.send_event(
                instance_id, "news", b"x", event_id=str(chance.randrange(10_000))
            )


async def restart(backend: PostgresBackend, instance_id: str, chance: Random) -> None:
    if chance.random() < 0.2:
        await backend.delete_snapshot(instance_id)

    await backend.start_instance(
        instance_id,
        "v1",
        start_at=position(chance),
        on_conflict=ConflictPolicy.TERMINATE_EXISTING,
    )


async def look(backend: PostgresBackend, instance_id: str, _: Random) -> None:
    snapshot = await backend.load_snapshot(instance_id)
    assert snapshot.version > 0
    await backend.list_snapshots(status=Status.IN_PROGRESS)
    await backend.sweep()


KINDS: tuple[Operation, ...] = (work, work, claim, control, events, events, restart, look)


async def storm(backends: list[PostgresBackend], instance_ids: list[str]) -> int:
    """How many operations were done; any error that the contract does not know comes out."""
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        chance = Random(number)

        for _ in range(OPERATIONS):
            operation = chance.choice(KINDS)

            try:
                await operation(backends[number % 2], chance.choice(instance_ids), chance)
            except REFUSALS:
                continue

            done += 1

    async with asyncio.timeout(SAFETY), asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(one(number))

    return done


@pytest.mark.parametrize("instances", [1, 40])
async def test_a_storm_ends_without_deadlock_or_nonsense(
    instances: int,
    url: str,
    schema: str,
    deadlocks: Callable[[], Awaitable[int]],
    admin: asyncpg.Connection[Any],
) -> None:
    instance_ids = [f"run-{number}" for number in range(instances)]

    async with connect(url, schema, max_size=8) as one, connect(url, schema, max_size=8) as other:
        for instance_id in instance_ids:
            await started(one, instance_id)

        done = await storm([one, other], instance_ids)

    assert done > OPERATIONS * AT_ONCE / 4
    assert await deadlocks() == 0
    await assert_sound(admin, schema)


async def test_batches_in_opposite_orders_do_not_wait_for_each_other(
    url: str, schema: str, deadlocks: Callable[[], Awaitable[int]]
) -> None:
    ids = [f"run-{number:02}" for number in range(48)]

    async with connect(url, schema) as one, connect(url, schema) as other:
        await asyncio.gather(*(started(one, instance_id) for instance_id in ids))

        async def write(backend: PostgresBackend, instance_id: str, number: int) -> None:
            for turn in range(12):
                await backend.save_task_result(instance_id, f"t{turn}", bytes([number]))
                await backend.send_event(instance_id, "news", b"")

        async with asyncio.timeout(SAFETY), asyncio.TaskGroup() as group:
            for instance_id in ids:
                group.create_task(write(one, instance_id, 1))

            for instance_id in reversed(ids):
                group.create_task(write(other, instance_id, 2))

        versions = {row.version for row in await one.list_snapshots()}

    assert versions == {1 + 2 * 12}
    assert await deadlocks() == 0


async def test_steps_in_batches_of_two_backends_do_not_wait_for_each_other(
    url: str, schema: str, deadlocks: Callable[[], Awaitable[int]]
) -> None:
    """Two holders of one claim, so that both batches want the same rows; each step is done once."""
    ids = [f"run-{number:02}" for number in range(48)]

    async with connect(url, schema) as one, connect(url, schema) as other:
        await asyncio.gather(*(started(one, instance_id) for instance_id in ids))
        tasks = await one.acquire_tasks(worker_id="w", ttl=timedelta(hours=1), limit=len(ids))

        async def step(backend: PostgresBackend, task: AcquiredTask, number: int) -> Any:
            done = task.snapshot.complete_task(task.task_id, b"", next=AtTask(f"t{number}"))

            try:
                commit = await backend.commit_task(task.claim, done, claim_next=timedelta(hours=1))
            except ConflictError:
                return None

            return commit.next

        for number in range(12):
            steps = [step(one, task, number) for task in tasks]
            steps += [step(other, task, number) for task in reversed(tasks)]
            made = await asyncio.gather(*steps)
            tasks = [task for task in made if task is not None]
            assert len({task.instance_id for task in tasks}) == len(tasks) == len(ids)

    assert await deadlocks() == 0


async def assert_sound(admin: asyncpg.Connection[Any], schema: str) -> None:
    """Nothing belongs to no row, and what a row says of the others is so."""
    for table in ("entries", "results"):
        orphans = await admin.fetchval(
            sql(
                "SELECT count(*) FROM {schema}.{table} "
                "WHERE key NOT IN (SELECT key FROM {schema}.instances)",
                schema=schema,
                table=table,
            )
        )
        assert orphans == 0

    miscounted = await admin.fetch(
        sql(
            """
            SELECT FROM {schema}.instances AS i WHERE i.entry_count <> (
                SELECT count(*) FROM {schema}.entries AS e WHERE e.key = i.key
            )
            UNION ALL
            SELECT FROM {schema}.queues AS q WHERE q.queued <> (
                SELECT count(*) FROM {schema}.events AS e
                WHERE (e.namespace, e.instance_id) = (q.namespace, q.instance_id)
            )
            """,
            schema=schema,
        )
    )
    assert miscounted == []
