"""Polls and sweeps: what is due, in the exact order of dispatch.

Each lane is an index of documents by the first instant in it, so that reading the first ones of a
lane shows the first entries: a document that was not read has none before the last one that was.
"""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec.structs import replace

from sayiir_persist.adapters.mongo.beside import Beside, MissingError
from sayiir_persist.adapters.mongo.expressions import (
    ALL_LANES,
    PLACED,
    SEEN,
    earliest,
    first_of_lane,
    is_idle,
    is_offered,
    literal,
    no_earlier,
)
from sayiir_persist.adapters.mongo.layout import (
    CLOCK,
    INSTANCES,
    LANES,
    META,
    SMALL,
    claim_of,
    id_of,
    key_of,
    results_of,
)
from sayiir_persist.adapters.mongo.leftovers import Leftovers
from sayiir_persist.adapters.mongo.reads import MOST_TRIES, Reads, input_of, view_of
from sayiir_persist.adapters.mongo.schema import EVER
from sayiir_persist.aggregate import ADVANCE_LANE
from sayiir_persist.dispatch import fits, order_key
from sayiir_persist.driver import ChoreList, Chores, Offer, Poll, Polled, Read
from sayiir_persist.errors import BackendError
from sayiir_persist.positions import INSTANCE_INPUT, ReadyReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document

_TASK_LANES: Final = range(1, 6)
_SLACK: Final = 1_000_000
"""By how much the server's clock may be ahead of what we expect before a poll asks again."""

_SPARE: Final = 8
_NEWS: Final = 50
_CLAIM_ROUNDS: Final = 20

Key = tuple[tuple[int, int], str, str]


class _Due(NamedTuple):
    key: Key
    document: Document
    entry: Document
    yields: bool


