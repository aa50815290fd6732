"""The way to a deployment: whose client it is, with which concerns, and for how long."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import pymongo
from bson.codec_options import CodecOptions
from pymongo import ReadPreference, WriteConcern
from pymongo.errors import OperationFailure, WriteConcernError
from pymongo.read_concern import ReadConcern

from sayiir_persist.adapters.mongo.errors import (
    DUPLICATE_KEY,
    WRITE_CONFLICT,
    in_our_words,
    is_definite_abort,
    is_duplicate,
)
from sayiir_persist.adapters.mongo.shim import new_client, shimmed
from sayiir_persist.errors import (
    BackendClosedError,
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sayiir_persist.adapters.mongo.shim import Client, Document

logger: logging.Logger = logging.getLogger(__name__)

DEFAULT_DATABASE: Final = "sayiir"
OLDEST_SERVER: Final = (4, 4)
LONGEST_CLOSE: Final = 5
"""In seconds."""

_WRITE_CONCERN: Final = {"w": "majority", "j": True}
_PRIMARY_READS: Final = ReadPreference.PRIMARY
_LOCAL: Final = ReadConcern("local")
_CODEC: Final[CodecOptions[Any]] = CodecOptions()

_GRACE: Final = 1.0
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.2


class OwnClient:
    """A client that is made when the backend is entered, and closed with it."""

    is_own: Final = True

    def __init__(self, url: str, *, motor: bool, options: dict[str, Any]) -> None:
        self._url, self._motor, self._options = url, motor, options

    def make(self, timeout: float) -> Client:
        """Make the client; nothing is connected yet."""
        options = {
            "serverSelectionTimeoutMS": int(timeout * 1000),
            "appname": "sayiir_persist",
            **self._options,
        }
        return new_client(self._url, motor=self._motor, options=options)


class BorrowedClient:
    """A client of the user's, which is never closed here."""

    is_own: Final = False

    def __init__(self, client: Any) -> None:
        self._client = shimmed(client)

    def make(self, timeout: float) -> Client:
        """The client as it is."""
        del timeout
        return self._client


class Deployment(NamedTuple):
    """What answers."""

    version: str
    is_replica_set: bool
    is_sharded: bool

    @property
    def has_change_streams(self) -> bool:
        """Whether it keeps a log of changes that can be followed."""
        return self.is_replica_set or self.is_sharded


class Updated(NamedTuple):
    """What the server says of a batch: how many statements took effect, and what failed."""

    matched: int
    errors: dict[int, Document]


