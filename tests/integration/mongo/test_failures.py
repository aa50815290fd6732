"""Commands that fail, at every call and in every way: nothing is lost, nothing is applied twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from integration.mongo.support import TTL, begin, client_of, failing
from services.proxy import Proxy

from sayiir_persist import (
    AtTask,
    BackendUnavailableError,
    OutcomeUnknownError,
    SignalKind,
)
from sayiir_persist.adapters.mongo import MongoBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from pymongo import MongoClient
    from services.mongo import MongoServer

    from sayiir_persist import AcquiredTask

    Act = Callable[[MongoBackend, AcquiredTask], Awaitable[object]]

WRITE_CONFLICT = 112
NOT_PRIMARY = 10107
INTERRUPTED = 11602


@pytest.fixture
def server(own_mongo: MongoServer, name: str) -> Generator[MongoClient[dict[str, Any]]]:
    with own_mongo.client() as client:
        yield client
        client.drop_database(name)


@pytest.fixture(params=["pymongo", "motor"])
async def backend(
    request: pytest.FixtureRequest, own_mongo: MongoServer, name: str, server: Any
) -> AsyncGenerator[MongoBackend]:
    del server
    is_motor = request.param == "motor"

    async with (
        client_of(own_mongo.url, motor=is_motor, retryWrites=False, retryReads=False) as client,
        MongoBackend(client, database=name, operation_timeout=timedelta(seconds=5)) as made,
    ):
        yield made


def commit(backend: MongoBackend, task: AcquiredTask) -> Awaitable[object]:
    step = task.snapshot.complete_task("t0", b"x", next=AtTask("t1"))
    return backend.commit_task(task.claim, step, claim_next=TTL)


WRITES: dict[str, Act] = {
    "commit": commit,
    "save": lambda backend, task: backend.save_snapshot(task.snapshot),
    "record": lambda backend, _: backend.save_task_result("run", "t0", b"x"),
    "extend": lambda backend, task: backend.extend_task_claim(task.claim, ttl=TTL),
    "release": lambda backend, task: backend.release_task_claim(task.claim),
    "revoke": lambda backend, _: backend.revoke_task_claim("run", "t0"),
    "send": lambda backend, _: backend.send_event("run", "paid", b"1", event_id="e"),
    "signal": lambda backend, _: backend.store_signal("run", SignalKind.CANCEL),
    "start": lambda backend, _: backend.start_instance("other", "v1", start_at="t0"),
    "acquire": lambda backend, _: _start_and_acquire(backend),
    "delete": lambda backend, _: backend.delete_snapshot("run"),
}
COMMANDS = ("findAndModify", "update", "delete", "insert")


async def _start_and_acquire(backend: MongoBackend) -> None:
    await backend.start_instance("more", "v1", start_at="t0")
    assert await backend.acquire_tasks(worker_id="w", ttl=TTL)


@pytest.mark.parametrize("code", [WRITE_CONFLICT, NOT_PRIMARY])
@pytest.mark.parametrize("act", WRITES)
async def test_a_definite_abort_is_sent_again(
    backend: MongoBackend, server: Any, act: str, code: int
) -> None:
    task = await begin(backend)

    with failing(server, *COMMANDS, times=2, errorCode=code):
        await WRITES[act](backend, task)


@pytest.mark.parametrize("act", WRITES)
async def test_an_abort_without_end_is_given_up_in_time(
    own_mongo: MongoServer, name: str, server: Any, act: str
) -> None:
    async with MongoBackend.connect(own_mongo.url, database=name) as patient:
        task = await begin(patient)

    async with MongoBackend.connect(
        own_mongo.url, database=name, operation_timeout=timedelta(seconds=0.3)
    ) as backend:
        with (
            failing(server, *COMMANDS, times=10_000, errorCode=WRITE_CONFLICT),
            pytest.raises(BackendUnavailableError),
        ):
            await WRITES[act](backend, task)

        assert (await backend.load_snapshot("run")).version == 1


@pytest.mark.parametrize("act", ["commit", "record", "send", "release"])
async def test_a_connection_that_breaks_in_a_write_leaves_its_outcome_open(
    backend: MongoBackend, server: Any, act: str
) -> None:
    task = await begin(backend)

    with (
        failing(server, "findAndModify", closeConnection=True),
        pytest.raises(OutcomeUnknownError),
    ):
        await WRITES[act](backend, task)

    assert (await backend.load_snapshot("run")).version == 1  # and it works on


async def test_an_interrupted_write_leaves_its_outcome_open(
    backend: MongoBackend, server: Any
) -> None:
    task = await begin(backend)

    with (
        failing(server, "findAndModify", errorCode=INTERRUPTED),
        pytest.raises(OutcomeUnknownError),
    ):
        await commit(backend, task)


async def test_a_write_concern_that_fails_leaves_the_outcome_open(
    backend: MongoBackend, server: Any
) -> None:
    task = await begin(backend)
    error = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting timed out"}

    with (
        failing(server, "findAndModify", writeConcernError=error),
        pytest.raises(OutcomeUnknownError),
    ):
        await commit(backend, task)

    assert (await backend.load_snapshot("run")).version == 2


async def test_reads_that_break_are_unavailable(backend: MongoBackend, server: Any) -> None:
    await begin(backend)

    with failing(server, "aggregate", closeConnection=True), pytest.raises(BackendUnavailableError):
        await backend.load_snapshot("run")

    assert (await backend.load_snapshot("run")).version == 1


async def test_a_batch_that_breaks_answers_every_caller(backend: MongoBackend, server: Any) -> None:
    for number in range(8):
        await backend.start_instance(f"run-{number}", "v1", start_at="t0")

    tasks = await backend.acquire_tasks(worker_id="w", ttl=TTL, limit=8)

    with failing(server, "update", closeConnection=True):
        outcomes = await asyncio.gather(
            *(commit(backend, task) for task in tasks), return_exceptions=True
        )

    unknown = [each for each in outcomes if isinstance(each, OutcomeUnknownError)]
    failed = [each for each in outcomes if isinstance(each, BaseException)]
    assert unknown
    assert failed == unknown


@pytest.mark.parametrize("retries", [True, False])
@pytest.mark.parametrize("motor", [False, True])
async def test_a_lost_reply_leaves_the_outcome_open_and_is_found_again_by_the_nonce(
    own_mongo: MongoServer, name: str, server: Any, retries: bool, motor: bool
) -> None:
    """Whatever the client would do by itself, a write is sent once."""
    del server

    async with (
        Proxy(own_mongo.direct_url) as proxy,
        client_of(proxy.url, motor=motor, retryWrites=retries) as client,
        MongoBackend(client, database=name) as backend,
    ):
        task = await begin(backend)
        dropped = proxy.drop_replies_after(b"findAndModify", cut=True)

        with pytest.raises(OutcomeUnknownError):
            await commit(backend, task)

        assert dropped.is_set()
        claim = await backend.claim_task(
            "run", "t1", worker_id="w", ttl=TTL, nonce=task.claim.nonce
        )
        assert claim is not None
        assert claim.fence == task.claim.fence + 1
        assert (await backend.load_snapshot("run")).version == 2


async def test_an_event_whose_reply_was_lost_is_queued_once(
    own_mongo: MongoServer, name: str, server: Any
) -> None:
    del server

    async with (
        Proxy(own_mongo.direct_url) as proxy,
        MongoBackend.connect(proxy.url, database=name) as backend,
    ):
        await begin(backend)
        proxy.drop_replies_after(b"findAndModify", cut=True)

        with pytest.raises(OutcomeUnknownError):
            await backend.send_event("run", "paid", b"1")

        assert await backend.consume_event("run", "paid") == b"1"
        assert await backend.consume_event("run", "paid") is None


async def test_a_server_that_never_answers_is_given_up_in_time(
    own_mongo: MongoServer, name: str, server: Any
) -> None:
    del server

    async with (
        Proxy(own_mongo.direct_url) as proxy,
        MongoBackend.connect(
            proxy.url, database=name, operation_timeout=timedelta(seconds=1)
        ) as backend,
    ):
        task = await begin(backend)
        proxy.refuse()
        proxy.drop_replies_after(b"findAndModify")

        with pytest.raises(OutcomeUnknownError):
            await asyncio.wait_for(asyncio.ensure_future(commit(backend, task)), 10)

        await proxy.accept()
        proxy.cut()


async def test_a_server_that_is_not_there_is_unavailable(own_mongo: MongoServer) -> None:
    async with Proxy(own_mongo.direct_url) as proxy:
        proxy.refuse()

        with pytest.raises(BackendUnavailableError):
            async with MongoBackend.connect(proxy.url, operation_timeout=timedelta(seconds=0.5)):
                pass
