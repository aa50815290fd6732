"""Hints by way of change streams."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from integration.mongo.support import begin
from services.proxy import Proxy

from sayiir_persist import AtTask
from sayiir_persist.adapters.mongo import MongoBackend

if TYPE_CHECKING:
    from services.mongo import MongoServer

LONG = timedelta(seconds=20)
SHORT = timedelta(seconds=0.2)


async def test_a_hint_says_what_another_process_made_ready(url: str, name: str, raw: Any) -> None:
    del raw

    async with (
        MongoBackend.connect(url, database=name) as backend,
        MongoBackend.connect(url, database=name) as other,
    ):
        await other.start_instance("a.$b\nc", "v.1", start_at="$t.0\n", tags=["gpu\n"])
        hint = await backend.wait_for_wakeup(LONG)

    assert hint is not None
    assert (hint.instance_id, hint.task_id) == ("a.$b\nc", "$t.0\n")
    assert (hint.definition_hash, hint.tags) == ("v.1", ("gpu\n",))


async def test_other_namespaces_are_not_heard(url: str, name: str, raw: Any) -> None:
    del raw

    async with (
        MongoBackend.connect(url, database=name, namespace="one") as backend,
        MongoBackend.connect(url, database=name, namespace="one0") as other,
    ):
        await other.start_instance("run", "v1", start_at="t0")

        assert await backend.wait_for_wakeup(SHORT) is None


async def test_commits_that_claim_what_they_made_ready_tell_nobody(
    url: str, name: str, raw: Any
) -> None:
    del raw

    async with (
        MongoBackend.connect(url, database=name) as backend,
        MongoBackend.connect(url, database=name) as other,
    ):
        task = await begin(other)
        assert await backend.wait_for_wakeup(LONG) is not None
        step = task.snapshot.complete_task("t0", b"x", next=AtTask("t1"))
        await other.commit_task(task.claim, step, claim_next=LONG)

        assert await backend.wait_for_wakeup(SHORT) is None


async def test_after_a_gap_everybody_is_woken_and_the_stream_goes_on(
    own_mongo: MongoServer, name: str
) -> None:
    async with (
        Proxy(own_mongo.direct_url) as proxy,
        MongoBackend.connect(proxy.url, database=name) as backend,
        MongoBackend.connect(own_mongo.url, database=name) as other,
    ):
        proxy.cut()
        proxy.refuse()
        await asyncio.sleep(0.2)
        await other.start_instance("run", "v1", start_at="t0")
        await proxy.accept()

        assert await backend.wait_for_wakeup(LONG) is not None

        while await backend.wait_for_wakeup(SHORT * 5) is not None:
            pass

        await other.start_instance("later", "v1", start_at="t0")
        hint = await backend.wait_for_wakeup(LONG)
        assert hint is not None
        assert hint.instance_id == "later"

    with own_mongo.client() as client:
        client.drop_database(name)
