"""One instance as a value, and what a `Unit` does to it.

For stores that run Python inside their atomic step: load the `Aggregate`, let `carry_out` check
the guard and change it, store it again. What is large or must outlive the instance (results,
input, queued events, the fence counter) is reached through a `Shelf`, so that a write touches
only what it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from sayiir_persist.dispatch import NEVER, Entry, EntryKind, fits
from sayiir_persist.driver import (
    Answer,
    ClaimKey,
    ClaimNext,
    ClaimRecord,
    Content,
    Extend,
    Extended,
    Facts,
    Guard,
    Head,
    Presence,
    Push,
    Read,
    Record,
    Refusal,
    SignalMark,
    Take,
    Taken,
    Unit,
    View,
)
from sayiir_persist.positions import INSTANCE_INPUT, ReadyReason
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

ADVANCE_LANE: Final = 0
"""Where entries stand that are moved on; tasks stand in the lane of their priority, 1 to 5."""


class IndexedEntry(Struct, kw_only=True, omit_defaults=True):
    """An entry with its instants resolved, as the store keeps it.

    Attributes:
        met: The event that it waits for has met it: due now, as an advance.
        until: An event that arrives from then on comes too late; `None`: none does.
        due: `None`: never.
        elapses: From when on time alone has moved the leaf on; `None`: never.
    """

    node_id: str
    kind: EntryKind
    due: int | None
    early: bool = False
    done: bool = False
    reason: ReadyReason = ReadyReason.TASK
    priority: int = 3
    tags: tuple[str, ...] = ()
    input_from: str | None = None
    avoid: str | None = None
    event: str | None = None
    until: int | None = None
    met: int | None = None
    elapses: int | None = None

    @property
    def lane(self) -> int:
        """The lane in which a poll finds it."""
        if self.kind is EntryKind.ADVANCE or self.met is not None:
            return ADVANCE_LANE

        return self.priority

    @property
    def is_task(self) -> bool:
        """Whether it can be claimed as things are."""
        return self.kind is EntryKind.TASK and self.met is None


class Aggregate(Struct, kw_only=True):
    """An instance's row: all that is small and belongs to it."""

    incarnation: str
    version: int
    status: Status
    definition_hash: str
    body: bytes
    body_at: int
    created_at: int
    updated_at: int
    status_since: int
    priority: int
    tags: tuple[str, ...]
    last_completed: str | None
    idle: bool
    entries: list[IndexedEntry] = field(default_factory=list[IndexedEntry])
    claims: dict[str, ClaimRecord] = field(default_factory=dict[str, ClaimRecord])
    signals: dict[SignalKind, SignalMark] = field(default_factory=dict[SignalKind, SignalMark])

    @property
    def dispatchable(self) -> bool:
        """Whether its entries may be offered or advanced at all."""
        return self.status is Status.IN_PROGRESS and not self.signals

    def available_at(self, entry: IndexedEntry) -> int | None:
        """From when on a poll finds the entry; `None`: not as things are."""
        if not self.dispatchable:
            return None

        if entry.met is not None:
            return entry.met

        if entry.kind is EntryKind.ADVANCE:
            return entry.due

        if entry.done or entry.due is None:
            return None

        claim = self.claims.get(entry.node_id)

        if claim is None:
            return entry.due

        return None if claim.expires_at is None else max(entry.due, claim.expires_at)

    def live_claims(self, now: int) -> bool:
        """Whether any claim is live."""
        return bool(self.claims) and any(claim.live(now) for claim in self.claims.values())

    def advance_due(self, now: int) -> bool:
        """Whether an entry has to be moved on by now."""
        for entry in self.entries:
            if entry.is_task:
                continue

            if (at := self.available_at(entry)) is not None and at <= now:
                return True

        return False

    def facts(self, now: int) -> Facts:
        """What stands beside the body, as of now."""
        return Facts(
            incarnation=self.incarnation,
            version=self.version,
            status=self.status,
            definition_hash=self.definition_hash,
            created_at=self.created_at,
            updated_at=self.updated_at,
            status_since=self.status_since,
            last_completed=self.last_completed,
            signals=tuple(self.signals.values()) if self.signals else (),
            live_claims=self.live_claims(now),
            advance_due=self.advance_due(now),
        )


