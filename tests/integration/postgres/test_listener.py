"""Wake hints on their way through a server that may lose them."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from integration.postgres.support import PATIENCE, Watch, eventually, opened
from services.proxy import Proxy

from sayiir_persist import BackendClosedError, BackendError, WakeHint
from sayiir_persist.adapters.postgres import listener as module
from sayiir_persist.adapters.postgres.connections import Connections
from sayiir_persist.adapters.postgres.listener import Listener, channel_name
from sayiir_persist.adapters.postgres.sources import BorrowedConnections, OwnConnections

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from services.pgbouncer import PgBouncer
    from services.postgres import PostgresServer

ANYTHING = WakeHint()
SOON = 0.15


def hint(number: int = 0, **changes: Any) -> WakeHint:
    fields = {
        "instance_id": f"run-{number}",
        "task_id": "charge",
        "definition_hash": "v1",
        "tags": ("gpu",),
    }
    return WakeHint(**{**fields, **changes})


@asynccontextmanager
async def listening(
    url: str, *, schema: str = "some", namespace: str = "default", **options: Any
) -> AsyncGenerator[Listener]:
    """A listener with connections of its own."""
    async with opened(url, max_size=options.pop("max_size", 2)) as connections:
        listener = Listener(connections, schema=schema, namespace=namespace, **options)
        await listener.open()

        try:
            yield listener
        finally:
            await listener.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is replaced without much delay."""
    monkeypatch.setattr(module, "_FIRST_DELAY", 0.02)
    monkeypatch.setattr(module, "_LONGEST_DELAY", 0.1)


# Hints.


async def test_a_hint_reaches_others_whole_and_who_sent_it_once(url: str) -> None:
    async with listening(url) as one, listening(url) as other:
        one.publish([hint()])

        assert await other.wait(PATIENCE) == hint()
        assert await one.wait(PATIENCE) == hint()
        assert await one.wait(SOON) is None
        assert await other.wait(SOON) is None


@pytest.mark.parametrize("changes", [{"tags": ()}, {"tags": None}, {"task_id": None}])
async def test_parts_of_a_hint_may_be_missing(url: str, changes: dict[str, Any]) -> None:
    async with listening(url) as one, listening(url) as other:
        one.publish([hint(**changes)])

        assert await other.wait(PATIENCE) == hint(**changes)


async def test_hints_of_a_moment_share_a_statement(url: str) -> None:
    async with Proxy(url) as proxy, listening(proxy.url) as one, listening(url) as other:
        one.publish([hint()])
        await other.wait(PATIENCE)
        await asyncio.sleep(SOON)
        proxy.reset_counts()

        for number in range(1000):
            one.publish([hint(number)])

        assert await other.wait(PATIENCE) == ANYTHING
        assert await other.wait(SOON) is None
        assert proxy.round_trips == 1


async def test_a_few_hints_of_a_moment_are_told_apart(url: str) -> None:
    async with listening(url) as one, listening(url) as other:
        waits = asyncio.create_task(other.wait(PATIENCE))
        one.publish([hint(1), hint(2)])

        assert await waits in {hint(1), ANYTHING}


async def test_the_longest_ids_are_hinted_at(url: str) -> None:
    longest = hint(
        instance_id="ä" * 128,
        task_id="t" * 256,
        definition_hash='"' * 256,
        tags=tuple(f"{number:0256}" for number in range(64)),
    )

    async with listening(url) as one, listening(url) as other:
        one.publish([longest])

        assert await other.wait(PATIENCE) == ANYTHING
        assert await one.wait(PATIENCE) == longest


async def test_namespaces_and_schemas_hear_only_their_own(url: str) -> None:
    long = "n" * 64

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        one = await enter(listening(url))
        others = [
            await enter(listening(url, namespace="defaults")),
            await enter(listening(url, schema="somes")),
            await enter(listening(url, namespace=long)),
            await enter(listening(url, namespace=long[:-1] + "m")),
        ]
        same = await enter(listening(url, namespace=long))
        one.publish([hint()])

        assert await asyncio.gather(*(other.wait(SOON) for other in others)) == [None] * 4

        others[2].publish([hint(1)])

        assert await same.wait(PATIENCE) == hint(1)
        assert await others[3].wait(SOON) is None