class _Lane:
    """What was read of one lane."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.documents: dict[str, Document] = {}
        self.last: Document | None = None
        self.is_exhausted = False

    @property
    def name(self) -> str:
        return LANES[self.number]

    def add(self, documents: Sequence[Document]) -> None:
        self.documents.update((document["_id"], document) for document in documents)
        self.is_exhausted = len(documents) < self.size

        if documents:
            self.last = documents[-1]

    def end(self, aging: int | None) -> tuple[tuple[int, int], str] | None:
        """Up to where nothing is left to read; `None`: all was read."""
        if self.is_exhausted or self.last is None:
            return None

        return order_key(self.number, self.last[self.name], aging), id_of(self.last["_id"])


class Dispatching:
    """What is due in one namespace."""

    def __init__(
        self,
        connections: Connections,
        namespace: str,
        reads: Reads,
        now: Callable[[], Any],
        *,
        exact_clock: Callable[[], int] | None = None,
    ) -> None:
        self._connections = connections
        self._namespace = namespace
        self._reads = reads
        self._now = now
        self._exact_clock = exact_clock
        self._known = (0, 0.0)
        self._beside = Beside(connections)
        self._leftovers = Leftovers(connections, namespace, now)

    # --- Finding ---

    async def poll(self, query: Poll) -> Polled:
        """Find due work, and claim it if that is asked for."""
        if query.claim:
            return await self._acquire(query)

        for _ in range(MOST_TRIES):
            now, advances, chosen = await self._choose(query, full=True)

            if advances:
                return Polled(advances=advances, offers=())

            try:
                pairs = [(due.document, due.entry, None) for due in chosen]
                return Polled(advances=(), offers=await self._offers(query, pairs, now))
            except MissingError:
                continue

        raise BackendError("MongoDB: an instance refers to a payload that is not there")

    async def recent(self, since: int) -> tuple[int, list[Document]]:
        """The time, and the last entries that became available from `since` on.

        Each is an `_id`, an incarnation, an instant and what a hint says.
        """
        bound = self._bound()
        branches: list[Document] = []

        for lane in _TASK_LANES:
            name = LANES[lane]
            due: Document = {
                "ns": self._namespace,
                name: {"$gte": since, "$lte": bound},
                "$expr": {"$lte": [f"${name}", self._now()]},
            }
            stages: list[Document] = [
                {"$match": due},
                {"$sort": {name: -1, "_id": -1}},
                {"$limit": _NEWS},
                {"$project": {"inc": 1, "entries": 1}},
                {"$unwind": "$entries"},
                {"$match": {"entries.lane": lane, "entries.at": {"$gte": since}}},
                {"$project": {"inc": 1, "at": "$entries.at", "hint": "$entries.hint"}},
            ]
            branches.append({"$unionWith": {"coll": INSTANCES, "pipeline": stages}})

        clock, *found = await self._connections.aggregate(
            META, [{"$match": {"_id": CLOCK}}, {"$project": {"now": self._now()}}, *branches]
        )
        now = int(clock["now"])
        self._known = (now, asyncio.get_running_loop().time())
        return now, [each for each in found if each["at"] <= now]

    async def _choose(self, query: Poll, *, full: bool) -> tuple[int, tuple[str, ...], list[_Due]]:
        """The store's time, due advances, or what is to be offered in order."""
        spare = 0 if full else _SPARE
        lanes = [_Lane(number, query.limit + spare) for number in _TASK_LANES]
        now, advances = await self._read(query, lanes, full=full, advances=query.advances)

        while not advances:
            chosen, blocking = _chosen(query, lanes, now)

            if not blocking:
                return now, (), chosen

            for lane in blocking:
                lane.size *= 4

            again, _ = await self._read(query, blocking, full=full, advances=0)
            now = max(now, again)

        return now, advances, []

    async def _read(
        self, query: Poll, lanes: Sequence[_Lane], *, full: bool, advances: int
    ) -> tuple[int, tuple[str, ...]]:
        while True:
            bound = self._bound()
            pipeline: list[Document] = [
                {"$match": {"_id": CLOCK}},
                {"$project": {"now": self._now()}},
            ]

            if advances:
                pipeline.append(self._advances(query, advances, bound))

            pipeline += [self._lane(query, lane, bound, full=full) for lane in lanes]
            clock, *found = await self._connections.aggregate(META, pipeline)
            now = int(clock["now"])
            self._known = (now, asyncio.get_running_loop().time())

            if now <= bound:
                break

        moved = tuple(id_of(each["_id"]) for each in found if each["of"] == ADVANCE_LANE)

        for lane in lanes:
            lane.add([each for each in found if each["of"] == lane.number])

        return now, moved

    def _bound(self) -> int:
        """Not before the server's time, as far as we know; a bound for the index alone."""
        if self._exact_clock is not None:
            return self._exact_clock() + _SLACK

        now, at = self._known

        if not now:
            return 2**62

        return now + int((asyncio.get_running_loop().time() - at) * 1_000_000) + _SLACK

    def _advances(self, query: Poll, limit: int, bound: int) -> Document:
        stages: list[Document] = [
            {"$match": self._due(query, LANES[ADVANCE_LANE], bound)},
            {"$sort": {LANES[ADVANCE_LANE]: 1, "_id": 1}},
            {"$limit": limit},
            {"$project": {"of": literal(ADVANCE_LANE)}},
        ]
        return {"$unionWith": {"coll": INSTANCES, "pipeline": stages}}

    def _due(self, query: Poll, lane: str, bound: int) -> Document:
        due: Document = {
            "ns": self._namespace,
            lane: {"$gte": EVER, "$lte": bound},
            "$expr": {"$lte": [f"${lane}", self._now()]},
        }

        if query.definitions is not None:
            due["def"] = {"$in": list(query.definitions)}

        if query.exclude:
            due["_id"] = {"$nin": [key_of(self._namespace, each) for each in query.exclude]}

        return due

    def _lane(self, query: Poll, lane: _Lane, bound: int, *, full: bool) -> Document:
        conditions = [self._due(query, lane.name, bound)]

        if query.tags:
            accepted = {"$not": {"$elemMatch": {"$nin": list(query.tags)}}}
            fitting = {"lane": lane.number, "tags": accepted}
            conditions.append({"entries": {"$elemMatch": fitting}})

        if lane.last is not None:
            at, key = lane.last[lane.name], lane.last["_id"]
            conditions[0][lane.name]["$gte"] = at
            conditions.append(
                {"$or": [{lane.name: {"$gt": at}}, {lane.name: at, "_id": {"$gt": key}}]}
            )

        shown: Document = {**SMALL, "of": literal(lane.number)}
        stages: list[Document] = [
            {"$match": {"$and": conditions}},
            {"$sort": {lane.name: 1, "_id": 1}},
            {"$limit": lane.size},
        ]

        if full:
            shown = {"ids": 0, "popped": 0, "queue.data": 0}

            if not query.results:
                wanted = {"$in": ["$$r.n", "$entries.input"]}
                tail = {"$filter": {"input": "$tail", "as": "r", "cond": wanted}}
                stages.append({"$set": {"tail": tail}})
        else:
            shown = {"entries": 1, lane.name: 1, "moved": 1, "large": 1}

        stages += [
            {"$project": shown},
            {"$set": {"of": lane.number, "now": no_earlier(self._now())}},
        ]
        return {"$unionWith": {"coll": INSTANCES, "pipeline": stages}}

    async def _offers(
        self,
        query: Poll,
        found: Sequence[tuple[Document, Document, Document | None]],
        now: int,
    ) -> tuple[Offer, ...]:
        """Offers of documents in full, with an entry each, and the claim if there is one.

        Raises:
            MissingError: Something beside a document is gone.
        """
        del now
        segments: dict[str, list[Document]] = {}
        beside = [document for document, _, _ in found if document["moved"] or document["large"]]

        if beside:
            await self._add_segments(query, found, beside, segments)

        offers: list[Offer] = []

        for document, entry, claim in found:
            results = results_of(document, segments.get(document["_id"], ()))
            read = Read(instance_id=id_of(document["_id"]), results=query.results)
            view = view_of(read, document, results if query.results else None)
            given = input_of(entry, document, results)
            [resolved] = await self._beside.resolve([given])
            offers.append(
                Offer(
                    view=await self._reads.resolved(view),
                    task_id=entry["node"],
                    reason=ReadyReason(entry["reason"]),
                    input=resolved,
                    claim=claim_of(claim) if claim else None,
                )
            )

        return tuple(offers)

    async def _add_segments(
        self,
        query: Poll,
        found: Sequence[tuple[Document, Document, Document | None]],
        beside: Sequence[Document],
        segments: dict[str, list[Document]],
    ) -> None:
        nodes: set[str] | None = None

        if not query.results:
            shown = {
                document["_id"]: {result["n"] for result in document["tail"]}
                for document, _, _ in found
            }
            nodes = {
                entry["input"]
                for document, entry, _ in found
                if entry["input"] not in {None, INSTANCE_INPUT, *shown[document["_id"]]}
            }

            if not nodes:
                return

        keys = list({document["_id"] for document in beside})

        for segment in await self._reads.segments(keys, nodes):
            segments.setdefault(segment["k"], []).append(segment)

        again = await self._connections.aggregate(
            INSTANCES, [{"$match": {"_id": {"$in": keys}}}, {"$project": {"inc": 1}}]
        )
        still = {each["_id"]: each.get("inc") for each in again}

        if any(still.get(document["_id"]) != document["inc"] for document in beside):
            raise MissingError

    # --- Claiming ---

    async def _acquire(self, query: Poll) -> Polled:
        won: list[tuple[Document, Document, Document | None]] = []
        number = 0
        now = 0

        for _ in range(_CLAIM_ROUNDS):
            wanted = query.limit - len(won)
            advances_wanted = query.advances if not won else 0
            narrowed = _narrowed(query, wanted, advances_wanted)
            now, advances, chosen = await self._choose(narrowed, full=False)

            if advances:
                return Polled(advances=advances, offers=())

            if not chosen:
                break

            got = await self._claim(query, chosen, number)
            number += len(chosen)
            won += got

            if len(won) >= query.limit or (len(got) == len(chosen) and len(chosen) < wanted):
                break

        for _ in range(MOST_TRIES):
            try:
                return Polled(advances=(), offers=await self._offers(query, won, now))
            except MissingError:
                won = await self._held(query, won)

        raise BackendError("MongoDB: an instance refers to a payload that is not there")

    async def _claim(
        self, query: Poll, chosen: Sequence[_Due], number: int
    ) -> list[tuple[Document, Document, Document | None]]:
        """Claim what may still be claimed: one write for all, and one read of what was won."""
        wishes = {f"{query.nonce}.{number + place}": due for place, due in enumerate(chosen)}
        statements = [
            {"q": self._claimable(due), "u": self._claiming(query, due, nonce)}
            for nonce, due in wishes.items()
        ]
        updated = await self._connections.update_each(INSTANCES, statements)

        if not updated.matched:
            return []

        keys = list({due.document["_id"] for due in chosen})
        documents = await self._documents(query, keys)
        won: list[tuple[Document, Document, Document | None]] = []

        for nonce, due in wishes.items():
            document = documents.get(due.document["_id"])
            pair = _claimed(document, due.entry["node"], nonce) if document else None

            if document is not None and pair is not None:
                won.append((document, *pair))

        return won

    async def _held(
        self, query: Poll, won: Sequence[tuple[Document, Document, Document | None]]
    ) -> list[tuple[Document, Document, Document | None]]:
        """What is still ours of what was won, read again."""
        documents = await self._documents(query, [document["_id"] for document, _, _ in won])
        held: list[tuple[Document, Document, Document | None]] = []

        for old, entry, claim in won:
            document = documents.get(old["_id"])
            nonce = claim["nonce"] if claim else ""
            pair = _claimed(document, entry["node"], nonce) if document else None

            if document is not None and pair is not None:
                held.append((document, *pair))

        return held

    async def _documents(self, query: Poll, keys: Sequence[str]) -> dict[str, Document]:
        stages: list[Document] = [
            {"$match": {"_id": {"$in": list(keys)}, "status": {"$exists": True}}}
        ]

        if not query.results:
            wanted = {"$in": ["$$r.n", "$entries.input"]}
            tail = {"$filter": {"input": "$tail", "as": "r", "cond": wanted}}
            stages.append({"$set": {"tail": tail}})

        stages += [
            {"$project": {"ids": 0, "popped": 0, "queue.data": 0}},
            {"$set": {"now": no_earlier(self._now())}},
        ]
        found = await self._connections.aggregate(INSTANCES, stages)
        return {document["_id"]: document for document in found}

    def _claimable(self, due: _Due) -> Document:
        node = due.entry["node"]
        return {
            "_id": due.document["_id"],
            "entries": {"$elemMatch": {"node": node, "lane": due.entry["lane"]}},
            "$expr": is_offered(node, self._now()),
        }

    def _claiming(self, query: Poll, due: _Due, nonce: str) -> list[Document]:
        """As `claiming`, where it is known in which lane the entry is."""
        node, lane = due.entry["node"], due.entry["lane"]
        expiry = None if query.ttl is None else {"$add": [SEEN, query.ttl]}
        at = None if expiry is None else {"$max": ["$$e.due", expiry]}
        is_it = {"$and": [{"$eq": ["$$e.node", literal(node)]}, {"$eq": ["$$e.lane", lane]}]}
        entries = {
            "$map": {
                "input": "$entries",
                "as": "e",
                "in": {"$cond": [is_it, {"$mergeObjects": ["$$e", {"at": at}]}, "$$e"]},
            }
        }
        stages = on_record(node, query.worker_id, nonce, query.worker_tags, expiry, self._now())
        stages[1]["$set"]["entries"] = entries
        return [*stages, {"$set": {LANES[lane]: first_of_lane(lane)}}]

    # --- Sweeping ---

    async def chores(self, query: Chores) -> ChoreList:
        """What a sweep has to do."""
        wanted = query.limit + 1
        excluded = [key_of(self._namespace, each) for each in query.exclude]

        def branch(field: str) -> Document:
            match: Document = {
                "ns": self._namespace,
                field: {"$gte": EVER},
                "_id": {"$nin": excluded},
                "$expr": {
                    "$and": [{"$lte": [f"${field}", no_earlier(self._now())]}, is_idle(self._now())]
                },
            }
            stages: list[Document] = [
                {"$match": match},
                {"$sort": {field: 1, "_id": 1}},
                {"$limit": wanted},
                {"$project": {"since": f"${field}"}},
            ]
            return {"$unionWith": {"coll": INSTANCES, "pipeline": stages}}

        _, *found = await self._connections.aggregate(
            META,
            [
                {"$match": {"_id": CLOCK}},
                {"$project": {"now": self._now()}},
                branch("signalled"),
                branch(LANES[ADVANCE_LANE]),
            ],
        )
        found.sort(key=itemgetter("since", "_id"))
        due = tuple(dict.fromkeys(id_of(each["_id"]) for each in found))
        purged, more = await self._purge(query)
        await self._leftovers.clear()
        return ChoreList(
            instances=due[: query.limit],
            purged=purged,
            more=more or len(due) > query.limit,
        )

    async def _purge(self, query: Chores) -> tuple[int, bool]:
        """Drop claims that ended long ago: how many, and whether there are more."""
        before = {"$subtract": [self._now(), query.purge_after]}
        stages: list[Document] = [
            {
                "$match": {
                    "ns": self._namespace,
                    "purge": {"$gte": EVER, "$lte": self._bound()},
                    "$expr": {"$lte": ["$purge", before]},
                }
            },
            {"$sort": {"purge": 1, "_id": 1}},
            {"$limit": query.limit + 1},
            {"$project": {"claims": 1, "rev": 1, "before": before}},
        ]
        found = await self._connections.aggregate(INSTANCES, stages)
        purged, more = 0, len(found) > query.limit
        statements: list[Document] = []

        for document in found:
            ended = [
                claim["fence"]
                for claim in document["claims"]
                if claim["to"] is not None and claim["to"] <= document["before"]
            ]
            dropped = ended[: query.limit - purged]
            more = more or len(dropped) < len(ended)
            purged += len(dropped)

            if dropped or not ended:
                query_ = {"_id": document["_id"], "rev": document["rev"]}
                statements.append({"q": query_, "u": _purging(dropped, self._now())})

        if statements:
            updated = await self._connections.update_each(INSTANCES, statements)

            if updated.matched < len(statements):
                return min(purged, updated.matched), True

        return purged, more


