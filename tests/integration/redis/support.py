"""Workflows to try, and the keys that they have."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sayiir_persist import AtTask
from sayiir_persist.adapters.redis.keys import Keyspace

if TYPE_CHECKING:
    from sayiir_persist import AcquiredTask, PersistentBackend, WorkflowSnapshot

TTL = timedelta(minutes=5)
WORKER = "worker-1"


async def started(
    backend: PersistentBackend, instance_id: str = "run", **options: Any
) -> WorkflowSnapshot:
    """A workflow at its first task."""
    options.setdefault("input", b"order")
    outcome = await backend.start_instance(instance_id, "v1", start_at="charge", **options)
    return outcome.snapshot


async def acquired(backend: PersistentBackend, **options: Any) -> AcquiredTask:
    """The only task that is ready."""
    [task] = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, **options)
    return task


def next_step(task: AcquiredTask, *, following: str = "ship") -> WorkflowSnapshot:
    """The snapshot after the task."""
    return task.snapshot.complete_task(task.task_id, b"done", next=AtTask(following))


def instance_keys(namespace: str, instance_id: str, partitions: int = 1) -> tuple[bytes, ...]:
    """Row, results, events, event ids."""
    return Keyspace(namespace, partitions).partition_of(instance_id).of_instance(instance_id)


def ids_by_partition(namespace: str, partitions: int, count: int) -> dict[int, list[str]]:
    """So many instance ids for every partition."""
    keys, found = Keyspace(namespace, partitions), {number: [] for number in range(partitions)}
    number = 0

    while any(len(ids) < count for ids in found.values()):
        ids = found[keys.partition_of(f"run-{number}").number]

        if len(ids) < count:
            ids.append(f"run-{number}")

        number += 1

    return found
