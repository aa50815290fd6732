"""Keys that are gone, a server that is full: an error that says so, never a wrong answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration.redis.support import (
    TTL,
    WORKER,
    acquired,
    instance_keys,
    next_step,
    started,
)

from sayiir_persist import (
    AtTask,
    BackendUnavailableError,
    ClaimLostError,
    CodecError,
    InstanceNotFoundError,
    PersistError,
    WorkflowSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from services.redis import RedisServer

    from sayiir_persist.adapters.redis import RedisBackend

ROW, RESULTS, EVENTS, IDS = range(4)


async def furnished(backend: RedisBackend) -> int:
    """An instance with everything that one can have; the fence of its claim."""
    snapshot = WorkflowSnapshot.start("run", "v1", start_at="charge", input=b"order")
    await backend.save_snapshot(snapshot.record_result("before", b"1"))
    await backend.send_event("run", "go", b"event", event_id="1")
    claim = await backend.claim_task("run", "charge", worker_id="first", ttl=TTL)
    assert claim is not None
    await backend.release_task_claim(claim)
    return claim.fence


async def test_a_row_that_is_gone_is_not_found_and_no_fence_goes_back(
    backend: RedisBackend, raw: Redis, namespace: str
) -> None:
    fence = await furnished(backend)
    raw.delete(instance_keys(namespace, "run")[ROW])

    with pytest.raises(InstanceNotFoundError):
        await backend.load_snapshot("run")

    with pytest.raises(InstanceNotFoundError):
        await backend.claim_task("run", "charge", worker_id=WORKER, ttl=TTL)

    assert await backend.acquire_tasks(worker_id=WORKER, ttl=TTL) == []
    assert await backend.list_snapshots() == []

    await started(backend)
    task = await acquired(backend, results=True)
    assert task.claim.fence > fence
    assert dict(task.snapshot.results) == {}


async def test_results_that_are_gone_are_an_error(
    backend: RedisBackend, raw: Redis, namespace: str
) -> None:
    await furnished(backend)
    raw.delete(instance_keys(namespace, "run")[RESULTS])

    with pytest.raises(CodecError, match="results are missing"):
        await backend.load_snapshot("run")

    with pytest.raises(CodecError):
        await backend.load_task_result("run", "before")

    with pytest.raises(CodecError):
        await backend.save_task_result("run", "charge", b"x")

    assert await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, results=True) == []
    assert (await backend.load_snapshot("run", results=False)).version == 1


async def test_a_commit_does_not_hide_that_results_are_gone(
    backend: RedisBackend, raw: Redis, namespace: str
) -> None:
    await furnished(backend)
    task = await acquired(backend)
    raw.delete(instance_keys(namespace, "run")[RESULTS])
    await backend.commit_task(task.claim, next_step(task))

    with pytest.raises(CodecError):
        await backend.load_snapshot("run")


@pytest.mark.parametrize("key", [EVENTS, IDS])
async def test_events_that_are_gone_are_an_error(
    backend: RedisBackend, raw: Redis, namespace: str, key: int
) -> None:
    await furnished(backend)
    raw.delete(instance_keys(namespace, "run")[key])

    with pytest.raises(CodecError):
        await backend.send_event("run", "go", b"event", event_id="1")


async def test_a_lost_row_is_an_error_for_who_has_read_it(
    backend: RedisBackend, raw: Redis, namespace: str
) -> None:
    await started(backend)
    task = await acquired(backend)
    raw.delete(instance_keys(namespace, "run")[ROW])

    with pytest.raises(ClaimLostError):
        await backend.commit_task(task.claim, next_step(task))


async def test_a_row_that_cannot_be_read_is_passed_over(
    backend: RedisBackend, raw: Redis, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    await started(backend, "bad")
    await started(backend, "good")
    raw.hset(instance_keys(namespace, "bad")[ROW], "s", b"\xc1 nonsense")

    for _ in range(2):
        [task] = await backend.find_available_tasks(worker_id=WORKER, limit=5)
        assert task.instance_id == "good"

    assert [it.message for it in caplog.records].count(
        "cannot read an instance, it is passed over"
    ) == 1

    for call in (backend.load_snapshot, backend.delete_snapshot):
        with pytest.raises(CodecError, match="'bad' is damaged"):
            await call("bad")


async def test_a_lost_floor_lowers_no_fence(
    backend: RedisBackend, raw: Redis, namespace: str
) -> None:
    fence = await furnished(backend)
    await backend.delete_snapshot("run")
    assert raw.delete(f"sayiir:{{{namespace}:0}}:floor") == 1
    await started(backend)

    assert (await acquired(backend)).claim.fence > fence


async def test_a_server_that_is_full_writes_nothing(
    redis_durable: Callable[..., RedisServer], make: Callable[..., RedisBackend]
) -> None:
    server = redis_durable({"maxmemory-policy": "noeviction"})

    async with make(server.url) as backend:
        await started(backend)
        task = await acquired(backend)
        await backend.send_event("run", "go", b"1", event_id="1")
        before = await backend.load_snapshot("run")
        server.execute("CONFIG", "SET", "maxmemory", "1")

        with pytest.raises(BackendUnavailableError, match="OOM"):
            await backend.save_task_result("run", "other", b"x")

        with pytest.raises(BackendUnavailableError, match="OOM"):
            await backend.send_event("run", "go", b"2", event_id="2")

        with pytest.raises(BackendUnavailableError, match="OOM"):
            await backend.start_instance("other", "v1", start_at="charge")

        with pytest.raises(BackendUnavailableError, match="OOM"):
            await backend.extend_task_claim(task.claim, ttl=TTL)

        assert await backend.load_snapshot("run") == before
        server.execute("CONFIG", "SET", "maxmemory", "0")
        commit = await backend.commit_task(task.claim, next_step(task), claim_next=TTL)
        assert commit.next is not None
        assert await backend.consume_event("run", "go") == b"1"
        assert await backend.consume_event("run", "go") is None
        assert len(await backend.list_snapshots()) == 1


async def test_a_write_on_a_full_server_is_whole_or_absent(
    redis_durable: Callable[..., RedisServer], make: Callable[..., RedisBackend]
) -> None:
    """A script that has freed something first is let through to its end."""
    server = redis_durable({"maxmemory-policy": "noeviction"})
    refused = 0

    async with make(server.url) as backend:
        for number in range(8):
            await started(backend, f"run-{number}")

        tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=8)

        for number, task in enumerate(tasks):
            server.execute("CONFIG", "SET", "maxmemory", "1")

            try:
                await backend.commit_task(
                    task.claim, next_step(task), claim_next=TTL if number % 2 else None
                )
                version = 2
            except BackendUnavailableError:
                version, refused = 1, refused + 1

            server.execute("CONFIG", "SET", "maxmemory", "0")
            stored = await backend.load_snapshot(task.instance_id)
            assert stored.version == version
            assert len(stored.results) == version - 1

            if version == 1:
                await backend.commit_task(task.claim, next_step(task), claim_next=TTL)

        ready = await backend.find_available_tasks(worker_id=WORKER, limit=10)
        assert {it.task_id for it in ready} <= {"ship"}


async def test_a_replica_without_the_last_writes_is_told_by_version(
    redis_durable: Callable[..., RedisServer], make: Callable[..., RedisBackend]
) -> None:
    """What a failover may do: writes that were answered are gone."""
    primary, replica = redis_durable(), redis_durable()
    replica.execute("REPLICAOF", "127.0.0.1", primary.port)

    async with make(primary.url) as backend, make(primary.url, replicas=1) as safe:
        await started(safe)
        task = await acquired(safe)
        assert any("failover" in it for it in backend.info.caveats)
        replica.execute("REPLICAOF", "NO", "ONE")
        commit = await backend.commit_task(task.claim, next_step(task), claim_next=TTL)

        with pytest.raises(PersistError, match="not confirmed"):
            await safe.save_task_result("run", "ship", b"x")

    assert commit.next is not None

    async with make(replica.url) as promoted:
        stored = await promoted.load_snapshot("run")
        assert stored.version < commit.snapshot.version

        with pytest.raises(PersistError):
            await promoted.commit_task(
                commit.next.claim,
                commit.next.snapshot.complete_task("ship", b"", next=AtTask("bill")),
            )

        late = await promoted.commit_task(task.claim, next_step(task), claim_next=TTL)
        assert late.next is not None
        assert late.next.claim.fence > commit.next.claim.fence


async def test_a_replica_takes_no_writes(
    redis_durable: Callable[..., RedisServer], make: Callable[..., RedisBackend]
) -> None:
    server, other = redis_durable(), redis_durable()

    async with make(server.url) as backend:
        await started(backend)
        server.execute("REPLICAOF", "127.0.0.1", other.port)

        with pytest.raises(BackendUnavailableError):
            await backend.save_task_result("run", "charge", b"x")

        server.execute("REPLICAOF", "NO", "ONE")