def _narrowed(query: Poll, limit: int, advances: int) -> Poll:
    return replace(query, limit=limit, advances=advances)


def _chosen(query: Poll, lanes: Sequence[_Lane], now: int) -> tuple[list[_Due], list[_Lane]]:
    """What to offer, or the lanes of which more has to be read to know."""
    ends = {lane.number: end for lane in lanes if (end := lane.end(query.aging))}
    horizon = min(ends.values(), default=None)
    chosen: list[_Due] = []
    yielding: list[_Due] = []

    for due in sorted(_all_due(query, lanes, now), key=itemgetter(0)):
        if len(chosen) >= query.limit:
            break

        if horizon is not None and due.key[:2] > horizon:
            return [], [lane for lane in lanes if ends.get(lane.number) == horizon]

        (yielding if due.yields else chosen).append(due)

    if len(chosen) < query.limit and horizon is not None:
        return [], [lane for lane in lanes if ends.get(lane.number) == horizon]

    return (chosen + yielding)[: query.limit], []


def _all_due(query: Poll, lanes: Iterable[_Lane], now: int) -> Iterable[_Due]:
    for lane in lanes:
        for document in lane.documents.values():
            instance_id = id_of(document["_id"])

            for entry in document["entries"]:
                at = entry["at"]

                if entry["lane"] != lane.number or at is None or at > now:
                    continue

                if not fits(entry["tags"], query.tags):
                    continue

                key = (order_key(lane.number, at, query.aging), instance_id, entry["node"])
                yields = entry["avoid"] == query.worker_id and now - at < query.bias
                yield _Due(key, document, entry, yields)


