"""A server that dies under load, and a primary that steps down."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from integration.mongo.support import TTL
from msgspec.structs import replace
from pymongo.errors import PyMongoError

from sayiir_persist import AtTask, BackendError
from sayiir_persist.adapters.mongo import MongoBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.mongo import MongoServer

    from sayiir_persist import AcquiredTask

WORKFLOWS = 8


class Load:
    """Workflows that commit without end, and what was acknowledged of each."""

    def __init__(self, backend: MongoBackend, *, goes_on: bool = False) -> None:
        self._backend = backend
        self._goes_on = goes_on
        self.acknowledged: dict[str, int] = {}
        self.steps = 0
        self._progress = asyncio.Event()

    async def start(self) -> None:
        for number in range(WORKFLOWS):
            await self._backend.start_instance(f"run-{number}", "v1", start_at="t0")

        tasks = await self._backend.acquire_tasks(worker_id="w", ttl=TTL, limit=WORKFLOWS)
        self._running = [asyncio.create_task(self._run(task)) for task in tasks]

    async def until(self, steps: int) -> None:
        while self.steps < steps:
            await self._progress.wait()
            self._progress.clear()

    async def end(self) -> None:
        await asyncio.gather(*self._running)

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()

        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, task: AcquiredTask) -> None:
        number = 0

        while True:
            following = AtTask(f"t{number + 1}")
            step = task.snapshot.complete_task(f"t{number}", b"done", next=following)

            try:
                commit = await self._backend.commit_task(task.claim, step, claim_next=TTL)
            except BackendError:
                if not self._goes_on:
                    return

                task, number = await self._found_again(task, number)
                continue

            assert commit.next is not None
            task, number = commit.next, number + 1
            self.acknowledged[task.instance_id] = number
            self.steps += 1
            self._progress.set()

    async def _found_again(self, task: AcquiredTask, number: int) -> tuple[AcquiredTask, int]:
        """What became of a commit whose answer was lost: its nonce tells."""
        while True:
            try:
                found = await self._backend.load_snapshot(task.instance_id)
                number = found.version - 1
                claim = await self._backend.claim_task(
                    task.instance_id,
                    f"t{number}",
                    worker_id="w",
                    ttl=TTL,
                    nonce=task.claim.nonce,
                )
            except BackendError:
                continue

            assert claim is not None
            return replace(task, snapshot=found, claim=claim, task_id=f"t{number}"), number


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+motor"])
async def test_a_server_that_is_killed_under_load_loses_nothing_acknowledged(
    mongo_to_crash: Callable[[], MongoServer], scheme: str
) -> None:
    server = mongo_to_crash()
    url = server.url.replace("mongodb:", f"{scheme}:")

    async with MongoBackend.connect(url, operation_timeout=timedelta(seconds=2)) as backend:
        load = Load(backend)
        await load.start()
        await load.until(200)
        await asyncio.to_thread(server.kill)
        await load.end()

    await asyncio.to_thread(server.start)

    async with MongoBackend.connect(url) as backend:
        for instance_id, number in load.acknowledged.items():
            found = await backend.load_snapshot(instance_id)
            assert found.version - 1 in {number, number + 1}
            assert list(found.results) == [f"t{n}" for n in range(found.version - 1)]


async def test_a_primary_that_steps_down_is_survived(
    mongo_to_crash: Callable[[], MongoServer],
) -> None:
    server = mongo_to_crash()

    async with MongoBackend.connect(server.url) as backend:
        load = Load(backend, goes_on=True)
        await load.start()
        await load.until(50)

        with server.client() as client, suppress(PyMongoError):
            client.admin.command({"replSetStepDown": 1, "force": True})

        before = load.steps
        await asyncio.wait_for(load.until(before + 50), 60)
        waiting = asyncio.create_task(backend.wait_for_wakeup(timedelta(seconds=30)))
        await backend.start_instance("later", "v1", start_at="t0")
        assert await waiting is not None
        await load.stop()

        for instance_id, number in load.acknowledged.items():
            found = await backend.load_snapshot(instance_id)
            assert found.version - 1 in {number, number + 1}
