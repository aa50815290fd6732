"""Results in bounded space: short tails, segments beside, and nothing lost on the way."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import bson
import pytest
from integration.mongo.support import TTL, Commands, begin, client_of, walk

from sayiir_persist import (
    AtTask,
    BackendUnavailableError,
    ConflictPolicy,
    PayloadTooLargeError,
    WorkflowSnapshot,
)
from sayiir_persist.adapters.mongo import MongoBackend
from sayiir_persist.adapters.mongo import results as moving
from sayiir_persist.adapters.mongo.beside import Beside
from sayiir_persist.adapters.mongo.layout import (
    CHUNK,
    INLINE,
    INSTANCES,
    META,
    PAYLOADS,
    RESULTS,
    TAIL_COUNT,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

MIB = 1024 * 1024
COLLECTIONS = (INSTANCES, RESULTS, PAYLOADS, META)


@pytest.fixture
async def backend(url: str, name: str, raw: Any) -> AsyncGenerator[MongoBackend]:
    del raw

    async with MongoBackend.connect(url, database=name) as made:
        yield made


def largest(raw: Any) -> int:
    """The size of the largest document that there is."""
    return max(len(bson.encode(document)) for name in COLLECTIONS for document in raw[name].find())


def left_over(raw: Any) -> dict[str, int]:
    """How many documents of instances there are."""
    return {name: raw[name].count_documents({}) for name in (INSTANCES, RESULTS, PAYLOADS)}


NOTHING = {INSTANCES: 0, RESULTS: 0, PAYLOADS: 0}


async def test_a_commit_writes_its_step_however_long_the_workflow_is(
    url: str, name: str, raw: Any
) -> None:
    commands = Commands()

    async with (
        client_of(url, commands=commands) as client,
        MongoBackend(client, database=name) as backend,
    ):

        def sent() -> list[tuple[str, int]]:
            found = [
                (sent, len(bson.encode(body)))
                for sent, body in zip(commands.sent, commands.bodies, strict=True)
            ]
            commands.sent.clear()
            commands.bodies.clear()
            return found

        task = await begin(backend)
        sent()
        task = await walk(backend, task, range(TAIL_COUNT))
        early, early_size = sent(), raw[INSTANCES].find_one()
        run = await backend.load_snapshot("run")

        for number in range(10_000):
            run = run.record_result(f"n{number}", b"done")

        await backend.update_snapshot("run", lambda found: _with_results(found, run))
        task = await _same_task(backend, task)
        sent()
        await walk(backend, task, range(TAIL_COUNT, 2 * TAIL_COUNT))
        late, late_size = sent(), raw[INSTANCES].find_one()

    assert [command for command, _ in late] == [command for command, _ in early]
    assert sum(size for _, size in late) <= 1.2 * sum(size for _, size in early)
    assert len(bson.encode(late_size)) <= 1.5 * len(bson.encode(early_size)) + 1024


def _with_results(found: WorkflowSnapshot, run: WorkflowSnapshot) -> WorkflowSnapshot:
    for node, output in run.results.items():
        found = found.record_result(node, output)

    return found


async def _same_task(backend: MongoBackend, task: Any) -> Any:
    await backend.release_task_claim(task.claim)
    [again] = await backend.acquire_tasks(worker_id="w", ttl=TTL)
    return again


async def test_fifty_thousand_results_load(backend: MongoBackend, raw: Any) -> None:
    run = WorkflowSnapshot.start("run", "v1", start_at="t0")

    for number in range(50_000):
        run = run.record_result(f"node-{number}", b"%d" % number)

    await backend.save_snapshot(run)
    loaded = await backend.load_snapshot("run")

    assert len(loaded.results) == 50_000
    assert loaded.results["node-49999"] == b"49999"
    assert await backend.load_task_result("run", "node-777") == b"777"
    assert largest(raw) < MIB

    await backend.delete_snapshot("run")
    assert left_over(raw) == NOTHING


async def test_no_document_passes_a_mebibyte(backend: MongoBackend, raw: Any) -> None:
    big = b"b" * (3 * CHUNK + 17)
    task = await begin(backend)
    task = await walk(backend, task, range(3), output=big)
    task = await walk(backend, task, range(3, 3 + 40), output=b"m" * INLINE)

    for _ in range(30):
        await backend.send_event("run", "paid", b"e" * 30_000)

    await backend.send_event("run", "large", big)
    await backend.start_instance("input", "v1", start_at="t", input=big)
    ended = WorkflowSnapshot.start("ended", "v1", start_at="t").complete(big)
    await backend.save_snapshot(ended)

    assert largest(raw) < MIB
    loaded = await backend.load_snapshot("run")
    assert [loaded.results[f"t{n}"] for n in range(43)] == [big] * 3 + [b"m" * INLINE] * 40
    assert await backend.consume_event("run", "large") == big
    assert (await backend.load_snapshot("input")).input == big
    assert (await backend.load_snapshot("ended")).state == ended.state
    [offer] = await backend.find_available_tasks(worker_id="w")
    assert offer.snapshot.input == big

    for instance_id in ("run", "input", "ended"):
        await backend.delete_snapshot(instance_id)

    assert left_over(raw) == NOTHING


async def test_what_is_too_large_is_refused_before_any_write(url: str, name: str, raw: Any) -> None:
    del raw
    commands = Commands()

    async with (
        client_of(url, commands=commands) as client,
        MongoBackend(client, database=name, max_payload=1000) as backend,
    ):
        await backend.start_instance("run", "v1", start_at="t0", input=b"i" * 1000)
        commands.sent.clear()

        with pytest.raises(PayloadTooLargeError):
            await backend.save_task_result("run", "t0", b"x" * 1001)

        with pytest.raises(PayloadTooLargeError):
            await backend.send_event("run", "paid", b"x" * 1001)

        with pytest.raises(PayloadTooLargeError):
            await backend.start_instance("other", "v1", start_at="t0", input=b"x" * 1001)

        assert not commands.sent


async def test_the_largest_payload_is_stored(backend: MongoBackend, raw: Any) -> None:
    output = b"x" * backend.info.limits.max_payload
    task = await begin(backend)
    step = task.snapshot.complete_task("t0", output, next=None)

    await backend.commit_task(task.claim, step)

    assert await backend.load_task_result("run", "t0") == output
    assert largest(raw) < MIB


@pytest.mark.parametrize("step", ["_copy", "_cut"])
async def test_a_move_that_ends_before_or_in_its_middle_loses_and_doubles_nothing(
    backend: MongoBackend, raw: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def crash(*_: Any) -> None:
        raise BackendUnavailableError("the process has ended here")

    task = await begin(backend)
    expected = {f"t{number}": b"done" for number in range(TAIL_COUNT + 5)}

    with monkeypatch.context() as patch:
        patch.setattr(moving, step, crash)
        task = await walk(backend, task, range(TAIL_COUNT + 5))

        assert dict((await backend.load_snapshot("run")).results) == expected

    assert raw[RESULTS].count_documents({}) == (0 if step == "_copy" else 6)
    await walk(backend, task, range(TAIL_COUNT + 5, 2 * TAIL_COUNT))

    loaded = await backend.load_snapshot("run")
    assert dict(loaded.results) == {f"t{n}": b"done" for n in range(2 * TAIL_COUNT)}
    assert list(loaded.results) == [f"t{n}" for n in range(2 * TAIL_COUNT)]
    assert len(raw[INSTANCES].find_one()["tail"]) < TAIL_COUNT


async def test_a_result_that_was_moved_can_be_replaced_and_dropped(backend: MongoBackend) -> None:
    task = await begin(backend)
    task = await walk(backend, task, range(TAIL_COUNT + 1))

    replaced = await backend.update_snapshot("run", lambda run: run.record_result("t0", b"new"))
    assert replaced.results["t0"] == b"new"
    assert await backend.load_task_result("run", "t0") == b"new"
    assert await backend.save_task_result("run", "t1", b"done") == replaced.version

    await backend.update_snapshot("run", lambda run: run.forget("t2"))
    loaded = await backend.load_snapshot("run")
    assert "t2" not in loaded.results
    assert await backend.load_task_result("run", "t2") is None
    assert len(loaded.results) == TAIL_COUNT


async def test_readers_see_each_result_while_tails_are_moved(
    backend: MongoBackend, url: str, name: str
) -> None:
    task = await begin(backend)
    ended = asyncio.Event()

    async def read() -> int:
        reads = last = 0

        async with MongoBackend.connect(url, database=name) as other:
            while not ended.is_set():
                found = await other.load_snapshot("run")
                count = len(found.results)
                assert list(found.results) == [f"t{n}" for n in range(count)]
                assert count == found.version - 1 >= last
                last, reads = count, reads + 1

        return reads

    readers = [asyncio.create_task(read()) for _ in range(2)]

    try:
        await walk(backend, task, range(3 * TAIL_COUNT))
    finally:
        ended.set()

    assert all(await asyncio.gather(*readers))


async def test_a_sweep_removes_what_a_crash_left_beside(
    url: str, name: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [2_000_000_000_000_000]
    big = b"b" * (CHUNK + 1)

    async def crash(*_: Any) -> None:
        raise BackendUnavailableError("the process has ended here")

    async with MongoBackend.connect(url, database=name, _clock=lambda: now[0]) as backend:
        await backend.start_instance("kept", "v1", start_at="t0", input=big)
        await backend.start_instance("gone", "v1", start_at="t0", input=big)

        with monkeypatch.context() as patch:
            patch.setattr(Beside, "clear", crash)

            with pytest.raises(BackendUnavailableError):
                await backend.delete_snapshot("gone")

        raw[PAYLOADS].insert_one(
            {"_id": "x/0", "ref": "x", "c": 0, "d": b"", "k": "default/kept", "pending": now[0]}
        )
        await backend.sweep()
        assert raw[PAYLOADS].count_documents({}) == 5  # it may still be on its way

        now[0] += timedelta(hours=2) // timedelta(microseconds=1)
        await backend.sweep()

        assert {it["k"] for it in raw[PAYLOADS].find({"ref": {"$ne": "x"}})} == {"default/kept"}
        assert raw[PAYLOADS].count_documents({"ref": "x"}) == 0
        assert (await backend.load_snapshot("kept")).input == big
        assert raw[META].count_documents({"_id": {"$regex": "^grave"}}) == 0


async def test_old_segments_and_payloads_go_when_a_run_is_restarted(
    backend: MongoBackend, raw: Any
) -> None:
    task = await begin(backend)
    task = await walk(backend, task, range(TAIL_COUNT + 1))
    await walk(backend, task, range(TAIL_COUNT + 1, TAIL_COUNT + 2), output=b"b" * CHUNK)
    assert raw[RESULTS].count_documents({})
    assert raw[PAYLOADS].count_documents({})

    await backend.start_instance(
        "run", "v1", start_at="t0", on_conflict=ConflictPolicy.TERMINATE_EXISTING
    )

    assert left_over(raw) == {INSTANCES: 1, RESULTS: 0, PAYLOADS: 0}
    assert not (await backend.load_snapshot("run")).results


async def test_fences_grow_across_deletions(backend: MongoBackend) -> None:
    last = 0

    for _ in range(5):
        task = await begin(backend)
        assert task.claim.fence > last
        last = task.claim.fence
        step = task.snapshot.complete_task("t0", b"x", next=AtTask("t1"))
        commit = await backend.commit_task(task.claim, step, claim_next=TTL)
        assert commit.next is not None
        assert commit.next.claim.fence > last
        last = commit.next.claim.fence
        await backend.delete_snapshot("run")