def _claimed(document: Document, node: str, nonce: str) -> tuple[Document, Document] | None:
    claim = next((claim for claim in document["claims"] if claim["nonce"] == nonce), None)
    entry = next(
        (entry for entry in document["entries"] if entry["task"] and entry["node"] == node), None
    )
    return (entry, claim) if claim is not None and entry is not None else None


def claiming(
    node: str,
    worker_id: str,
    nonce: str,
    tags: Sequence[str],
    expiry: Any,
    now: Any,
) -> list[Document]:
    """The update that puts a claim on record, in the place of an expired one."""
    return [*on_record(node, worker_id, nonce, tags, expiry, now), *placing()]


def on_record(
    node: str,
    worker_id: str,
    nonce: str,
    tags: Sequence[str],
    expiry: Any,
    now: Any,
) -> list[Document]:
    """The stages that change nothing but the claims themselves."""
    others = {
        "$filter": {
            "input": "$claims",
            "as": "c",
            "cond": {"$ne": ["$$c.task", literal(node)]},
        }
    }
    fixed = {"task": node, "worker": worker_id, "nonce": nonce, "tags": list(tags)}
    claim = {
        "$mergeObjects": [
            literal(fixed),
            {"fence": {"$add": ["$fence", 1]}, "from": SEEN, "to": expiry},
        ]
    }
    return [
        {"$set": {"rev": {"$add": ["$rev", 1]}, "seen": no_earlier(now)}},
        {
            "$set": {
                "claims": {"$concatArrays": [others, [claim]]},
                "fence": {"$add": ["$fence", 1]},
                "purge": {"$min": ["$purge", expiry]},
            }
        },
    ]


def placing() -> list[Document]:
    """The stages that bring entries and lanes in line with claims, signals and events."""
    return [{"$set": {"entries": PLACED}}, {"$set": ALL_LANES}]


def _purging(fences: Sequence[int], now: Any) -> list[Document]:
    left = {
        "$filter": {
            "input": "$claims",
            "as": "c",
            "cond": {"$not": [{"$in": ["$$c.fence", list(fences)]}]},
        }
    }
    return [
        {
            "$set": {
                "rev": {"$add": ["$rev", 1]},
                "seen": no_earlier(now),
                "claims": left,
            }
        },
        {"$set": {"purge": earliest("claims", "to")}},
        *placing(),
    ]
