"""What goes wrong between a statement's start and the row's lock where it is written naively."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.support import administrator, eventually, sql
from integration.postgres.workloads import (
    TTL,
    WORKER,
    acquired,
    connect,
    next_step,
    started,
    until_somebody_waits,
)

from sayiir_persist import (
    AtDelay,
    AtSignal,
    AtTask,
    BackendError,
    ClaimLostError,
    ConfigurationError,
    ConflictPolicy,
    StaleSnapshotError,
    Status,
)
from sayiir_persist.adapters.postgres.connections import Connections

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import asyncpg

    from sayiir_persist import AcquiredTask
    from sayiir_persist.adapters.postgres import PostgresBackend

SOON = timedelta(milliseconds=300)
WAIT = AtSignal("approval", "approved", next=AtTask("ship"))
NAP = AtDelay("nap", wake_after=timedelta(days=1), next=AtTask("ship"))

TICKING = """
    CREATE SEQUENCE {schema}.ticks START 2000000000000000 INCREMENT 1000000;
    CREATE OR REPLACE FUNCTION {schema}.clock() RETURNS bigint
    LANGUAGE sql VOLATILE AS $$ SELECT nextval('{schema}.ticks') $$;
"""
"""A clock that goes on by a second whenever it is asked."""

LINEAR = "a step, by the short statement"
OTHER = "a park, by the function"

FOLLOWING = {LINEAR: AtTask("ship"), OTHER: NAP}


@pytest.fixture
async def backend(url: str, schema: str) -> AsyncGenerator[PostgresBackend]:
    async with connect(url, schema) as opened:
        yield opened


@pytest.fixture
async def other(url: str, schema: str, backend: PostgresBackend) -> AsyncGenerator[PostgresBackend]:
    async with connect(url, schema) as opened:
        yield opened


@asynccontextmanager
async def held(
    url: str, schema: str, instance_id: str = "run"
) -> AsyncGenerator[asyncpg.Connection[Any]]:
    """A transaction that holds the row of an instance, and commits at the end of the block."""
    async with administrator(url) as connection, connection.transaction():
        await connection.execute(
            sql("SELECT FROM {schema}.instances WHERE instance_id = $1 FOR UPDATE", schema=schema),
            instance_id,
        )
        yield connection


async def until_expired(backend: PostgresBackend, task: AcquiredTask) -> None:
    async def expired() -> bool:
        assert task.claim.expires_at is not None
        return await backend.now() >= task.claim.expires_at

    await eventually(expired, "the claim expires")


def committed(backend: PostgresBackend, task: AcquiredTask, kind: str) -> asyncio.Task[Any]:
    step = task.snapshot.complete_task(task.task_id, b"late", next=FOLLOWING[kind])
    return asyncio.create_task(backend.commit_task(task.claim, step))


# Between the statement's start and the lock.


@pytest.mark.parametrize("kind", FOLLOWING)
async def test_a_take_over_while_a_commit_waits_makes_a_zombie_of_it(
    kind: str, backend: PostgresBackend, admin: Any, url: str, schema: str, name: str
) -> None:
    """Naive: the fence is compared with the row that the statement saw when it began."""
    await started(backend)
    task = await acquired(backend)

    async with held(url, schema) as somebody:
        commit = committed(backend, task, kind)
        await until_somebody_waits(admin, name)
        await somebody.execute(
            sql(
                "UPDATE {schema}.instances SET claims = jsonb_set(jsonb_set(claims, "
                """'{charge,fence}', '1000000'), '{charge,worker_id}', '"worker-2"')""",
                schema=schema,
            )
        )

    with pytest.raises(ClaimLostError) as lost:
        await commit

    snapshot = await backend.load_snapshot("run")
    assert lost.value.owner == "worker-2"
    assert (snapshot.version, list(snapshot.results)) == (1, [])


@pytest.mark.parametrize("kind", FOLLOWING)
async def test_a_claim_that_expires_while_its_commit_waits_is_lost(
    kind: str, backend: PostgresBackend, admin: Any, url: str, schema: str, name: str
) -> None:
    """Naive: the time is `now()`, or is asked for before the lock is there.

    Whoever holds the row changes nothing, so PostgreSQL does not look at the row again.
    """
    await started(backend)
    task = await acquired(backend, ttl=SOON)

    async with held(url, schema):
        commit = committed(backend, task, kind)
        await until_somebody_waits(admin, name)
        await until_expired(backend, task)

    with pytest.raises(ClaimLostError):
        await commit

    assert (await backend.load_snapshot("run")).version == 1


@pytest.mark.parametrize("plan", ["hashjoin", "mergejoin", "nestloop"])
async def test_what_decides_is_evaluated_after_the_lock_whatever_the_plan(
    plan: str, admin: Any, url: str, schema: str, name: str
) -> None:
    """Naive: a scan that has compared the times before its other side waits for the lock."""
    joins = {"hashjoin", "mergejoin", "nestloop"} - {plan}
    settings = {f"enable_{join}": "off" for join in joins}

    async with connect(url, schema, connect_options={"server_settings": settings}) as backend:
        for number in range(4):
            await started(backend, f"run-{number}")

        tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=SOON, limit=4)

        async with held(url, schema, "run-0"), held(url, schema, "run-3"):
            commits = [committed(backend, task, LINEAR) for task in tasks]
            await until_somebody_waits(admin, name, 2)
            await until_expired(backend, tasks[3])

        outcomes = await asyncio.gather(*commits, return_exceptions=True)

    assert isinstance(outcomes[0], ClaimLostError)
    assert isinstance(outcomes[3], ClaimLostError)


@pytest.mark.parametrize("kind", FOLLOWING)
async def test_the_instant_that_decides_is_the_one_that_is_stored(
    kind: str, backend: PostgresBackend, admin: Any, schema: str
) -> None:
    """Naive: the clock is asked twice, and the claim expires in between."""
    second = timedelta(seconds=1)
    accepted: list[bool] = []
    await admin.execute(sql(TICKING, schema=schema))

    for number in range(20):
        await started(backend, f"run-{number}")
        task = await acquired(backend, ttl=number * second)

        try:
            stored = (await committed(backend, task, kind)).snapshot
        except ClaimLostError:
            accepted.append(False)
            await backend.delete_snapshot(f"run-{number}")
            continue

        accepted.append(True)
        assert stored.updated_at < task.claim.expires_at
        await backend.delete_snapshot(f"run-{number}")

    assert accepted == sorted(accepted)
    assert len(set(accepted)) == 2


async def test_a_claim_that_expires_while_a_batch_waits_for_its_row_is_lost(
    backend: PostgresBackend, admin: Any, url: str, schema: str, name: str
) -> None:
    """Naive: one instant for the whole batch, from before it waited."""
    for number in range(8):
        await started(backend, f"run-{number}")

    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=SOON, limit=8)

    async with held(url, schema, "run-7"):
        commits = [committed(backend, task, LINEAR) for task in tasks]
        await until_somebody_waits(admin, name)
        await until_expired(backend, tasks[7])

    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    assert isinstance(outcomes[7], ClaimLostError)


async def test_an_extension_that_waits_until_its_claim_has_expired_revives_nothing(
    backend: PostgresBackend, admin: Any, url: str, schema: str, name: str
) -> None:
    """Naive: `now()`, which stands still within a transaction."""
    await started(backend)
    task = await acquired(backend, ttl=SOON)

    async with held(url, schema):
        extension = asyncio.create_task(backend.extend_task_claim(task.claim, ttl=TTL))
        await until_somebody_waits(admin, name)
        await until_expired(backend, task)

    with pytest.raises(ClaimLostError):
        await extension

    assert [each.task_id for each in await backend.find_available_tasks(worker_id="w")]


async def test_a_claimer_that_waits_until_another_claim_has_expired_gets_the_task(
    backend: PostgresBackend, admin: Any, url: str, schema: str, name: str
) -> None:
    """Naive: `now()` again; the answer would be that somebody else is at it."""
    await started(backend)
    task = await acquired(backend, ttl=SOON)

    async with held(url, schema):
        taking = asyncio.create_task(
            backend.claim_task("run", "charge", worker_id="worker-2", ttl=TTL)
        )
        await until_somebody_waits(admin, name)
        await until_expired(backend, task)

    claim = await taking
    assert claim is not None
    assert claim.fence > task.claim.fence
    assert task.claim.expires_at is not None
    assert claim.claimed_at >= task.claim.expires_at


async def test_a_poll_that_passes_over_a_locked_instance_takes_the_next(
    backend: PostgresBackend, url: str, schema: str
) -> None:
    """Naive: LIMIT before SKIP LOCKED, so that a few locked rows hide all others."""
    for number in range(40):
        await started(backend, f"run-{number:02}")

    async with administrator(url) as connection, connection.transaction():
        await connection.execute(
            sql(
                "SELECT FROM {schema}.instances WHERE instance_id < 'run-30' FOR UPDATE",
                schema=schema,
            )
        )
        tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=2)

    assert [task.instance_id for task in tasks] == ["run-30", "run-31"]


# A row that is another one when the lock comes.


async def test_who_waits_for_a_restarted_instance_finds_the_new_run(
    backend: PostgresBackend,
    other: PostgresBackend,
    admin: Any,
    url: str,
    schema: str,
    name: str,
) -> None:
    """Naive: the restart deletes and inserts, and who waited for the old row finds none."""
    await started(backend)
    task = await acquired(backend)
    snapshot = await other.load_snapshot("run")

    async with held(url, schema):
        restart = asyncio.create_task(
            backend.start_instance(
                "run", "v1", start_at="again", on_conflict=ConflictPolicy.TERMINATE_EXISTING
            )
        )
        await until_somebody_waits(admin, name)
        commit = committed(other, task, LINEAR)
        await until_somebody_waits(admin, name, 2)
        taking = asyncio.create_task(other.claim_task("run", "again", worker_id="w", ttl=TTL))
        await until_somebody_waits(admin, name, 3)

    new = (await restart).snapshot

    with pytest.raises(ClaimLostError):
        await commit

    claim = await taking
    assert claim is not None
    assert claim.fence > task.claim.fence

    with pytest.raises(StaleSnapshotError):
        await other.save_snapshot(next_step(task))

    stored = await other.load_snapshot("run")
    assert stored.incarnation == new.incarnation != snapshot.incarnation
    assert (stored.version, list(stored.results)) == (1, [])


@pytest.mark.parametrize("operation", ["signal", "event", "result"])
async def test_writes_that_wait_for_a_restart_land_in_the_new_run(
    operation: str,
    backend: PostgresBackend,
    other: PostgresBackend,
    admin: Any,
    url: str,
    schema: str,
    name: str,
) -> None:
    """Naive: "not found", though there was a run of that id at every moment."""
    operations: dict[str, Callable[[], Any]] = {
        "signal": lambda: other.store_signal("run", "cancel"),
        "event": lambda: other.send_event("run", "news", b"fresh"),
        "result": lambda: other.save_task_result("run", "again", b"fresh"),
    }
    await started(backend)
    await backend.send_event("run", "news", b"old")

    async with held(url, schema):
        restart = asyncio.create_task(
            backend.start_instance(
                "run", "v1", start_at="again", on_conflict=ConflictPolicy.TERMINATE_EXISTING
            )
        )
        await until_somebody_waits(admin, name)
        write = asyncio.create_task(operations[operation]())
        await until_somebody_waits(admin, name, 2)

    await asyncio.gather(restart, write)

    found = {
        "signal": await other.get_signal("run", "cancel") is not None,
        "event": await other.consume_event("run", "news") == b"fresh",
        "result": await other.load_task_result("run", "again") == b"fresh",
    }
    assert [name for name, is_there in found.items() if is_there] == [operation]


async def test_an_event_before_the_start_and_the_wait_that_it_is_for_always_meet(
    backend: PostgresBackend, other: PostgresBackend
) -> None:
    """Naive: each looks for the other before the other is there, and nobody tells either."""
    for number in range(100):
        instance_id = f"run-{number}"

        await asyncio.gather(
            backend.start_instance(instance_id, "v1", start_at=WAIT),
            other.send_event(instance_id, "approved", b"yes"),
        )

        stored = await backend.load_snapshot(instance_id)
        assert [task.task_id for task in stored.ready_tasks()] == ["ship"]
        assert stored.results["approval"] == b"yes"
        assert await other.consume_event(instance_id, "approved") is None


async def test_an_event_and_a_commit_that_enters_its_wait_always_meet(
    backend: PostgresBackend, other: PostgresBackend
) -> None:
    """Naive: the queue is read by the snapshot that was taken before the lock."""
    for number in range(100):
        instance_id = f"run-{number}"
        await started(backend, instance_id)
        task = await acquired(backend)
        step = task.snapshot.complete_task("charge", b"", next=WAIT)

        await asyncio.gather(
            backend.commit_task(task.claim, step),
            other.send_event(instance_id, "approved", b"yes"),
        )

        stored = await backend.load_snapshot(instance_id)
        assert stored.results["approval"] == b"yes"
        assert await other.consume_event(instance_id, "approved") is None
        await acquired(backend)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_level_that_hides_what_was_committed_meanwhile_is_refused(
    level: str, url: str, schema: str
) -> None:
    """Naive: whatever the role's default is; at "repeatable read" half of those do not meet."""
    settings = {"default_transaction_isolation": level}

    with pytest.raises(ConfigurationError, match="must be read committed"):
        async with connect(url, schema, connect_options={"server_settings": settings}):
            pass