class Shelf(Protocol):
    """What lies beside one instance's row, within the same atomic step.

    The queue belongs to the instance id and may be there without a row.
    """

    def input(self) -> bytes | None:
        """The instance's input."""
        ...

    def set_input(self, data: bytes | None) -> None:
        """Store the instance's input."""
        ...

    def result(self, node_id: str) -> bytes | None:
        """One result."""
        ...

    def results(self) -> dict[str, bytes]:
        """All results, in the order in which they were recorded."""
        ...

    def put_result(self, node_id: str, output: bytes) -> None:
        """Add or overwrite a result."""
        ...

    def drop_results(self, node_ids: Collection[str] | None) -> None:
        """Remove some results; `None`: all."""
        ...

    def head(self, name: str, *, payload: bool = False) -> Head | None:
        """The oldest queued event of a name."""
        ...

    def names(self) -> Collection[str]:
        """The names under which events are queued."""
        ...

    def queued(self) -> int:
        """How many events are queued under all names."""
        ...

    def push(self, name: str, payload: bytes, now: int) -> None:
        """Queue an event."""
        ...

    def pop(self, name: str) -> bytes | None:
        """Take the oldest event of a name."""
        ...

    def remembers(self, name: str, event_id: str) -> bool:
        """Whether this event id came before."""
        ...

    def remember(self, name: str, event_id: str, now: int) -> None:
        """Keep an event id; see `REMEMBERED_EVENT_IDS`."""
        ...

    def next_fence(self) -> int:
        """Draw a number above every one drawn in this namespace before."""
        ...

    def clear(self) -> None:
        """Remove input, results, events and event ids."""
        ...


def view(aggregate: Aggregate, shelf: Shelf, read: Read, now: int) -> View:
    """Read an instance as `read` asks for it."""
    results: dict[str, bytes] | None

    if isinstance(read.results, bool):
        results = shelf.results() if read.results else None
    else:
        found = {node_id: shelf.result(node_id) for node_id in read.results}
        results = {node_id: output for node_id, output in found.items() if output is not None}

    return View(
        instance_id=read.instance_id,
        now=now,
        facts=aggregate.facts(now),
        body=aggregate.body if read.body else b"",
        body_at=aggregate.body_at,
        priority=aggregate.priority,
        tags=aggregate.tags,
        input=shelf.input() if read.body else None,
        done=frozenset(entry.node_id for entry in aggregate.entries if entry.done),
        results=results,
        heads=dict(_heads(aggregate, shelf, payloads=read.payloads)),
    )


def _heads(aggregate: Aggregate, shelf: Shelf, *, payloads: bool) -> Iterator[tuple[str, Head]]:
    # An advance may lead to a wait for any name, so then all of them count.
    virtual = any(entry.kind is EntryKind.ADVANCE for entry in aggregate.entries)
    waits = any(entry.event is not None for entry in aggregate.entries)

    if not (payloads or virtual or waits):
        return

    for name in shelf.names():
        if (head := shelf.head(name, payload=payloads)) is not None:
            yield name, head


class Outcome(Struct):
    """The instance after a unit (`None`: there is none), and what to tell."""

    aggregate: Aggregate | None
    answer: Answer
    changed: bool
    hints: Sequence[IndexedEntry] = ()


def carry_out(aggregate: Aggregate | None, unit: Unit, shelf: Shelf, now: int) -> Outcome:
    """Check the guard of a unit and do all that it says, or nothing.

    Everything that can refuse the unit is decided before the first change.
    """
    if not _holds(unit.guard, aggregate, shelf, now):
        return _refused(aggregate, unit, shelf, now, Refusal.GUARD)

    if unit.push is not None and _queue_is_full(unit.push, aggregate, shelf, now):
        return _refused(aggregate, unit, shelf, now, Refusal.QUEUE_FULL)

    if unit.record is not None and aggregate is not None and _has_elapsed(aggregate, now):
        return _refused(aggregate, unit, shelf, now, Refusal.ELAPSED)

    if unit.release is not None and not _on_record(aggregate, unit.release):
        return _refused(aggregate, unit, shelf, now, Refusal.GUARD)

    offered = _offered(aggregate, now)

    if aggregate is not None and (unit.delete or unit.restart):
        shelf.clear()
        aggregate = None

    told = _Told()

    if unit.content is not None:
        aggregate = _write(aggregate, unit, unit.content, shelf, now, told)

    if aggregate is not None and unit.record is not None:
        _record(aggregate, unit.record, shelf, now)

    if aggregate is not None:
        _mark_signals(aggregate, unit, now)

    if unit.push is not None and not _repeated(unit.push, shelf):
        _push(unit.push, shelf, now)

    if unit.pop is not None:
        told.event = shelf.pop(unit.pop)

    if aggregate is not None:
        _settle_claims(aggregate, unit, now, told)
        _meet(aggregate, shelf)

        if unit.claim_next is not None and unit.content is not None:
            _claim_next(aggregate, unit.claim_next, unit.content, shelf, now, told)

    answer = Answer(
        now=now,
        refused=None,
        facts=aggregate.facts(now) if aggregate else None,
        claim=told.claim,
        entry=told.entry,
        input=told.input,
        event=told.event,
        view=_asked_view(aggregate, unit, shelf, now),
    )
    hints = [
        entry
        for entry in _available_tasks(aggregate, now)
        if entry.node_id in told.fresh or entry.node_id not in offered
    ]
    return Outcome(aggregate, answer, changed=True, hints=hints)


