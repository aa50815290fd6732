"""The store in memory: for tests, for examples, and for runs that may be lost."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from datetime import UTC, datetime
from heapq import merge
from itertools import chain, islice, product
from typing import TYPE_CHECKING, Any, Final, final

from sayiir_persist import aggregate as rules
from sayiir_persist.aggregate import ADVANCE_LANE, Aggregate, IndexedEntry
from sayiir_persist.backend import StandardBackend
from sayiir_persist.claims import WakeHint
from sayiir_persist.dispatch import fits, order_key
from sayiir_persist.driver import (
    DAY,
    REMEMBERED_EVENT_IDS,
    Answer,
    ChoreList,
    Chores,
    ClaimRecord,
    Extend,
    Extended,
    Head,
    Offer,
    Opened,
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
from sayiir_persist.errors import BackendClosedError, ConfigurationError
from sayiir_persist.validation import to_micros
from sayiir_persist.wakeups import Wakeups

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sayiir_persist.protocols import PersistentBackend, WakeupSource
    from sayiir_persist.snapshot import Status

_LANES: Final = range(1, 6)
_CHUNK: Final = 256


class _SortedKeys:
    """Keys in ascending order, in chunks: what moves on an insertion is never more than one."""

    __slots__ = ("_chunks", "_firsts")

    def __init__(self) -> None:
        self._chunks: list[list[Any]] = []
        self._firsts: list[Any] = []  # of each chunk

    def add(self, key: Any) -> None:
        if not self._chunks:
            self._chunks, self._firsts = [[key]], [key]
            return

        at = self._chunk_of(key)
        chunk = self._chunks[at]
        insort(chunk, key)
        self._firsts[at] = chunk[0]

        if len(chunk) > 2 * _CHUNK:
            self._chunks[at : at + 1] = chunk[:_CHUNK], chunk[_CHUNK:]
            self._firsts.insert(at + 1, chunk[_CHUNK])

    def discard(self, key: Any) -> None:
        if not self._chunks:
            return

        at = self._chunk_of(key)
        chunk = self._chunks[at]
        place = bisect_left(chunk, key)

        if place == len(chunk) or chunk[place] != key:
            return

        del chunk[place]

        if chunk:
            self._firsts[at] = chunk[0]
        else:
            del self._chunks[at], self._firsts[at]

    def after(self, key: Any) -> Iterator[Any]:
        """The keys above `key`; `None`: all."""
        if key is None or not self._chunks:
            yield from self
            return

        at = self._chunk_of(key)
        yield from islice(self._chunks[at], bisect_right(self._chunks[at], key), None)

        for chunk in islice(self._chunks, at + 1, None):
            yield from chunk

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._chunks)

    def _chunk_of(self, key: Any) -> int:
        return max(bisect_right(self._firsts, key) - 1, 0)


_Place = tuple[_SortedKeys, Any]


class _Queue:
    """The events of one instance id, which may wait for an instance that is not there yet."""

    __slots__ = ("by_name", "count", "ids", "last_number")

    def __init__(self) -> None:
        self.by_name: dict[str, deque[Head]] = {}
        self.count = 0
        self.ids: OrderedDict[tuple[str, str], int] = OrderedDict()
        self.last_number = 0


class _Shelf:
    """What lies beside one instance's row."""

    __slots__ = ("_input", "_namespace", "_queue", "_results")

    def __init__(self, namespace: _Namespace) -> None:
        self._namespace = namespace
        self._input: bytes | None = None
        self._results: dict[str, bytes] = {}
        self._queue: _Queue | None = None

    def input(self) -> bytes | None:
        return self._input

    def set_input(self, data: bytes | None) -> None:
        self._input = data

    def result(self, node_id: str) -> bytes | None:
        return self._results.get(node_id)

    def results(self) -> dict[str, bytes]:
        return self._results.copy()

    def put_result(self, node_id: str, output: bytes) -> None:
        self._results[node_id] = output

    def drop_results(self, node_ids: Collection[str] | None) -> None:
        for node_id in list(self._results) if node_ids is None else node_ids:
            self._results.pop(node_id, None)

    def head(self, name: str, *, payload: bool = False) -> Head | None:
        del payload  # it costs nothing here
        events = self._queue.by_name.get(name) if self._queue else None
        return events[0] if events else None

    def names(self) -> Collection[str]:
        return self._queue.by_name if self._queue else ()

    def queued(self) -> int:
        return self._queue.count if self._queue else 0

    def push(self, name: str, payload: bytes, now: int) -> None:
        self._queue = queue = self._queue or _Queue()
        queue.last_number += 1
        queue.count += 1
        event = Head(queue.last_number, now, payload)
        queue.by_name.setdefault(name, deque()).append(event)

    def pop(self, name: str) -> bytes | None:
        events = self._queue.by_name.get(name) if self._queue else None

        if self._queue is None or not events:
            return None

        event = events.popleft()
        self._queue.count -= 1

        if not events:
            del self._queue.by_name[name]

        return event.payload

    def remembers(self, name: str, event_id: str) -> bool:
        return self._queue is not None and (name, event_id) in self._queue.ids

    def remember(self, name: str, event_id: str, now: int) -> None:
        self._queue = queue = self._queue or _Queue()
        queue.ids[name, event_id] = now

        while len(queue.ids) > REMEMBERED_EVENT_IDS:
            oldest = next(iter(queue.ids))

            if queue.ids[oldest] > now - DAY and len(queue.ids) <= 10 * REMEMBERED_EVENT_IDS:
                return

            del queue.ids[oldest]

    def next_fence(self) -> int:
        self._namespace.last_fence += 1
        return self._namespace.last_fence

    def clear(self) -> None:
        self._input, self._queue = None, None
        self._results.clear()

    @property
    def empty(self) -> bool:
        return self._queue is None


