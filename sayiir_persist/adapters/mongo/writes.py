"""Writes: one command for one, two for a batch, and the slow way where one update cannot say it."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from sayiir_persist.adapters.mongo.beside import Beside, MissingError
from sayiir_persist.adapters.mongo.connections import is_conflict
from sayiir_persist.adapters.mongo.errors import DUPLICATE_KEY, refused_statement
from sayiir_persist.adapters.mongo.layout import (
    INSTANCES,
    SMALL,
    claim_of,
    facts_of,
    key_of,
)
from sayiir_persist.adapters.mongo.reads import view_of
from sayiir_persist.adapters.mongo.results import is_full, move_tail
from sayiir_persist.adapters.mongo.shelf import is_reference
from sayiir_persist.adapters.mongo.updates import is_native, update_of
from sayiir_persist.driver import Answer, Facts, Read
from sayiir_persist.errors import BackendError, OutcomeUnknownError
from sayiir_persist.positions import INSTANCE_INPUT
from sayiir_persist.snapshot import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document
    from sayiir_persist.adapters.mongo.listener import Listener
    from sayiir_persist.adapters.mongo.reads import Reads
    from sayiir_persist.adapters.mongo.slow import SlowWrites
    from sayiir_persist.driver import ClaimRecord, Unit

_WITH_VIEW: Final = {"ids": 0, "popped": 0, "tail": 0, "log": 0, "queue.data": 0}
_WITH_ALL: Final = {name: 0 for name in _WITH_VIEW if name != "popped"}
_WITH_EVENT: Final = {name: 0 for name in SMALL if name != "popped"}
_WITH_RECEIPTS: Final = {name: 0 for name in SMALL if name != "log"}
_SMALL_UNITS: Final = 64
_BATCH_BYTES: Final = 8 * 1024 * 1024


class Writes:
    """Writes of one namespace.

    Args:
        connections: Where commands go.
        namespace: Of the instances.
        reads: Reads of the same namespace.
        slow: Takes what one update cannot say, and explains refusals.
        listener: Where hints go that no stream carries.
        now: Gives the expression of the time.
    """

    def __init__(
        self,
        connections: Connections,
        namespace: str,
        reads: Reads,
        slow: SlowWrites,
        listener: Listener,
        now: Callable[[], Any],
    ) -> None:
        self._connections = connections
        self._namespace = namespace
        self._reads = reads
        self._slow = slow
        self._listener = listener
        self._now = now
        self._beside = Beside(connections)

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer | Exception]:
        """Carry out units, each atomic and answered alone."""
        if len(units) == 1:
            return [await self._alone(units[0])]

        answers: dict[str, Answer | Exception] = {}
        together = [unit for unit in units if _is_batchable(unit)]
        alone = [unit for unit in units if not _is_batchable(unit)]

        for batch in _batches(together):
            if len(batch) == 1:
                alone += batch
            else:
                left = await self._together(batch, answers)
                alone += left

        answers.update(await _each(alone, self._alone))
        return [answers[unit.instance_id] for unit in units]

    # --- Alone ---

    async def _alone(self, unit: Unit) -> Answer:
        if not is_native(unit):
            return await self._slow.carry_out(unit)

        floor = await self._reads.floor() if unit.create is not None else 0
        query, stages, upsert = update_of(unit, self._namespace, self._now(), floor=floor)
        projection = _WITH_EVENT if unit.pop else SMALL

        if unit.view:
            projection = _WITH_ALL if unit.pop else _WITH_VIEW

        document = await self._connections.find_and_update(
            INSTANCES, query, stages, projection=projection, upsert=upsert
        )

        if document is None:
            return await self._slow.carry_out(unit)

        self._tell(document)
        answer = await self._answer(unit, document, document["seen"])
        await self._keep_small(unit, document)
        return answer

    async def _answer(self, unit: Unit, document: Document, now: int) -> Answer:
        facts = facts_of(document, now) if "status" in document else None
        claim = _next_claim(unit, document, now)
        entry = given = event = view = None

        if claim is not None and unit.content is not None:
            entry = next(it for it in unit.content.entries if it.node_id == claim.task_id)
            given = await self._input(unit, entry.input_from, document)

        if unit.pop is not None:
            event = await self._popped(document)

        if unit.view and facts is not None:
            read = Read(instance_id=unit.instance_id, results=False)
            view = view_of(read, {**document, "now": now}, None)

            try:
                view = await self._reads.resolved(view)
            except MissingError:
                view = await self._reads.view(read)

        return Answer(
            now=now,
            refused=None,
            facts=facts,
            claim=claim,
            entry=entry,
            input=given,
            event=event,
            view=view,
        )

    async def _popped(self, document: Document) -> bytes | None:
        popped = document.get("popped")

        if popped is None:
            return None

        [event] = await self._beside.resolve([popped["data"]])

        if is_reference(popped["data"]):
            await self._beside.drop([popped["data"]["ref"]])

        payload: bytes = event
        return payload

    async def _input(self, unit: Unit, name: str | None, document: Document) -> bytes | None:
        """The result that a task begins with: mostly one that this very write brought."""
        if name is None or name == INSTANCE_INPUT or unit.content is None:
            return None

        if name in unit.content.gained:
            return unit.content.gained[name]

        if name in unit.content.dropped:
            return None

        read = Read(instance_id=unit.instance_id, body=False, results=(name,))
        view = await self._reads.view(read)

        if view is None or view.facts.incarnation != document["inc"] or view.results is None:
            return None

        return view.results.get(name)

    async def _keep_small(self, unit: Unit, document: Document) -> None:
        if (unit.content is not None or unit.record is not None) and is_full(document):
            await move_tail(self._connections, document)

    def _tell(self, document: Document) -> None:
        if document.get("hinted") == document["rev"]:
            self._listener.publish(document)

    # --- Together ---

    async def _together(
        self, units: Sequence[Unit], answers: dict[str, Answer | Exception]
    ) -> list[Unit]:
        """Carry out what one command can; answers what is left for each to do alone."""
        creates = any(unit.create is not None for unit in units)
        floor = await self._reads.floor() if creates else 0
        batch = secrets.token_hex(6)
        now = self._now()
        statements: list[Document] = []

        for number, unit in enumerate(units):
            update = update_of(unit, self._namespace, now, floor=floor, receipt=f"{batch}.{number}")
            statements.append({"q": update.query, "u": update.stages, "upsert": update.upsert})

        updated = await self._connections.update_each(INSTANCES, statements)
        documents = await self._read_back(units)
        left: list[Unit] = []
        missing: list[Unit] = []
        full: list[Document] = []
        found = 0

        for number, unit in enumerate(units):
            report = updated.errors.get(number)
            document = documents.get(key_of(self._namespace, unit.instance_id))
            receipt = _receipt(document, f"{batch}.{number}") if document else None

            if report is not None:
                if report.get("code") == DUPLICATE_KEY or is_conflict(report):
                    left.append(unit)
                else:
                    answers[unit.instance_id] = refused_statement(report)
            elif document is None or receipt is None:
                missing.append(unit)
            else:
                found += 1
                answers[unit.instance_id] = await self._received(unit, document, receipt)
                self._tell(document)

                if "tail_n" in document and is_full(document):
                    full.append(document)

        if found < updated.matched:  # some were done, and then overtaken by many: which?
            for unit in missing:
                answers[unit.instance_id] = OutcomeUnknownError(
                    "MongoDB: a write was overtaken before it could be read back"
                )
        else:
            left += missing

        await asyncio.gather(*(move_tail(self._connections, document) for document in full))
        return left

    async def _read_back(self, units: Sequence[Unit]) -> dict[str, Document]:
        keys = [key_of(self._namespace, unit.instance_id) for unit in units]

        try:
            found = await self._connections.aggregate(
                INSTANCES, [{"$match": {"_id": {"$in": keys}}}, {"$project": _WITH_RECEIPTS}]
            )
        except BackendError as error:
            raise OutcomeUnknownError("MongoDB: a batch was written and not read back") from error

        return {document["_id"]: document for document in found}

    async def _received(
        self, unit: Unit, document: Document, receipt: Document
    ) -> Answer | Exception:
        try:
            answer = await self._answer(unit, document, receipt["t"])
        except BackendError as error:
            return OutcomeUnknownError(f"MongoDB: written, and then: {error}")

        if document["rev"] == receipt["r"] or answer.facts is None:
            return answer

        # Somebody else has written since; what this write decided stands in its receipt.
        return _as_of(unit, answer, receipt)


def _as_of(unit: Unit, answer: Answer, receipt: Document) -> Answer:
    facts = answer.facts
    content = unit.content

    if facts is None or receipt.get("v") is None:
        return replace(answer, facts=None)

    told: Facts = replace(
        facts,
        incarnation=receipt["i"],
        version=receipt["v"],
        status_since=receipt["s"],
    )

    if content is not None:
        told = replace(
            told,
            status=content.status,
            definition_hash=content.definition_hash,
            last_completed=content.last_completed,
            updated_at=receipt["t"],
        )

    return replace(answer, facts=told)


def _receipt(document: Document, name: str) -> Document | None:
    return next((each for each in document.get("log") or () if each["x"] == name), None)


def _next_claim(unit: Unit, document: Document, now: int) -> ClaimRecord | None:
    wish = unit.claim_next

    if wish is None or unit.content is None or unit.content.status is not Status.IN_PROGRESS:
        return None

    fresh = {entry.node_id for entry in unit.content.entries if entry.fresh}

    for claim in document["claims"]:
        if claim["nonce"] == wish.nonce and claim["from"] == now and claim["task"] in fresh:
            return claim_of(claim)

    return None


def _is_batchable(unit: Unit) -> bool:
    return is_native(unit) and unit.pop is None and not unit.view


def _batches(units: Sequence[Unit]) -> list[list[Unit]]:
    """What one command carries: not more than the server takes in one message."""
    batches: list[list[Unit]] = []
    room = 0

    for unit in units:
        size = _size_of(unit)

        if not batches or size > room:
            batches.append([])
            room = _BATCH_BYTES

        batches[-1].append(unit)
        room -= size

    return batches


def _size_of(unit: Unit) -> int:
    size = 8 * 1024
    content = unit.content

    if content is not None:
        size += len(content.body) + len(content.input or b"")
        size += sum(len(node) + len(output) for node, output in content.gained.items())
        size += 2048 * len(content.entries)

    if unit.push is not None:
        size += len(unit.push.payload)

    if unit.record is not None:
        size += len(unit.record.output)

    return size


async def _each(
    units: Sequence[Unit], carry_out: Callable[[Unit], Awaitable[Answer]]
) -> dict[str, Answer | Exception]:
    """Carry out units one by one, several at a time."""
    slots = asyncio.Semaphore(_SMALL_UNITS)
    answers: dict[str, Answer | Exception] = {}

    async def one(unit: Unit) -> None:
        async with slots:
            try:
                answers[unit.instance_id] = await carry_out(unit)
            except Exception as error:  # noqa: BLE001  (its answer)
                answers[unit.instance_id] = error

    await asyncio.gather(*map(one, units))
    return answers
