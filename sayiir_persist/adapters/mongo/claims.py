"""Claims on one task: taken and extended in one guarded update each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sayiir_persist import aggregate as rules
from sayiir_persist.adapters.mongo.dispatching import claiming, placing
from sayiir_persist.adapters.mongo.expressions import (
    SEEN,
    has_live_claim,
    is_ready,
    is_unclaimed,
    literal,
    no_earlier,
)
from sayiir_persist.adapters.mongo.layout import (
    INSTANCES,
    SMALL,
    aggregate_of,
    claim_on,
    facts_of,
    key_of,
)
from sayiir_persist.adapters.mongo.shelf import Shelf
from sayiir_persist.driver import Extend, Extended, Take, Taken
from sayiir_persist.errors import BackendUnavailableError
from sayiir_persist.snapshot import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document
    from sayiir_persist.adapters.mongo.reads import Reads

_TRIES = 50


class Claims:
    """Claims in one namespace."""

    def __init__(
        self,
        connections: Connections,
        namespace: str,
        reads: Reads,
        now: Callable[[], Any],
    ) -> None:
        self._connections = connections
        self._namespace = namespace
        self._reads = reads
        self._now = now

    async def take(self, take: Take) -> Taken:
        """Claim one task."""
        for _ in range(_TRIES):
            document = await self._claimed(take)

            if document is not None:
                return Taken(
                    facts=facts_of(document, document["seen"]),
                    claim=claim_on(document, take.task_id),
                )

            found = await self._reads.look(take.instance_id)
            stored = found.document

            if stored is None or "status" not in stored:
                return Taken(facts=None)

            shelf = Shelf(stored["_id"], stored, {}, floor=0, now=found.now)
            taken = rules.take(aggregate_of(stored), take, shelf, found.now)

            if taken.claim is None or any(
                claim["fence"] == taken.claim.fence for claim in stored["claims"]
            ):
                return taken

        raise BackendUnavailableError("MongoDB: an instance was changed too often to be claimed")

    async def _claimed(self, take: Take) -> Document | None:
        now = self._now()
        query = {
            "_id": key_of(self._namespace, take.instance_id),
            "status": Status.IN_PROGRESS.value,
            "$expr": {"$and": [is_ready(take.task_id, now), is_unclaimed(take.task_id, now)]},
        }
        expiry = None if take.ttl is None else {"$add": [SEEN, take.ttl]}
        update = claiming(take.task_id, take.worker_id, take.nonce, take.tags, expiry, now)
        return await self._connections.find_and_update(INSTANCES, query, update, projection=SMALL)

    async def extend(self, extend: Extend) -> Extended:
        """Move the end of a claim."""
        for _ in range(_TRIES):
            document = await self._extended(extend)

            if document is not None:
                return Extended(
                    extended=True,
                    claim=claim_on(document, extend.key.task_id),
                    signals=facts_of(document, document["seen"]).signals,
                )

            found = await self._reads.look(extend.instance_id)
            stored = found.document
            aggregate = aggregate_of(stored) if stored and "status" in stored else None
            extended = rules.extend(aggregate, extend, found.now)

            if not extended.extended:
                return extended

        raise BackendUnavailableError("MongoDB: an instance was changed too often to be claimed")

    async def _extended(self, extend: Extend) -> Document | None:
        now = self._now()
        fence = extend.key.fence
        query = {
            "_id": key_of(self._namespace, extend.instance_id),
            "claims.fence": fence,
            "$expr": has_live_claim(extend.key.task_id, fence, now),
        }
        longer = {"$mergeObjects": ["$$c", {"to": {"$add": [SEEN, extend.ttl]}}]}
        moves = {"$and": [{"$eq": ["$$c.fence", fence]}, {"$ne": ["$$c.to", literal(None)]}]}
        claims = {
            "$map": {
                "input": "$claims",
                "as": "c",
                "in": {"$cond": [moves, longer, "$$c"]},
            }
        }
        update: list[Document] = [
            {"$set": {"rev": {"$add": ["$rev", 1]}, "seen": no_earlier(now)}},
            {"$set": {"claims": claims}},
            *placing(),
        ]
        return await self._connections.find_and_update(INSTANCES, query, update, projection=SMALL)