def _asked_view(aggregate: Aggregate | None, unit: Unit, shelf: Shelf, now: int) -> View | None:
    if not unit.view or aggregate is None:
        return None

    return view(aggregate, shelf, Read(instance_id=unit.instance_id, results=False), now)


class _Told(Struct):
    claim: ClaimRecord | None = None
    entry: Entry | None = None
    input: bytes | None = None
    event: bytes | None = None
    fresh: frozenset[str] = frozenset()


def _refused(
    aggregate: Aggregate | None, unit: Unit, shelf: Shelf, now: int, why: Refusal
) -> Outcome:
    key = unit.release or unit.guard.claim
    answer = Answer(
        now=now,
        refused=why,
        facts=aggregate.facts(now) if aggregate else None,
        claim=aggregate.claims.get(key.task_id) if aggregate and key else None,
        view=_asked_view(aggregate, unit, shelf, now),
    )
    return Outcome(aggregate, answer, changed=False)


def _holds(guard: Guard, aggregate: Aggregate | None, shelf: Shelf, now: int) -> bool:
    if aggregate is None:
        return guard.presence is not Presence.REQUIRED and _has_head(guard, shelf)

    if guard.presence is Presence.ABSENT:
        return False

    return (
        (guard.definition_hash is None or guard.definition_hash == aggregate.definition_hash)
        and (guard.statuses is None or aggregate.status in guard.statuses)
        and (guard.claim is None or _is_live(aggregate, guard.claim, now))
        and (guard.version is None or guard.version == aggregate.version)
        and (guard.incarnation is None or guard.incarnation == aggregate.incarnation)
        and (not guard.idle or not aggregate.live_claims(now))
        and (guard.signals is None or _same_signals(guard.signals, aggregate))
        and _has_head(guard, shelf)
    )


def _has_head(guard: Guard, shelf: Shelf) -> bool:
    if guard.head is None:
        return True

    name, number = guard.head
    head = shelf.head(name)
    return head is not None and head.number == number


def _same_signals(signals: tuple[SignalMark, ...], aggregate: Aggregate) -> bool:
    return {mark.kind: mark for mark in signals} == aggregate.signals


def _is_live(aggregate: Aggregate, key: ClaimKey, now: int) -> bool:
    claim = aggregate.claims.get(key.task_id)
    return claim is not None and claim.fence == key.fence and claim.live(now)


def _on_record(aggregate: Aggregate | None, key: ClaimKey) -> bool:
    claim = aggregate.claims.get(key.task_id) if aggregate else None
    return claim is not None and claim.fence == key.fence


def _write(
    aggregate: Aggregate | None,
    unit: Unit,
    content: Content,
    shelf: Shelf,
    now: int,
    told: _Told,
) -> Aggregate | None:
    if aggregate is None:
        if unit.create is None:
            return None

        aggregate = _created(unit.create, content, now)
        shelf.set_input(content.input)
    elif unit.replace:
        shelf.set_input(content.input)
        shelf.drop_results(None)

    if content.status_is_new or aggregate.status is not content.status:
        aggregate.status_since = now

    tasks_before = {entry.node_id for entry in aggregate.entries if entry.is_task}
    aggregate.version += 1
    aggregate.updated_at = aggregate.body_at = now
    aggregate.status = content.status
    aggregate.definition_hash = content.definition_hash
    aggregate.body = content.body
    aggregate.priority, aggregate.tags = content.priority, content.tags
    aggregate.last_completed = content.last_completed
    aggregate.idle = content.idle
    aggregate.entries = [_indexed(entry, aggregate, now) for entry in content.entries]
    told.fresh = frozenset(
        entry.node_id
        for entry in content.entries
        if entry.kind is EntryKind.TASK and (entry.fresh or entry.node_id not in tasks_before)
    )

    for node_id in told.fresh:
        if unit.guard.claim is None or unit.guard.claim.task_id != node_id:
            aggregate.claims.pop(node_id, None)

    if content.status.is_terminal:
        aggregate.claims.clear()
        aggregate.signals.clear()

    if content.dropped:
        shelf.drop_results(content.dropped)

    for node_id, output in content.gained.items():
        shelf.put_result(node_id, output)

    return aggregate


