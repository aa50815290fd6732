"""What a real server answers where it decides correctness, replayed on machines without one.

A safety net beside the tests on a server, never instead of them.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from integration.mongo.exchanges import IS_RECORDING, Recorder, replayed
from integration.mongo.support import TTL, begin, client_of, failing

from sayiir_persist import (
    AtTask,
    BackendUnavailableError,
    ClaimLostError,
    InstanceExistsError,
    OutcomeUnknownError,
    StaleSnapshotError,
)
from sayiir_persist.adapters.mongo import MongoBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractContextManager

    from sayiir_persist import AcquiredTask

    Fail = Callable[..., AbstractContextManager[None]]
    Scenario = Callable[[MongoBackend, Fail], Awaitable[None]]


def commit(backend: MongoBackend, task: AcquiredTask) -> Awaitable[object]:
    step = task.snapshot.complete_task("t0", b"x", next=AtTask("t1"))
    return backend.commit_task(task.claim, step, claim_next=TTL)


async def guard_fails(backend: MongoBackend, fail: Fail) -> None:
    del fail
    task = await begin(backend)
    await commit(backend, task)

    with pytest.raises(StaleSnapshotError):
        await backend.save_snapshot(task.snapshot)

    with pytest.raises(ClaimLostError):
        await commit(backend, task)


async def duplicate_key(backend: MongoBackend, fail: Fail) -> None:
    del fail
    await begin(backend)

    with pytest.raises(InstanceExistsError):
        await backend.start_instance("run", "v1", start_at="t0")


async def write_conflict(backend: MongoBackend, fail: Fail) -> None:
    task = await begin(backend)

    with fail("findAndModify", errorCode=112):
        await commit(backend, task)


async def not_primary(backend: MongoBackend, fail: Fail) -> None:
    task = await begin(backend)

    with fail("findAndModify", errorCode=10107):
        await commit(backend, task)


async def interrupted(backend: MongoBackend, fail: Fail) -> None:
    task = await begin(backend)

    with fail("findAndModify", errorCode=11602), pytest.raises(OutcomeUnknownError):
        await commit(backend, task)


async def not_durable(backend: MongoBackend, fail: Fail) -> None:
    task = await begin(backend)
    error = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting timed out"}

    with fail("findAndModify", writeConcernError=error), pytest.raises(OutcomeUnknownError):
        await commit(backend, task)


async def read_fails(backend: MongoBackend, fail: Fail) -> None:
    await begin(backend)

    with fail("aggregate", errorCode=91), pytest.raises(BackendUnavailableError):
        await backend.load_snapshot("run")


async def claim_is_lost(backend: MongoBackend, fail: Fail) -> None:
    del fail
    task = await begin(backend)
    await backend.revoke_task_claim("run", "t0")

    assert await backend.acquire_tasks(worker_id="other", ttl=TTL)

    with pytest.raises(ClaimLostError):
        await commit(backend, task)


SCENARIOS: dict[str, Scenario] = {
    each.__name__: each
    for each in (
        guard_fails,
        duplicate_key,
        write_conflict,
        not_primary,
        interrupted,
        not_durable,
        read_fails,
        claim_is_lost,
    )
}


@asynccontextmanager
async def recorded(server: Any, name: str) -> AsyncGenerator[tuple[str, Recorder, Fail]]:
    """The real server: what it answers is kept."""
    recorder = Recorder()

    with server.client() as client:
        client.drop_database("recorded")
        prepared = MongoBackend.connect(server.url, database="recorded")

        async with prepared:
            pass

        def fail(*commands: str, **how: Any) -> AbstractContextManager[None]:
            return failing(client, *commands, **how)

        yield server.url, recorder, fail

    recorder.save(name)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_recorded_answers_are_understood(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    numbers = count(1)
    monkeypatch.setattr(secrets, "token_hex", lambda size=8: f"{next(numbers):0{2 * size}x}")

    if IS_RECORDING:
        server = request.getfixturevalue("mongo_standalone")

        async with recorded(server, name) as (url, recorder, fail):
            await play(url, name, fail, event_listeners=[recorder])
    else:
        async with replayed(name) as replay:
            await play(replay.url, name, lambda *_, **__: nullcontext())


async def play(url: str, name: str, fail: Fail, **options: Any) -> None:
    async with (
        client_of(url, retryWrites=False, retryReads=False, **options) as client,
        MongoBackend(
            client, database="recorded", operation_timeout=timedelta(seconds=20)
        ) as backend,
    ):
        await SCENARIOS[name](backend, fail)
