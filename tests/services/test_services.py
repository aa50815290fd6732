"""What tests rely on: a crash is a crash, data outlives it, and a proxy fails as it is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from threading import Thread
from typing import TYPE_CHECKING

import asyncpg
import psutil
import pytest
from pymongo import WriteConcern
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostError

from services.mongo import external_mongo
from services.postgres import external_postgres
from services.process import ServerError, ServerProcess, accepts, free_port, is_over, wait_until
from services.proxy import Proxy
from services.redis import RedisServer, external_redis, replica_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from services.mongo import MongoServer
    from services.pgbouncer import PgBouncer
    from services.postgres import PostgresServer
    from services.redis import RedisCluster


class ShellServer(ServerProcess):
    """A script in the place of a server; it is ready at once."""

    name = "script"

    def __init__(self, script: str) -> None:
        super().__init__()
        self._script = script

    def command(self) -> list[str]:
        return ["/bin/sh", "-c", self._script]

    def is_ready(self) -> bool:
        return "ready" in self.log


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url, timeout=10, statement_cache_size=0)


async def value(url: str, query: str) -> object:
    connection = await connect(url)

    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a server is not tied to us")
def test_a_server_ends_with_the_process_that_started_it() -> None:
    """However that ends, and whichever of its threads asked for the server."""
    starter = subprocess.Popen(
        [sys.executable, "-c", "from services.test_services import start; start()"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert starter.stdout is not None
    server = psutil.Process(int(starter.stdout.readline()))
    directory = server.cwd()

    assert server.is_running()

    starter.kill()
    starter.communicate()
    wait_until(lambda: is_over(server), "the server ends")
    shutil.rmtree(directory)


def start() -> None:
    """Start a server in a thread that ends, and stay."""
    server = ShellServer("echo ready; exec sleep 600")
    thread = Thread(target=server.start)
    thread.start()
    thread.join()
    assert not thread.is_alive()
    print(server.pid, flush=True)
    signal.pause()


def test_kill_reaches_children_that_left_the_process_group() -> None:
    leave = "import os, time; os.setsid(); print('ready', flush=True); time.sleep(600)"

    with ShellServer(f'{sys.executable} -c "{leave}" & wait') as server:
        [child] = psutil.Process(server.pid).children()

        server.kill()

        assert is_over(child)


def test_a_server_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(ServerError, match="no room"), ShellServer("echo no room; exit 3"):
        pytest.fail("it did start")


def test_a_closed_server_leaves_nothing_behind() -> None:
    with ShellServer("echo ready; exec sleep 600") as server:
        process = psutil.Process(server.pid)

    assert is_over(process)
    assert not server.directory.exists()


@pytest.mark.parametrize(
    ("variable", "url", "find"),
    [
        ("SAYIIR_TEST_POSTGRES_URL", "postgresql://{}/postgres", external_postgres),
        ("SAYIIR_TEST_REDIS_URL", "redis://{}/0", external_redis),
        ("SAYIIR_TEST_MONGODB_URL", "mongodb://{}/?serverSelectionTimeoutMS=100", external_mongo),
    ],
)
def test_a_named_server_that_cannot_be_reached_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, find: Callable[[], object]
) -> None:
    monkeypatch.setenv(variable, url.format(f"127.0.0.1:{free_port()}"))

    with pytest.raises(ServerError, match=variable):
        find()


async def test_a_killed_postgres_leaves_no_process_and_keeps_what_it_acknowledged(
    postgres_durable: Callable[..., PostgresServer],
) -> None:
    server = postgres_durable({"max_connections": "17"})
    connection = await connect(server.url)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    port = server.port

    server.kill()

    assert len(tree) > 4
    assert all(map(is_over, tree))
    connection.terminate()

    server.restart()

    assert server.port == port
    assert await value(server.url, "SELECT number FROM kept") == 7
    assert await value(server.url, "SHOW max_connections") == "17"
    assert await value(server.url, "SHOW fsync") == "on"


async def test_each_postgres_is_of_the_version_it_says(each_postgres: PostgresServer) -> None:
    found = await value(each_postgres.url, "SHOW server_version_num")

    assert int(str(found)) == each_postgres.version[0] * 10_000 + each_postgres.version[1]


async def test_clients_of_a_pool_share_a_connection(pgbouncer: PgBouncer) -> None:
    pids = {await value(pgbouncer.url, "SELECT pg_backend_pid()") for _ in range(2)}

    assert len(pids) == 1


def test_a_killed_redis_keeps_what_it_acknowledged(
    redis_durable: Callable[..., RedisServer],
) -> None:
    server = redis_durable()
    server.execute("SET", "kept", "7")

    server.kill()

    assert not accepts(server.port)
    assert server.restart().execute("GET", "kept") == "7"


def test_a_replica_has_what_its_primary_has(redis_binary: Path) -> None:
    with RedisServer(redis_binary) as primary:
        primary.execute("SET", "kept", "7")

        with replica_of(primary) as replica:
            assert replica.execute("GET", "kept") == "7"


def test_a_cluster_is_whole_again_when_a_killed_node_is_back(redis_cluster: RedisCluster) -> None:
    node = redis_cluster.nodes[1]

    node.kill()
    node.restart()
    redis_cluster.wait()

    assert "cluster_slots_ok:16384" in node.execute("CLUSTER", "INFO")


def test_a_killed_mongo_keeps_what_it_acknowledged(
    mongo_to_crash: Callable[[], MongoServer],
) -> None:
    server = mongo_to_crash()

    with server.client() as client:
        journaled = client.tests.get_collection("kept", write_concern=WriteConcern(j=True))
        journaled.insert_one({"_id": 7})

    server.kill()
    server.restart()

    with server.client() as client:
        assert client.tests.get_collection("kept").find_one() == {"_id": 7}


@asynccontextmanager
async def through(proxy: Proxy) -> AsyncGenerator[Redis]:
    """A client that uses one connection and repeats nothing."""
    options = {"retry": None, "single_connection_client": True, "socket_timeout": None}

    async with Redis.from_url(proxy.url, **options) as client:
        await client.ping()
        yield client


@pytest.mark.parametrize("cut", [False, True])
async def test_a_dropped_reply_is_lost_though_the_request_was_served(
    own_redis: RedisServer, cut: bool
) -> None:
    key = f"dropped-{cut}"

    async with Proxy(own_redis.url) as proxy, through(proxy) as client:
        await client.incr(key)
        dropped = proxy.drop_replies_after(b"INCR", cut=cut)
        request = asyncio.create_task(client.incr(key))
        await dropped.wait()

        assert own_redis.execute("GET", key) == "2"
        assert cut or not request.done()

        proxy.cut()

        with pytest.raises(LostError):
            await request

        async with through(proxy) as another:
            assert await another.incr(key) == 3


async def test_a_proxy_counts_round_trips_not_requests(own_redis: RedisServer) -> None:
    ping, pong = b"PING\r\n", b"+PONG\r\n"

    async with Proxy(own_redis.url) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

        for requests in (1, 3):
            writer.write(ping * requests)
            await reader.readexactly(len(pong) * requests)

        writer.close()
        await writer.wait_closed()

        assert proxy.round_trips == 2
        assert proxy.bytes_to_server == len(ping) * 4
        assert proxy.bytes_to_client == len(pong) * 4


async def test_a_proxy_refuses_and_accepts_again(own_redis: RedisServer) -> None:
    async with Proxy(own_redis.url) as proxy, through(proxy) as client:
        proxy.refuse()

        assert await client.ping()
        with pytest.raises(LostError):
            async with through(proxy):
                pytest.fail("it was let in")

        await proxy.accept()

        async with through(proxy) as another:
            assert await another.ping()


async def test_a_cut_breaks_the_connections_there_are(own_redis: RedisServer) -> None:
    async with Proxy(own_redis.url) as proxy, through(proxy) as client:
        waiting = asyncio.create_task(client.blpop(["never"], timeout=0))
        await asyncio.to_thread(wait_until, lambda: has_blocked_client(own_redis), "it blocks")

        proxy.cut()

        with pytest.raises(LostError):
            await waiting

        assert proxy.connections == 0


def has_blocked_client(server: RedisServer) -> bool:
    return server.execute("INFO", "clients")["blocked_clients"] == 1
