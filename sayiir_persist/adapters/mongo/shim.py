"""The only module that knows two drivers: PyMongo Async and Motor.

Both give the same database, collection and cursor; they differ in what is awaited. Everything
above this module awaits everything.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol

from pymongo import version_tuple

from sayiir_persist.errors import ConfigurationError

Document = dict[str, Any]


_WAITS_ASIDE: Final = version_tuple[:2] >= (4, 13)
"""Before, the asynchronous API was a beta: an answer that is late holds up the event loop."""


class Client(Protocol):
    """A client of either driver, as the adapter uses it."""

    longest_await: int
    """How long a change stream may wait in the server, in milliseconds."""

    pause: float
    """How long a follower of changes waits by itself where there are none, in seconds."""

    def database(self, name: str, **concerns: Any) -> Any:
        """A database whose collections follow these concerns."""
        ...

    def default_database(self) -> str | None:
        """The name in the client's URL."""
        ...

    def uri_concerns(self) -> tuple[Any, Any]:
        """Write concern and read preference of the client itself."""
        ...

    async def command(self, database: Any, command: Document) -> Document:
        """Send one command to the primary."""
        ...

    async def aggregate(self, collection: Any, pipeline: list[Document]) -> list[Document]:
        """All documents that a pipeline gives."""
        ...

    async def watch(self, collection: Any, pipeline: list[Document], **options: Any) -> Any:
        """An open change stream; `try_next` and `close` are awaited."""
        ...

    async def close(self) -> None:
        """Close the client."""
        ...


class PyMongoClient:
    """An `AsyncMongoClient` of PyMongo."""

    longest_await: int = 1_000 if _WAITS_ASIDE else 1
    pause: float = 0.0 if _WAITS_ASIDE else 0.05

    def __init__(self, client: Any) -> None:
        self._client = client

    def database(self, name: str, **concerns: Any) -> Any:
        return self._client.get_database(name, **concerns)

    def default_database(self) -> str | None:
        return _default_database(self._client)

    def uri_concerns(self) -> tuple[Any, Any]:
        return self._client.write_concern, self._client.read_preference

    async def command(self, database: Any, command: Document) -> Document:
        reply: Document = await database.command(command)
        return reply

    async def aggregate(self, collection: Any, pipeline: list[Document]) -> list[Document]:
        cursor = await collection.aggregate(pipeline)

        async with cursor:
            found: list[Document] = await cursor.to_list(None)
            return found

    async def watch(self, collection: Any, pipeline: list[Document], **options: Any) -> Any:
        stream = await collection.watch(pipeline, **options)
        return await stream.__aenter__()

    async def close(self) -> None:
        await self._client.close()


class MotorClient:
    """An `AsyncIOMotorClient` of Motor, which runs PyMongo in threads."""

    longest_await: int = 1  # a wait in the server would hold one of few threads
    pause: float = 0.05

    def __init__(self, client: Any) -> None:
        self._client = client

    def database(self, name: str, **concerns: Any) -> Any:
        return self._client.get_database(name, **concerns)

    def default_database(self) -> str | None:
        return _default_database(self._client)

    def uri_concerns(self) -> tuple[Any, Any]:
        return self._client.write_concern, self._client.read_preference

    async def command(self, database: Any, command: Document) -> Document:
        reply: Document = await database.command(command)
        return reply

    async def aggregate(self, collection: Any, pipeline: list[Document]) -> list[Document]:
        cursor = collection.aggregate(pipeline)

        try:
            found: list[Document] = await cursor.to_list(None)
            return found
        finally:
            await cursor.close()

    async def watch(self, collection: Any, pipeline: list[Document], **options: Any) -> Any:
        stream = collection.watch(pipeline, **options)
        return await stream.__aenter__()

    async def close(self) -> None:
        self._client.close()


def _default_database(client: Any) -> str | None:
    try:
        name: str = client.get_default_database().name
    except Exception:  # noqa: BLE001  (each driver and version has its own way to say "none")
        return None

    return name


_PYMONGO: Final = ("AsyncMongoClient",)
_MOTOR: Final = ("AsyncIOMotorClient",)


def shimmed(client: Any) -> Client:
    """Wrap a client that a user made.

    Raises:
        ConfigurationError: It is of neither driver.
    """
    names = {each.__name__ for each in type(client).__mro__}

    if names.intersection(_PYMONGO):
        return PyMongoClient(client)

    if names.intersection(_MOTOR):
        return MotorClient(client)

    raise ConfigurationError(
        "a client is an AsyncMongoClient of PyMongo or an AsyncIOMotorClient of Motor, "
        f"not {type(client).__name__}"
    )


def new_client(url: str, *, motor: bool, options: dict[str, Any]) -> Client:
    """Make a client; nothing is connected yet. `motor` picks Motor.

    Raises:
        ConfigurationError: The driver is not installed.
    """
    module, name, extra = (
        ("motor.motor_asyncio", "AsyncIOMotorClient", "motor")
        if motor
        else ("pymongo", "AsyncMongoClient", "mongo")
    )

    try:
        made = getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigurationError(
            f"{name} is not installed: pip install 'sayiir-persist[{extra}]'"
        ) from error

    return shimmed(made(url, **options))
