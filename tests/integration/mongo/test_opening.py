"""Clients, concerns, and what is refused."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from integration.mongo.support import TTL, Commands, begin, client_of
from pymongo import AsyncMongoClient
from pymongo.errors import InvalidOperation

from sayiir_persist import (
    AtTask,
    BackendClosedError,
    BackendUnavailableError,
    ConfigurationError,
)
from sayiir_persist.adapters.mongo import MongoBackend, from_url

if TYPE_CHECKING:
    from services.mongo import MongoServer

DURABLE = {"w": "majority", "j": True}
WEAK = {"w": 1, "journal": False, "readPreference": "secondaryPreferred"}


async def test_every_write_is_majority_and_journaled_whatever_the_client_says(
    url: str, name: str, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    del raw
    commands = Commands()

    async with (
        client_of(url, commands=commands, **WEAK) as client,
        MongoBackend(client, database=name) as backend,
    ):
        task = await begin(backend)
        step = task.snapshot.complete_task("t0", b"x" * 300_000, next=AtTask("t1"))
        await backend.commit_task(task.claim, step, claim_next=TTL)
        await backend.load_snapshot("run")
        await backend.delete_snapshot("run")

    writes = [
        body
        for sent, body in zip(commands.sent, commands.bodies, strict=True)
        if sent in {"findAndModify", "update", "insert", "delete"}
    ]
    assert len(writes) > 5
    assert all(body["writeConcern"] == DURABLE for body in writes)
    assert not any("$readPreference" in body for body in commands.bodies)
    assert "overridden" in caplog.text


async def test_weaker_concerns_are_refused_where_that_is_asked_for(url: str) -> None:
    async with client_of(url, **WEAK) as client:
        with pytest.raises(ConfigurationError, match="writeConcern, journal, readPreference"):
            async with MongoBackend(client, strict=True):
                pass


async def test_equal_concerns_are_accepted(
    url: str, name: str, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    del raw
    caplog.set_level(logging.WARNING)

    async with (
        client_of(url, w="majority", journal=True) as client,
        MongoBackend(client, database=name, strict=True),
    ):
        pass

    assert not caplog.records


@pytest.mark.parametrize("motor", [False, True])
async def test_a_client_of_the_users_is_never_closed(
    url: str, name: str, raw: Any, motor: bool
) -> None:
    del raw

    async with client_of(url, motor=motor) as client:
        async with MongoBackend(client, database=name) as backend:
            await backend.now()

        with pytest.raises(BackendClosedError):
            await backend.now()

        assert await client.admin.command("ping")


async def test_the_database_is_the_one_in_the_url(url: str, name: str, raw: Any) -> None:
    address, _, options = url.partition("?")

    async with from_url(f"{address}{name}?{options}") as backend:
        await backend.start_instance("run", "v1", start_at="t0")

    assert raw["sayiir_instances"].count_documents({}) == 1


async def test_a_server_on_its_own_says_what_it_cannot_promise(
    mongo_standalone: MongoServer,
) -> None:
    async with MongoBackend.connect(mongo_standalone.url) as backend:
        assert backend.info.server.startswith("MongoDB ")
        assert any("no change streams" in caveat for caveat in backend.info.caveats)
        await backend.start_instance("waits", "v1", start_at="t0")
        assert await backend.wait_for_wakeup(timedelta(seconds=5)) is not None
        await backend.delete_snapshot("waits")


async def test_limits_are_those_of_a_document_store(url: str) -> None:
    limits = MongoBackend.connect(url).info.limits

    assert limits.max_payload == 8 * 1024 * 1024
    assert limits.max_queued_events == 1_000
    assert MongoBackend.connect(url, max_payload=1).info.limits.max_payload == 1


@pytest.mark.parametrize(
    "url",
    ["mysql://localhost", "mongodb://", "mongodb://h:port/", "mongodb"],
)
async def test_an_url_that_means_nothing_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        async with MongoBackend.connect(url):
            pass


def test_anything_but_a_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not object"):
        MongoBackend(object())


async def test_a_closed_client_is_a_closed_backend(url: str, name: str, raw: Any) -> None:
    del raw
    client = AsyncMongoClient[dict[str, Any]](url)

    async with MongoBackend(client, database=name) as backend:
        await client.close()

        with pytest.raises((BackendClosedError, BackendUnavailableError)):
            await backend.now()

    with pytest.raises(InvalidOperation):
        await client.admin.command("ping")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
async def test_a_backend_does_not_survive_a_fork(url: str, name: str, raw: Any) -> None:
    del raw

    async with MongoBackend.connect(url, database=name) as backend:
        pid = backend._engine._process
        backend._engine._process = pid + 1  # what a child would see

        try:
            with pytest.raises(BackendClosedError, match="fork"):
                await backend.now()
        finally:
            backend._engine._process = pid