class _Namespace:
    """The instances of one namespace, and everything by which they are found."""

    def __init__(self) -> None:
        self.last_fence = 0
        self.listeners: set[Wakeups] = set()
        self.aggregates: dict[str, Aggregate] = {}
        self.shelves: dict[str, _Shelf] = {}
        self.lanes: list[_SortedKeys] = [_SortedKeys() for _ in range(6)]
        self.listings: dict[tuple[str | None, str | None], _SortedKeys] = {}
        self.idle: _SortedKeys = _SortedKeys()
        self.signalled: _SortedKeys = _SortedKeys()
        self.expiries: _SortedKeys = _SortedKeys()
        self._places: dict[str, list[_Place]] = {}
        self._listed: dict[str, tuple[Status, str]] = {}

    def shelf(self, instance_id: str) -> _Shelf:
        return self.shelves.get(instance_id) or _Shelf(self)

    def store(self, instance_id: str, aggregate: Aggregate | None, shelf: _Shelf) -> None:
        if aggregate is not None:
            self.aggregates[instance_id] = aggregate
            self.shelves[instance_id] = shelf
            self._list(instance_id, (aggregate.status, aggregate.definition_hash))
        else:
            self.aggregates.pop(instance_id, None)
            self._list(instance_id, None)

            if shelf.empty:
                self.shelves.pop(instance_id, None)
            else:
                self.shelves[instance_id] = shelf

        self._index(instance_id, aggregate)

    def _list(self, instance_id: str, new: tuple[Status, str] | None) -> None:
        old = self._listed.get(instance_id)

        if old == new:
            return

        for status, definition in product((old[0], None), (old[1], None)) if old else ():
            self.listing(status, definition).discard(instance_id)

        for status, definition in product((new[0], None), (new[1], None)) if new else ():
            self.listing(status, definition).add(instance_id)

        if new is None:
            del self._listed[instance_id]
        else:
            self._listed[instance_id] = new

    def _index(self, instance_id: str, aggregate: Aggregate | None) -> None:
        old = self._places.get(instance_id, [])
        new = list(self._places_of(instance_id, aggregate)) if aggregate else []

        for index, key in old:
            if (index, key) not in new:
                index.discard(key)

        for index, key in new:
            if (index, key) not in old:
                index.add(key)

        if new:
            self._places[instance_id] = new
        else:
            self._places.pop(instance_id, None)

    def _places_of(self, instance_id: str, aggregate: Aggregate) -> Iterator[_Place]:
        if aggregate.idle:
            yield self.idle, (aggregate.updated_at, instance_id)

        if aggregate.signals:
            first = min(mark.requested_at for mark in aggregate.signals.values())
            yield self.signalled, (first, instance_id)

        for claim in aggregate.claims.values():
            if claim.expires_at is not None:
                yield self.expiries, (claim.expires_at, instance_id, claim.task_id)

        for entry in aggregate.entries:
            at = aggregate.available_at(entry)

            if at is not None:
                yield self.lanes[entry.lane], (at, instance_id, entry.node_id)

    def listing(self, status: str | None, definition_hash: str | None) -> _SortedKeys:
        found = self.listings.get((status, definition_hash))

        if found is None:
            found = self.listings[status, definition_hash] = _SortedKeys()

        return found

    def due(self, lane: int, now: int) -> Iterator[tuple[int, str, str]]:
        for key in self.lanes[lane]:
            if key[0] > now:
                return

            yield key

    def notify(self, hint: WakeHint) -> None:
        for listener in self.listeners:
            listener.notify(hint)


