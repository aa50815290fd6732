"""Polls and sweeps within a transaction."""

from __future__ import annotations

from contextlib import closing
from heapq import merge
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from sayiir_persist import aggregate as rules
from sayiir_persist.adapters.sqlite.queries import QUERIES
from sayiir_persist.adapters.sqlite.rows import decode_tags
from sayiir_persist.aggregate import ADVANCE_LANE
from sayiir_persist.dispatch import fits, order_key
from sayiir_persist.driver import ChoreList, Chores, Offer, Poll, Polled, Read, Take

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from sayiir_persist.adapters.sqlite.records import Loaded, Records

_LANES: Final = range(1, 6)
_BEFORE_ALL: Final = (-(2**63), "", "")
_SMALLEST_SLICE: Final = 8


class _Due(NamedTuple):
    available_at: int
    instance_id: str
    node_id: str
    definition_hash: str
    tags: str
    avoid: str | None


class Dispatching:
    """What is due in one namespace, as of one instant.

    Args:
        connection: Within a transaction.
        namespace: The only one that is seen.
        records: Its instances.
        now: The time of the transaction.
    """

    def __init__(
        self, connection: sqlite3.Connection, namespace: str, records: Records, now: int
    ) -> None:
        self._execute = connection.execute
        self._namespace = namespace
        self._records = records
        self._now = now

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

    def _load_chosen(self, query: Poll) -> list[tuple[_Due, Loaded]]:
        """What is chosen, all of it readable: damaged rows leave their place to others."""
        while True:
            chosen = self._choose(query)
            ids = dict.fromkeys(due.instance_id for due in chosen)
            loaded = {each: self._records.load_readable(each, body=True) for each in ids}
            damaged = frozenset(each for each, found in loaded.items() if found is None)

            if not damaged:
                return [(due, found) for due in chosen if (found := loaded[due.instance_id])]

            query = replace(query, exclude=query.exclude | damaged)

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
            parameters = (self._namespace, lane, self._now, *after, size)
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

            if due.avoid == query.worker_id and self._now - due.available_at < query.bias:
                if len(yielding) < query.limit:
                    yielding.append(due)
            else:
                chosen.append(due)

            if len(chosen) >= query.limit:
                break

        return (chosen + yielding)[: query.limit]

    def _offer(self, query: Poll, number: int, due: _Due, loaded: Loaded) -> Offer:
        aggregate = loaded.aggregate
        assert aggregate is not None  # noqa: S101  (the index and the rows change together)
        entry = next(e for e in aggregate.entries if e.is_task and e.node_id == due.node_id)
        now = max(self._now, aggregate.updated_at)
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
            self._records.store(due.instance_id, loaded, aggregate)

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
        now = self._now
        due: dict[str, None] = {}
        to_purge = self._to_purge(query, 1)

        with closing(self._execute(QUERIES.list_signalled, (self._namespace,))) as signalled:
            advances = ((each.available_at, each.instance_id) for each in self._due(0, query.limit))

            for _, instance_id in merge(signalled, advances):
                if len(due) > query.limit:
                    break

                if instance_id in due or instance_id in query.exclude:
                    continue

                loaded = self._records.load_readable(instance_id, body=False)

                if loaded and loaded.aggregate and not loaded.aggregate.live_claims(now):
                    due[instance_id] = None

        return ChoreList(
            instances=tuple(due)[: query.limit], purged=0, more=len(due) > query.limit
        ), bool(to_purge)

    def purge(self, query: Chores) -> tuple[int, bool]:
        """Drop claims that ended long ago: how many, and whether there are more."""
        found = self._to_purge(query, query.limit + 1)
        cutoff = self._now - query.purge_after
        purged = left = 0

        for instance_id in found[: query.limit]:
            loaded = self._records.load_readable(instance_id, body=False)

            if loaded is None or loaded.aggregate is None:
                continue

            claims = loaded.aggregate.claims
            ended = [
                claim.task_id
                for claim in claims.values()
                if claim.expires_at is not None and claim.expires_at <= cutoff
            ]
            dropped = ended[: query.limit - purged]
            purged, left = purged + len(dropped), left + len(ended) - len(dropped)

            for task_id in dropped:
                del claims[task_id]

            self._records.store(instance_id, loaded, loaded.aggregate, exact=True)

        return purged, left > 0 or len(found) > query.limit

    def _to_purge(self, query: Chores, limit: int) -> list[str]:
        parameters = (self._namespace, self._now - query.purge_after, limit)
        return [instance_id for (instance_id,) in self._execute(QUERIES.list_to_purge, parameters)]


def _asked_for(query: Poll, due: _Due) -> bool:
    return due.instance_id not in query.exclude and (
        query.definitions is None or due.definition_hash in query.definitions
    )


def _accepts(query: Poll, due: _Due) -> bool:
    return not query.tags or fits(decode_tags(due.tags), query.tags)
