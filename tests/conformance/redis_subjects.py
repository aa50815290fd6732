"""What the kit runs against on Redis: real servers, with their own clock or one that tests move."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from redis import Redis, RedisCluster

from sayiir_persist.adapters.redis import RedisBackend
from sayiir_persist.adapters.redis.keys import Keyspace, prefix_of
from sayiir_persist.validation import to_micros

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from sayiir_persist import PersistentBackend
    from sayiir_persist.conformance import Subject, SubjectFactory

CLOCK = """
local function clock()
  return tonumber(redis.call('GET', string.match(KEYS[1], '^[^}]*}:') .. 'clock'))
end
"""
"""Takes the place of `clock.lua`: the time is what a key says."""

START = to_micros(datetime(2026, 1, 1, tzinfo=UTC))


def client_of(url: str) -> Any:
    """A client that never repeats a command."""
    if url.startswith("redis+cluster:"):
        return RedisCluster.from_url(url.replace("+cluster", ""))

    return Redis.from_url(url, retry=None)


class RedisSubject:
    """Backends on one server or cluster; time is waited for."""

    def __init__(self, url: str, client: Any, partitions: int) -> None:
        self._url = url
        self._client = client
        self._partitions = partitions

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        return RedisBackend.connect(
            self._url, namespace=namespace, partitions=self._partitions, **options
        )

    async def elapse(self, duration: timedelta) -> None:
        await anyio.sleep(duration.total_seconds())

    async def corrupt(self, namespace: str, instance_id: str) -> None:
        partition = Keyspace(namespace, self._partitions).partition_of(instance_id)
        assert self._client.hset(partition.of_instance(instance_id)[0], "b", b"damaged") == 0


class ClockedRedisSubject(RedisSubject):
    """The same with a clock that the tests move: a key in every partition."""

    manual_clock = True

    def __init__(self, url: str, client: Any, partitions: int) -> None:
        super().__init__(url, client, partitions)
        self._now = START
        self._namespaces: set[str] = set()

    def backend(self, *, namespace: str, **options: Any) -> PersistentBackend:
        if namespace not in self._namespaces:
            self._namespaces.add(namespace)
            self._show((namespace,))

        return super().backend(namespace=namespace, _clock=CLOCK, **options)

    async def elapse(self, duration: timedelta) -> None:
        self._now += duration // timedelta(microseconds=1)
        self._show(self._namespaces)

    def _show(self, namespaces: Iterable[str]) -> None:
        pipeline = self._client.pipeline(transaction=False)

        for namespace in namespaces:
            for number in range(self._partitions):
                pipeline.set(prefix_of(namespace, number) + b"clock", self._now)

        pipeline.execute()


@asynccontextmanager
async def _subject(kind: type[RedisSubject], url: str, partitions: int) -> AsyncGenerator[Subject]:
    client = client_of(url)

    try:
        yield kind(url, client, partitions)
    finally:
        client.close()


def clocked_subject(url: str, *, partitions: int = 1) -> SubjectFactory:
    """A server whose clock the tests move."""
    return partial(_subject, ClockedRedisSubject, url, partitions)


def real_subject(url: str, *, partitions: int = 1) -> SubjectFactory:
    """A server with its own clock."""
    return partial(_subject, RedisSubject, url, partitions)
