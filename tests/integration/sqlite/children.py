"""What the tests run in processes of their own; `main` names one of these functions."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from datetime import timedelta
from typing import Any

import anyio

from sayiir_persist import AtTask, MsgpackCodec, TaskClaim, WorkflowSnapshot
from sayiir_persist.adapters.sqlite import SqliteBackend

SHARED = tuple(f"shared-{number}" for number in range(4))


def say(*words: object) -> None:
    print(*words, flush=True)


def counted(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    return snapshot.count_iteration("n")


async def open_once(path: str) -> None:
    """Enter and leave."""
    async with SqliteBackend.connect(path) as backend:
        say(backend.info.server)


async def mix(path: str, name: str, writes: str) -> None:
    """Read-modify-write, create, claim and queue, on instances that others work on, too."""
    async with SqliteBackend.connect(path, codec=MsgpackCodec()) as backend:
        for number in range(int(writes)):
            shared = SHARED[number % len(SHARED)]

            match number % 4:
                case 0:
                    await backend.start_instance(f"{name}-{number}", "v1", start_at="a")
                case 1:
                    await backend.send_event(shared, "news", name.encode())
                case 2:
                    for task in await backend.acquire_tasks(worker_id=name, ttl=None):
                        done = task.snapshot.complete_task(task.task_id, b"", next=None)
                        await backend.commit_task(task.claim, done)
                case _:
                    await backend.update_snapshot(shared, counted)


async def write_until_killed(path: str, synchronous: str) -> None:
    """Print every version once it is acknowledged, from many tasks at once."""

    async def steps(backend: SqliteBackend, instance_id: str) -> None:
        await backend.start_instance(instance_id, "v1", start_at="t0")
        [task] = await backend.acquire_tasks(
            worker_id=instance_id, ttl=timedelta(minutes=5), tags=(instance_id,), results=True
        )
        await run(backend, task.claim, task.snapshot)

    async def run(backend: SqliteBackend, claim: TaskClaim, snapshot: WorkflowSnapshot) -> None:
        while True:
            at = snapshot.ready_tasks()[0].task_id
            step = snapshot.complete_task(at, at.encode(), next=AtTask(f"t{snapshot.version}"))
            commit = await backend.commit_task(claim, step, claim_next=timedelta(minutes=5))
            assert commit.next is not None
            claim, snapshot = commit.next.claim, commit.snapshot
            say(snapshot.instance_id, snapshot.version)

    async with (
        SqliteBackend.connect(path, synchronous=synchronous) as backend,
        anyio.create_task_group() as group,
    ):
        for number in range(8):
            group.start_soon(steps, backend, f"run-{number}")


async def hold_write_lock(path: str) -> None:
    """Keep the write lock until a line comes in."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE instances SET body = x'00'")
    say("held")
    sys.stdin.readline()
    connection.execute("ROLLBACK")
    connection.close()


async def start_on_request(path: str) -> None:
    """Start the instance that each line names."""
    async with SqliteBackend.connect(path) as backend:
        say("open")

        for line in sys.stdin:
            await backend.start_instance(line.strip(), "v1", start_at="a", tags=("other",))
            say("started")


async def die_while_migrating(path: str, statements: str) -> None:
    """Get killed after so many statements that SQLite was given."""
    left = int(statements)
    connect = sqlite3.connect

    def count(_: str) -> None:
        nonlocal left
        left -= 1

        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(count)
        return connection

    sqlite3.connect = traced
    await open_once(path)


def main() -> None:
    name, *arguments = sys.argv[1:]
    anyio.run(globals()[name], *arguments)