class Connections:
    """A database, open for one event loop.

    Args:
        source: Where the client comes from.
        database: Its name; `None`: the one in the URL, else `sayiir`.
        timeout: How long a call may take, in seconds.
        strict: Refuse a client with weaker concerns instead of overriding them.
    """

    def __init__(
        self,
        source: OwnClient | BorrowedClient,
        *,
        database: str | None,
        timeout: float,
        strict: bool,
    ) -> None:
        self.timeout = timeout
        self._source = source
        self._database = database
        self._strict = strict
        self._client: Client | None = None
        self._closing: Client | None = None
        self._db: Any = None
        self._collections: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> Deployment:
        """Make the client and ask who answers.

        Raises:
            BackendUnavailableError: Nobody does.
            ConfigurationError: The server is too old, or the URL or the concerns cannot be used.
        """
        try:
            client = self._source.make(self.timeout)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"MongoDB cannot be reached like this: {error}") from error
        except Exception as error:
            raise in_our_words(error, writes=False) from error

        self._client, self._loop = client, asyncio.get_running_loop()

        try:
            self._check_concerns(client)
            self._db = client.database(
                self._database or client.default_database() or DEFAULT_DATABASE,
                codec_options=_CODEC,
                read_preference=_PRIMARY_READS,
                write_concern=WriteConcern("majority", j=True),
                read_concern=_LOCAL,
            )
            return await self._find_deployment()
        except BaseException:
            await self.close()
            raise

    def _check_concerns(self, client: Client) -> None:
        write, read = client.uri_concerns()
        weaker = [
            *(["writeConcern"] if write.document.get("w", "majority") != "majority" else []),
            *(["journal"] if write.document.get("j", True) is not True else []),
            *(["readPreference"] if read.mode != _PRIMARY_READS.mode else []),
        ]

        if not weaker:
            return

        if self._strict:
            raise ConfigurationError(
                f"the client sets {', '.join(weaker)}: workflows are written with w=majority and "
                "journaled, and read from the primary"
            )

        logger.warning(
            "concerns of the client are overridden: majority, journaled, primary",
            extra={"backend": "mongo", "overridden": ", ".join(weaker)},
        )

    async def _find_deployment(self) -> Deployment:
        build = await self.command({"buildInfo": 1})
        role = await self.command({"isMaster": 1})
        version = tuple(build["versionArray"][:2])

        if version < OLDEST_SERVER:
            raise ConfigurationError(f"MongoDB 4.4 or later is needed, this is {build['version']}")

        return Deployment(build["version"], "setName" in role, role.get("msg") == "isdbgrid")

    async def close(self) -> None:
        """Close what `open` made; a client of the user's stays open."""
        if self._client is not None:
            self._closing, self._client = self._client, None

        self._db, self._collections = None, {}

        if self._closing is not None and self._source.is_own:
            with anyio.move_on_after(LONGEST_CLOSE, shield=True):
                await self._closing.close()

        self._closing = None

    @property
    def client(self) -> Client:
        """The client, if it is open here."""
        if self._client is None:
            raise BackendClosedError("the backend is not open: use `async with`")

        if self._loop is not asyncio.get_running_loop():
            raise BackendError("the backend was opened in another event loop: open one of your own")

        return self._client

    def collection(self, name: str) -> Any:
        """A collection with our concerns."""
        found = self._collections.get(name)

        if found is None:
            _ = self.client
            found = self._collections[name] = self._db[name]

        return found

    async def watch(self, collection: str, pipeline: list[Document], **options: Any) -> Any:
        """An open change stream."""
        client = self.client
        found = self.collection(collection).with_options(read_concern=ReadConcern("majority"))
        return await _uninterrupted(client.watch(found, pipeline, **options))

    # --- Reads ---

    async def command(self, command: Document) -> Document:
        """Send a command that writes nothing."""
        client = self.client
        reply: Document = await self._call(lambda: client.command(self._db, command), writes=False)
        return reply

    async def aggregate(self, collection: str, pipeline: list[Document]) -> list[Document]:
        """All documents that a pipeline gives."""
        client, found = self.client, self.collection(collection)
        documents: list[Document] = await self._call(
            lambda: client.aggregate(found, pipeline), writes=False
        )
        return documents

    # --- Writes ---

    async def find_and_update(
        self,
        collection: str,
        query: Document,
        update: list[Document],
        *,
        projection: Document,
        upsert: bool = False,
    ) -> Document | None:
        """Update one document and answer it as it is then; `None`: there is none like that.

        With `upsert`, `None` means that one with this `_id` is there and is not like that.
        """
        command: Document = {
            "findAndModify": collection,
            "query": query,
            "update": update,
            "fields": projection,
            "new": True,
            "upsert": upsert,
        }

        try:
            reply = await self._write(command)
        except DuplicateError:
            return None

        updated: Document | None = reply["value"]
        return updated

    async def replace(self, collection: str, query: Document, document: Document) -> bool:
        """Replace one document; `False`: there is none like that."""
        statement = {"q": query, "u": document}
        reply = await self._write({"update": collection, "updates": [statement]})
        return bool(reply["n"])

    async def insert(self, collection: str, document: Document) -> bool:
        """Insert a document; `False`: one with this `_id` is there already."""
        try:
            await self._write({"insert": collection, "documents": [document]})
        except DuplicateError:
            return False

        return True

    async def insert_new(self, collection: str, documents: Sequence[Document]) -> None:
        """Insert documents with an `_id` that nobody else ever gives."""
        statement = {"insert": collection, "documents": list(documents), "ordered": False}

        try:
            await self._write(statement)
        except DuplicateError:
            return  # from a try before, of which not all was carried out

    async def delete(self, collection: str, query: Document) -> int:
        """Delete all documents like that, and say how many there were."""
        statement = {"q": query, "limit": 0}
        reply = await self._write({"delete": collection, "deletes": [statement]})
        return int(reply["n"])

    async def delete_one(self, collection: str, query: Document) -> bool:
        """Delete one document; `False`: there is none like that."""
        statement = {"q": query, "limit": 1}
        reply = await self._write({"delete": collection, "deletes": [statement]})
        return bool(reply["n"])

    async def merge(self, collection: str, pipeline: list[Document]) -> None:
        """Run a pipeline that ends in `$merge`; to be repeatable is its own business."""
        client, found = self.client, self.collection(collection)
        await self._call(lambda: client.aggregate(found, pipeline), writes=True)

    async def update_each(self, collection: str, statements: Sequence[Document]) -> Updated:
        """Carry out statements in one command, each on its own."""
        command = {"update": collection, "updates": statements, "ordered": False}
        reply = await self._write(command, is_batch=True)
        errors = {each["index"]: each for each in reply.get("writeErrors", ())}
        return Updated(int(reply["n"]), errors)

    async def _write(self, command: Document, *, is_batch: bool = False) -> Document:
        """Send a write by itself, never by way of the driver's retries.

        A driver that sends a write again raises what came of the last attempt, even where an
        earlier one may have been carried out; then nobody knows what is safe to repeat.
        """
        client = self.client
        durable = {**command, "writeConcern": _WRITE_CONCERN}

        async def send() -> Document:
            reply = await client.command(self._db, durable)
            _check(reply, is_batch=is_batch)
            return reply

        reply: Document = await self._call(send, writes=True)
        return reply

    async def _call(self, send: Callable[[], Awaitable[Any]], *, writes: bool) -> Any:
        """Send a command within the time limit; again where it certainly was not carried out."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        pause = _FIRST_PAUSE

        while True:
            try:
                with pymongo.timeout(max(deadline - loop.time(), 0.001)):
                    return await _uninterrupted(send())
            except Exception as error:
                if is_duplicate(error):
                    raise DuplicateError from error

                if not is_definite_abort(error) or loop.time() + pause >= deadline:
                    raise in_our_words(error, writes=writes) from error

            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


async def _uninterrupted(sent: Awaitable[Any]) -> Any:
    """What a command answers; cancelled, it is still given a moment to end.

    So a write that is on its way lands before any later one, and connections stay whole.
    """
    task = asyncio.ensure_future(sent)

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=_GRACE)

            if not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=_GRACE)

        if task.done() and not task.cancelled():
            task.exception()  # nobody else will ask for it

        raise


def _check(reply: Document, *, is_batch: bool) -> None:
    """Raise what a reply says that is no error of the command itself."""
    if "writeConcernError" in reply:
        error = reply["writeConcernError"]
        raise WriteConcernError(str(error.get("errmsg")), error.get("code"), error)

    if not is_batch and reply.get("writeErrors"):
        errors: list[Document] = reply["writeErrors"]
        first = next((each for each in errors if each.get("code") != DUPLICATE_KEY), errors[0])
        raise OperationFailure(str(first.get("errmsg")), first.get("code"), first)


class DuplicateError(Exception):
    """A document with this `_id` is there already."""


def is_conflict(report: Document) -> bool:
    """Whether a statement of a batch can be sent again: it was certainly not carried out."""
    return report.get("code") == WRITE_CONFLICT


__all__ = [
    "BackendUnavailableError",
    "BorrowedClient",
    "Connections",
    "Deployment",
    "DuplicateError",
    "OwnClient",
    "Updated",
    "is_conflict",
]