def _created(incarnation: str, content: Content, now: int) -> Aggregate:
    return Aggregate(
        incarnation=incarnation,
        version=0,
        status=content.status,
        definition_hash=content.definition_hash,
        body=content.body,
        body_at=now,
        created_at=now,
        updated_at=now,
        status_since=now,
        priority=content.priority,
        tags=content.tags,
        last_completed=content.last_completed,
        idle=content.idle,
    )


def _indexed(entry: Entry, aggregate: Aggregate, now: int) -> IndexedEntry:
    due = entry.due.resolve(now)

    if due is not None and entry.kind is EntryKind.TASK:
        due = max(due, aggregate.status_since)

    return IndexedEntry(
        node_id=entry.node_id,
        kind=entry.kind,
        due=due,
        early=entry.early,
        done=entry.done,
        reason=entry.reason,
        priority=entry.priority,
        tags=entry.tags,
        input_from=entry.input_from,
        avoid=entry.avoid,
        event=entry.event,
        until=None if entry.event_until is NEVER else entry.event_until.resolve(now),
        elapses=None if entry.elapses is NEVER else entry.elapses.resolve(now),
    )


def _record(aggregate: Aggregate, record: Record, shelf: Shelf, now: int) -> None:
    ready = next(
        (it for it in aggregate.entries if it.early and it.node_id == record.node_id), None
    )
    marks = ready is not None and not ready.done

    if not marks and shelf.result(record.node_id) == record.output:
        return

    shelf.put_result(record.node_id, record.output)
    aggregate.last_completed = record.node_id
    aggregate.version += 1
    aggregate.updated_at = now

    if ready is not None:
        ready.done = True
        aggregate.idle = aggregate.status is Status.IN_PROGRESS and all(
            entry.done for entry in aggregate.entries
        )


def _has_elapsed(aggregate: Aggregate, now: int) -> bool:
    horizon = aggregate.status_since if aggregate.status is Status.PAUSED else now
    return any(
        entry.elapses is not None and entry.elapses <= horizon and entry.met is None
        for entry in aggregate.entries
    )


def _ready_entry(aggregate: Aggregate, node_id: str, now: int) -> IndexedEntry | None:
    for entry in aggregate.entries:
        if not entry.is_task or entry.node_id != node_id:
            continue

        if entry.early or (entry.due is not None and entry.due <= now):
            return entry

    return None


def _mark_signals(aggregate: Aggregate, unit: Unit, now: int) -> None:
    if unit.signal is not None:
        aggregate.signals[unit.signal.kind] = replace(unit.signal, requested_at=now)

    for kind in unit.clear:
        aggregate.signals.pop(kind, None)


def _repeated(push: Push, shelf: Shelf) -> bool:
    return push.event_id is not None and shelf.remembers(push.name, push.event_id)


def _push(push: Push, shelf: Shelf, now: int) -> None:
    shelf.push(push.name, push.payload, now)

    if push.event_id is not None:
        shelf.remember(push.name, push.event_id, now)


def _queue_is_full(push: Push, aggregate: Aggregate | None, shelf: Shelf, now: int) -> bool:
    if shelf.queued() < push.limit or _repeated(push, shelf):
        return False

    if aggregate is None or not aggregate.dispatchable or shelf.head(push.name) is not None:
        return True

    return not any(_would_meet(entry, push.name, now) for entry in aggregate.entries)


def _would_meet(entry: IndexedEntry, name: str, arrived_at: int) -> bool:
    return entry.event == name and (entry.until is None or arrived_at < entry.until)


