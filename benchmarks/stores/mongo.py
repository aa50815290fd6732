"""MongoDB, and what the same work costs in raw `find_one_and_update`, through the same driver."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import FLOOR, Floor, Target
from benchmarks.stores.common import FLAT_DISPATCH
from benchmarks.workloads import ACQUIRED_AT_ONCE, COMMIT_CLAIMING, OUTPUT
from sayiir_persist.adapters.mongo import MongoBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from benchmarks.harness import Scale, Stopwatch
    from sayiir_persist import PersistentBackend

URL: Final = "SAYIIR_TEST_MONGODB_URL"
BODY: Final = b"b" * 300
CONCERN: Final = {"w": "majority", "journal": True}

_numbers = count()


@lru_cache
def _url() -> str:
    """The server that the environment names, or a replica set of one node of our own."""
    if url := os.environ.get(URL):
        return url

    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    services: Any = import_module("services.mongo")
    binary = services.find_mongod()

    if binary is None:
        raise SystemExit(f"no MongoDB to measure: {services.LOOKED_AT}")

    url = services.MongoServer(binary).start().url  # ends with this process
    assert isinstance(url, str)
    return url


class Mongo:
    """`MongoBackend` with its defaults, in a new database each time.

    Args:
        motor: By way of Motor instead of PyMongo Async.
    """

    name = "mongo"
    targets: Sequence[Target] = (
        Target("commit", COMMIT_CLAIMING, FLOOR, 1.6),
        Target("W1", "10,000 steps", "10 steps", 1.2),
        Target("W2", FLOOR, "workflows at once", 1.5, at_least=True),
        *FLAT_DISPATCH,
    )

    def __init__(self, *, motor: bool = False) -> None:
        self._motor = motor
        self.floors: Mapping[str, Mapping[str, Floor]] = MappingProxyType(
            {
                "commit": {FLOOR: self._commits},
                "group": {FLOOR: self._group},
                "W2": {FLOOR: self._workflows},
                "W3": {FLOOR: self._loads},
                "W4": {FLOOR: self._drain},
            }
        )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[PersistentBackend]:
        """A backend in a new database."""
        async with (
            self._database() as (client, name),
            MongoBackend(client, database=name) as backend,
        ):
            yield backend

    def describe(self) -> str:
        """The server and the driver."""

        async def ask() -> str:
            async with self._database() as (client, _):
                found: dict[str, Any] = await client.admin.command("buildInfo")
                return f"MongoDB {found['version']}, w=majority, journaled"

        with ThreadPoolExecutor(1) as thread:  # an event loop runs in this one
            server = thread.submit(asyncio.run, ask()).result()

        driver = f"Motor {version('motor')}, " if self._motor else ""
        return f"{server}, {driver}PyMongo {version('pymongo')}"

    # --- Floors ---

    @asynccontextmanager
    async def _database(self) -> AsyncGenerator[tuple[Any, str]]:
        """A client, and the name of a database that is gone afterwards."""
        module, kind = (
            ("motor.motor_asyncio", "AsyncIOMotorClient")
            if self._motor
            else ("pymongo", "AsyncMongoClient")
        )
        client: Any = getattr(import_module(module), kind)(_url(), **CONCERN)
        name = f"bench_{os.getpid()}_{next(_numbers)}"

        try:
            yield client, name
        finally:
            await client.drop_database(name)
            closing = client.close()

            if closing is not None:
                await closing

    @asynccontextmanager
    async def _raw(self, instances: int) -> AsyncGenerator[Any]:
        """A new collection with instances."""
        async with self._database() as (client, name):
            runs = client[name]["floor"]
            await runs.create_index([("status", 1), ("_id", 1)])
            await runs.insert_many(
                [
                    {"_id": f"run-{number}", "status": "ready", "version": 0, "body": BODY}
                    for number in range(instances)
                ]
            )
            yield runs

    async def _commits(self, scale: Scale, watch: Stopwatch) -> int:
        async with self._raw(scale.commits) as runs:
            with watch:
                for number in range(scale.commits):
                    await _commit(runs, number, 0)

        return scale.commits

    async def _group(self, scale: Scale, watch: Stopwatch) -> int:
        return await self._commit_at_once(scale.committers, scale.steps_per_committer, watch)

    async def _workflows(self, scale: Scale, watch: Stopwatch) -> int:
        return await self._commit_at_once(scale.workflows, scale.steps_per_workflow, watch)

    async def _commit_at_once(self, workflows: int, steps: int, watch: Stopwatch) -> int:
        async with self._raw(workflows) as runs:

            async def run(workflow: int) -> None:
                for step in range(steps):
                    await _commit(runs, workflow, step)

            with watch:
                await asyncio.gather(*map(run, range(workflows)))

        return workflows * steps

    async def _loads(self, scale: Scale, watch: Stopwatch) -> int:
        """Read one document with all results in it."""
        async with self._raw(1) as runs:
            results = [{"n": f"n{number}", "o": OUTPUT} for number in range(scale.results)]
            await runs.update_one({"_id": "run-0"}, {"$set": {"results": results}})

            with watch:
                for _ in range(scale.loads):
                    found = await runs.find_one({"_id": "run-0"})
                    assert len(found["results"]) == scale.results

        return scale.loads

    async def _drain(self, scale: Scale, watch: Stopwatch) -> int:
        """Claim 50 in one update, complete these 50 in another, until none is left."""
        finished = 0

        async with self._raw(scale.instances) as runs:
            with watch:
                while True:
                    due = await runs.find({"status": "ready"}).limit(ACQUIRED_AT_ONCE).to_list(None)

                    if not due:
                        break

                    ids = {"_id": {"$in": [each["_id"] for each in due]}}
                    await runs.update_many(ids, {"$set": {"status": "claimed"}})
                    ended = {"status": "completed", "body": BODY, "result": OUTPUT}
                    await runs.update_many(ids, {"$set": ended})
                    finished += len(due)

        assert finished == scale.instances
        return finished


async def _commit(runs: Any, number: int, step: int) -> None:
    """One document for each step: the guard, a new body, and the result."""
    found = await runs.find_one_and_update(
        {"_id": f"run-{number}", "version": step},
        {"$set": {"version": step + 1, "body": BODY, "result": OUTPUT}},
        projection={"body": 0, "result": 0},
        return_document=True,
    )
    assert found is not None