def test_names_of_channels_fit() -> None:
    names = {
        channel_name(schema, namespace)
        for schema in ("s", "s" * 63)
        for namespace in ("n", "n" * 63, "n" * 64)
    }

    assert len(names) == 6
    assert all(len(name.encode()) <= 63 for name in names)


@pytest.mark.parametrize("payload", ["", "{}", "[1,2]", '["x",[[1,2,3,4]]]', "\x01", "[" * 5000])
async def test_what_others_send_means_anything(
    url: str, admin: asyncpg.Connection[Any], payload: str
) -> None:
    async with listening(url) as listener:
        await admin.execute("SELECT pg_notify($1, $2)", channel_name("some", "default"), payload)

        assert await listener.wait(PATIENCE) == ANYTHING


async def test_without_notify_nothing_is_sent_and_nobody_listens(url: str, watch: Watch) -> None:
    async with Proxy(url) as proxy, listening(proxy.url, notify=False) as listener:
        proxy.reset_counts()
        listener.publish([hint()])

        assert await listener.wait(PATIENCE) == hint()
        assert await listener.wait(SOON) is None
        assert proxy.round_trips == 0
        assert len(await watch.sessions()) == 1


async def test_listening_takes_no_connection_from_those_who_work(url: str, watch: Watch) -> None:
    async with opened(url, max_size=1) as connections:
        listener = Listener(connections, schema="some", namespace="default")
        await listener.open()
        waits = asyncio.create_task(listener.wait(PATIENCE))

        for number in range(20):
            await connections.fetch("SELECT 1", writes=True)
            listener.publish([hint(number)])

        assert await waits is not None
        assert len(await watch.sessions()) == 2
        await listener.close()


# Behind a pooler.


async def test_behind_a_pooler_there_is_no_listening_without_a_direct_url(
    pgbouncer: PgBouncer, own_postgres: PostgresServer
) -> None:
    direct = OwnConnections(own_postgres.url)

    async with (
        listening(pgbouncer.url) as deaf,
        listening(pgbouncer.url, direct=direct) as hears,
    ):
        assert "listen_url" in deaf.caveats[0]
        assert hears.caveats == ()

        deaf.publish([hint(1)])
        assert await hears.wait(PATIENCE) == hint(1)
        assert await deaf.wait(PATIENCE) == hint(1)

        hears.publish([hint(2)])
        assert await deaf.wait(SOON) is None


async def test_a_pool_of_the_callers_sends_and_listens_with_a_url_only(url: str) -> None:
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as pool, listening(url) as other:
        connections = Connections(BorrowedConnections(pool), timeout=PATIENCE)
        await connections.open()
        deaf = Listener(connections, schema="some", namespace="default")
        await deaf.open()
        assert "listen_url" in deaf.caveats[0]

        deaf.publish([hint()])

        assert await other.wait(PATIENCE) == hint()
        await deaf.close()
        await connections.close()


# Servers that fail.


async def test_after_each_loss_everybody_is_told_once_and_hints_arrive_again(
    url: str, watch: Watch, name: str, at_once: None
) -> None:
    assert at_once is None
    direct = url.replace(name, f"{name}_ear")
    ears = Watch(watch.connection, f"{name}_ear")

    async with (
        opened(url) as connections,
        listening(url) as other,
    ):
        listener = Listener(
            connections, schema="some", namespace="default", direct=OwnConnections(direct)
        )
        await listener.open()
        busy = time.process_time()

        for number in range(20):
            assert await ears.kill() == 1
            assert await listener.wait(PATIENCE) == ANYTHING
            other.publish([hint(number)])
            assert await listener.wait(PATIENCE) == hint(number)

        assert await listener.wait(SOON) is None
        assert len(await ears.sessions()) == 1
        assert time.process_time() - busy < 10
        await listener.close()
        await ears.until("idle", 0)


async def test_while_the_server_is_down_there_is_one_warning_and_no_spinning(
    postgres_durable: Callable[..., PostgresServer],
    caplog: pytest.LogCaptureFixture,
    at_once: None,
) -> None:
    assert at_once is None
    server = postgres_durable()

    def warnings() -> list[str]:
        return [each.message for each in caplog.records if each.levelno >= logging.WARNING]

    with caplog.at_level(logging.INFO, logger=module.__name__):
        async with listening(server.url) as listener:
            await asyncio.to_thread(server.kill)
            busy = time.process_time()
            assert await listener.wait(1.0) is None
            assert time.process_time() - busy < 0.5
            assert len(warnings()) == 1

            listener.publish([hint()])
            assert await listener.wait(PATIENCE) == hint(), "here it is heard all the same"

            await asyncio.to_thread(server.start)
            assert await listener.wait(PATIENCE) == ANYTHING
            assert len(warnings()) == 1
            assert "listening again" in caplog.text


