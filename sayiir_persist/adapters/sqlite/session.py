"""What the methods of the driver do inside a transaction, on one connection."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from functools import partial
from heapq import merge
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec.structs import replace

from sayiir_persist import aggregate as rules
from sayiir_persist.adapters.sqlite.errors import commit_error
from sayiir_persist.adapters.sqlite.queries import QUERIES
from sayiir_persist.adapters.sqlite.rows import (
    BODY,
    FENCE,
    KEY,
    PLACES,
    PURGE_AT,
    STATE,
    VERSION,
    Places,
    ReadyRow,
    aggregate_of,
    claims_of,
    decode_tags,
    encode_state,
    listed,
    places_of,
    ready_rows,
)
from sayiir_persist.adapters.sqlite.shelf import SqliteShelf
from sayiir_persist.aggregate import ADVANCE_LANE, Aggregate, IndexedEntry
from sayiir_persist.claims import WakeHint
from sayiir_persist.dispatch import fits, order_key
from sayiir_persist.driver import (
    Answer,
    ChoreList,
    Chores,
    Extend,
    Extended,
    Offer,
    Page,
    Poll,
    Polled,
    Read,
    Row,
    Take,
    Taken,
    Unit,
    View,
)
from sayiir_persist.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sayiir_persist.adapters.sqlite.channel import Channel
    from sayiir_persist.adapters.sqlite.clock import Clock

logger = logging.getLogger(__name__)

_LANES: Final = range(1, 6)
_BEFORE_ALL: Final = (-(2**63), "", "")
_SMALLEST_SLICE: Final = 8
_LISTINGS: Final = {
    (False, False): QUERIES.list_all,
    (True, False): QUERIES.list_by_status,
    (False, True): QUERIES.list_by_definition,
    (True, True): QUERIES.list_by_status_and_definition,
}


class _Due(NamedTuple):
    available_at: int
    instance_id: str
    node_id: str
    definition_hash: str
    tags: str
    avoid: str | None


class _Loaded:
    """An instance within the transaction: its value, to be changed, and what is stored of it."""

    __slots__ = ("aggregate", "places", "ready", "shelf", "state", "version")

    def __init__(self, aggregate: Aggregate | None, shelf: SqliteShelf, row: Any) -> None:
        self.aggregate = aggregate
        self.shelf = shelf
        self.ready = ready_rows(aggregate)
        self.places: Places | None = row[PLACES] if row else None
        self.version: int = row[VERSION] if row else 0
        self.state: bytes = row[STATE] if row else b""


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
        self._reported: set[str] = set()

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

    # --- Instances ---

    def _load(self, instance_id: str, *, body: bool) -> _Loaded:
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
        return _Loaded(aggregate, shelf, row)

    def _store(
        self,
        instance_id: str,
        loaded: _Loaded,
        aggregate: Aggregate | None,
        *,
        body: bytes | None = None,
    ) -> None:
        ready, places = ready_rows(aggregate), places_of(aggregate, loaded.places)
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

    # --- Reading ---

    def read(self, read: Read) -> View | None:
        """Read one instance."""
        loaded = self._load(read.instance_id, body=read.body)

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

                if not any(claim.live(now) for claim in claims_of(row[9]).values()):
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
        loaded = self._load(unit.instance_id, body=unit.view)
        outcome = rules.carry_out(loaded.aggregate, unit, loaded.shelf, self._now(loaded.aggregate))

        if outcome.changed:
            body = unit.content.body if unit.content is not None else None
            self._store(unit.instance_id, loaded, outcome.aggregate, body=body)

        if outcome.aggregate is not None:
            for entry in outcome.hints:
                self._hints.append(_hint(unit.instance_id, outcome.aggregate, entry))

        return outcome.answer

    def claim(self, wish: Take) -> Taken:
        """Claim one task."""
        loaded = self._load(wish.instance_id, body=False)
        taken = rules.take(loaded.aggregate, wish, loaded.shelf, self._now(loaded.aggregate))

        if taken.claim is not None:
            self._store(wish.instance_id, loaded, loaded.aggregate)

        return taken

    def extend(self, wish: Extend) -> Extended:
        """Move the end of a claim."""
        loaded = self._load(wish.instance_id, body=False)
        extended = rules.extend(loaded.aggregate, wish, self._now(loaded.aggregate))

        if extended.extended:
            self._store(wish.instance_id, loaded, loaded.aggregate)

        return extended

    def _now(self, aggregate: Aggregate | None) -> int:
        now = self._clock()
        return now if aggregate is None else max(now, aggregate.updated_at)

    # --- Dispatch ---

    def look(self, query: Poll) -> Polled | None:
        """Answer a poll that has nothing to claim; `None`: there is something."""
        if advances := self._due_advances(query):
            return Polled(advances=advances, offers=())

        if self._choose(replace(query, limit=1)):
            return None

        return Polled(advances=(), offers=())

    def poll(self, query: Poll) -> Polled:
        """Find due work, and claim it if that is asked for."""
        if advances := self._due_advances(query):
            return Polled(advances=advances, offers=())

        found = self._load_chosen(query)
        return Polled(
            advances=(),
            offers=tuple(self._offer(query, number, *each) for number, each in enumerate(found)),
        )

    def _load_chosen(self, query: Poll) -> list[tuple[_Due, _Loaded]]:
        """What is chosen, all of it readable: damaged rows leave their place to others."""
        while True:
            chosen = self._choose(query)
            ids = dict.fromkeys(due.instance_id for due in chosen)
            loaded = {each: self._load_readable(each, body=True) for each in ids}
            damaged = frozenset(each for each, found in loaded.items() if found is None)

            if not damaged:
                return [(due, found) for due in chosen if (found := loaded[due.instance_id])]

            query = replace(query, exclude=query.exclude | damaged)

    def _load_readable(self, instance_id: str, *, body: bool) -> _Loaded | None:
        try:
            return self._load(instance_id, body=body)
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

    def _due_advances(self, query: Poll) -> tuple[str, ...]:
        found: dict[str, None] = {}

        if not query.advances:
            return ()

        for due in self._due(ADVANCE_LANE, query.advances):
            if _asked_for(query, due):
                found[due.instance_id] = None

            if len(found) >= query.advances:
                break

        return tuple(found)

    def _due(self, lane: int, wanted: int) -> Iterator[_Due]:
        """What is due in a lane, in order; read in slices, so that no cursor stays open."""
        size = wanted + _SMALLEST_SLICE
        after: tuple[int, str, str] = _BEFORE_ALL

        while True:
            parameters = (self._namespace, lane, self._began_at, *after, size)
            rows = self._execute(QUERIES.due, parameters).fetchall()
            yield from map(_Due._make, rows)

            if len(rows) < size:
                return

            after, size = rows[-1][:3], 2 * size

    def _choose(self, query: Poll) -> list[_Due]:
        def keyed(lane: int) -> Iterator[tuple[tuple[int, int], str, str, _Due]]:
            for due in self._due(lane, query.limit):
                key = order_key(lane, due.available_at, query.aging)
                yield key, due.instance_id, due.node_id, due

        chosen: list[_Due] = []
        yielding: list[_Due] = []

        for *_, due in merge(*map(keyed, _LANES)):
            if not _asked_for(query, due) or not _accepts(query, due):
                continue

            if due.avoid == query.worker_id and self._began_at - due.available_at < query.bias:
                if len(yielding) < query.limit:
                    yielding.append(due)
            else:
                chosen.append(due)

            if len(chosen) >= query.limit:
                break

        return (chosen + yielding)[: query.limit]

    def _offer(self, query: Poll, number: int, due: _Due, loaded: _Loaded) -> Offer:
        aggregate = loaded.aggregate
        assert aggregate is not None  # noqa: S101  (the index and the rows change together)
        entry = next(e for e in aggregate.entries if e.is_task and e.node_id == due.node_id)
        now = max(self._began_at, aggregate.updated_at)
        claim = None

        if query.claim:
            wish = Take(
                instance_id=due.instance_id,
                task_id=due.node_id,
                worker_id=query.worker_id,
                ttl=query.ttl,
                nonce=f"{query.nonce}.{number}",
                tags=query.worker_tags,
            )
            claim = rules.take(aggregate, wish, loaded.shelf, now).claim
            self._store(due.instance_id, loaded, aggregate)

        read = Read(instance_id=due.instance_id, results=query.results)
        return Offer(
            view=rules.view(aggregate, loaded.shelf, read, now),
            task_id=entry.node_id,
            reason=entry.reason,
            input=rules.entry_input(entry, loaded.shelf),
            claim=claim,
        )

    # --- Sweeping ---

    def chores(self, query: Chores) -> tuple[ChoreList, bool]:
        """What a sweep has to do, and whether there are claims to purge."""
        now = self._began_at
        due: dict[str, None] = {}
        to_purge = self._to_purge(query, 1)

        with closing(self._execute(QUERIES.list_signalled, (self._namespace,))) as signalled:
            advances = ((each.available_at, each.instance_id) for each in self._due(0, query.limit))

            for _, instance_id in merge(signalled, advances):
                if len(due) > query.limit:
                    break

                if instance_id in due or instance_id in query.exclude:
                    continue

                loaded = self._load_readable(instance_id, body=False)

                if loaded and loaded.aggregate and not loaded.aggregate.live_claims(now):
                    due[instance_id] = None

        return ChoreList(
            instances=tuple(due)[: query.limit], purged=0, more=len(due) > query.limit
        ), bool(to_purge)

    def purge(self, query: Chores) -> tuple[int, bool]:
        """Drop claims that ended long ago: how many, and whether there are more."""
        found = self._to_purge(query, query.limit + 1)
        purged = 0

        for instance_id in found[: query.limit]:
            loaded = self._load_readable(instance_id, body=False)

            if loaded is None or loaded.aggregate is None:
                continue

            claims = loaded.aggregate.claims
            ended = [
                claim.task_id
                for claim in claims.values()
                if claim.expires_at is not None
                and claim.expires_at <= self._began_at - query.purge_after
            ]

            for task_id in ended[: query.limit - purged]:
                del claims[task_id]
                purged += 1

            loaded.places = (*loaded.places[:PURGE_AT], None) if loaded.places else None
            self._store(instance_id, loaded, loaded.aggregate)

        return purged, len(found) > query.limit or bool(self._to_purge(query, 1))

    def _to_purge(self, query: Chores, limit: int) -> list[str]:
        parameters = (self._namespace, self._began_at - query.purge_after, limit)
        return [instance_id for (instance_id,) in self._execute(QUERIES.list_to_purge, parameters)]


def _asked_for(query: Poll, due: _Due) -> bool:
    return due.instance_id not in query.exclude and (
        query.definitions is None or due.definition_hash in query.definitions
    )


def _accepts(query: Poll, due: _Due) -> bool:
    return not query.tags or fits(decode_tags(due.tags), query.tags)


def _hint(instance_id: str, aggregate: Aggregate, entry: IndexedEntry) -> WakeHint:
    return WakeHint(
        instance_id=instance_id,
        task_id=entry.node_id,
        definition_hash=aggregate.definition_hash,
        tags=entry.tags,
    )
