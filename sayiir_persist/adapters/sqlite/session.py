"""What the methods of the driver do inside a transaction, on one connection."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final

from sayiir_persist import aggregate as rules
from sayiir_persist.adapters.sqlite.dispatching import Dispatching
from sayiir_persist.adapters.sqlite.errors import commit_error
from sayiir_persist.adapters.sqlite.queries import QUERIES
from sayiir_persist.adapters.sqlite.records import Records
from sayiir_persist.adapters.sqlite.rows import has_live_claim, listed
from sayiir_persist.claims import WakeHint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sayiir_persist.adapters.sqlite.channel import Channel
    from sayiir_persist.adapters.sqlite.clock import Clock
    from sayiir_persist.aggregate import Aggregate, IndexedEntry
    from sayiir_persist.driver import (
        Answer,
        Extend,
        Extended,
        Page,
        Read,
        Row,
        Take,
        Taken,
        Unit,
        View,
    )

_LISTINGS: Final = {
    (False, False): QUERIES.list_all,
    (True, False): QUERIES.list_by_status,
    (False, True): QUERIES.list_by_definition,
    (True, True): QUERIES.list_by_status_and_definition,
}


class Session:
    """One connection, used by one thread.

    Args:
        connection: In autocommit mode.
        namespace: The only one that is seen.
        clock: The driver's.
        channel: Where hints go after a commit.
        writes: Whether transactions are for writing.
        on_close: Called when the connection was closed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        namespace: str,
        clock: Clock,
        channel: Channel,
        *,
        writes: bool,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._namespace = namespace
        self._clock = clock
        self._channel = channel
        self._on_close = on_close
        self._begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        self._began_at = 0
        self._hints: list[WakeHint] = []
        self._data_version: int | None = None
        self._foreign_wakeups = 0
        self._records = Records(connection, namespace)

    # --- Transactions ---

    def begin(self) -> None:
        """Begin a transaction.

        What is read comes after the time that is told: a writer has the database to itself by
        then, a reader's view of it starts with its first statement.
        """
        self._execute(self._begin)
        self._began_at = self._clock()

    def commit(self) -> Callable[[], None] | None:
        """Make everything durable.

        Returns:
            What tells those who wait for work; to be called in the event loop.
        """
        hints, self._hints = self._hints, []

        if hints:
            # Counted first, so that no watcher takes this commit for another process's.
            self._execute(QUERIES.count_wakeup, (self._namespace,))
            self._channel.count(1)

        try:
            self._execute("COMMIT")
        except sqlite3.Error as error:
            self._channel.count(-1 if hints else 0)
            raise commit_error(error) from error

        return partial(self._channel.announce, hints) if hints else None

    def rollback(self) -> None:
        """Undo everything since `begin`."""
        self._hints.clear()

        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

        if self._on_close is not None:
            self._on_close()

    # --- Reading ---

    def read(self, read: Read) -> View | None:
        """Read one instance."""
        loaded = self._records.load(read.instance_id, body=read.body)

        if loaded.aggregate is None:
            return None

        now = max(self._began_at, loaded.aggregate.updated_at)
        return rules.view(loaded.aggregate, loaded.shelf, read, now)

    def page(self, query: Page) -> Sequence[Row]:
        """List instances."""
        if query.idle_for is not None:
            return self._stalled(query.idle_for, query.limit)

        filters = (query.status, query.definition_hash)
        given = tuple(each for each in filters if each is not None)
        found = _LISTINGS[query.status is not None, query.definition_hash is not None]
        parameters = (self._namespace, *given, query.after or "", query.limit)
        return [listed(row) for row in self._execute(found, parameters).fetchall()]

    def _stalled(self, idle_for: int, limit: int) -> Sequence[Row]:
        now = self._began_at
        rows: list[Row] = []

        with closing(
            self._execute(QUERIES.list_idle, (self._namespace, now - idle_for))
        ) as candidates:
            for row in candidates:
                if len(rows) >= limit:
                    break

                if not has_live_claim(row[9], now):
                    rows.append(listed(row))

        return rows

    def foreign_wakeup(self) -> bool:
        """Whether another process made a task executable since this was asked before."""
        [[data_version]] = self._execute("PRAGMA data_version").fetchall()

        if data_version == self._data_version:
            return False

        row = self._execute(QUERIES.find_wakeups, (self._namespace,)).fetchone()
        foreign = (row[0] if row else 0) - self._channel.wakeups

        # Commits of this process are counted before they can be seen: this may be too few for a
        # moment, never too many.
        first, self._data_version = self._data_version is None, data_version
        woken = foreign > self._foreign_wakeups and not first
        self._foreign_wakeups = foreign if first else max(foreign, self._foreign_wakeups)
        return woken

    # --- Writing ---

    def apply(self, unit: Unit) -> Answer:
        """Carry out one write."""
        loaded = self._records.load(unit.instance_id, body=unit.view)
        outcome = rules.carry_out(loaded.aggregate, unit, loaded.shelf, self._now(loaded.aggregate))

        if outcome.changed:
            body = unit.content.body if unit.content is not None else None
            self._records.store(unit.instance_id, loaded, outcome.aggregate, body=body)

        if outcome.aggregate is not None:
            for entry in outcome.hints:
                self._hints.append(_hint(unit.instance_id, outcome.aggregate, entry))

        return outcome.answer

    def claim(self, wish: Take) -> Taken:
        """Claim one task."""
        loaded = self._records.load(wish.instance_id, body=False)
        taken = rules.take(loaded.aggregate, wish, loaded.shelf, self._now(loaded.aggregate))

        if taken.claim is not None:
            self._records.store(wish.instance_id, loaded, loaded.aggregate)

        return taken

    def extend(self, wish: Extend) -> Extended:
        """Move the end of a claim."""
        loaded = self._records.load(wish.instance_id, body=False)
        extended = rules.extend(loaded.aggregate, wish, self._now(loaded.aggregate))

        if extended.extended:
            self._records.store(wish.instance_id, loaded, loaded.aggregate)

        return extended

    def _now(self, aggregate: Aggregate | None) -> int:
        now = self._clock()
        return now if aggregate is None else max(now, aggregate.updated_at)

    # --- Dispatch ---

    @property
    def dispatching(self) -> Dispatching:
        """Polls and sweeps, as of the beginning of the transaction."""
        return Dispatching(self._connection, self._namespace, self._records, self._began_at)


def _hint(instance_id: str, aggregate: Aggregate, entry: IndexedEntry) -> WakeHint:
    return WakeHint(
        instance_id=instance_id,
        task_id=entry.node_id,
        definition_hash=aggregate.definition_hash,
        tags=entry.tags,
    )
