"""The public face of the MongoDB store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self, final

from sayiir_persist.adapters.mongo.connections import BorrowedClient, Connections, OwnClient
from sayiir_persist.adapters.mongo.driver import MongoDriver
from sayiir_persist.adapters.mongo.listener import Listener
from sayiir_persist.backend import StandardBackend
from sayiir_persist.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sayiir_persist.options import Options
    from sayiir_persist.protocols import PersistentBackend, WakeupSource

MAX_PAYLOAD: Final = 8 * 1024 * 1024
MAX_QUEUED_EVENTS: Final = 1_000

_MOTOR: Final = "mongodb+motor:"


@final
class MongoBackend(StandardBackend[MongoDriver]):
    """Workflows in MongoDB 4.4 or later, on asyncio; any number of processes may share them.

    Every write is one guarded update of the instance's document, decided by the server's clock,
    acknowledged by the majority and journaled, whatever the URL says; no transaction is needed, so
    a server on its own works as well. On replica sets wake hints travel by change streams.

    Args:
        client: An `AsyncMongoClient` of PyMongo or an `AsyncIOMotorClient` of Motor. It is yours
            and never closed here.
        database: Where the collections are; default: the one in the client's URL, else `sayiir`.
        strict: Refuse a client with weaker concerns instead of overriding them with a warning.
        options: Those of every backend, see `sayiir_persist.connect`; here `max_payload` is 8 MiB
            and `max_queued_events` 1,000 unless given.

    Raises:
        ConfigurationError: An option cannot be used; says what to give.
        InvalidArgumentError: An option breaks its limit.

    Example:
        >>> async def main(client) -> None:
        ...     async with MongoBackend(client, namespace="orders") as backend:
        ...         await backend.start_instance("order-7", "v1", start_at="charge")
    """

    def __init__(
        self,
        client: Any,
        *,
        database: str | None = None,
        strict: bool = False,
        _clock: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        source = client if isinstance(client, OwnClient) else BorrowedClient(client)

        def driver(chosen: Options) -> MongoDriver:
            connections = Connections(
                source,
                database=database,
                timeout=chosen.operation_timeout.total_seconds(),
                strict=strict,
            )
            return MongoDriver(
                connections,
                Listener(connections, chosen.namespace),
                chosen.namespace,
                migrate=chosen.migrate,
                clock=_clock,
            )

        options.setdefault("max_payload", MAX_PAYLOAD)
        options.setdefault("max_queued_events", MAX_QUEUED_EVENTS)
        super().__init__(driver, **options)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        database: str | None = None,
        strict: bool = False,
        client_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Build a backend with a client of its own, opened and closed by `async with`.

        Args:
            url: `mongodb://` or `mongodb+srv://` for PyMongo Async, `mongodb+motor://` for Motor.
            database: Where the collections are; default: the one in the URL, else `sayiir`.
            strict: Refuse a URL with weaker concerns instead of overriding them with a warning.
            client_options: Further arguments of the client: `tls`, `maxPoolSize`, ...
            options: Those of every backend, see `sayiir_persist.connect`.

        Raises:
            ConfigurationError: An option cannot be used; says what to give.
            InvalidArgumentError: An option breaks its limit.
        """
        motor = url.startswith(_MOTOR)

        if motor:
            url = f"mongodb:{url.removeprefix(_MOTOR)}"

        if not url.startswith(("mongodb://", "mongodb+srv://")):
            raise ConfigurationError(
                "a URL of MongoDB starts with mongodb://, mongodb+srv:// or mongodb+motor://"
            )

        client = OwnClient(url, motor=motor, options=client_options or {})
        return cls(client, database=database, strict=strict, **options)


def from_url(url: str, **options: Any) -> MongoBackend:
    """Build the backend that `mongodb://`, `mongodb+srv://` or `mongodb+motor://` names."""
    return MongoBackend.connect(url, **options)


if TYPE_CHECKING:
    _backend: type[PersistentBackend] = MongoBackend
    _wakeups: type[WakeupSource] = MongoBackend
