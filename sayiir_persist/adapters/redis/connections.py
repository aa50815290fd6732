"""What redis-py does for us: settings, addresses, TLS and the handshake of a connection.

The only module that knows redis-py's classes, and the only one with casts. A connection that
redis-py has made is taken over: its transport speaks to a `Link`, which shares it among any number
of callers, and none of redis-py's retries, pools or time limits has a say in it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import redis.asyncio as aioredis
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from sayiir_persist.adapters.redis.errors import NotSentError, ReplyError
from sayiir_persist.adapters.redis.link import Link, Listener
from sayiir_persist.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

RedisClient = aioredis.Redis | aioredis.RedisCluster

_CLUSTER: Final = ("redis+cluster://", "rediss+cluster://")
_SINGLE: Final = ("redis://", "rediss://", "unix://")


class Address(NamedTuple):
    """Where a node of a cluster listens."""

    host: str
    port: int


class Dialer:
    """Makes connections with the settings of a URL or of a client.

    Attributes:
        cluster: Whether these are the settings of a cluster.
        seeds: Nodes of the cluster to ask first.
    """

    def __init__(
        self, make: Callable[[Address | None], Any], *, seeds: tuple[Address, ...] = ()
    ) -> None:
        self._make = make
        self.seeds = seeds
        self.cluster: bool = bool(seeds)

    async def connect(
        self,
        address: Address | None,
        timeout: float,
        listener: Listener | None = None,
    ) -> Link:
        """Connect, to a node of the cluster or to the one server there is.

        Raises:
            ReplyError: The server refuses the handshake.
            NotSentError: There is no connection to be had.
        """
        connection = self._make(address)
        connection.retry = Retry(NoBackoff(), 0)

        try:
            async with asyncio.timeout(timeout):
                await connection.connect()
        except AuthenticationError as error:
            raise ReplyError(f"NOAUTH {error}") from error
        except ResponseError as error:
            raise ReplyError(str(error)) from error
        except (RedisError, OSError) as error:
            raise NotSentError(f"cannot connect: {error}") from error
        except BaseException:
            _abandon(connection)
            raise

        writer: asyncio.StreamWriter = _detached(connection)
        transport = cast("asyncio.Transport", writer.transport)
        return Link(transport, listener=listener, keep=(connection, writer))


def _detached(connection: Any) -> Any:
    """Take the stream out of a connection, which then has nothing left to close."""
    writer = connection._writer
    connection._writer = connection._reader = None
    return writer


def _abandon(connection: Any) -> None:
    writer: asyncio.StreamWriter | None = _detached(connection)

    if writer is not None:
        writer.transport.abort()


def dialer_of_url(url: str) -> Dialer:
    """Read a URL.

    Raises:
        ConfigurationError: It means nothing to redis-py.
    """
    lower = url.lower()

    if not lower.startswith((*_CLUSTER, *_SINGLE)):
        raise ConfigurationError(
            "a Redis URL looks like redis://host:6379/0, rediss://… (TLS), unix:///path, "
            "or redis+cluster://host:6379 and rediss+cluster://… for a cluster"
        )

    cluster = lower.startswith(_CLUSTER)

    try:
        settings = dict(cast("dict[str, Any]", parse_url(url.replace("+cluster", "", 1))))
    except ValueError as error:
        raise ConfigurationError(f"redis-py cannot read the URL: {error}") from error

    kind: Any = settings.pop("connection_class", Connection)
    settings |= {"protocol": 2}

    if not cluster:
        return Dialer(lambda _: kind(**settings))

    if settings.get("db"):
        raise ConfigurationError("a cluster has database 0 only")

    seed = Address(settings.pop("host", "localhost"), settings.pop("port", 6379))
    return _cluster_dialer(kind, settings, (seed,))


def dialer_of_client(client: RedisClient) -> Dialer:
    """Take the settings of a client; the client itself is left alone."""
    if isinstance(client, aioredis.RedisCluster):
        nodes = list(cast("Any", client).nodes_manager.startup_nodes.values())
        settings = dict(nodes[0].connection_kwargs)
        del settings["host"], settings["port"]
        seeds = tuple(Address(node.host, int(node.port)) for node in nodes)
        return _cluster_dialer(nodes[0].connection_class, settings, seeds)

    pool = cast("Any", client).connection_pool
    return Dialer(lambda _: pool.make_connection())


def _cluster_dialer(kind: Any, settings: dict[str, Any], seeds: tuple[Address, ...]) -> Dialer:
    def make(address: Address | None) -> Any:
        host, port = address or seeds[0]
        return kind(**settings, host=host, port=port)

    return Dialer(make, seeds=seeds)
