from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from services.proxy import Proxy

from sayiir_persist.adapters.redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from services.redis import ExternalRedis, RedisCluster, RedisServer


@pytest.fixture
def namespace() -> str:
    return f"test-{token_hex(6)}"


@pytest.fixture
def url(redis_server: ExternalRedis | RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def raw(url: str) -> Generator[Redis]:
    """A client beside the backends."""
    with Redis.from_url(url, retry=None) as client:
        yield client


@pytest.fixture
def make(url: str, namespace: str) -> Callable[..., RedisBackend]:
    """Make a backend in the namespace of the test, on its server unless another is named."""

    def build(at: str = url, **options: Any) -> RedisBackend:
        return RedisBackend.connect(at, **{"namespace": namespace, **options})

    return build


@pytest.fixture
async def backend(make: Callable[..., RedisBackend]) -> AsyncGenerator[RedisBackend]:
    async with make() as opened:
        yield opened


@pytest.fixture
async def proxy(url: str) -> AsyncGenerator[Proxy]:
    async with Proxy(url) as opened:
        yield opened


@pytest.fixture
def cluster_url(redis_cluster: RedisCluster) -> str:
    return redis_cluster.url.replace("redis://", "redis+cluster://").removesuffix("/0")