async def test_a_server_that_cannot_be_listened_to_is_polled(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = OwnConnections("postgresql://postgres@127.0.0.1:9/postgres")

    with caplog.at_level(logging.WARNING, logger=module.__name__):
        async with listening(url, direct=nobody) as listener:
            assert await listener.wait(SOON) is None
            listener.publish([hint()])
            assert await listener.wait(PATIENCE) == hint()

    assert len(caplog.records) == 1


async def test_a_connection_that_went_mute_is_noticed(
    url: str, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    assert at_once is None
    monkeypatch.setattr(module, "_HEARTBEAT", 0.1)
    monkeypatch.setattr(module, "_PATIENCE", 0.3)

    async with Proxy(url) as proxy, listening(url, direct=OwnConnections(proxy.url)) as listener:
        proxy.drop_replies_after()

        assert await listener.wait(PATIENCE) == ANYTHING


# The end.


async def test_closing_ends_waits_and_leaves_nothing(url: str, watch: Watch) -> None:
    async with listening(url) as listener:
        waits = asyncio.create_task(listener.wait(PATIENCE))
        await asyncio.sleep(0)
        began = time.monotonic()
        await asyncio.gather(listener.close(), listener.close())

        with pytest.raises(BackendClosedError):
            await waits

        with pytest.raises(BackendClosedError):
            await listener.wait(0)

        listener.publish([hint()])
        assert time.monotonic() - began < 5

    assert asyncio.all_tasks() == {asyncio.current_task()}
    await watch.until("idle", 0)


async def test_what_was_published_last_is_sent_before_the_end(url: str) -> None:
    async with listening(url) as other:
        async with listening(url) as one:
            one.publish([hint()])

        assert await other.wait(PATIENCE) == hint()


async def test_it_can_be_opened_again(url: str) -> None:
    async with opened(url) as connections:
        listener = Listener(connections, schema="some", namespace="default")

        for number in range(2):
            await listener.open()
            listener.publish([hint(number)])
            assert await listener.wait(PATIENCE) == hint(number)
            await listener.close()


async def test_opening_that_is_cancelled_leaves_no_session(url: str, watch: Watch) -> None:
    async with opened(url) as connections:
        for delay in (0, 0.001, 0.002, 0.004):
            listener = Listener(connections, schema="some", namespace="default")
            opening = asyncio.create_task(listener.open())
            await asyncio.sleep(delay)
            opening.cancel()
            await asyncio.wait({opening})
            await listener.close()
            await watch.until("idle", 1)


def test_another_loop_is_told(own_postgres: PostgresServer) -> None:
    async def begin() -> tuple[Any, Listener, asyncio.Task[Any]]:
        stack = AsyncExitStack()
        listener = await stack.enter_async_context(listening(own_postgres.url))
        return stack, listener, asyncio.create_task(listener.wait(PATIENCE))

    async def misuse(listener: Listener) -> None:
        with pytest.raises(BackendError, match="event loop"):
            await listener.wait(0)

        await listener.close()

    async def end(stack: Any, waits: asyncio.Task[Any]) -> None:
        with pytest.raises(BackendClosedError):
            await waits

        await stack.aclose()

    with asyncio.Runner() as one, asyncio.Runner() as other:
        stack, listener, waits = one.run(begin())
        other.run(misuse(listener))
        one.run(end(stack, waits))


async def test_waits_that_were_cancelled_leave_the_listener_as_it_was(url: str) -> None:
    async with listening(url) as one, listening(url) as other:
        for _ in range(100):
            waits = asyncio.create_task(other.wait(PATIENCE))
            await asyncio.sleep(0)
            waits.cancel()

        one.publish([hint()])

        assert await other.wait(PATIENCE) == hint()

        async def quiet() -> bool:
            return len(asyncio.all_tasks()) < 10

        await eventually(quiet, "no task is left of a cancelled wait")
