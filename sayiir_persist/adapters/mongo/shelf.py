"""An instance's document as the shelf of `carry_out`, for writes that are decided here.

What is read is the whole document; what is written is the whole document, guarded by its `rev`.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.mongo.layout import (
    CHUNK,
    INLINE,
    INLINE_EVENT,
    INLINE_QUEUE,
    LARGEST_TAIL,
    LONGEST_TAIL,
    row_part,
    weight_of,
)
from sayiir_persist.driver import REMEMBERED_EVENT_IDS, Head

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sayiir_persist.adapters.mongo.layout import Document
    from sayiir_persist.aggregate import Aggregate

_RESULTS_PER_SEGMENT: Final = 512


def is_reference(value: object) -> bool:
    """Whether a payload lies beside the document."""
    return isinstance(value, dict)


class Shelf:
    """What lies in one document beside its row, and what has to lie beside the document.

    Args:
        document: As it was read; `None`: there is none. It is not changed.
        results: Those of nodes that the unit may ask for.
        floor: Fences of a new document begin above it.
        now: The time of the reading.
    """

    def __init__(
        self,
        key: str,
        document: Document | None,
        results: Mapping[str, Any],
        *,
        floor: int,
        now: int,
    ) -> None:
        stored = document or {}
        self.key = key
        self.payloads: list[tuple[Document, bytes]] = []
        self.segments: list[Document] = []
        self._now = now
        self._stored = stored
        self._known = dict(results)
        self._puts: dict[str, Any] = {}
        self._dropped: set[str] = set()
        self._is_renewed = False
        self._input: Any = stored.get("input")
        self._queue: list[Document] = list(stored.get("queue") or ())
        self._ids: list[Document] = list(stored.get("ids") or ())
        self._last_no: int = stored.get("last_no") or 0
        self.fence: int = stored.get("fence") or max(floor, now)

    # --- The shelf of `carry_out` ---

    def input(self) -> Any:
        return self._input

    def set_input(self, data: bytes | None) -> None:
        self._input = data

    def result(self, node_id: str) -> Any:
        if node_id in self._puts:
            return self._puts[node_id]

        if self._is_renewed or node_id in self._dropped:
            return None

        return self._known.get(node_id)

    def results(self) -> dict[str, bytes]:
        raise NotImplementedError  # views are read, not carried out

    def put_result(self, node_id: str, output: bytes) -> None:
        self._puts.pop(node_id, None)
        self._puts[node_id] = output

    def drop_results(self, node_ids: Collection[str] | None) -> None:
        if node_ids is None:
            self._is_renewed = True
            self._puts.clear()
            return

        for node_id in node_ids:
            self._puts.pop(node_id, None)
            self._dropped.add(node_id)

    def head(self, name: str, *, payload: bool = False) -> Head | None:
        del payload  # it comes along, or its reference does
        found = next((event for event in self._queue if event["name"] == name), None)
        return Head(found["no"], found["at"], found["data"]) if found else None

    def names(self) -> Collection[str]:
        return dict.fromkeys(event["name"] for event in self._queue)

    def queued(self) -> int:
        return len(self._queue)

    def push(self, name: str, payload: bytes, now: int) -> None:
        self._last_no += 1
        self._queue.append({"name": name, "no": self._last_no, "at": now, "data": payload})

    def pop(self, name: str) -> Any:
        for place, event in enumerate(self._queue):
            if event["name"] == name:
                del self._queue[place]
                return event["data"]

        return None

    def remembers(self, name: str, event_id: str) -> bool:
        return any(it["name"] == name and it["id"] == event_id for it in self._ids)

    def remember(self, name: str, event_id: str, now: int) -> None:
        del now  # the last thousand are kept, however old
        self._ids.append({"name": name, "id": event_id})
        del self._ids[:-REMEMBERED_EVENT_IDS]

    def next_fence(self) -> int:
        self.fence += 1
        return self.fence

    def clear(self) -> None:
        self._input = None
        self._queue, self._ids = [], []
        self._is_renewed = True
        self._puts.clear()

    # --- What is stored afterwards ---

    def document(self, aggregate: Aggregate | None) -> Document | None:
        """The document to write; `None`: none. Fills `payloads` and `segments`, which go first."""
        if aggregate is None and not self._queue and not self._ids:
            return None

        document: Document = {
            "_id": self.key,
            "ns": self.key.partition("/")[0],
            "rev": self._stored.get("rev", 0) + 1,
            "seen": max(self._now, self._stored.get("seen", 0)),
            "fence": self.fence if aggregate else self._stored.get("fence"),
            **self._queue_part(),
        }

        if "log" in self._stored:
            document["log"] = self._stored["log"]

        if aggregate is None:
            return document

        document.update(row_part(aggregate))
        document["body"] = self._placed(aggregate.body, INLINE, aggregate)
        document["input"] = self._placed(self._input, INLINE, aggregate)
        document.update(self._results_part(aggregate))
        return document

    def _queue_part(self) -> Document:
        room = INLINE_QUEUE
        queue: list[Document] = []

        for event in self._queue:
            data = event["data"]

            if not is_reference(data):
                data = self._placed(data, min(INLINE_EVENT, room), None)

            if not is_reference(data):
                room -= len(data)

            queue.append({**event, "data": data})

        return {
            "queue": queue,
            "queued": len(queue),
            "queued_bytes": INLINE_QUEUE - room,
            "ids": self._ids,
            "last_no": self._last_no,
        }

    def _results_part(self, aggregate: Aggregate) -> Document:
        same_run = self._stored.get("inc") == aggregate.incarnation
        stored = self._stored if same_run else {}
        version = aggregate.version
        is_renewed = self._is_renewed or not stored
        tail: list[Document] = [] if is_renewed else list(stored["tail"])
        gone = self._dropped | self._puts.keys()
        tail = [result for result in tail if result["n"] not in gone]

        if stored.get("moved") and not is_renewed:
            dropped = sorted(self._dropped - self._puts.keys())
            tail += [{"n": node, "v": version, "o": None, "gone": True} for node in dropped]

        tail += [
            {"n": node, "v": version, "o": self._placed(output, INLINE, aggregate)}
            for node, output in self._puts.items()
        ]
        large: list[str] = [] if is_renewed else list(stored["large"])
        weight = sum(weight_of(result["n"], result["o"]) for result in tail)

        if len(tail) > LONGEST_TAIL or weight > LARGEST_TAIL:
            write = secrets.token_hex(6)
            large.append(write)
            self.segments = list(self._segments(tail, aggregate, write))
            tail, weight = [], 0

        return {
            "base": version if is_renewed else stored["base"],
            "tail": tail,
            "tail_n": len(tail),
            "tail_b": weight,
            "large": large,
            "moved": bool(self.segments) or bool(stored.get("moved")),
        }

    def _segments(
        self, results: list[Document], aggregate: Aggregate, write: str
    ) -> Iterator[Document]:
        part: list[Document] = []
        weight = number = 0

        def segment() -> Document:
            return {
                "_id": f"{self.key}/{aggregate.incarnation}/{write}.{number}",
                "k": self.key,
                "inc": aggregate.incarnation,
                "w": write,
                "pending": self._now,
                "r": part,
            }

        for result in results:
            size = weight_of(result["n"], result["o"])

            if part and (weight + size > CHUNK // 2 or len(part) >= _RESULTS_PER_SEGMENT):
                yield segment()
                part, weight, number = [], 0, number + 1

            part.append(result)
            weight += size

        if part:
            yield segment()

    def _placed(self, data: Any, room: int, aggregate: Aggregate | None) -> Any:
        """The payload itself where it is small, else a reference to what is put beside."""
        if data is None or is_reference(data) or len(data) <= room:
            return data

        reference = {"ref": secrets.token_hex(8), "size": len(data)}
        owner = {"k": self.key, "inc": aggregate.incarnation if aggregate else None}
        self.payloads.append(({**owner, **reference, "pending": self._now}, data))
        return reference


def references_in(document: Document | None) -> set[str]:
    """What a document refers to beside it."""
    if document is None:
        return set()

    values: list[Any] = [
        document.get("body"),
        document.get("input"),
        *(result["o"] for result in document.get("tail") or ()),
        *(event["data"] for event in document.get("queue") or ()),
    ]

    if document.get("popped"):
        values.append(document["popped"]["data"])

    return {value["ref"] for value in values if is_reference(value)}


def references_among(segments: Iterable[Sequence[Document]]) -> set[str]:
    """What the results of segments refer to."""
    outputs = (result["o"] for results in segments for result in results)
    return {output["ref"] for output in outputs if is_reference(output)}


def chunks_of(reference: Document, data: bytes) -> list[Document]:
    """The documents that hold one payload."""
    return [
        {
            **reference,
            "_id": f"{reference['ref']}/{number}",
            "c": number,
            "d": data[at : at + CHUNK],
        }
        for number, at in enumerate(range(0, len(data), CHUNK))
    ]
