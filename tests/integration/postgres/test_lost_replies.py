"""The server has done it and its answer is lost: nobody is told a lie, nothing is done twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.support import sql
from integration.postgres.workloads import TTL, WORKER, acquired, connect, next_step, started
from services.proxy import Proxy

from sayiir_persist import (
    AtDelay,
    AtSignal,
    AtTask,
    BackendUnavailableError,
    ClaimLostError,
    Commit,
    InstanceExistsError,
    OutcomeUnknownError,
    StaleSnapshotError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    import asyncpg

    from sayiir_persist.adapters.postgres import PostgresBackend

NAP = AtDelay("nap", wake_after=timedelta(days=1), next=AtTask("ship"))
WAIT = AtSignal("approval", "approved", next=AtTask("ship"))


@pytest.fixture
async def proxy(url: str) -> AsyncGenerator[Proxy]:
    async with Proxy(url) as opened:
        yield opened


@pytest.fixture
async def backend(proxy: Proxy, schema: str) -> AsyncGenerator[PostgresBackend]:
    """One whose answers can get lost, with all its statements prepared."""
    async with connect(proxy.url, schema, max_size=1) as opened:
        await _rehearse(opened)
        yield opened


async def _rehearse(backend: PostgresBackend) -> None:
    for following in (AtTask("ship"), NAP):
        snapshot = await started(backend, "rehearsal")
        claim = await backend.claim_task("rehearsal", "charge", worker_id=WORKER, ttl=TTL)
        assert claim is not None
        step = snapshot.complete_task("charge", b"", next=following)
        await backend.commit_task(claim, step)
        await backend.delete_snapshot("rehearsal")

    await backend.acquire_tasks(worker_id=WORKER, ttl=TTL)


async def lost(proxy: Proxy, call: Awaitable[object]) -> None:
    """Let the server do it, and nobody hear of it."""
    answered = proxy.drop_replies_after(cut=True)

    with pytest.raises(OutcomeUnknownError):
        await call

    assert answered.is_set()


# Writes.


@pytest.mark.parametrize("following", [AtTask("ship"), NAP], ids=["step", "write"])
async def test_the_version_tells_what_became_of_a_commit(
    following: Any, backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend)
    task = await acquired(backend)
    step = task.snapshot.complete_task("charge", b"done", next=following)

    await lost(proxy, backend.commit_task(task.claim, step))

    stored = await backend.load_snapshot("run")
    assert stored.version == task.snapshot.version + 1
    assert dict(stored.results) == {"charge": b"done"}

    with pytest.raises(ClaimLostError):
        await backend.commit_task(task.claim, step)

    assert (await backend.load_snapshot("run")).version == stored.version


async def test_the_nonce_gives_back_what_a_lost_commit_claimed_next(
    backend: PostgresBackend, proxy: Proxy, admin: asyncpg.Connection[Any], schema: str
) -> None:
    await started(backend)
    task = await acquired(backend)
    await lost(proxy, backend.commit_task(task.claim, next_step(task), claim_next=TTL))

    claim = await backend.claim_task(
        "run", "ship", worker_id=WORKER, ttl=TTL, nonce=task.claim.nonce
    )

    assert claim is not None
    assert await backend.find_available_tasks(worker_id="other") == []
    fence = await admin.fetchval(
        sql("SELECT (claims -> 'ship' ->> 'fence')::bigint FROM {schema}.instances", schema=schema)
    )
    assert claim.fence == fence
    stored = await backend.load_snapshot("run")
    await backend.commit_task(claim, stored.complete_task("ship", b"", next=None))


async def test_the_nonce_gives_back_a_claim(backend: PostgresBackend, proxy: Proxy) -> None:
    await started(backend)
    question = {"worker_id": WORKER, "ttl": TTL, "nonce": "question-1"}
    await lost(proxy, backend.claim_task("run", "charge", **question))

    claim = await backend.claim_task("run", "charge", **question)
    again = await backend.claim_task("run", "charge", **question)

    assert claim is not None
    assert again == claim
    assert await backend.claim_task("run", "charge", worker_id=WORKER, ttl=TTL) is None


async def test_what_a_lost_poll_claimed_is_nobody_elses_and_comes_back(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(3):
        await started(backend, f"run-{number}")

    short = timedelta(milliseconds=200)
    await lost(proxy, backend.acquire_tasks(worker_id=WORKER, ttl=short, limit=2))

    [task] = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=3)
    back: list[str] = []

    async with asyncio.timeout(20):
        while len(back) < 2:
            tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=3)
            back.extend(each.instance_id for each in tasks)

    assert sorted([task.instance_id, *back]) == ["run-0", "run-1", "run-2"]


async def test_an_event_with_an_id_is_queued_once(backend: PostgresBackend, proxy: Proxy) -> None:
    await started(backend)
    await lost(proxy, backend.send_event("run", "news", b"first", event_id="1"))

    await backend.send_event("run", "news", b"again", event_id="1")

    assert await backend.consume_event("run", "news") == b"first"
    assert await backend.consume_event("run", "news") is None


async def test_a_wait_that_met_an_event_moves_on_once_whoever_does_it(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend, start_at=WAIT)
    await lost(proxy, backend.send_event("run", "approved", b"yes", event_id="1"))

    [task] = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL)
    await backend.send_event("run", "approved", b"yes", event_id="1")

    stored = await backend.load_snapshot("run")
    assert (task.task_id, stored.version) == ("ship", 2)
    assert stored.results["approval"] == b"yes"
    assert await backend.consume_event("run", "approved") is None


async def test_a_start_that_was_lost_has_happened_once(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await lost(proxy, started(backend, input=b"first"))

    with pytest.raises(InstanceExistsError):
        await started(backend, input=b"second")

    outcome = await backend.start_instance(
        "run", "v1", start_at="charge", input=b"third", on_conflict="use_existing"
    )
    assert not outcome.created
    assert (outcome.snapshot.version, outcome.snapshot.input) == (1, b"first")


async def test_a_result_that_was_lost_takes_one_version(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend)
    await lost(proxy, backend.save_task_result("run", "charge", b"x"))

    assert await backend.save_task_result("run", "charge", b"x") == 2


async def test_a_save_that_was_lost_is_not_done_again(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    snapshot = await started(backend)
    new = snapshot.complete_task("charge", b"x", next=NAP)
    await lost(proxy, backend.save_snapshot(new))

    with pytest.raises(StaleSnapshotError) as stale:
        await backend.save_snapshot(new)

    assert stale.value.stored_version == new.version + 1


async def test_all_of_a_batch_are_told_that_nobody_knows(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(12):
        await started(backend, f"run-{number:02}")

    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=12)
    proxy.drop_replies_after(b"run-05", cut=True)
    outcomes = await asyncio.gather(
        *(backend.commit_task(task.claim, next_step(task)) for task in tasks),
        return_exceptions=True,
    )

    versions = {row.instance_id: row.version for row in await backend.list_snapshots()}
    lost_ones = [outcome for outcome in outcomes if isinstance(outcome, OutcomeUnknownError)]
    assert len(lost_ones) > 1

    for task, outcome in zip(tasks, outcomes, strict=True):
        assert isinstance(outcome, Commit | OutcomeUnknownError)
        assert versions[task.instance_id] == 2


# Reads, and what was never sent.


async def test_a_lost_answer_to_a_question_is_no_riddle(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend)
    await backend.load_snapshot("run")
    proxy.drop_replies_after(cut=True)

    with pytest.raises(BackendUnavailableError):
        await backend.load_snapshot("run")

    assert (await backend.load_snapshot("run")).version == 1


async def test_what_could_not_be_sent_has_certainly_not_been_done(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    proxy.refuse()
    proxy.cut()

    with pytest.raises(BackendUnavailableError):
        await backend.list_snapshots()

    with pytest.raises(BackendUnavailableError):
        await started(backend)

    await proxy.accept()
    await started(backend)


async def test_silence_is_an_unknown_outcome_too(proxy: Proxy, schema: str) -> None:
    patience = timedelta(milliseconds=500)

    async with connect(proxy.url, schema, max_size=1, operation_timeout=patience) as backend:
        await started(backend, "first")
        proxy.drop_replies_after()

        with pytest.raises(OutcomeUnknownError, match="operation_timeout"):
            await started(backend)

        proxy.cut()
        assert (await backend.load_snapshot("run")).version == 1
