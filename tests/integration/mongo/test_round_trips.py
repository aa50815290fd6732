"""What each operation costs, counted in commands, on both drivers."""

from __future__ import annotations

import asyncio
from typing import Any

from integration.mongo.support import TTL, Commands, begin, walk

from sayiir_persist import AtTask, SignalKind
from sayiir_persist.adapters.mongo import MongoBackend
from sayiir_persist.adapters.mongo.layout import TAIL_COUNT

UPDATE = ["findAndModify"]
READ = ["aggregate"]


def backend_of(client: Any, name: str, **options: Any) -> MongoBackend:
    return MongoBackend(client, database=name, **options)


async def test_writes_take_one_trip(client: Any, name: str, raw: Any, commands: Commands) -> None:
    del raw

    async with backend_of(client, name) as backend:
        task = await begin(backend)
        step = task.snapshot.complete_task("t0", b"x", next=AtTask("t1"))

        assert await commands.of(backend.commit_task(task.claim, step, claim_next=TTL)) == UPDATE
        claim = await backend.claim_task(
            "run", "t1", worker_id="w", ttl=TTL, nonce=task.claim.nonce
        )
        assert claim is not None

        base = await backend.load_snapshot("run")
        change = backend.commit_task(
            claim,
            lambda run: run.complete_task("t1", b"y", next=AtTask("t2")),
            base=base,
        )
        assert await commands.of(change) == UPDATE

        taken = backend.claim_task("run", "t2", worker_id="w", ttl=TTL, nonce="n")
        assert await commands.of(taken) == UPDATE
        claim = await backend.claim_task("run", "t2", worker_id="w", ttl=TTL, nonce="n")
        assert claim is not None
        assert await commands.of(backend.extend_task_claim(claim, ttl=TTL)) == UPDATE
        assert await commands.of(backend.save_task_result("run", "t2", b"z", claim=claim)) == UPDATE
        assert await commands.of(backend.release_task_claim(claim)) == UPDATE

        stored = await backend.load_snapshot("run")
        assert await commands.of(backend.save_snapshot(stored)) == UPDATE
        assert await commands.of(backend.send_event("run", "paid", b"1", event_id="e")) == UPDATE
        assert await commands.of(backend.send_event("unknown", "paid", b"1")) == UPDATE
        assert await commands.of(backend.consume_event("run", "paid")) == UPDATE
        assert await commands.of(backend.store_signal("run", SignalKind.PAUSE)) == UPDATE
        assert await commands.of(backend.clear_signal("run", SignalKind.PAUSE)) == UPDATE


async def test_reads_take_one_trip(client: Any, name: str, raw: Any, commands: Commands) -> None:
    del raw

    async with backend_of(client, name) as backend:
        await backend.start_instance("run", "v1", start_at="t0", input=b"{}")

        for call in (
            backend.load_snapshot("run"),
            backend.load_snapshot("run", results=False),
            backend.load_task_result("run", "t0"),
            backend.get_signal("run", SignalKind.CANCEL),
            backend.check_control_signals("run"),
            backend.find_available_tasks(worker_id="w"),
            backend.list_snapshots(),
            backend.now(),
        ):
            assert await commands.of(call) == READ


async def test_a_start_takes_two_trips_and_a_claim_of_many_three(
    client: Any, name: str, raw: Any, commands: Commands
) -> None:
    del raw

    async with backend_of(client, name) as backend:
        start = backend.start_instance("run", "v1", start_at="t0", input=b"{}")
        assert await commands.of(start) == ["aggregate", "findAndModify"]

        for number in range(99):
            await backend.start_instance(f"run-{number}", "v1", start_at="t0", input=b"{}")

        for limit in (1, 90):
            acquire = backend.acquire_tasks(worker_id="w", ttl=TTL, limit=limit)
            assert await commands.of(acquire) == ["aggregate", "update", "aggregate"]


async def test_writes_that_wait_share_two_trips_of_each_writer(
    client: Any, name: str, raw: Any, commands: Commands
) -> None:
    del raw

    async with backend_of(client, name) as backend:
        await asyncio.gather(
            *(backend.start_instance(f"run-{n}", "v1", start_at="t0") for n in range(64))
        )
        tasks = await backend.acquire_tasks(worker_id="w", ttl=TTL, limit=64)

        async def commit_all() -> None:
            commits = await asyncio.gather(
                *(
                    backend.commit_task(
                        task.claim,
                        task.snapshot.complete_task("t0", b"x", next=AtTask("t1")),
                        claim_next=TTL,
                    )
                    for task in tasks
                )
            )
            assert all(commit.next for commit in commits)

        sent = await commands.of(commit_all())

        assert sent.count("update") == sent.count("aggregate") <= 2
        assert set(sent) == {"findAndModify", "update", "aggregate"}
        assert sent.count("findAndModify") <= 2


async def test_moving_results_costs_two_trips_for_each_full_tail(
    client: Any, name: str, raw: Any, commands: Commands
) -> None:
    del raw

    async with backend_of(client, name) as backend:
        task = await begin(backend)

        sent = await commands.of(walk(backend, task, range(2 * TAIL_COUNT)))

        assert len(sent) == 2 * TAIL_COUNT + 2 * 2


async def test_a_commit_names_no_field_after_a_task(
    client: Any, name: str, raw: Any, commands: Commands
) -> None:
    async with backend_of(client, name) as backend:
        for odd in ("a.b", "$where", "$$NOW", ".", "a.$.b", "$"):
            await backend.start_instance(odd, odd, start_at=odd, tags=[odd])
            [task] = await backend.acquire_tasks(worker_id=odd, ttl=TTL, tags=[odd])
            step = task.snapshot.complete_task(odd, b"x", next=AtTask(f"{odd}.next"))
            commit = await backend.commit_task(task.claim, step, claim_next=TTL)

            assert commit.next is not None
            assert (await backend.load_snapshot(odd)).results[odd] == b"x"

        assert commands.sent
        fields: set[str] = set()

        for document in raw["sayiir_instances"].find():
            fields.update(document)

        assert not any("$" in field or "." in field for field in fields)
