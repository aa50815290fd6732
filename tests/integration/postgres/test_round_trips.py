"""What each operation costs on the wire, counted there: statements, each of one round trip."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from integration.postgres.workloads import TTL, WORKER, acquired, connect, next_step, started
from services.proxy import Proxy

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtSignal,
    AtTask,
    ClaimLostError,
    PersistentBackend,
    StaleSnapshotError,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sayiir_persist.adapters.postgres import PostgresBackend

    Operation = Callable[[PersistentBackend, str], Awaitable[object]]

WAIT = AtSignal("approval", "approved", next=AtTask("ship"))
NAP = AtDelay("nap", wake_after=timedelta(days=1), next=AtTask("ship"))


@pytest.fixture
async def proxy(url: str) -> AsyncGenerator[Proxy]:
    async with Proxy(url) as opened:
        yield opened


@pytest.fixture
async def backend(proxy: Proxy, schema: str) -> AsyncGenerator[PostgresBackend]:
    """One with a single connection, so that what was run once is prepared."""
    async with connect(proxy.url, schema, max_size=1) as opened:
        yield opened


ONCE: dict[str, Operation] = {
    "start_instance": lambda b, i: b.start_instance(f"{i}-new", "v1", start_at="a", input=b"x"),
    "start_instance, parked": lambda b, i: b.start_instance(f"{i}-new", "v1", start_at=NAP),
    "start_instance, use existing": lambda b, i: b.start_instance(
        i, "v1", start_at="charge", on_conflict="use_existing"
    ),
    "start_instance, restart": lambda b, i: b.start_instance(
        i, "v1", start_at="charge", on_conflict="terminate_existing"
    ),
    "save_task_result": lambda b, i: b.save_task_result(i, "charge", b"x"),
    "load_snapshot": lambda b, i: b.load_snapshot(i),
    "load_snapshot, no results": lambda b, i: b.load_snapshot(i, results=False),
    "load_task_result": lambda b, i: b.load_task_result(i, "charge"),
    "claim_task": lambda b, i: b.claim_task(i, "charge", worker_id=WORKER, ttl=TTL),
    "acquire_tasks": lambda b, _: b.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=10),
    "find_available_tasks": lambda b, _: b.find_available_tasks(worker_id=WORKER),
    "get_signal": lambda b, i: b.get_signal(i, "cancel"),
    "check_control_signals": lambda b, i: b.check_control_signals(i),
    "check_and_cancel": lambda b, i: b.check_and_cancel(i),
    "store_signal": lambda b, i: b.store_signal(i, "cancel"),
    "clear_signal": lambda b, i: b.clear_signal(i, "cancel"),
    "send_event": lambda b, i: b.send_event(i, "news", b"x", event_id="1"),
    "consume_event": lambda b, i: b.consume_event(i, "news"),
    "revoke_task_claim": lambda b, i: b.revoke_task_claim(i, "charge"),
    "delete_snapshot": lambda b, i: b.delete_snapshot(i),
    "list_snapshots": lambda b, _: b.list_snapshots(),
    "list_snapshots, by status": lambda b, _: b.list_snapshots(status=Status.IN_PROGRESS),
    "list_snapshots, by definition": lambda b, _: b.list_snapshots(definition_hash="v1"),
    "list_snapshots, by both": lambda b, _: b.list_snapshots(
        status=Status.IN_PROGRESS, definition_hash="v1", after="run"
    ),
    "find_stalled": lambda b, _: b.find_stalled(idle_for=timedelta(0)),
    "now": lambda b, _: b.now(),
}


@pytest.mark.parametrize("operation", ONCE)
async def test_one_round_trip(operation: str, backend: PostgresBackend, proxy: Proxy) -> None:
    await started(backend, "first")
    await ONCE[operation](backend, "first")
    await started(backend, "second")
    proxy.reset_counts()

    await ONCE[operation](backend, "second")

    assert proxy.round_trips == 1


async def test_a_save_is_one_round_trip(backend: PostgresBackend, proxy: Proxy) -> None:
    snapshot = await started(backend)
    snapshot = await backend.save_snapshot(snapshot.complete_task("charge", b"", next=NAP))
    proxy.reset_counts()

    await backend.save_snapshot(snapshot.forget("charge"))

    assert proxy.round_trips == 1


async def test_a_step_is_one_round_trip(backend: PostgresBackend, proxy: Proxy) -> None:
    await started(backend)
    task = await acquired(backend)
    first = (await backend.commit_task(task.claim, next_step(task), claim_next=TTL)).next
    assert first is not None
    proxy.reset_counts()

    second = (await backend.commit_task(first.claim, next_step(first), claim_next=TTL)).next

    assert second is not None
    assert proxy.round_trips == 1


async def test_a_step_from_a_base_is_one_round_trip(backend: PostgresBackend, proxy: Proxy) -> None:
    await started(backend)
    task = await acquired(backend)
    first = (await backend.commit_task(task.claim, next_step(task), claim_next=TTL)).next
    assert first is not None
    proxy.reset_counts()

    await backend.commit_task(
        first.claim,
        lambda snapshot: snapshot.complete_task("ship", b"", next=AtTask("bill")),
        base=first.snapshot,
        claim_next=TTL,
    )

    assert proxy.round_trips == 1


@pytest.mark.parametrize(
    "following", [None, AtTask("ship"), NAP, WAIT], ids=["end", "task", "nap", "wait"]
)
async def test_a_commit_is_one_round_trip_wherever_it_leads(
    following: Any, backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend, "run-1")
    await started(backend, "run-2")
    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=2)

    for task in tasks:
        proxy.reset_counts()
        step = task.snapshot.complete_task(task.task_id, b"done", next=following)
        await backend.commit_task(task.claim, step)

    assert proxy.round_trips == 1


async def test_extend_and_release_are_one_round_trip_each(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend)
    claim = (await acquired(backend)).claim
    await backend.extend_task_claim(claim, ttl=TTL)
    await backend.release_task_claim(claim)
    claim = (await acquired(backend)).claim
    proxy.reset_counts()

    await backend.extend_task_claim(claim, ttl=TTL)
    assert proxy.round_trips == 1

    await backend.release_task_claim(claim)
    assert proxy.round_trips == 2


# Where a decision in Python lies between.


async def test_a_signal_that_nobody_is_there_to_see_is_two_round_trips(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(2):
        await started(backend, f"run-{number}")
        proxy.reset_counts()
        status = await backend.request_signal(f"run-{number}", "cancel")
        assert status is Status.CANCELLED

    assert proxy.round_trips == 2


async def test_a_signal_that_is_left_to_a_worker_is_one_round_trip(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(2):
        await started(backend, f"run-{number}")
        await acquired(backend)
        proxy.reset_counts()
        status = await backend.request_signal(f"run-{number}", "cancel")
        assert status is Status.IN_PROGRESS

    assert proxy.round_trips == 1


async def test_a_commit_that_finds_a_signal_is_five_round_trips(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(2):
        await started(backend, f"run-{number}")
        task = await acquired(backend)
        await backend.store_signal(f"run-{number}", "cancel")
        proxy.reset_counts()
        commit = await backend.commit_task(task.claim, next_step(task))
        assert commit.snapshot.status is Status.CANCELLED

    assert proxy.round_trips == 5  # the short way, the long way, two looks, the end


async def test_a_pending_signal_is_applied_in_three_round_trips(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(2):
        await started(backend, f"run-{number}")
        await backend.store_signal(f"run-{number}", "pause")
        proxy.reset_counts()
        assert await backend.check_control_signals(f"run-{number}") == "pause"

    assert proxy.round_trips == 3


async def test_unpausing_is_two_round_trips(backend: PostgresBackend, proxy: Proxy) -> None:
    for number in range(2):
        await started(backend, f"run-{number}")
        await backend.request_signal(f"run-{number}", "pause")
        proxy.reset_counts()
        await backend.unpause(f"run-{number}")

    assert proxy.round_trips == 2


async def test_an_event_that_meets_a_wait_is_three_round_trips(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(2):
        await started(backend, f"run-{number}", start_at=WAIT)
        proxy.reset_counts()
        await backend.send_event(f"run-{number}", "approved", b"yes")

    assert proxy.round_trips == 3


async def test_a_wait_that_meets_an_event_is_three_round_trips(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    for number in range(2):
        await backend.send_event(f"run-{number}", "approved", b"yes")
        proxy.reset_counts()
        snapshot = await started(backend, f"run-{number}", start_at=WAIT)
        assert snapshot.results["approval"] == b"yes"

    assert proxy.round_trips == 3


async def test_draining_is_two_round_trips(backend: PostgresBackend, proxy: Proxy) -> None:
    for number in range(2):
        await started(backend, f"run-{number}", start_at=WAIT)
        await backend.store_signal(f"run-{number}", "pause")
        await backend.send_event(f"run-{number}", "approved", b"yes")
        await backend.clear_signal(f"run-{number}", "pause")
        proxy.reset_counts()
        assert await backend.drain_signal(f"run-{number}") is not None

    assert proxy.round_trips == 2


async def test_draining_where_nothing_met_is_one_round_trip(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend, start_at=WAIT)
    await backend.drain_signal("run")
    proxy.reset_counts()

    assert await backend.drain_signal("run") is None

    assert proxy.round_trips == 1


async def test_a_branch_whose_base_is_stale_is_three_round_trips(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    fork = AtFork("all", {"left": AtTask("l"), "right": AtTask("r")}, next=AtTask("join"))

    for number in range(2):
        await started(backend, f"run-{number}", start_at=fork)
        left, right = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=2)
        costs: list[int] = []

        for task in (left, right):
            proxy.reset_counts()
            await backend.commit_task(
                task.claim,
                lambda snapshot, at=task.task_id: snapshot.complete_task(at, b"", next=None),
                base=task.snapshot,
            )
            costs.append(proxy.round_trips)

        await acquired(backend)

    assert costs == [1, 3]


async def test_a_commit_from_a_stale_base_is_four_round_trips(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend, "run-1")
    await started(backend, "run-2")

    for task in await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=2):
        await backend.save_task_result(task.instance_id, "aside", b"")
        proxy.reset_counts()
        await backend.commit_task(
            task.claim,
            lambda snapshot: snapshot.complete_task("charge", b"", next=AtTask("ship")),
            base=task.snapshot,
        )

    assert proxy.round_trips == 4  # the short way, the long way that tells why, a look, the commit


async def test_a_step_without_a_live_claim_is_asked_once_more_for_the_reason(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await started(backend, "run-1")
    await started(backend, "run-2")

    for task in await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=2):
        await backend.release_task_claim(task.claim)
        proxy.reset_counts()

        with pytest.raises(ClaimLostError):
            await backend.commit_task(task.claim, next_step(task))

    assert proxy.round_trips == 2


async def test_a_refused_save_is_one_round_trip(backend: PostgresBackend, proxy: Proxy) -> None:
    stale = await started(backend)
    await backend.save_snapshot(stale.complete_task("charge", b"", next=NAP))
    proxy.reset_counts()

    with pytest.raises(StaleSnapshotError):
        await backend.save_snapshot(stale.complete_task("charge", b"", next=NAP))

    assert proxy.round_trips == 1


# Together.


async def test_64_commits_at_once_take_a_handful_of_statements(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    async def step(task: Any) -> Any:
        return (await backend.commit_task(task.claim, next_step(task), claim_next=TTL)).next

    await asyncio.gather(*(started(backend, f"run-{number:02}") for number in range(64)))
    tasks = await backend.acquire_tasks(worker_id=WORKER, ttl=TTL, limit=64)
    tasks = await asyncio.gather(*map(step, tasks))
    proxy.reset_counts()

    tasks = await asyncio.gather(*map(step, tasks))

    assert len({task.claim.fence for task in tasks}) == 64
    assert proxy.round_trips <= 4


async def test_64_starts_at_once_take_a_handful_of_statements(
    backend: PostgresBackend, proxy: Proxy
) -> None:
    await asyncio.gather(*(started(backend, f"first-{number}") for number in range(64)))
    proxy.reset_counts()

    await asyncio.gather(*(started(backend, f"second-{number}") for number in range(64)))

    assert proxy.round_trips <= 4
