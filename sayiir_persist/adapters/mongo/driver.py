"""The storage SPI on MongoDB: guarded updates of one document for each instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.mongo import schema
from sayiir_persist.adapters.mongo.claims import Claims
from sayiir_persist.adapters.mongo.dispatching import Dispatching
from sayiir_persist.adapters.mongo.expressions import SERVER_TIME, is_idle, literal, no_earlier
from sayiir_persist.adapters.mongo.layout import INSTANCES, key_of, row_of
from sayiir_persist.adapters.mongo.reads import Reads
from sayiir_persist.adapters.mongo.schema import EVER
from sayiir_persist.adapters.mongo.slow import SlowWrites
from sayiir_persist.adapters.mongo.writes import Writes
from sayiir_persist.driver import (
    Answer,
    ChoreList,
    Chores,
    Extend,
    Extended,
    Opened,
    Page,
    Poll,
    Polled,
    Read,
    Row,
    Take,
    Taken,
    Unit,
    View,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document
    from sayiir_persist.adapters.mongo.listener import Listener
    from sayiir_persist.claims import WakeHint

_WRITERS: Final = 2

_ROW: Final = {
    "def": 1,
    "status": 1,
    "ver": 1,
    "created": 1,
    "updated": 1,
    "since": 1,
    "prio": 1,
    "tags": 1,
}


class MongoDriver:
    """One namespace of one database.

    Args:
        connections: Where commands go.
        listener: How hints come.
        namespace: The only one that it sees.
        migrate: Whether collections and indexes are made where they are missing.
        clock: For tests: what the time is, in the place of the server's.
    """

    name = "mongo"

    def __init__(
        self,
        connections: Connections,
        listener: Listener,
        namespace: str,
        *,
        migrate: bool,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.namespace = namespace
        self._connections = connections
        self._listener = listener
        self._migrate = migrate

        def now() -> Any:
            return SERVER_TIME if clock is None else literal(clock())

        self._now = now
        self._reads = Reads(connections, namespace, now)
        slow = SlowWrites(connections, namespace, self._reads, listener, now)
        self._writes = Writes(connections, namespace, self._reads, slow, listener, now)
        self._claims = Claims(connections, namespace, self._reads, now)
        self._dispatching = Dispatching(connections, namespace, self._reads, now, exact_clock=clock)
        listener.ask(self._dispatching.recent)

    # --- Life ---

    async def open(self) -> Opened:
        deployment = await self._connections.open()

        try:
            await schema.prepare(self._connections, migrate=self._migrate)
            await self._listener.open(deployment)
        except BaseException:
            await self.close()
            raise

        caveats: list[str] = []

        if not deployment.has_change_streams:
            caveats.append("a server on its own: what it acknowledges is lost with its disk")
            caveats.append("no change streams: work of other processes is found by polling")

        return Opened(f"MongoDB {deployment.version}", tuple(caveats), writers=_WRITERS)

    async def close(self) -> None:
        try:
            await self._listener.close()
        finally:
            await self._connections.close()

    # --- The SPI ---

    async def now(self) -> int:
        return await self._reads.time()

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        return [await self._reads.view(read) for read in reads]

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer | Exception]:
        return await self._writes.apply(units)

    async def claim(self, take: Take) -> Taken:
        return await self._claims.take(take)

    async def extend(self, extend: Extend) -> Extended:
        return await self._claims.extend(extend)

    async def poll(self, query: Poll) -> Polled:
        return await self._dispatching.poll(query)

    async def page(self, query: Page) -> Sequence[Row]:
        stages = (
            self._stalled(query.idle_for) if query.idle_for is not None else self._listed(query)
        )
        found = await self._connections.aggregate(
            INSTANCES, [*stages, {"$limit": query.limit}, {"$project": _ROW}]
        )
        return [row_of(document) for document in found]

    def _listed(self, query: Page) -> list[Document]:
        status = {"$exists": True} if query.status is None else query.status.value
        match: Document = {
            "_id": {"$gt": key_of(self.namespace, query.after or ""), "$lt": f"{self.namespace}0"},
            "status": status,
        }

        if query.status is not None or query.definition_hash is not None:
            match["ns"] = self.namespace

        if query.definition_hash is not None:
            match["def"] = query.definition_hash

        return [{"$match": match}, {"$sort": {"_id": 1}}]

    def _stalled(self, idle_for: int) -> list[Document]:
        now = self._now()
        until = {"$subtract": [no_earlier(now), idle_for]}
        match: Document = {
            "ns": self.namespace,
            "idle": {"$gte": EVER},
            "$expr": {"$and": [{"$lte": ["$idle", until]}, is_idle(now)]},
        }
        return [{"$match": match}, {"$sort": {"idle": 1, "_id": 1}}]

    async def chores(self, query: Chores) -> ChoreList:
        return await self._dispatching.chores(query)

    async def wait(self, timeout: float) -> WakeHint | None:
        return await self._listener.wait(timeout)
