"""Workers in processes of their own, to be killed; `main` names one of these functions."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from integration.postgres.workloads import connect

from sayiir_persist import AtTask, ConflictError, Status, TerminalStateError

if TYPE_CHECKING:
    from sayiir_persist import AcquiredTask
    from sayiir_persist.adapters.postgres import PostgresBackend

STEPS: Final = {"charge": "ship", "ship": "bill", "bill": None}
TTL: Final = timedelta(seconds=1)


def start_process(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Run one of these functions in a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "from integration.postgres.processes import main; main()",
            name,
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


async def work(url: str, schema: str, workers: str) -> None:
    """Do what there is to do until all has ended; print each step once it is acknowledged."""
    async with (
        connect(url, schema, notify=True, max_size=3) as backend,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(int(workers)):
            group.create_task(_work(backend, token_hex(4)))


async def _work(backend: PostgresBackend, worker_id: str) -> None:
    while True:
        tasks = await backend.acquire_tasks(worker_id=worker_id, ttl=TTL, limit=3)

        for task in tasks:
            try:
                await _finish(backend, task)
            except (ConflictError, TerminalStateError):
                continue  # it was too slow, and somebody else has it

        if not tasks:
            if not await backend.list_snapshots(status=Status.IN_PROGRESS, limit=1):
                return

            await backend.wait_for_wakeup(TTL / 10)


async def _finish(backend: PostgresBackend, task: AcquiredTask | None) -> None:
    while task is not None:
        following = STEPS[task.task_id]
        token = token_hex(8)
        step = task.snapshot.complete_task(
            task.task_id, token.encode(), next=AtTask(following) if following else None
        )
        commit = await backend.commit_task(task.claim, step, claim_next=TTL)
        print(task.instance_id, task.task_id, token, flush=True)
        task = commit.next


def main() -> None:
    name, *arguments = sys.argv[1:]
    asyncio.run(globals()[name](*arguments))