class MemoryStore:
    """What several `MemoryBackend`s share. Two without a common store share nothing.

    Args:
        clock: What the time is; default: the system's. The store's time never goes back.

    Example:
        >>> store = MemoryStore()
        >>> one, other = MemoryBackend(store), MemoryBackend(store)
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None) -> None:
        self._clock = clock
        self._namespaces: dict[str, _Namespace] = {}
        self._latest = 0

    def now(self) -> int:
        """The store's time, in microseconds since 1970."""
        clock = self._clock
        now = to_micros(datetime.now(UTC) if clock is None else clock())
        self._latest = max(self._latest, now)
        return self._latest

    def namespace(self, name: str) -> _Namespace:
        """The named part of the store."""
        return self._namespaces.setdefault(name, _Namespace())


class MemoryDriver:
    """One namespace of a `MemoryStore`. Nothing awaits, so every method is one atomic step."""

    name = "memory"

    def __init__(self, store: MemoryStore, namespace: str) -> None:
        self.namespace = namespace
        self._store = store
        self._opened: _Namespace | None = None
        self._wakeups: Wakeups | None = None

    async def open(self) -> Opened:
        self._opened = self._store.namespace(self.namespace)
        self._wakeups = Wakeups()
        self._opened.listeners.add(self._wakeups)
        return Opened(caveats=("nothing survives the end of the process",))

    async def close(self) -> None:
        if self._opened is not None and self._wakeups is not None:
            self._opened.listeners.discard(self._wakeups)
            self._wakeups.close()

        self._opened = None

    @property
    def _space(self) -> _Namespace:
        if self._opened is None:
            raise BackendClosedError("the backend is not open")

        return self._opened

    async def now(self) -> int:
        return self._store.now()

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        now = self._store.now()
        return [self._view(read, now) for read in reads]

    def _view(self, read: Read, now: int) -> View | None:
        aggregate = self._space.aggregates.get(read.instance_id)

        if aggregate is None:
            return None

        return rules.view(aggregate, self._space.shelf(read.instance_id), read, now)

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer | Exception]:
        return [self._apply(unit) for unit in units]

    def _apply(self, unit: Unit) -> Answer:
        space = self._space
        shelf = space.shelf(unit.instance_id)
        aggregate = space.aggregates.get(unit.instance_id)
        outcome = rules.carry_out(aggregate, unit, shelf, self._store.now())

        if outcome.changed:
            space.store(unit.instance_id, outcome.aggregate, shelf)

        if outcome.aggregate is not None:
            for entry in outcome.hints:
                space.notify(_hint(unit.instance_id, outcome.aggregate, entry))

        return outcome.answer

    async def claim(self, take: Take) -> Taken:
        space = self._space
        shelf = space.shelf(take.instance_id)
        aggregate = space.aggregates.get(take.instance_id)
        taken = rules.take(aggregate, take, shelf, self._store.now())

        if taken.claim is not None:
            space.store(take.instance_id, aggregate, shelf)

        return taken

    async def extend(self, extend: Extend) -> Extended:
        space = self._space
        aggregate = space.aggregates.get(extend.instance_id)
        extended = rules.extend(aggregate, extend, self._store.now())

        if extended.extended:
            space.store(extend.instance_id, aggregate, space.shelf(extend.instance_id))

        return extended

    async def poll(self, query: Poll) -> Polled:
        now = self._store.now()
        advances = self._due_advances(query, now)

        if advances:
            return Polled(advances=advances, offers=())

        chosen = self._choose(query, now)
        return Polled(
            advances=(),
            offers=tuple(self._offer(query, n, *it, now) for n, it in enumerate(chosen)),
        )

    def _due_advances(self, query: Poll, now: int) -> tuple[str, ...]:
        found: dict[str, None] = {}

        for _, instance_id, _ in self._space.due(ADVANCE_LANE, now):
            if len(found) >= query.advances:
                break

            if self._asked_for(query, instance_id):
                found[instance_id] = None

        return tuple(found)

    def _asked_for(self, query: Poll, instance_id: str) -> bool:
        if instance_id in query.exclude:
            return False

        definition = self._space.aggregates[instance_id].definition_hash
        return query.definitions is None or definition in query.definitions

    def _choose(self, query: Poll, now: int) -> list[tuple[str, IndexedEntry]]:
        def lane_keys(lane: int) -> Iterator[tuple[tuple[int, int], str, str]]:
            for at, instance_id, node_id in self._space.due(lane, now):
                yield order_key(lane, at, query.aging), instance_id, node_id

        chosen: list[tuple[str, IndexedEntry]] = []
        yielding: list[tuple[str, IndexedEntry]] = []

        for (_, at), instance_id, node_id in merge(*map(lane_keys, _LANES)):
            if len(chosen) >= query.limit:
                break

            entry = _task_entry(self._space.aggregates[instance_id], node_id)

            if not self._asked_for(query, instance_id) or not fits(entry.tags, query.tags):
                continue

            if entry.avoid == query.worker_id and now - at < query.bias:
                yielding.append((instance_id, entry))
            else:
                chosen.append((instance_id, entry))

        return (chosen + yielding)[: query.limit]

    def _offer(
        self, query: Poll, number: int, instance_id: str, entry: IndexedEntry, now: int
    ) -> Offer:
        aggregate = self._space.aggregates[instance_id]
        shelf = self._space.shelf(instance_id)
        claim: ClaimRecord | None = None

        if query.claim:
            claim = rules.take(
                aggregate, _take(query, number, instance_id, entry), shelf, now
            ).claim
            self._space.store(instance_id, aggregate, shelf)

        read = Read(instance_id=instance_id, results=query.results)
        return Offer(
            view=rules.view(aggregate, shelf, read, now),
            task_id=entry.node_id,
            reason=entry.reason,
            input=rules.entry_input(entry, shelf),
            claim=claim,
        )

    async def page(self, query: Page) -> Sequence[Row]:
        space = self._space

        if query.idle_for is not None:
            return self._stalled(query.idle_for, query.limit)

        rows: list[Row] = []

        for instance_id in space.listing(query.status, query.definition_hash).after(query.after):
            if len(rows) >= query.limit:
                break

            rows.append(_row(instance_id, space.aggregates[instance_id]))

        return rows

    def _stalled(self, idle_for: int, limit: int) -> Sequence[Row]:
        now = self._store.now()
        rows: list[Row] = []

        for updated_at, instance_id in self._space.idle:
            if len(rows) >= limit or updated_at > now - idle_for:
                break

            aggregate = self._space.aggregates[instance_id]

            if not aggregate.live_claims(now):
                rows.append(_row(instance_id, aggregate))

        return rows

    async def chores(self, query: Chores) -> ChoreList:
        now = self._store.now()
        space = self._space
        due: dict[str, None] = {}
        candidates = merge(
            space.signalled, ((at, instance_id) for at, instance_id, _ in space.due(0, now))
        )

        for _, instance_id in candidates:
            if len(due) > query.limit:
                break

            if instance_id in query.exclude or space.aggregates[instance_id].live_claims(now):
                continue

            due[instance_id] = None

        purged, more = self._purge(query, now)
        return ChoreList(
            instances=tuple(due)[: query.limit],
            purged=purged,
            more=more or len(due) > query.limit,
        )

    def _purge(self, query: Chores, now: int) -> tuple[int, bool]:
        space = self._space
        old: list[tuple[str, str]] = []

        for expires_at, instance_id, task_id in space.expiries:
            if expires_at > now - query.purge_after or len(old) > query.limit:
                break

            old.append((instance_id, task_id))

        for instance_id, task_id in old[: query.limit]:
            aggregate = space.aggregates[instance_id]
            del aggregate.claims[task_id]
            space.store(instance_id, aggregate, space.shelf(instance_id))

        return min(len(old), query.limit), len(old) > query.limit

    async def wait(self, timeout: float) -> WakeHint | None:
        if self._wakeups is None:
            raise BackendClosedError("the backend is not open")

        return await self._wakeups.wait(timeout)