async def test_32_starts_of_one_id_create_one_instance(
    backend: PostgresBackend, other: PostgresBackend
) -> None:
    """Naive: look, then insert; the unique index makes an error of the server's of the rest."""
    for number in range(10):
        outcomes = await asyncio.gather(
            *(
                each.start_instance(
                    f"run-{number}",
                    "v1",
                    start_at="charge",
                    on_conflict=ConflictPolicy.USE_EXISTING,
                )
                for _ in range(16)
                for each in (backend, other)
            )
        )

        assert [outcome.created for outcome in outcomes].count(True) == 1
        assert len({outcome.snapshot.incarnation for outcome in outcomes}) == 1


# Neighbours in a batch.


@pytest.mark.parametrize("kind", FOLLOWING)
async def test_a_unit_that_the_server_refuses_does_not_fail_its_neighbours(
    kind: str, backend: PostgresBackend, admin: Any, schema: str
) -> None:
    """Naive: one statement for all, one error for all."""
    for number in range(20):
        await started(backend, f"run-{number:02}")

    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=20)
    await admin.execute(
        sql(
            "ALTER TABLE {schema}.instances ADD CHECK (instance_id <> 'run-07' OR version < 2)",
            schema=schema,
        )
    )

    commits = [committed(backend, task, kind) for task in tasks]
    outcomes = await asyncio.gather(*commits, return_exceptions=True)

    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert outcomes.index(failed) == 7
    assert type(failed) is BackendError
    versions = {row.instance_id: row.version for row in await backend.list_snapshots()}
    assert versions.pop("run-07") == 1
    assert set(versions.values()) == {2}


