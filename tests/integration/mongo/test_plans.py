"""What the server does to find work: counted, not timed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from integration.mongo.support import TTL, Commands, client_of

from sayiir_persist import BackendError, SchemaVersionError
from sayiir_persist.adapters.mongo import MongoBackend
from sayiir_persist.adapters.mongo.layout import CLOCK, INSTANCES, LANES, META
from sayiir_persist.adapters.mongo.schema import INDEXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CROWD = 20_000


def crowd(now: int) -> Iterator[dict[str, Any]]:
    """As many instances that have ended, and as many that are parked."""
    shared: dict[str, Any] = {
        "ns": "default",
        "def": "v1",
        "ver": 1,
        "created": now,
        "updated": now,
        "since": now,
        "prio": 3,
        "tags": [],
        "idle": None,
        "signalled": None,
        "purge": None,
        "signals": [],
        "claims": [],
        **dict.fromkeys(LANES),
    }

    for number in range(CROWD):
        yield {**shared, "_id": f"default/ended-{number}", "status": "completed", "entries": []}
        later = now + (number + 1) * 3_600_000_000
        entry = {"node": "later", "task": True, "lane": 3, "at": later, "due": later, "tags": []}
        yield {
            **shared,
            "_id": f"default/parked-{number}",
            "status": "in_progress",
            "lane3": later,
            "entries": [entry],
        }


def stages(plan: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(plan, dict):
        yield plan

        for name, value in plan.items():
            if name != "rejectedPlans":
                yield from stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from stages(value)


def examined(raw: Any, pipeline: list[dict[str, Any]]) -> tuple[int, set[str]]:
    """How many keys a pipeline looks at, and by which kinds of stages."""
    command = {"aggregate": INSTANCES, "pipeline": pipeline, "cursor": {}}
    plan = raw.command("explain", command, verbosity="executionStats")
    found = list(stages(plan))
    keys = sum(
        each["executionStats"]["totalKeysExamined"] for each in found if "executionStats" in each
    )
    return keys, {str(each["stage"]) for each in found if isinstance(each.get("stage"), str)}


async def test_dispatch_costs_what_it_finds_beside_forty_thousand_instances(
    url: str, name: str, raw: Any
) -> None:
    commands = Commands()

    async with (
        client_of(url, commands=commands) as client,
        MongoBackend(client, database=name) as backend,
    ):
        now = await backend.now()
        raw[INSTANCES].insert_many(crowd(int(now.timestamp() * 1_000_000)), ordered=False)

        for number in range(30):
            await backend.start_instance(
                f"ready-{number}", "v1", start_at="t0", priority=number % 5 + 1
            )

        for limit in (1, 10):
            commands.bodies.clear()
            assert len(await backend.find_available_tasks(worker_id="w", limit=limit)) == limit
            [poll] = commands.bodies
            branches = [
                stage["$unionWith"]["pipeline"]
                for stage in poll["pipeline"]
                if "$unionWith" in stage
            ]
            assert len(branches) == len(LANES)
            total = 0

            for branch in branches:
                keys, kinds = examined(raw, list(branch))
                assert not kinds.intersection({"COLLSCAN", "SORT"})
                total += keys

            assert total <= len(LANES) * (limit + 1)

        assert len(await backend.acquire_tasks(worker_id="w", ttl=TTL, limit=30)) == 30
        commands.bodies.clear()
        await backend.list_snapshots(limit=5)
        await backend.sweep()

        for body in commands.bodies:
            if "pipeline" not in body or body["aggregate"] != INSTANCES:
                continue

            keys, kinds = examined(raw, list(body["pipeline"]))
            assert not kinds.intersection({"COLLSCAN", "SORT"})
            assert keys <= 50


async def test_sixteen_starters_make_the_indexes_once(url: str, name: str, raw: Any) -> None:
    async def start() -> str:
        async with MongoBackend.connect(url, database=name) as backend:
            return backend.info.server

    assert len(set(await asyncio.gather(*(start() for _ in range(16))))) == 1

    for collection, indexes in INDEXES.items():
        there = raw[collection].index_information()
        assert set(there) == {"_id_", *indexes}
        assert not any("expireAfterSeconds" in index for index in there.values())

    assert raw[META].count_documents({"_id": CLOCK}) == 1


async def test_without_migration_nothing_is_made(url: str, name: str, raw: Any) -> None:
    with pytest.raises(SchemaVersionError):
        async with MongoBackend.connect(url, database=name, migrate=False):
            pass

    assert raw.list_collection_names() == []

    async with MongoBackend.connect(url, database=name):
        pass

    async with MongoBackend.connect(url, database=name, migrate=False) as backend:
        await backend.start_instance("run", "v1", start_at="t")

    raw[INSTANCES].drop_index("lane3")

    with pytest.raises(SchemaVersionError, match="lane3"):
        async with MongoBackend.connect(url, database=name, migrate=False):
            pass


async def test_a_newer_layout_is_refused(url: str, name: str, raw: Any) -> None:
    raw[META].insert_one({"_id": CLOCK, "layout": 99})

    with pytest.raises(SchemaVersionError, match="99"):
        async with MongoBackend.connect(url, database=name):
            pass


async def test_another_event_loop_is_told_so(url: str, name: str, raw: Any) -> None:
    del raw

    async with MongoBackend.connect(url, database=name) as backend:

        async def visit() -> None:
            with pytest.raises(BackendError, match="event loop"):
                await backend.now()

        await asyncio.to_thread(asyncio.run, visit())
        await backend.now()
