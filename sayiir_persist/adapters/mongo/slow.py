"""Writes that are decided here: read the document, carry the unit out, write it back if unchanged.

This is what rare units cost (restart, deletion, large payloads), and how a refusal is explained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from sayiir_persist import aggregate as rules
from sayiir_persist.adapters.mongo.beside import Beside, MissingError
from sayiir_persist.adapters.mongo.expressions import has_live_claim
from sayiir_persist.adapters.mongo.layout import (
    INSTANCES,
    META,
    aggregate_of,
    floor_of,
    hint_text,
    key_of,
)
from sayiir_persist.adapters.mongo.shelf import (
    Shelf,
    is_reference,
    references_among,
    references_in,
)
from sayiir_persist.errors import BackendUnavailableError, OutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document
    from sayiir_persist.adapters.mongo.listener import Listener
    from sayiir_persist.adapters.mongo.reads import Found, Reads
    from sayiir_persist.driver import Answer, Unit

MOST_TRIES: Final = 200


class SlowWrites:
    """Carries out any unit, in two or more trips."""

    def __init__(
        self,
        connections: Connections,
        namespace: str,
        reads: Reads,
        listener: Listener,
        now: Callable[[], Any],
    ) -> None:
        self._connections = connections
        self._namespace = namespace
        self._reads = reads
        self._listener = listener
        self._now = now
        self._beside = Beside(connections)

    async def carry_out(self, unit: Unit) -> Answer:
        """Carry out one unit."""
        for _ in range(MOST_TRIES):
            found = await self._reads.look(unit.instance_id, _nodes_of(unit))

            try:
                answer = await self._attempt(unit, found)
            except MissingError:
                continue

            if answer is not None:
                return answer

        raise BackendUnavailableError("MongoDB: an instance was changed too often to be written")

    async def _attempt(self, unit: Unit, found: Found) -> Answer | None:
        """Carry the unit out on what was found; `None`: somebody else has changed it since."""
        document = found.document
        key = key_of(self._namespace, unit.instance_id)
        aggregate = aggregate_of(document) if document and "status" in document else None
        results = found.results

        if unit.record is not None:
            outputs = await self._beside.resolve(list(results.values()))
            results = dict(zip(results, outputs, strict=True))

        shelf = Shelf(key, document, results, floor=found.floor, now=found.now)
        outcome = rules.carry_out(aggregate, unit, shelf, found.now)
        answer = await self._completed(outcome.answer)

        if outcome.changed and not await self._store(unit, found, shelf, outcome):
            return None

        return answer

    async def _completed(self, answer: Answer) -> Answer:
        """With payloads in the place of references, before a write may drop them."""
        payloads: list[Any] = [answer.input, answer.event]

        if any(map(is_reference, payloads)):
            given, event = await self._beside.resolve(payloads)
            answer = replace(answer, input=given, event=event)

        if answer.view is not None:
            answer = replace(answer, view=await self._reads.resolved(answer.view))

        return answer

    async def _store(self, unit: Unit, found: Found, shelf: Shelf, outcome: rules.Outcome) -> bool:
        new = shelf.document(outcome.aggregate)
        old = found.document

        if new is None:
            return old is None or await self._remove(old, found)

        if outcome.hints and outcome.aggregate is not None:
            texts = (
                hint_text(entry.node_id, outcome.aggregate.definition_hash, list(entry.tags))
                for entry in outcome.hints
            )
            new["hint"], new["hinted"] = f"{new['rev']}\n" + "\n".join(texts), new["rev"]

        grave = await self._dig(old, found) if _is_another(old, new) else None
        await self._beside.put(shelf.payloads, shelf.segments)

        try:
            written = await self._write(unit, old, new)
        except OutcomeUnknownError:
            raise  # what is beside may be in use: a sweep finds out
        except BaseException:
            await self._beside.withdraw(shelf.payloads, shelf.segments)
            raise

        if not written:
            await self._beside.withdraw(shelf.payloads, shelf.segments)
        elif grave and old is not None:
            await self._beside.clear(old["_id"], old["inc"], references_in(old))
        elif old is not None:
            moved = references_among(segment["r"] for segment in shelf.segments)
            await self._beside.drop(references_in(old) - references_in(new) - moved)

        if grave:
            await self._beside.close(grave)

        if written and new.get("hinted") == new["rev"]:
            self._listener.publish(new)

        return written

    async def _write(self, unit: Unit, old: Document | None, new: Document) -> bool:
        if old is None:
            return await self._connections.insert(INSTANCES, new)

        query: Document = {"_id": new["_id"], "rev": old["rev"]}
        claim = unit.guard.claim

        if claim is not None:
            query["$expr"] = has_live_claim(claim.task_id, claim.fence, self._now())

        return await self._connections.replace(INSTANCES, query, new)

    async def _dig(self, document: Document | None, found: Found) -> str | None:
        """A note of what may lie beside a run that is about to end; `None`: nothing does."""
        if document is None or document.get("inc") is None:
            return None

        if not (document["moved"] or document["large"] or references_in(document)):
            return None

        return await self._beside.dig(document["_id"], document["inc"], found.now)

    async def _remove(self, document: Document, found: Found) -> bool:
        """Delete a document; its last fence outlives it."""
        if "status" not in document:
            query = {"_id": document["_id"], "rev": document["rev"]}
            return await self._connections.delete_one(INSTANCES, query)

        floor = {"$max": ["$fence", document.get("fence") or 0]}
        await self._connections.find_and_update(
            META,
            {"_id": floor_of(self._namespace)},
            [{"$set": {"fence": floor}}],
            projection={"_id": 1},
            upsert=True,
        )
        key, incarnation = document["_id"], document.get("inc")
        grave = await self._dig(document, found)
        query = {"_id": key, "rev": document["rev"]}
        removed = await self._connections.delete_one(INSTANCES, query)

        if removed and incarnation is not None and grave:
            await self._beside.clear(key, incarnation, references_in(document))

        if grave:
            await self._beside.close(grave)

        return removed


def _is_another(old: Document | None, new: Document) -> bool:
    return old is not None and old.get("inc") != new.get("inc")


def _nodes_of(unit: Unit) -> set[str]:
    """Whose stored results the unit may ask for."""
    nodes: set[str] = set()

    if unit.record is not None:
        nodes.add(unit.record.node_id)

    if unit.claim_next is not None and unit.content is not None:
        nodes.update(entry.input_from for entry in unit.content.entries if entry.input_from)

    return nodes
