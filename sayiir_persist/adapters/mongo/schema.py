"""Indexes and the version of the layout, declared in one place and made by whoever comes first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.mongo.layout import (
    CLOCK,
    INSTANCES,
    LANES,
    META,
    PAYLOADS,
    RESULTS,
)
from sayiir_persist.errors import BackendUnavailableError, SchemaVersionError

if TYPE_CHECKING:
    from sayiir_persist.adapters.mongo.connections import Connections

LAYOUT: Final = 1
"""Counts incompatible changes of the layout."""

EVER: Final = -(2**62)
"""Before all instants: what has one is in the index, what has none is not."""

_SOME: Final = {"$gte": EVER}
_TRIES: Final = 20

INDEXES: Final[dict[str, dict[str, dict[str, Any]]]] = {
    INSTANCES: {
        **{
            lane: {
                "key": {"ns": 1, lane: 1, "_id": 1},
                "partialFilterExpression": {lane: _SOME},
            }
            for lane in LANES
        },
        "by_status": {"key": {"ns": 1, "status": 1, "_id": 1}},
        "by_definition": {"key": {"ns": 1, "def": 1, "_id": 1}},
        "by_status_and_definition": {"key": {"ns": 1, "status": 1, "def": 1, "_id": 1}},
        "idle": {
            "key": {"ns": 1, "idle": 1, "_id": 1},
            "partialFilterExpression": {"idle": _SOME},
        },
        "signalled": {
            "key": {"ns": 1, "signalled": 1, "_id": 1},
            "partialFilterExpression": {"signalled": _SOME},
        },
        "purge": {
            "key": {"ns": 1, "purge": 1, "_id": 1},
            "partialFilterExpression": {"purge": _SOME},
        },
    },
    RESULTS: {
        "by_node": {"key": {"k": 1, "r.n": 1}},
        "pending": {
            "key": {"pending": 1},
            "partialFilterExpression": {"pending": _SOME},
        },
    },
    PAYLOADS: {
        "by_reference": {"key": {"ref": 1, "c": 1}},
        "by_instance": {"key": {"k": 1}},
        "pending": {
            "key": {"pending": 1},
            "partialFilterExpression": {"pending": _SOME},
        },
    },
}
"""By collection and name. No index of live data has a time to live."""


async def prepare(connections: Connections, *, migrate: bool) -> None:
    """See that everything is there, or make it.

    Any number of processes may do so at the same time.

    Raises:
        SchemaVersionError: It is of a newer layout, or `migrate` is off and something is missing.
    """
    if not await _is_of_this_layout(connections):
        if not migrate:
            raise SchemaVersionError(
                "MongoDB: the collections are not set up: open with migrate=True"
            )

        await _make(connections)
        return

    missing = await _missing(connections)

    if missing and not migrate:
        raise SchemaVersionError(f"MongoDB: indexes are missing: {', '.join(missing)}")

    if missing:
        await _make(connections)


async def _is_of_this_layout(connections: Connections) -> bool:
    found = await connections.aggregate(META, [{"$match": {"_id": CLOCK}}])
    layout = found[0]["layout"] if found else None

    if layout is not None and layout > LAYOUT:
        raise SchemaVersionError(
            f"MongoDB: the database has layout {layout}, this release knows {LAYOUT}"
        )

    return layout is not None


async def _missing(connections: Connections) -> list[str]:
    missing: list[str] = []

    for collection, indexes in INDEXES.items():
        reply = await connections.aggregate(collection, [{"$indexStats": {}}])
        there = {each["name"] for each in reply}
        missing += [f"{collection}.{name}" for name in indexes if name not in there]

    return missing


async def _make(connections: Connections) -> None:
    for collection, indexes in INDEXES.items():
        command = {
            "createIndexes": collection,
            "indexes": [{"name": name, **index} for name, index in indexes.items()],
            "writeConcern": {"w": "majority"},
        }
        await _until_made(connections, command)

    await connections.insert(META, {"_id": CLOCK, "layout": LAYOUT})


async def _until_made(connections: Connections, command: dict[str, Any]) -> None:
    """Another starter that builds the same may get in the way for a moment."""
    for attempt in range(_TRIES):
        try:
            await connections.command(command)
        except BackendUnavailableError:
            if attempt == _TRIES - 1:
                raise

            await asyncio.sleep(0.05)
        else:
            return
