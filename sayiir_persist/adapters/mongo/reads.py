"""Reading instances: each in one command, which sees the document first and what is beside later.

Nothing that a document shows is removed from beside it before the document itself moves on, and a
segment holds nothing but results that were stored. So a reader that finds the document unchanged
in its incarnation at the end has seen every result of the version that it read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec.structs import replace

from sayiir_persist.adapters.mongo.beside import Beside, MissingError
from sayiir_persist.adapters.mongo.expressions import SEEN
from sayiir_persist.adapters.mongo.layout import (
    CLOCK,
    INSTANCES,
    META,
    RESULTS,
    facts_of,
    floor_of,
    heads_of,
    key_of,
    results_of,
)
from sayiir_persist.driver import Head, Read, View
from sayiir_persist.errors import BackendError
from sayiir_persist.positions import INSTANCE_INPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document

MOST_TRIES: Final = 50


class Found(NamedTuple):
    """All that a decision needs to know of an instance id."""

    now: int
    floor: int
    document: Document | None
    results: dict[str, Any]


class Reads:
    """Reads of one namespace.

    Args:
        connections: Where commands go.
        namespace: The only one that is seen.
        now: Gives the expression of the time.
    """

    def __init__(self, connections: Connections, namespace: str, now: Callable[[], Any]) -> None:
        self._connections = connections
        self._namespace = namespace
        self._now = now
        self._beside = Beside(connections)

    async def time(self) -> int:
        """The server's time."""
        [clock] = await self._connections.aggregate(META, [self._clock(), self._time()])
        return int(clock["now"])

    def _clock(self) -> Document:
        return {"$match": {"_id": CLOCK}}

    def _time(self) -> Document:
        return {"$project": {"now": self._now()}}

    async def floor(self) -> int:
        """Above which the fences of a new document begin."""
        query = [{"$match": {"_id": floor_of(self._namespace)}}]
        found = await self._connections.aggregate(META, query)
        return int(found[0]["fence"]) if found else 0

    async def look(self, instance_id: str, nodes: Collection[str] = ()) -> Found:
        """Read everything that `carry_out` may ask for; payloads may be references.

        Args:
            instance_id: Which.
            nodes: Whose results are wanted.
        """
        key, floor = key_of(self._namespace, instance_id), floor_of(self._namespace)
        pipeline: list[Document] = [
            {"$match": {"_id": {"$in": [CLOCK, floor]}}},
            {"$project": {"now": self._now(), "fence": 1}},
            {"$unionWith": {"coll": INSTANCES, "pipeline": [{"$match": {"_id": key}}]}},
        ]

        if nodes:
            pipeline.append(_segments_of([key], nodes))

        now = fence = 0
        document: Document | None = None
        segments: list[Document] = []

        for each in await self._connections.aggregate(META, pipeline):
            if each["_id"] == CLOCK:
                now = each["now"]
            elif each["_id"] == floor:
                fence = each["fence"]
            elif "k" in each:
                segments.append(each)
            else:
                document = each

        results: dict[str, Any] = {}

        if document is not None:
            now = max(now, document["seen"])

            if "status" in document:
                results = results_of(document, segments, nodes)

        return Found(now, fence, document, results)

    async def view(self, read: Read) -> View | None:
        """Read one instance as it is asked for."""
        for _ in range(MOST_TRIES):
            try:
                return await self._view(read)
            except MissingError:
                continue  # it went, or moved on, while it was read

        raise BackendError("MongoDB: an instance refers to a payload that is not there")

    async def _view(self, read: Read) -> View | None:
        key = key_of(self._namespace, read.instance_id)
        wanted = None if isinstance(read.results, bool) else set(read.results)
        segments_wanted = read.results is True or bool(wanted)
        pipeline: list[Document] = [
            {"$match": {"_id": key, "status": {"$exists": True}}},
            {"$set": {"now": {"$max": [self._now(), SEEN]}}},
            {"$project": _projection(read)},
        ]

        if segments_wanted:
            again = [
                {"$match": {"_id": key}},
                {"$project": {"_id": 0, "still": "$inc"}},
            ]
            pipeline += [
                _segments_of([key], wanted),
                {"$unionWith": {"coll": INSTANCES, "pipeline": again}},
            ]

        found = await self._connections.aggregate(INSTANCES, pipeline)

        if not found or "ns" not in found[0]:
            return None

        document, *beside = found

        if segments_wanted and (not beside or beside.pop().get("still") != document["inc"]):
            raise MissingError

        results: dict[str, Any] | None = None

        if read.results is not False:
            results = results_of(document, beside, wanted)

        return await self.resolved(view_of(read, document, results))

    async def resolved(self, view: View) -> View:
        """The view with payloads in the place of references.

        Raises:
            MissingError: One is gone.
        """
        results, heads = view.results or {}, view.heads
        values: list[Any] = [
            view.body,
            view.input,
            *results.values(),
            *(head.payload for head in heads.values()),
        ]

        if not any(isinstance(value, dict) for value in values):
            return view

        body, given, *rest = await self._beside.resolve(values)
        outputs, payloads = rest[: len(results)], rest[len(results) :]
        return replace(
            view,
            body=body,
            input=given,
            results=None if view.results is None else dict(zip(results, outputs, strict=True)),
            heads={
                name: Head(head.number, head.arrived_at, payload)
                for (name, head), payload in zip(heads.items(), payloads, strict=True)
            },
        )

    async def segments(self, keys: Sequence[str], nodes: Collection[str] | None) -> list[Document]:
        """Results that were moved beside several documents."""
        stage = _segments_of(keys, nodes)["$unionWith"]["pipeline"]
        return await self._connections.aggregate(RESULTS, stage)


def _projection(read: Read) -> Document:
    hidden: Document = {"ids": 0, "popped": 0}

    if not read.body:
        hidden.update(body=0, input=0)

    if not read.payloads:
        hidden["queue.data"] = 0

    if read.results is False:
        hidden["tail"] = 0

    return hidden


def _segments_of(keys: Sequence[str], nodes: Collection[str] | None) -> Document:
    """The segments of instances; of these nodes alone, or all."""
    owner: Any = keys[0] if len(keys) == 1 else {"$in": list(keys)}
    stages: list[Document] = [{"$match": {"k": owner}}]

    if nodes is not None:
        names = list(nodes)
        wanted = {
            "$filter": {
                "input": "$r",
                "as": "r",
                "cond": {"$in": ["$$r.n", {"$literal": names}]},
            }
        }
        stages = [
            {"$match": {"k": owner, "r.n": {"$in": names}}},
            {"$set": {"r": wanted}},
        ]

    return {"$unionWith": {"coll": RESULTS, "pipeline": stages}}


def view_of(read: Read, document: Document, results: dict[str, Any] | None) -> View:
    """A document as a view; payloads may be references."""
    now = document["now"]
    return View(
        instance_id=read.instance_id,
        now=now,
        facts=facts_of(document, now),
        body=document["body"] if read.body else b"",
        body_at=document["body_at"],
        priority=document["prio"],
        tags=tuple(document["tags"]),
        input=document["input"] if read.body else None,
        done=frozenset(entry["node"] for entry in document["entries"] if entry["done"]),
        results=results,
        heads=heads_of(document, payloads=read.payloads),
    )


def input_of(entry: Document, document: Document, results: dict[str, Any]) -> Any:
    """The input of an entry's task; may be a reference."""
    name = entry["input"]

    if name is None:
        return None

    return document["input"] if name == INSTANCE_INPUT else results.get(name)
