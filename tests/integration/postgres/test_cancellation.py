"""A call that is left at whatever point leaves no transaction open and no connection unusable."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import coroutine
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.support import Watch, administrator, sql
from integration.postgres.workloads import (
    TTL,
    WORKER,
    acquired,
    connect,
    next_step,
    started,
    until_somebody_waits,
)

from sayiir_persist import AtDelay, AtSignal, AtTask, ConflictPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    import asyncpg

    from sayiir_persist.adapters.postgres import PostgresBackend

    Operation = Callable[[PostgresBackend, Any], Coroutine[Any, Any, object]]

SIZE = 2
MOST = 60
NAP = AtDelay("nap", wake_after=timedelta(days=1), next=AtTask("ship"))
WAIT = AtSignal("approval", "approved", next=AtTask("ship"))


@coroutine
def left_at(call: Coroutine[Any, Any, object], point: int) -> Generator[Any, Any, bool]:
    """Run a call in this task, and cancel the task where it is suspended for the n-th time."""
    suspended = 0
    error: BaseException | None = None

    while True:
        try:
            awaited = call.send(None) if error is None else call.throw(error)
        except StopIteration:
            return True
        except asyncio.CancelledError:
            return False

        suspended += 1
        error = None

        if suspended == point:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

        try:
            yield awaited
        except BaseException as thrown:  # noqa: BLE001  (it is the call's to handle)
            error = thrown


async def left(call: Coroutine[Any, Any, object], point: int) -> bool:
    """Whether the call was over before it could be left at that point."""

    async def run() -> bool:
        return await left_at(call, point)

    return await asyncio.create_task(run())


async def fresh(backend: PostgresBackend) -> Any:
    """A run with a claim on its task."""
    await backend.start_instance(
        "run",
        "v1",
        start_at="charge",
        input=b"order",
        on_conflict=ConflictPolicy.TERMINATE_EXISTING,
    )
    return await acquired(backend)


OPERATIONS: dict[str, Operation] = {
    "start_instance": lambda b, _: b.start_instance(
        "run", "v1", start_at=NAP, on_conflict=ConflictPolicy.TERMINATE_EXISTING
    ),
    "load_snapshot": lambda b, _: b.load_snapshot("run"),
    "save_task_result": lambda b, _: b.save_task_result("run", "aside", b"x"),
    "acquire_tasks": lambda b, _: b.acquire_tasks(worker_id=WORKER, ttl=TTL),
    "extend": lambda b, task: b.extend_task_claim(task.claim, ttl=TTL),
    "commit a step": lambda b, task: b.commit_task(task.claim, next_step(task), claim_next=TTL),
    "commit a park": lambda b, task: b.commit_task(
        task.claim, task.snapshot.complete_task("charge", b"", next=NAP)
    ),
    "request_signal": lambda b, _: b.request_signal("run", "cancel"),
    "sweep": lambda b, _: b.sweep(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_no_transaction_stays_open_wherever_a_call_is_left(
    operation: str, url: str, schema: str, watch: Watch
) -> None:
    call = OPERATIONS[operation]

    async with connect(url, schema, max_size=SIZE) as backend:
        await call(backend, await fresh(backend))

        for point in range(1, MOST):
            task = await fresh(backend)

            is_over = await left(call(backend, task), point)

            await watch.assert_clean(at_most=SIZE)
            await asyncio.gather(*(backend.load_snapshot("run") for _ in range(SIZE)))

            if is_over:
                break

        assert is_over
        assert point > 1


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_nor_where_it_was_about_to_prepare_its_statement(
    operation: str, url: str, schema: str, watch: Watch
) -> None:
    call = OPERATIONS[operation]

    async with connect(url, schema, max_size=1) as other:
        for point in range(1, MOST):
            task = await fresh(other)

            async with connect(url, schema, min_size=0, max_size=SIZE) as backend:
                is_over = await left(call(backend, task), point)

                await watch.assert_clean(at_most=1 + SIZE)
                await asyncio.gather(*(backend.load_snapshot("run") for _ in range(SIZE)))

            if is_over:
                break

        assert is_over
        assert point > 2


async def test_all_of_a_batch_but_those_that_left_are_done(
    url: str, schema: str, watch: Watch
) -> None:
    async with connect(url, schema, max_size=SIZE) as backend:
        await asyncio.gather(*(started(backend, f"run-{number:02}") for number in range(32)))
        tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=32)
        commits = [
            asyncio.create_task(backend.commit_task(task.claim, next_step(task))) for task in tasks
        ]
        await asyncio.sleep(0)

        for commit in commits[::3]:
            commit.cancel()

        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        await watch.assert_clean(at_most=SIZE)
        versions = {row.instance_id: row.version for row in await backend.list_snapshots()}

    for number, outcome in enumerate(outcomes):
        if number % 3:
            assert versions[tasks[number].instance_id] == 2
        else:
            assert isinstance(outcome, asyncio.CancelledError)


@pytest.mark.parametrize("following", [AtTask("ship"), NAP], ids=["step", "write"])
async def test_a_write_that_waits_for_a_row_is_withdrawn_at_the_server(
    following: Any,
    url: str,
    schema: str,
    name: str,
    watch: Watch,
    admin: asyncpg.Connection[Any],
) -> None:
    async with connect(url, schema, max_size=SIZE) as backend:
        await started(backend)
        task = await acquired(backend)
        step = task.snapshot.complete_task("charge", b"", next=following)

        async with administrator(url.replace(name, f"{name}_other")) as somebody:
            await somebody.execute(
                sql("BEGIN; SELECT FROM {schema}.instances FOR UPDATE", schema=schema)
            )
            commit = asyncio.create_task(backend.commit_task(task.claim, step))
            await until_somebody_waits(admin, name)
            commit.cancel()

            with pytest.raises(asyncio.CancelledError):
                await commit

            await watch.assert_clean(at_most=SIZE)
            await somebody.execute("COMMIT")

        assert (await backend.load_snapshot("run")).version == 1
        await backend.commit_task(task.claim, step)


async def test_a_poll_that_is_left_in_mid_air_locks_nothing(
    url: str, schema: str, watch: Watch
) -> None:
    async with connect(url, schema, max_size=SIZE) as backend:
        for number in range(30):
            await started(backend, f"run-{number}")

        taken: set[str] = set()

        for point in range(1, 6):
            short = timedelta(milliseconds=1)
            call = backend.acquire_tasks(worker_id=WORKER, ttl=short, limit=3)
            await left(call, point)
            await watch.assert_clean(at_most=SIZE)

        async with asyncio.timeout(20):
            while len(taken) < 30:
                tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=30)
                taken.update(task.instance_id for task in tasks)
