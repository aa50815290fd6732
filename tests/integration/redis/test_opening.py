"""What an open backend has checked, and what it says of its server."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import anyio
import pytest
from integration.redis.support import started
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import RedisCluster as AsyncRedisCluster

from sayiir_persist import (
    BackendError,
    BackendUnavailableError,
    CodecError,
    ConfigurationError,
    SchemaVersionError,
)
from sayiir_persist.adapters.redis import RedisBackend, from_url
from sayiir_persist.adapters.redis.deployment import deployment_of
from sayiir_persist.adapters.redis.errors import ReplyError, in_our_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from services.redis import RedisCluster, RedisServer


async def test_a_client_lends_its_settings_and_is_left_open(url: str, namespace: str) -> None:
    client = AsyncRedis.from_url(url, decode_responses=True)

    async with RedisBackend(client, namespace=namespace) as backend:
        await started(backend)
        assert (await backend.load_snapshot("run")).input == b"order"

    assert await client.ping()
    await client.aclose()


async def test_a_cluster_client_lends_its_settings(
    redis_cluster: RedisCluster, namespace: str
) -> None:
    client = AsyncRedisCluster.from_url(redis_cluster.url.removesuffix("/0"))

    async with RedisBackend(client, namespace=namespace, partitions=4) as backend:
        await started(backend)
        assert (await backend.load_snapshot("run")).input == b"order"

    await client.aclose()


async def test_the_number_of_partitions_is_recorded(make: Callable[..., RedisBackend]) -> None:
    async with make(partitions=4):
        pass

    with pytest.raises(ConfigurationError, match="partitions=4"):
        await make().__aenter__()


async def test_nothing_is_set_up_without_leave(
    make: Callable[..., RedisBackend], raw: Redis, namespace: str
) -> None:
    with pytest.raises(SchemaVersionError, match="migrate=True"):
        await make(migrate=False).__aenter__()

    assert raw.keys(f"sayiir:{{{namespace}*") == []

    async with make():
        pass

    async with make(migrate=False):
        pass

    raw.hset(f"sayiir:{{{namespace}:0}}:layout", "version", 99)

    with pytest.raises(SchemaVersionError, match="99"):
        await make().__aenter__()


async def test_many_starters_agree(make: Callable[..., RedisBackend]) -> None:
    async def open_one(partitions: int) -> int | None:
        try:
            async with make(partitions=partitions):
                return partitions
        except ConfigurationError:
            return None

    opened = await asyncio.gather(*(open_one(1 + number % 3) for number in range(12)))

    assert len(set(opened) - {None}) == 1


async def test_a_server_that_is_not_there(make: Callable[..., RedisBackend]) -> None:
    with pytest.raises(BackendUnavailableError, match="cannot connect"):
        await make("redis://127.0.0.1:1").__aenter__()


async def test_a_wrong_password_is_a_matter_of_configuration(
    redis_durable: Callable[..., RedisServer], make: Callable[..., RedisBackend]
) -> None:
    server = redis_durable()
    server.execute("ACL", "SETUSER", "somebody", "on", ">secret", "~*", "&*", "+@all")

    for login in ("somebody:wrong", "nobody:secret"):
        with pytest.raises(ConfigurationError):
            await make(server.url.replace("//", f"//{login}@")).__aenter__()


async def test_a_node_of_a_cluster_is_not_a_server(
    redis_cluster: RedisCluster, make: Callable[..., RedisBackend]
) -> None:
    with pytest.raises(ConfigurationError, match=r"redis\+cluster"):
        await make(redis_cluster.url).__aenter__()


def test_it_runs_on_asyncio_only(make: Callable[..., RedisBackend]) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="asyncio"):
            await make().__aenter__()

    anyio.run(main, backend="trio")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://localhost", {}),
        ("redis+cluster://localhost:1/3", {}),
        ("redis://localhost?socket_timeout=x", {}),
        ("redis://localhost", {"partitions": 0}),
        ("redis://localhost", {"partitions": 5_000}),
        ("redis://localhost", {"replicas": -1}),
        ("redis://localhost", {"colour": "red"}),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(url: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        from_url(url, **options)


async def test_it_says_what_the_server_does_not_promise(
    redis_durable: Callable[..., RedisServer],
    make: Callable[..., RedisBackend],
    caplog: pytest.LogCaptureFixture,
) -> None:
    forgetful = redis_durable(
        {"appendonly": "no", "maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    )

    with caplog.at_level(logging.WARNING):
        async with make(forgetful.url) as backend:
            caveats = backend.info.caveats

    assert [word for word in ("evicts", "restart") if any(word in it for it in caveats)] == [
        "evicts",
        "restart",
    ]
    assert len(caplog.records) == 2

    async with make(redis_durable({"appendfsync": "everysec"}).url) as backend:
        assert any("everysec" in it for it in backend.info.caveats)

    async with make(redis_durable().url) as backend:
        assert backend.info.caveats == ()
        assert backend.info.server.split()[0] in {"Valkey", "Redis"}


def test_an_old_server_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"6\.2"):
        deployment_of(b"redis_version:6.0.16\r\n", {})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("READONLY You can't write against a read only replica.", BackendUnavailableError),
        (
            "ERR Error running script (call to f_0): @user_script:1: -OOM command not allowed",
            BackendUnavailableError,
        ),
        ("NOPERM this user has no permissions", ConfigurationError),
        ("DAMAGED its row cannot be read", CodecError),
        ("ERR something else", BackendError),
    ],
)
def test_what_a_refusal_means(text: str, error: type[Exception]) -> None:
    assert type(in_our_words(ReplyError(text), writes=True)) is error


@pytest.mark.parametrize(
    ("info", "sharded"),
    [(b"redis_version:6.2.14\r\n", False), (b"redis_version:7.0.0\r\n", True)],
)
def test_sharded_channels_are_used_where_the_server_has_them(info: bytes, sharded: bool) -> None:
    assert deployment_of(info, {}).sharded is sharded
