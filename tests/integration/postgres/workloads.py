"""Workflows to try, backends to try them on, and what the server knows of it all."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from integration.postgres.support import eventually

from sayiir_persist import AtTask
from sayiir_persist.adapters.postgres import PostgresBackend

if TYPE_CHECKING:
    import asyncpg

    from sayiir_persist import AcquiredTask, PersistentBackend, WorkflowSnapshot

TTL = timedelta(minutes=5)
WORKER = "worker-1"


def connect(url: str, schema: str, **options: Any) -> PostgresBackend:
    """A backend that sends no hints, so that all that is sent is what was asked for."""
    return PostgresBackend.connect(url, **{"schema": schema, "notify": False, **options})


async def started(
    backend: PersistentBackend, instance_id: str = "run", **options: Any
) -> WorkflowSnapshot:
    """A workflow at its first task."""
    options.setdefault("input", b"order")
    options.setdefault("start_at", "charge")
    return (await backend.start_instance(instance_id, "v1", **options)).snapshot


async def acquired(backend: PersistentBackend, **options: Any) -> AcquiredTask:
    """The only task that is ready."""
    options.setdefault("ttl", TTL)
    [task] = await backend.acquire_tasks(worker_id=WORKER, **options)
    return task


def next_step(task: AcquiredTask, *, following: str = "ship") -> WorkflowSnapshot:
    """The snapshot after the task."""
    return task.snapshot.complete_task(task.task_id, b"done", next=AtTask(following))


async def until_somebody_waits(
    admin: asyncpg.Connection[Any], application: str, count: int = 1
) -> None:
    """Until so many sessions of an application wait for a lock."""

    async def waiting() -> bool:
        found = await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = $1 AND wait_event_type = 'Lock'",
            application,
        )
        return found >= count

    await eventually(waiting, f"{count} sessions wait for a lock")