def _task_entry(aggregate: Aggregate, node_id: str) -> IndexedEntry:
    return next(e for e in aggregate.entries if e.is_task and e.node_id == node_id)


def _take(query: Poll, number: int, instance_id: str, entry: IndexedEntry) -> Take:
    return Take(
        instance_id=instance_id,
        task_id=entry.node_id,
        worker_id=query.worker_id,
        ttl=query.ttl,
        nonce=f"{query.nonce}.{number}",
        tags=query.worker_tags,
    )


def _row(instance_id: str, aggregate: Aggregate) -> Row:
    return Row(
        instance_id=instance_id,
        definition_hash=aggregate.definition_hash,
        status=aggregate.status,
        version=aggregate.version,
        created_at=aggregate.created_at,
        updated_at=aggregate.updated_at,
        status_since=aggregate.status_since,
        priority=aggregate.priority,
        tags=aggregate.tags,
    )


def _hint(instance_id: str, aggregate: Aggregate, entry: IndexedEntry) -> WakeHint:
    return WakeHint(
        instance_id=instance_id,
        task_id=entry.node_id,
        definition_hash=aggregate.definition_hash,
        tags=entry.tags,
    )


@final
class MemoryBackend(StandardBackend[MemoryDriver]):
    """Workflows in memory, for tests and for runs that may be lost.

    Keeps every rule of the contract, on asyncio and on trio; several backends share a
    `MemoryStore` within one event loop.

    Args:
        store: What to share; default: a store of its own.
        options: Those of every backend, see `sayiir_persist.connect`.

    Example:
        >>> async def main() -> None:
        ...     async with MemoryBackend() as backend:
        ...         await backend.start_instance("order-7", "v1", start_at="charge")
    """

    def __init__(self, store: MemoryStore | None = None, **options: Any) -> None:
        shared = store or MemoryStore()
        super().__init__(lambda chosen: MemoryDriver(shared, chosen.namespace), **options)


def from_url(url: str, **options: Any) -> MemoryBackend:
    """Build the backend that `memory://` stands for."""
    if url not in {"memory:", "memory://"}:
        raise ConfigurationError("memory:// takes no host and no path")

    return MemoryBackend(**options)


if TYPE_CHECKING:
    _backend: type[PersistentBackend] = MemoryBackend
    _wakeups: type[WakeupSource] = MemoryBackend
