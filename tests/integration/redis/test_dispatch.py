"""Partitions: an exact order within each, and none of them forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from integration.redis.support import TTL, WORKER, ids_by_partition, instance_keys, started

from sayiir_persist import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from services.redis import RedisCluster

    from sayiir_persist.adapters.redis import RedisBackend

PARTITIONS = 16


async def test_acquire_is_exact_within_a_partition(
    make: Callable[..., RedisBackend], cluster_url: str, namespace: str
) -> None:
    ids = ids_by_partition(namespace, PARTITIONS, 5)[7]

    async with make(cluster_url, partitions=PARTITIONS) as backend:
        for instance_id, priority in zip(ids, (5, 3, 1, 4, 2), strict=True):
            await started(backend, instance_id, priority=priority)

        tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=3)

    assert [it.instance_id for it in tasks] == [ids[2], ids[4], ids[1]]


async def test_acquire_asks_every_partition_first_in_turn(
    make: Callable[..., RedisBackend], cluster_url: str, namespace: str
) -> None:
    ids = ids_by_partition(namespace, PARTITIONS, 3)
    owner = {each: number for number, found in ids.items() for each in found}

    async with make(cluster_url, partitions=PARTITIONS) as backend:
        for found in ids.values():
            for instance_id in found:
                await started(backend, instance_id)

        served = [
            owner[(await backend.acquire_tasks(worker_id=WORKER, ttl=TTL))[0].instance_id]
            for _ in range(3 * PARTITIONS)
        ]

    assert sorted(served[:PARTITIONS]) == list(range(PARTITIONS))
    assert sorted(served) == sorted(list(range(PARTITIONS)) * 3)


async def test_acquire_stops_when_it_is_served(
    make: Callable[..., RedisBackend], namespace: str, raw: Redis
) -> None:
    ids = ids_by_partition(namespace, PARTITIONS, 2)

    async with make(partitions=PARTITIONS) as backend:
        for found in ids.values():
            for instance_id in found:
                await started(backend, instance_id)

        raw.config_resetstat()
        assert len(await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=3)) == 3
        assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] == 2


async def test_find_is_exact_across_partitions(
    make: Callable[..., RedisBackend], cluster_url: str, namespace: str
) -> None:
    ids = [found[0] for found in ids_by_partition(namespace, PARTITIONS, 1).values()]

    async with make(cluster_url, partitions=PARTITIONS) as backend:
        for number, instance_id in enumerate(ids):
            await started(backend, instance_id, priority=1 + number % 5)

        tasks = await backend.find_available_tasks(worker_id=WORKER, limit=PARTITIONS)

    priorities = [it.snapshot.priority for it in tasks]
    assert priorities == sorted(priorities)
    assert len(tasks) == PARTITIONS


async def test_listings_are_whole_and_in_order_across_partitions(
    make: Callable[..., RedisBackend], cluster_url: str
) -> None:
    async with make(cluster_url, partitions=PARTITIONS) as backend:
        for number in range(60):
            await started(backend, f"run-{number:02}")

        found: list[str] = []

        while page := await backend.list_snapshots(
            limit=7, after=found[-1] if found else None, status="in_progress"
        ):
            found += [it.instance_id for it in page]

    assert found == [f"run-{number:02}" for number in range(60)]


async def test_a_slot_that_moves_is_followed(
    redis_cluster: RedisCluster, make: Callable[..., RedisBackend], cluster_url: str, namespace: str
) -> None:
    from redis.crc import key_slot

    async with make(cluster_url) as backend:
        await started(backend)
        slot = key_slot(instance_keys(namespace, "run")[0])
        ids = [str(node.execute("CLUSTER", "MYID")) for node in redis_cluster.nodes]
        source = next(
            number
            for number, node in enumerate(redis_cluster.nodes)
            if any(first <= slot <= last for first, last in _own_slots(node.execute, ids[number]))
        )
        target = (source + 1) % 3
        giver, taker = redis_cluster.nodes[source], redis_cluster.nodes[target]
        taker.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        giver.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        keys = giver.execute("CLUSTER", "GETKEYSINSLOT", slot, 100)
        giver.execute("MIGRATE", "127.0.0.1", taker.port, "", 0, 5000, "KEYS", *keys)
        # A node that is about to have a slot takes no command with a key that is nowhere.
        load = asyncio.ensure_future(backend.load_snapshot("run"))
        await asyncio.sleep(0.05)

        for node in (taker, giver, redis_cluster.nodes[(source + 2) % 3]):
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

        assert (await load).version == 1
        await backend.save_task_result("run", "charge", b"x")
        assert (await backend.load_snapshot("run")).version == 2


def _own_slots(execute: Callable[..., object], node_id: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    for first, last, *nodes in execute("CLUSTER", "SLOTS"):  # type: ignore[attr-defined]
        if nodes[0][2] == node_id:
            found.append((first, last))

    return found


async def test_a_node_that_dies_takes_its_partitions_along_and_no_others(
    redis_cluster: RedisCluster, make: Callable[..., RedisBackend], cluster_url: str, namespace: str
) -> None:
    ids = [found[0] for found in ids_by_partition(namespace, PARTITIONS, 1).values()]

    async with make(cluster_url, partitions=PARTITIONS) as backend:
        for instance_id in ids:
            await started(backend, instance_id)

        redis_cluster.nodes[2].kill()

        try:
            gone = 0

            for instance_id in ids[:4]:
                try:
                    await backend.load_snapshot(instance_id)
                except BackendUnavailableError:
                    gone += 1

            with pytest.raises(BackendUnavailableError):
                await backend.list_snapshots()
        finally:
            redis_cluster.nodes[2].restart()
            redis_cluster.wait()

        assert gone < 4
        await started(backend, "after")
