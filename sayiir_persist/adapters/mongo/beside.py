"""What lies beside an instance's document: large payloads, and results that were moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.mongo.layout import META, PAYLOADS, RESULTS
from sayiir_persist.adapters.mongo.shelf import chunks_of, is_reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sayiir_persist.adapters.mongo.connections import Connections
    from sayiir_persist.adapters.mongo.layout import Document

_BYTES_AT_ONCE: Final = 8 * 1024 * 1024


class MissingError(Exception):
    """A payload is gone: the document that referred to it has moved on since it was read."""


class Beside:
    """Payloads and segments of results, each written before the document that shows it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def put(
        self, payloads: Sequence[tuple[Document, bytes]], segments: Sequence[Document]
    ) -> None:
        """Write what a document is about to refer to."""
        chunks = [chunk for reference, data in payloads for chunk in chunks_of(reference, data)]

        for collection, documents in ((PAYLOADS, chunks), (RESULTS, list(segments))):
            for some in _slices(documents):
                await self._connections.insert_new(collection, some)

    async def withdraw(
        self, payloads: Sequence[tuple[Document, bytes]], segments: Sequence[Document]
    ) -> None:
        """Remove what no document came to refer to."""
        await self.drop(reference["ref"] for reference, _ in payloads)

        if segments:
            ids = [segment["_id"] for segment in segments]
            await self._connections.delete(RESULTS, {"_id": {"$in": ids}})

    async def drop(self, references: Iterable[str]) -> None:
        """Remove payloads."""
        if gone := list(references):
            await self._connections.delete(PAYLOADS, {"ref": {"$in": gone}})

    async def resolve(self, values: Sequence[Any]) -> list[Any]:
        """Payloads in the place of references.

        Raises:
            MissingError: One is gone.
        """
        wanted = {value["ref"]: value["size"] for value in values if is_reference(value)}

        if not wanted:
            return list(values)

        chunks = await self._connections.aggregate(
            PAYLOADS, [{"$match": {"ref": {"$in": list(wanted)}}}, {"$sort": {"ref": 1, "c": 1}}]
        )
        found = dict.fromkeys(wanted, b"")

        for chunk in chunks:
            found[chunk["ref"]] += chunk["d"]

        if any(len(found[ref]) != size for ref, size in wanted.items()):
            raise MissingError

        return [found[value["ref"]] if is_reference(value) else value for value in values]

    # --- Instances that end ---

    async def dig(self, key: str, incarnation: str, now: int) -> str:
        """Note that an instance is about to go, so that a sweep finds what a crash leaves."""
        grave = f"grave/{key}/{incarnation}"
        document = {"_id": grave, "k": key, "inc": incarnation, "at": now}
        await self._connections.insert(META, document)
        return grave

    async def clear(self, key: str, incarnation: str, references: Iterable[str] = ()) -> None:
        """Remove all that lay beside an instance which is gone."""
        of_instance = {"k": key, "inc": incarnation}
        await self._connections.delete(RESULTS, of_instance)
        await self._connections.delete(PAYLOADS, of_instance)
        await self.drop(references)

    async def close(self, grave: str) -> None:
        """Nothing is left of it."""
        await self._connections.delete_one(META, {"_id": grave})


def _slices(documents: list[Document]) -> Iterable[list[Document]]:
    part: list[Document] = []
    weight = 0

    for document in documents:
        size = len(document.get("d", b"")) or 300 * 1024

        if part and weight + size > _BYTES_AT_ONCE:
            yield part
            part, weight = [], 0

        part.append(document)
        weight += size

    if part:
        yield part
