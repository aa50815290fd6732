"""The public face of the Redis store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, final

from sayiir_persist.adapters.redis.connections import (
    Dialer,
    RedisClient,
    dialer_of_client,
    dialer_of_url,
)
from sayiir_persist.adapters.redis.driver import RedisDriver, Settings
from sayiir_persist.adapters.redis.keys import MAX_PARTITIONS
from sayiir_persist.adapters.redis.link import framed
from sayiir_persist.adapters.redis.routing import Confirmation
from sayiir_persist.backend import StandardBackend
from sayiir_persist.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sayiir_persist.options import Options
    from sayiir_persist.protocols import PersistentBackend, WakeupSource


@final
class RedisBackend(StandardBackend[RedisDriver]):
    """Workflows on Redis 6.2 or later, or on Valkey: one server, or a cluster.

    Every operation is one script, atomic on the server that has the instance. What a restart, the
    loss of power or a failover can take is a matter of the server's settings; `info.caveats` says
    it, and a warning is logged where the server forgets or evicts. Runs on asyncio.

    Args:
        client: Its settings are used for connections of the backend's own: one for commands, one
            for wake hints, for each server. The client itself is left alone.
        partitions: Into how many parts the namespace is divided, each on one server of a cluster;
            recorded by the first who opens the namespace. Dispatch order is exact within each.
        replicas: So many replicas have to confirm a write (`WAIT`), or it is an
            `OutcomeUnknownError`.
        fsync: The server's append-only file has to be on disk first (`WAITAOF`, Redis 7.2).
        options: Those of every backend, see `sayiir_persist.connect`.

    Raises:
        ConfigurationError: An option cannot be used; says what to give.
        InvalidArgumentError: An option breaks its limit.

    Example:
        >>> async def main() -> None:
        ...     async with RedisBackend.connect("redis://localhost:6379/0") as backend:
        ...         await backend.start_instance("order-7", "v1", start_at="charge")
    """

    def __init__(
        self,
        client: RedisClient | Dialer,
        *,
        partitions: int = 1,
        replicas: int = 0,
        fsync: bool = False,
        _clock: str | None = None,
        **options: Any,
    ) -> None:
        def dialer() -> Dialer:
            return client if isinstance(client, Dialer) else dialer_of_client(client)

        driver = _driver(
            dialer, partitions=partitions, replicas=replicas, fsync=fsync, clock=_clock
        )
        super().__init__(driver, **options)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        partitions: int = 1,
        replicas: int = 0,
        fsync: bool = False,
        **options: Any,
    ) -> Self:
        """Build a backend on the server that `url` names; entering it connects.

        `redis://`, `rediss://` (TLS), `unix://`, `redis+cluster://` and `rediss+cluster://`, with
        the parameters of redis-py. The options are those of the class.

        Raises:
            ConfigurationError: URL or option cannot be used; says what to give.
            InvalidArgumentError: An option breaks its limit.
        """
        return cls(
            dialer_of_url(url), partitions=partitions, replicas=replicas, fsync=fsync, **options
        )


def _driver(
    dialer: Callable[[], Dialer],
    *,
    partitions: int,
    replicas: int,
    fsync: bool,
    clock: str | None,
) -> Callable[[Options], RedisDriver]:
    for name, value, least, most in (
        ("partitions", partitions, 1, MAX_PARTITIONS),
        ("replicas", replicas, 0, MAX_PARTITIONS),
    ):
        if not isinstance(value, int) or not least <= value <= most:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"{name} must be {least} to {most}, not {value!r}")

    def driver(chosen: Options) -> RedisDriver:
        timeout = chosen.operation_timeout.total_seconds()
        settings = Settings(
            namespace=chosen.namespace,
            partitions=partitions,
            migrate=chosen.migrate,
            timeout=timeout,
            confirmation=_confirmation(replicas, timeout, fsync=fsync),
            clock=clock,
        )
        return RedisDriver(dialer, settings)

    return driver


def _confirmation(replicas: int, timeout: float, *, fsync: bool) -> Confirmation | None:
    # The server gives up before the operation does, so that its answer comes.
    limit = b"%d" % max(int(timeout * 900), 1)

    if fsync:
        return Confirmation(framed(b"WAITAOF", b"1", b"%d" % replicas, limit), (1, replicas))

    if replicas:
        return Confirmation(framed(b"WAIT", b"%d" % replicas, limit), (replicas,))

    return None


def from_url(url: str, **options: Any) -> RedisBackend:
    """Build the backend that `redis://…`, `rediss://…` or `redis+cluster://…` names.

    Raises:
        ConfigurationError: The URL means nothing to redis-py.
    """
    return RedisBackend.connect(url, **options)


if TYPE_CHECKING:
    _backend: type[PersistentBackend] = RedisBackend
    _wakeups: type[WakeupSource] = RedisBackend
