"""Sessions and servers die under load; what was acknowledged is there, and work goes on."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from integration.postgres.support import Watch, administrator, eventually, with_settings
from integration.postgres.workloads import TTL, connect, started

from sayiir_persist import (
    AtDelay,
    AtTask,
    BackendUnavailableError,
    OutcomeUnknownError,
    Status,
    WakeHint,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.postgres import PostgresServer

    from sayiir_persist.adapters.postgres import PostgresBackend

RUNS = 8
STEPS = 120
SAFETY = 120.0
OUTAGES = (BackendUnavailableError, OutcomeUnknownError)

Ledger = dict[tuple[str, str], bytes]
"""The output of each step whose commit was acknowledged."""


class Load:
    """Linear workflows that are worked on until their end, through every outage."""

    def __init__(self, backend: PostgresBackend) -> None:
        self.backend = backend
        self.acknowledged: Ledger = {}
        self.outages = 0

    async def run(self) -> None:
        async with asyncio.timeout(SAFETY), asyncio.TaskGroup() as group:
            for number in range(RUNS):
                group.create_task(self._insist(f"run-{number}"))

    async def _insist(self, instance_id: str) -> None:
        while True:
            try:
                await self._go_on(instance_id)
            except OUTAGES:
                self.outages += 1
                await asyncio.sleep(0.01)
            else:
                return

    async def _go_on(self, instance_id: str) -> None:
        """Find out where it is, and take it from there: with the nonce the claim is ours still."""
        snapshot = await self.backend.load_snapshot(instance_id)

        if snapshot.status is not Status.IN_PROGRESS:
            return

        [ready] = snapshot.ready_tasks()
        claim = await self.backend.claim_task(
            instance_id, ready.task_id, worker_id=instance_id, ttl=TTL, nonce=instance_id
        )
        assert claim is not None

        while claim is not None:
            at = claim.task_id
            number = int(at.removeprefix("t"))
            following = AtTask(f"t{number + 1}") if number + 1 < STEPS else None
            token = token_hex(8).encode()
            step = snapshot.complete_task(at, token, next=following)
            commit = await self.backend.commit_task(claim, step, claim_next=TTL)
            self.acknowledged[instance_id, at] = token
            snapshot, claim = commit.snapshot, commit.next.claim if commit.next else None

    def reached(self, count: int) -> Callable[[], Any]:
        async def is_reached() -> bool:
            return len(self.acknowledged) >= count

        return is_reached

    async def assert_all_there(self) -> None:
        stored: Ledger = {}

        for number in range(RUNS):
            snapshot = await self.backend.load_snapshot(f"run-{number}")
            assert snapshot.status is Status.COMPLETED
            assert snapshot.version == 1 + STEPS == 1 + len(snapshot.results)
            stored.update({(f"run-{number}", at): out for at, out in snapshot.results.items()})

        assert self.acknowledged.items() <= stored.items()


async def test_nothing_is_lost_or_done_twice_where_sessions_are_terminated(
    url: str, schema: str, watch: Watch
) -> None:
    async with connect(url, schema, max_size=4) as backend:
        load = Load(backend)

        for number in range(RUNS):
            await started(backend, f"run-{number}", start_at="t0")

        async with asyncio.TaskGroup() as group:
            running = group.create_task(load.run())

            for number in range(1, 9):
                await eventually(load.reached(number * RUNS * STEPS // 10), "progress")
                await watch.kill()

            await running

        await load.assert_all_there()
        await watch.assert_clean(at_most=4)

    assert load.outages > 0


async def test_nothing_acknowledged_is_lost_where_the_server_is_killed(
    postgres_durable: Callable[..., PostgresServer], schema: str, name: str
) -> None:
    server = postgres_durable()
    url = with_settings(server.url, application_name=name)

    async with connect(url, schema, max_size=4) as backend:
        load = Load(backend)

        for number in range(RUNS):
            await started(backend, f"run-{number}", start_at="t0")

        async with asyncio.TaskGroup() as group:
            running = group.create_task(load.run())

            for number in (1, 2):
                await eventually(load.reached(number * RUNS * STEPS // 3), "progress")
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)

            await running

        await load.assert_all_there()

        async with administrator(server.url) as admin:
            await Watch(admin, name).assert_clean(at_most=4)

    assert load.outages > 0


async def test_all_that_belongs_to_an_instance_survives_with_it(
    postgres_durable: Callable[..., PostgresServer], schema: str
) -> None:
    server = postgres_durable()

    async with connect(server.url, schema) as backend:
        await started(backend, "worked-on")
        claim = await backend.claim_task("worked-on", "charge", worker_id="w", ttl=TTL)
        assert claim is not None
        await backend.save_task_result("worked-on", "aside", b"result")
        await backend.send_event("worked-on", "news", b"event", event_id="1")
        await backend.store_signal("worked-on", "cancel")
        nap = AtDelay("nap", wake_after=timedelta(days=9), next=AtTask("ship"))
        parked = await started(backend, "parked", start_at=nap)

        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

        async def back() -> bool:
            try:
                await backend.now()
            except BackendUnavailableError:
                return False

            return True

        await eventually(back, "the server is back")
        assert await backend.load_snapshot("parked") == parked
        again = await backend.extend_task_claim(claim, ttl=TTL)
        assert again.pending_signal is not None
        await backend.send_event("worked-on", "news", b"repeat", event_id="1")
        assert await backend.consume_event("worked-on", "news") == b"event"
        assert await backend.consume_event("worked-on", "news") is None
        commit = await backend.commit_task(
            claim, lambda snapshot: snapshot.complete_task("charge", b"", next=AtTask("ship"))
        )
        assert commit.snapshot.status is Status.CANCELLED
        assert commit.snapshot.results["aside"] == b"result"


async def test_fences_grow_across_a_crash(
    postgres_durable: Callable[..., PostgresServer], schema: str
) -> None:
    """A sequence that is not logged with each number may fall back, or skip: never fall back."""
    server = postgres_durable()
    fences: list[int] = []

    for _ in range(3):
        async with connect(server.url, schema) as backend:
            instance_id = f"run-{len(fences)}"
            await started(backend, instance_id)

            for _ in range(5):
                claim = await backend.claim_task(
                    instance_id, "charge", worker_id="w", ttl=timedelta(0)
                )
                assert claim is not None
                fences.append(claim.fence)

        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    assert fences == sorted(set(fences))


async def test_hints_come_again_after_the_server_was_away(
    postgres_durable: Callable[..., PostgresServer], schema: str
) -> None:
    server = postgres_durable()

    async with (
        connect(server.url, schema, notify=True) as backend,
        connect(server.url, schema, notify=True) as other,
    ):
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        numbers = iter(range(1_000_000))

        async def told() -> bool:
            instance_id = f"run-{next(numbers)}"

            try:
                await started(other, instance_id)
            except OUTAGES:
                return False

            hint = await backend.wait_for_wakeup(timedelta(seconds=1))
            return hint is not None and hint != WakeHint()

        await eventually(told, "a hint from the other backend")
