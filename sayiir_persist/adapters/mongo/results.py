"""Moving results from the tail of a document to a segment beside it.

A segment is made of stored results, by the server, before the tail gives them up: whoever reads
the document first and the segments afterwards sees each at least once. A crash in between leaves
results that are there twice, which is as good as once, since each says its version.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sayiir_persist.adapters.mongo.layout import INSTANCES, RESULTS, TAIL_BYTES, TAIL_COUNT
from sayiir_persist.errors import BackendError

if TYPE_CHECKING:
    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document

logger: logging.Logger = logging.getLogger(__name__)

_PER_RESULT: Final = 300
"""What a result weighs beside its output, at most, where it is weighed anew."""


def is_full(document: Document) -> bool:
    """Whether the tail has to be moved."""
    return bool(document["tail_n"] >= TAIL_COUNT or document["tail_b"] >= TAIL_BYTES)


async def move_tail(connections: Connections, document: Document) -> None:
    """Move what a document's version covers; if that fails, the next write tries again."""
    try:
        await _copy(connections, document)
        await _cut(connections, document)
    except BackendError as error:
        logger.warning(
            "results stay in their instance for now",
            extra={"backend": "mongo", "error": type(error).__name__},
        )


async def _copy(connections: Connections, document: Document) -> None:
    key, incarnation, version = document["_id"], document["inc"], document["ver"]
    covered = {"$filter": {"input": "$tail", "as": "r", "cond": {"$lte": ["$$r.v", version]}}}
    segment = {
        "_id": {"$literal": f"{key}/{incarnation}/{version}"},
        "k": "$_id",
        "inc": 1,
        "w": {"$literal": None},
        "r": covered,
    }
    into = {
        "into": RESULTS,
        "on": "_id",
        "whenMatched": "keepExisting",
        "whenNotMatched": "insert",
    }
    await connections.merge(
        INSTANCES,
        [
            {"$match": {"_id": key, "inc": incarnation}},
            {"$project": segment},
            {"$merge": into},
        ],
    )


async def _cut(connections: Connections, document: Document) -> None:
    left = {"$filter": {"input": "$tail", "as": "r", "cond": {"$gt": ["$$r.v", document["ver"]]}}}
    is_inline = {"$eq": [{"$type": "$$r.o"}, "binData"]}
    weight = {"$add": [_PER_RESULT, {"$cond": [is_inline, {"$binarySize": "$$r.o"}, 0]}]}
    weights = {"$map": {"input": "$tail", "as": "r", "in": weight}}
    await connections.find_and_update(
        INSTANCES,
        {"_id": document["_id"], "inc": document["inc"]},
        [
            {"$set": {"tail": left, "moved": True, "rev": {"$add": ["$rev", 1]}}},
            {"$set": {"tail_n": {"$size": "$tail"}, "tail_b": {"$sum": weights}}},
        ],
        projection={"_id": 1},
    )
