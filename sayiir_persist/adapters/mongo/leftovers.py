"""What a crash left beside documents: found by sweeps, and never seen by anybody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.mongo.beside import Beside
from sayiir_persist.adapters.mongo.layout import INSTANCES, META, PAYLOADS, RESULTS, SMALL
from sayiir_persist.adapters.mongo.schema import EVER
from sayiir_persist.adapters.mongo.shelf import is_reference, references_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document

PATIENCE: Final = 3600 * 1_000_000
"""In microseconds: longer than any write takes from what is beside to the document."""

_AT_ONCE: Final = 50
_REFERRING: Final = {name: 0 for name in SMALL if name in {"ids", "log"}}


class Leftovers:
    """Removes what belongs to no document of one namespace."""

    def __init__(self, connections: Connections, namespace: str, now: Callable[[], Any]) -> None:
        self._connections = connections
        self._keys = {"$gt": f"{namespace}/", "$lt": f"{namespace}0"}
        self._graves = {"$gt": f"grave/{namespace}/", "$lt": f"grave/{namespace}0"}
        self._now = now
        self._beside = Beside(connections)

    async def clear(self) -> None:
        """Look at some that are old, and remove or keep each for good."""
        before = {"$subtract": [self._now(), PATIENCE]}
        old = {
            "k": self._keys,
            "pending": {"$gte": EVER},
            "$expr": {"$lte": ["$pending", before]},
        }
        graves = {"_id": self._graves, "$expr": {"$lte": ["$at", before]}}
        shown = {"d": 0, "r": 0}
        found = await self._connections.aggregate(
            META,
            [
                {"$match": graves},
                {"$limit": _AT_ONCE},
                {"$set": {"of": META}},
                *(
                    {
                        "$unionWith": {
                            "coll": collection,
                            "pipeline": [
                                {"$match": old},
                                {"$limit": _AT_ONCE},
                                {"$project": shown},
                                {"$set": {"of": collection}},
                            ],
                        }
                    }
                    for collection in (PAYLOADS, RESULTS)
                ),
            ],
        )

        for each in found:
            if each["of"] == META:
                await self._fill(each)

        await self._judge([each for each in found if each["of"] != META])

    async def _fill(self, grave: Document) -> None:
        """Finish a deletion; one that never came to remove its document never happened."""
        shown = [{"$match": {"_id": grave["k"]}}, {"$project": {"inc": 1}}]
        still = await self._connections.aggregate(INSTANCES, shown)

        if not still or still[0].get("inc") != grave["inc"]:
            await self._beside.clear(grave["k"], grave["inc"])

        await self._beside.close(grave["_id"])

    async def _judge(self, pending: Sequence[Document]) -> None:
        for key in dict.fromkeys(each["k"] for each in pending):
            mine = [each for each in pending if each["k"] == key]
            stages = [{"$match": {"_id": key}}, {"$project": _REFERRING}]
            found = await self._connections.aggregate(INSTANCES, stages)
            document = found[0] if found else None
            references = references_in(document) | await self._moved(key)

            for each in mine:
                await self._settle(each, document, references)

    async def _moved(self, key: str) -> set[str]:
        """What segments refer to."""
        segments = await self._connections.aggregate(
            RESULTS, [{"$match": {"k": key}}, {"$project": {"o": "$r.o"}}]
        )
        return {
            output["ref"] for segment in segments for output in segment["o"] if is_reference(output)
        }

    async def _settle(
        self, each: Document, document: Document | None, references: set[str]
    ) -> None:
        if each["of"] == PAYLOADS:
            is_used = each["ref"] in references
        else:
            is_used = (
                document is not None
                and document.get("inc") == each["inc"]
                and each["w"] in document["large"]
            )

        if not is_used:
            await self._connections.delete_one(each["of"], {"_id": each["_id"]})
            return

        await self._connections.find_and_update(
            each["of"], {"_id": each["_id"]}, [{"$unset": "pending"}], projection={"_id": 1}
        )
