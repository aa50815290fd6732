"""What lies beside one instance's row, within a transaction."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.sqlite.queries import QUERIES
from sayiir_persist.driver import REMEMBERED_EVENT_IDS, Head

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

_RESULTS_PER_VERSION: Final = 2**24
_NUMBER: Final = itemgetter(0)


class _Queue:
    """The counters of an instance's queue."""

    __slots__ = ("last_event", "last_event_id", "queued")

    def __init__(self, queued: int, last_event: int, last_event_id: int) -> None:
        self.queued, self.last_event, self.last_event_id = queued, last_event, last_event_id


class SqliteShelf:
    """The shelf of `carry_out` over statements, each of which is carried out at once."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        instance: tuple[str, str],
        *,
        key: int | None,
        version: int,
        fence: int | None,
    ) -> None:
        self._execute = connection.execute
        self._id = instance
        self._key = key
        self._number = (version + 1) * _RESULTS_PER_VERSION
        self._input: bytes | None = None
        self._input_known = False
        self._outputs: dict[str, bytes] = {}
        self._queue: _Queue | None = None
        self._fence = fence

    @property
    def key(self) -> int:
        """Of the instance's row; drawn where none is stored yet."""
        if self._key is None:
            [[key]] = self._execute(QUERIES.next_key).fetchall()
            self._key = int(key)

        return self._key

    @property
    def fence(self) -> int:
        """The last one that was drawn for this instance id."""
        if self._fence is None:
            # Without a row it goes on above all that was ever deleted.
            self._fence = int(self._value(QUERIES.find_fence, self._id[:1]) or 0)

        return self._fence

    def next_fence(self) -> int:
        self._fence = self.fence + 1
        return self._fence

    def input(self) -> bytes | None:
        if not self._input_known:
            self._know_input(self._value(QUERIES.find_input, (self._key,)))

        return self._input

    def _know_input(self, data: bytes | None) -> None:
        self._input, self._input_known = data, True

    def set_input(self, data: bytes | None) -> None:
        self._know_input(data)

        if data is None:
            self._execute(QUERIES.delete_input, (self.key,))
        else:
            self._execute(QUERIES.put_input, (self.key, data))

    def result(self, node_id: str) -> bytes | None:
        output = self._outputs.get(node_id)
        return output if output is not None else self._stored_result(node_id)

    def _stored_result(self, node_id: str) -> bytes | None:
        output: bytes | None = self._value(QUERIES.find_result, (self._key, node_id))
        return output

    def results(self) -> dict[str, bytes]:
        rows = self._execute(QUERIES.all_results, (self._key,)).fetchall()
        rows.sort(key=_NUMBER)
        return {node_id: output for _, node_id, output in rows}

    def put_result(self, node_id: str, output: bytes) -> None:
        # A write of results takes a version, so numbers grow from write to write.
        self._number += 1
        self._outputs[node_id] = output
        self._execute(QUERIES.put_result, (self.key, node_id, self._number, output))

    def drop_results(self, node_ids: Collection[str] | None) -> None:
        self._outputs.clear()

        if node_ids is None:
            self._execute(QUERIES.delete_results, (self.key,))
            return

        for node_id in node_ids:
            self._execute(QUERIES.delete_result, (self.key, node_id))

    def head(self, name: str, *, payload: bool = False) -> Head | None:
        query = QUERIES.first_event_and_payload if payload else QUERIES.first_event
        row = self._execute(query, (*self._id, name)).fetchone()
        return Head(*row) if row else None

    def names(self) -> Collection[str]:
        return [name for (name,) in self._execute(QUERIES.event_names, self._id).fetchall()]

    def queued(self) -> int:
        return self._counters().queued

    def push(self, name: str, payload: bytes, now: int) -> None:
        queue = self._counters()
        queue.queued += 1
        queue.last_event += 1
        self._execute(QUERIES.insert_event, (*self._id, name, queue.last_event, now, payload))
        self._put_counters(queue)

    def pop(self, name: str) -> bytes | None:
        head = self.head(name, payload=True)

        if head is None:
            return None

        queue = self._counters()
        queue.queued -= 1
        self._execute(QUERIES.delete_event, (*self._id, name, head.number))
        self._put_counters(queue)
        return head.payload

    def remembers(self, name: str, event_id: str) -> bool:
        return self._value(QUERIES.find_event_id, (*self._id, name, event_id)) is not None

    def remember(self, name: str, event_id: str, now: int) -> None:
        del now  # the last thousand are kept, however old
        queue = self._counters()
        queue.last_event_id += 1
        number = queue.last_event_id
        self._execute(QUERIES.insert_event_id, (*self._id, name, event_id, number))
        self._execute(QUERIES.forget_event_ids, (*self._id, number - REMEMBERED_EVENT_IDS))
        self._put_counters(queue)

    def clear(self) -> None:
        self._know_input(None)
        self._queue = None
        self._outputs.clear()

        for query in (QUERIES.delete_input, QUERIES.delete_results):
            self._execute(query, (self._key,))

        for query in (QUERIES.delete_events, QUERIES.delete_event_ids, QUERIES.delete_queue):
            self._execute(query, self._id)

    def _counters(self) -> _Queue:
        if self._queue is None:
            row = self._execute(QUERIES.find_queue, self._id).fetchone()
            self._queue = _Queue(*row or (0, 0, 0))

        return self._queue

    def _put_counters(self, queue: _Queue) -> None:
        counters = (queue.queued, queue.last_event, queue.last_event_id)
        self._execute(QUERIES.put_queue, (*self._id, *counters))

    def _value(self, query: str, parameters: tuple[Any, ...]) -> Any:
        row = self._execute(query, parameters).fetchone()
        return row[0] if row else None
