"""Lost replies, lost connections, lost scripts: nothing is applied twice, no reply is mixed up."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from integration.redis.support import TTL, WORKER, acquired, next_step, started

from sayiir_persist import (
    BackendUnavailableError,
    OutcomeUnknownError,
    StaleSnapshotError,
)
from sayiir_persist.adapters.redis import deployment

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from services.proxy import Proxy
    from services.redis import RedisServer

    from sayiir_persist.adapters.redis import RedisBackend

SHORT = timedelta(milliseconds=500)


async def test_a_save_whose_reply_is_lost_is_found_by_its_version(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        snapshot = await started(backend)
        proxy.drop_replies_after(b"EVALSHA", cut=True)

        with pytest.raises(OutcomeUnknownError):
            await backend.save_snapshot(snapshot.record_result("a", b"1"))

        with pytest.raises(StaleSnapshotError) as caught:
            await backend.save_snapshot(snapshot.record_result("a", b"1"))

        assert caught.value.stored_version == snapshot.version + 1


async def test_a_claim_whose_reply_is_lost_is_found_by_its_nonce(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        await started(backend)
        claim = partial(
            backend.claim_task, "run", "charge", worker_id=WORKER, ttl=TTL, nonce="mine"
        )
        proxy.drop_replies_after(b"EVALSHA", cut=True)

        with pytest.raises(OutcomeUnknownError):
            await claim()

        again = await claim()
        assert again is not None
        assert await claim() == again


async def test_an_event_whose_reply_is_lost_is_there_once(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        proxy.drop_replies_after(b"EVALSHA", cut=True)

        with pytest.raises(OutcomeUnknownError):
            await backend.send_event("run", "go", b"payload", event_id="1")

        await backend.send_event("run", "go", b"payload", event_id="1")
        assert await backend.consume_event("run", "go") == b"payload"
        assert await backend.consume_event("run", "go") is None


async def test_a_silent_server_ends_every_call_in_time(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url, operation_timeout=SHORT) as backend:
        await started(backend)
        proxy.drop_replies_after(b"EVALSHA")

        with pytest.raises(OutcomeUnknownError, match="no answer in time"):
            await backend.save_task_result("run", "charge", b"x")

        assert await backend.load_task_result("run", "charge") == b"x"
        proxy.drop_replies_after(b"EVALSHA")

        with pytest.raises(BackendUnavailableError):
            await backend.load_snapshot("run")

        assert (await backend.load_snapshot("run")).version == 2


async def test_a_server_that_is_away_is_unavailable_and_comes_back(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        await started(backend)
        proxy.refuse()
        proxy.cut()
        await asyncio.sleep(0.05)

        with pytest.raises(BackendUnavailableError):
            await backend.save_task_result("run", "charge", b"x")

        await proxy.accept()
        await backend.save_task_result("run", "charge", b"x")


async def test_one_lost_reply_of_a_batch_leaves_its_neighbours_their_answers(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        for number in range(40):
            await started(backend, f"run-{number}")

        proxy.delay = 0.05
        writes = [
            asyncio.ensure_future(backend.save_task_result(f"run-{number}", "charge", b"x"))
            for number in range(40)
        ]
        await asyncio.sleep(0.02)
        proxy.cut()
        proxy.delay = 0
        outcomes = await asyncio.gather(*writes, return_exceptions=True)

        for number, outcome in enumerate(outcomes):
            stored = await backend.load_snapshot(f"run-{number}")
            assert outcome == 2 or isinstance(outcome, OutcomeUnknownError), outcome
            assert stored.version == (2 if outcome == 2 else stored.version)


async def test_a_cancelled_call_never_shifts_replies(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as backend:
        for name in ("one", "two"):
            await started(backend, name, input=name.encode())

        proxy.delay = 0.01

        for step in range(12):
            call = asyncio.ensure_future(backend.load_snapshot("one"))
            await asyncio.sleep(0.003 * step)
            call.cancel()
            one, two = await asyncio.gather(
                backend.load_snapshot("one"), backend.load_snapshot("two")
            )
            assert (one.input, two.input) == (b"one", b"two")


async def test_flushed_scripts_are_loaded_again(backend: RedisBackend, raw: Redis) -> None:
    await started(backend)

    for number in range(5):
        raw.script_flush()
        await asyncio.gather(
            *(backend.save_task_result("run", f"t{number}-{it}", b"x") for it in range(5)),
            backend.load_snapshot("run"),
            started(backend, f"run-{number}"),
        )

    assert (await backend.load_snapshot("run")).version == 26


async def test_a_hint_comes_after_the_connection_was_lost(
    make: Callable[..., RedisBackend], proxy: Proxy
) -> None:
    async with make(proxy.url) as listening, make() as writing:
        assert await listening.wait_for_wakeup(timedelta(0)) is None
        proxy.cut()

        hint = await listening.wait_for_wakeup(timedelta(seconds=10))
        assert hint is not None
        assert hint.instance_id is None

        await started(writing)
        hint = await listening.wait_for_wakeup(timedelta(seconds=10))
        assert hint is not None
        assert hint.instance_id == "run"


@pytest.mark.parametrize("on_cluster", [False, True])
async def test_hints_come_from_servers_without_sharded_channels(
    make: Callable[..., RedisBackend],
    url: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    *,
    on_cluster: bool,
) -> None:
    monkeypatch.setattr(deployment, "SHARDED_SINCE", (99,))
    at = request.getfixturevalue("cluster_url") if on_cluster else url

    async with make(at, partitions=8) as listening, make(at, partitions=8) as writing:
        for number in range(8):
            await started(writing, f"run-{number}")
            hint = await listening.wait_for_wakeup(timedelta(seconds=10))
            assert hint is not None
            assert hint.instance_id == f"run-{number}"


async def test_hints_are_read_in_bulk_and_none_is_lost(
    backend: RedisBackend, make: Callable[..., RedisBackend]
) -> None:
    async with make() as writing:
        await started(writing, "first")
        assert await backend.wait_for_wakeup(timedelta(seconds=5)) is not None

        for number in range(20):
            await started(writing, f"run-{number}")
            await asyncio.sleep(0)

        assert await backend.wait_for_wakeup(timedelta(seconds=5)) is not None


async def test_what_is_acknowledged_survives_the_death_of_the_server(
    redis_durable: Callable[..., RedisServer], make: Callable[..., RedisBackend]
) -> None:
    server = redis_durable()
    acknowledged: dict[str, int] = {}
    enough = asyncio.Event()

    async def work(backend: RedisBackend, name: str) -> None:
        await started(backend, name)
        acknowledged[name] = 1

        for number in range(10_000):
            acknowledged[name] = await backend.save_task_result(name, f"t{number}", b"x")

            if sum(acknowledged.values()) >= 500:
                enough.set()

    async with make(server.url) as backend:
        assert not any("AOF" in it or "appendfsync" in it for it in backend.info.caveats)
        workers = [asyncio.ensure_future(work(backend, f"run-{it}")) for it in range(16)]
        await enough.wait()
        server.kill()
        errors = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(e, OutcomeUnknownError | BackendUnavailableError) for e in errors)

        server.restart()

        for name, version in acknowledged.items():
            stored = await backend.load_snapshot(name)
            assert version <= stored.version <= version + 1
            assert len(stored.results) == stored.version - 1

        await acquired(backend)


async def test_cost_and_claims_go_on_after_a_restart(
    redis_durable: Callable[..., RedisServer], make: Callable[..., RedisBackend]
) -> None:
    server = redis_durable()

    async with make(server.url) as backend:
        await started(backend)
        task = await acquired(backend)
        server.kill()
        server.restart()
        await asyncio.sleep(0.05)  # the loop learns of the lost connection

        commit = await backend.commit_task(task.claim, next_step(task), claim_next=TTL)
        assert commit.next is not None
        assert commit.next.claim.fence > task.claim.fence