def _settle_claims(aggregate: Aggregate, unit: Unit, now: int, told: _Told) -> None:
    if unit.release is not None:
        aggregate.claims.pop(unit.release.task_id, None)

    if unit.revoke is not None:
        claim = aggregate.claims.get(unit.revoke)

        if claim is not None and claim.live(now):
            told.claim = aggregate.claims.pop(unit.revoke)


def _meet(aggregate: Aggregate, shelf: Shelf) -> None:
    for entry in aggregate.entries:
        if entry.event is None:
            continue

        head = shelf.head(entry.event)
        meets = head is not None and _would_meet(entry, entry.event, head.arrived_at)
        entry.met = head.arrived_at if head is not None and meets else None


def _claim_next(
    aggregate: Aggregate,
    wish: ClaimNext,
    content: Content,
    shelf: Shelf,
    now: int,
    told: _Told,
) -> None:
    if not aggregate.dispatchable or any(entry.met is not None for entry in aggregate.entries):
        return

    accepted = frozenset(wish.tags)

    for projected, entry in zip(content.entries, aggregate.entries, strict=True):
        at = aggregate.available_at(entry) if projected.fresh and entry.is_task else None

        if at is None or at > now or not fits(entry.tags, accepted):
            continue

        told.claim = grant(
            aggregate,
            entry,
            ClaimRecord(
                task_id=entry.node_id,
                worker_id=wish.worker_id,
                fence=shelf.next_fence(),
                claimed_at=now,
                expires_at=now + wish.ttl,
                nonce=wish.nonce,
                worker_tags=wish.tags,
            ),
        )
        told.entry = projected
        told.input = entry_input(entry, shelf)
        return


def grant(aggregate: Aggregate, entry: IndexedEntry, claim: ClaimRecord) -> ClaimRecord:
    """Put a claim on record, in the place of an expired one."""
    aggregate.claims[entry.node_id] = claim
    return claim


def entry_input(entry: IndexedEntry, shelf: Shelf) -> bytes | None:
    """The input of an entry's task."""
    if entry.input_from is None:
        return None

    if entry.input_from == INSTANCE_INPUT:
        return shelf.input()

    return shelf.result(entry.input_from)


def take(aggregate: Aggregate | None, wish: Take, shelf: Shelf, now: int) -> Taken:
    """Claim one task, if it may be claimed; changes the aggregate only if it grants."""
    if aggregate is None:
        return Taken(facts=None)

    held = aggregate.claims.get(wish.task_id)

    if held is not None and held.live(now):
        same = held.worker_id == wish.worker_id and held.nonce == wish.nonce
        return Taken(facts=aggregate.facts(now), claim=held if same else None)

    if aggregate.status is not Status.IN_PROGRESS:
        return Taken(facts=aggregate.facts(now))

    entry = _ready_entry(aggregate, wish.task_id, now)

    if entry is None:
        return Taken(facts=aggregate.facts(now))

    claim = ClaimRecord(
        task_id=wish.task_id,
        worker_id=wish.worker_id,
        fence=shelf.next_fence(),
        claimed_at=now,
        expires_at=None if wish.ttl is None else now + wish.ttl,
        nonce=wish.nonce,
        worker_tags=wish.tags,
    )
    grant(aggregate, entry, claim)
    return Taken(facts=aggregate.facts(now), claim=claim)


def extend(aggregate: Aggregate | None, wish: Extend, now: int) -> Extended:
    """Move the end of a live claim; changes the aggregate only if it does."""
    held = aggregate.claims.get(wish.key.task_id) if aggregate else None

    if aggregate is None or held is None:
        return Extended(extended=False, claim=None)

    signals = tuple(aggregate.signals.values())

    if held.fence != wish.key.fence or not held.live(now):
        return Extended(extended=False, claim=held, signals=signals)

    if held.expires_at is not None:
        held = replace(held, expires_at=now + wish.ttl)
        aggregate.claims[held.task_id] = held

    return Extended(extended=True, claim=held, signals=signals)


def _available_tasks(aggregate: Aggregate | None, now: int) -> list[IndexedEntry]:
    if aggregate is None:
        return []

    return [
        entry
        for entry in aggregate.entries
        if entry.is_task and (at := aggregate.available_at(entry)) is not None and at <= now
    ]


def _offered(aggregate: Aggregate | None, now: int) -> set[str]:
    return {entry.node_id for entry in _available_tasks(aggregate, now)}