async def test_a_row_that_cannot_be_read_does_not_fail_its_neighbours(
    backend: PostgresBackend, admin: Any, schema: str
) -> None:
    """Naive: a value in one row that no code expects ends the statement for all."""
    for number in range(20):
        await started(backend, f"run-{number:02}")

    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=20)
    await admin.execute(
        sql(
            "UPDATE {schema}.instances SET "
            """claims = jsonb_set(claims, '{charge,expires_at}', '"soon"') """
            "WHERE instance_id = 'run-07'",
            schema=schema,
        )
    )

    commits = [committed(backend, task, LINEAR) for task in tasks]
    outcomes = await asyncio.gather(*commits, return_exceptions=True)

    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert outcomes.index(failed) == 7
    assert isinstance(failed, BackendError)


async def test_large_payloads_are_no_burden_to_their_neighbours(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naive: one statement of 256 times the largest payload, 4 GB where 1 GB is the limit."""
    sizes: list[int] = []
    fetch = Connections.fetch

    async def measured(self: Connections, statement: str, *args: Any, **options: Any) -> Any:
        flat = [each for arg in args for each in (arg if isinstance(arg, list) else [arg])]
        sizes.append(sum(len(each) for each in flat if isinstance(each, bytes)))
        return await fetch(self, statement, *args, **options)

    large = b"x" * 2_000_000
    await asyncio.gather(*(started(backend, f"run-{number:02}") for number in range(40)))
    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=20)
    others = sorted(
        {f"run-{number:02}" for number in range(40)} - {task.instance_id for task in tasks}
    )
    monkeypatch.setattr(Connections, "fetch", measured)

    await asyncio.gather(
        *(
            backend.commit_task(
                task.claim, task.snapshot.complete_task("charge", large, next=AtTask("ship"))
            )
            for task in tasks
        ),
        *(backend.save_task_result(each, "aside", large) for each in others[:10]),
        *(backend.save_task_result(each, "aside", b"x") for each in others[10:]),
    )

    assert sum(sizes) > 30 * len(large)
    assert max(sizes) < 1.1 * len(large)
    assert len(sizes) <= 30 + 4
    assert {row.version for row in await backend.list_snapshots()} == {2}


async def test_a_batch_of_all_kinds_answers_each_as_if_it_were_alone(
    backend: PostgresBackend,
) -> None:
    """Naive: the answers are matched by place, and one that is missing shifts the others."""
    ids = [f"run-{number:02}" for number in range(24)]

    for instance_id in ids:
        await started(backend, instance_id)

    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=24)

    async def write(task: AcquiredTask, number: int) -> object:
        match number % 6:
            case 0:
                return await backend.commit_task(task.claim, next_step(task))
            case 1:
                step = task.snapshot.complete_task("charge", b"", next=NAP)
                return await backend.commit_task(task.claim, step)
            case 2:
                await backend.release_task_claim(task.claim)
                return await backend.claim_task(task.instance_id, "x", worker_id="w", ttl=None)
            case 3:
                return await backend.save_task_result(task.instance_id, "charge", b"x")
            case 4:
                await backend.send_event(task.instance_id, "news", task.instance_id.encode())
                return await backend.consume_event(task.instance_id, "news")
            case _:
                return await backend.request_signal(task.instance_id, "pause")

    answers = await asyncio.gather(*(write(task, number) for number, task in enumerate(tasks)))

    for number, (instance_id, answer) in enumerate(zip(ids, answers, strict=True)):
        expected = {2: None, 3: 2, 4: instance_id.encode(), 5: Status.IN_PROGRESS}

        if number % 6 < 2:
            assert answer.snapshot.instance_id == instance_id
            assert answer.snapshot.version == 2
        else:
            assert answer == expected[number % 6]
