"""Instances within a transaction: what is stored, and the least that has to change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sayiir_persist.adapters.sqlite.queries import QUERIES
from sayiir_persist.adapters.sqlite.rows import (
    BODY,
    FENCE,
    KEY,
    PLACES,
    STATE,
    VERSION,
    Places,
    ReadyRow,
    aggregate_of,
    encode_state,
    places_of,
    ready_rows,
)
from sayiir_persist.adapters.sqlite.shelf import SqliteShelf
from sayiir_persist.errors import CodecError

if TYPE_CHECKING:
    import sqlite3

    from sayiir_persist.aggregate import Aggregate

logger: logging.Logger = logging.getLogger(__name__)


class Loaded:
    """An instance within the transaction: its value, to be changed, and what is stored of it."""

    __slots__ = ("aggregate", "places", "ready", "shelf", "state", "version")

    def __init__(self, aggregate: Aggregate | None, shelf: SqliteShelf, row: Any) -> None:
        self.aggregate: Aggregate | None = aggregate
        self.shelf: SqliteShelf = shelf
        self.ready: list[ReadyRow] = ready_rows(aggregate)
        self.places: Places | None = row[PLACES] if row else None
        self.version: int = row[VERSION] if row else 0
        self.state: bytes = row[STATE] if row else b""


class Records:
    """The instances of one namespace, on one connection."""

    def __init__(self, connection: sqlite3.Connection, namespace: str) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._namespace = namespace
        self._reported: set[str] = set()

    def load(self, instance_id: str, *, body: bool) -> Loaded:
        """Read an instance.

        Raises:
            CodecError: Its row is damaged.
        """
        query = QUERIES.find_instance_and_body if body else QUERIES.find_instance
        instance = (self._namespace, instance_id)
        row = self._execute(query, instance).fetchone()
        aggregate = aggregate_of(instance_id, row, row[BODY] if body else b"") if row else None
        shelf = SqliteShelf(
            self._connection,
            instance,
            key=row[KEY] if row else None,
            version=row[VERSION] if row else 0,
            fence=row[FENCE] if row else None,
        )
        return Loaded(aggregate, shelf, row)

    def load_readable(self, instance_id: str, *, body: bool) -> Loaded | None:
        """Like `load`; a damaged row is reported once and is `None`."""
        try:
            return self.load(instance_id, body=body)
        except CodecError as error:
            if instance_id not in self._reported:
                self._reported.add(instance_id)
                logger.error(  # noqa: TRY400  (the cause is in the message)
                    "cannot read an instance, it is passed over",
                    extra={
                        "instance_id": instance_id,
                        "namespace": self._namespace,
                        "backend": "sqlite",
                        "error": str(error),
                    },
                )

            return None

    def store(
        self,
        instance_id: str,
        loaded: Loaded,
        aggregate: Aggregate | None,
        *,
        body: bytes | None = None,
        exact: bool = False,
    ) -> None:
        """Write what has changed, and nothing else.

        Args:
            instance_id: Whose.
            loaded: What is stored.
            aggregate: What shall be; `None`: nothing.
            body: The new one; `None`: it stays.
            exact: Whether `purge_at` may not stay at a lower bound.
        """
        ready = ready_rows(aggregate)
        places = places_of(aggregate, None if exact else loaded.places)
        self._index(instance_id, loaded.ready, ready)

        if aggregate is None or places is None:
            if loaded.places is not None:
                self._execute(QUERIES.raise_fence, (self._namespace, loaded.shelf.fence))
                self._execute(QUERIES.delete_instance, (loaded.shelf.key,))

            return

        key, state = loaded.shelf.key, encode_state(aggregate)
        rest = (
            aggregate.version,
            loaded.shelf.fence,
            aggregate.last_completed,
            aggregate.updated_at,
            aggregate.body_at,
            state,
            body,
            key,
        )

        if loaded.places is None:
            self._execute(QUERIES.insert_instance, (*places, *rest, self._namespace, instance_id))
        else:
            if places != loaded.places:
                self._execute(QUERIES.update_places, (*places, key))

            if body is not None or (aggregate.version, state) != (loaded.version, loaded.state):
                self._execute(QUERIES.update_instance, rest)

        loaded.ready, loaded.places = ready, places
        loaded.version, loaded.state = aggregate.version, state

    def _index(self, instance_id: str, before: list[ReadyRow], after: list[ReadyRow]) -> None:
        if before == after:
            return

        instance = (self._namespace, instance_id)

        if len(before) == len(after) == 1:
            self._execute(QUERIES.move_ready, (*after[0], *instance, *before[0][:3]))
            return

        for row in before:
            if row not in after:
                self._execute(QUERIES.delete_ready, (*instance, *row[:3]))

        for row in after:
            if row not in before:
                self._execute(QUERIES.insert_ready, (*row, *instance))
