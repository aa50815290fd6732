"""What travels between Python and the scripts, and what is stored.

A `Unit`, a `Take` or a `Poll` goes to its script field by field, packed. A row comes back as it is
stored, and becomes an `Aggregate`, which answers every question about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import Raw, Struct, field

from sayiir_persist.adapters.redis.scripts import USUAL_PRIORITY
from sayiir_persist.aggregate import Aggregate, IndexedEntry
from sayiir_persist.claims import WakeHint
from sayiir_persist.dispatch import Entry, EntryKind
from sayiir_persist.driver import (
    ClaimKey,
    ClaimNext,
    ClaimRecord,
    Guard,
    Head,
    Presence,
    Row,
    SignalMark,
    View,
)
from sayiir_persist.errors import CodecError
from sayiir_persist.positions import ReadyReason
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import Status
from sayiir_persist.wakeups import ANYTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sayiir_persist.driver import Content, Unit

_LARGEST: Final = 2**62
"""Integers beyond are cut: no instant that a script compares comes near."""

_NUMBER_WIDTH: Final = 16


class StoredEntry(IndexedEntry, kw_only=True):
    """An entry whose instants are left out where they are never."""

    due: int | None = None


class StoredClaim(Struct, kw_only=True):
    """A claim; its end is kept as two numbers, for a script cannot add every ttl exactly."""

    task_id: str
    worker_id: str
    fence: int
    claimed_at: int
    since: int
    ttl: str | None = None
    nonce: str
    worker_tags: tuple[str, ...] = ()

    def record(self) -> ClaimRecord:
        """The claim as everybody else knows it."""
        return ClaimRecord(
            task_id=self.task_id,
            worker_id=self.worker_id,
            fence=self.fence,
            claimed_at=self.claimed_at,
            expires_at=None if self.ttl is None else self.since + int(self.ttl),
            nonce=self.nonce,
            worker_tags=self.worker_tags,
        )


class StoredMark(Struct, kw_only=True):
    """A pending control signal."""

    kind: SignalKind
    requested_at: int
    reason: str | None = None
    requested_by: str | None = None

    def mark(self) -> SignalMark:
        """The signal as everybody else knows it."""
        return SignalMark(self.kind, self.reason, self.requested_by, self.requested_at)


class StoredRow(Struct, kw_only=True):
    """The packed field `s` of an instance; what is missing has its default."""

    incarnation: str
    version: int
    status: Status
    definition_hash: str
    body_at: int
    created_at: int
    updated_at: int
    status_since: int
    fence: int
    results: int
    priority: int = 3
    tags: tuple[str, ...] = ()
    last_completed: str | None = None
    idle: bool = False
    entries: list[StoredEntry] = field(default_factory=list[StoredEntry])
    claims: dict[str, StoredClaim] = field(default_factory=dict[str, StoredClaim])
    signals: dict[SignalKind, StoredMark] = field(default_factory=dict[SignalKind, StoredMark])


class _Guard(Struct, kw_only=True, omit_defaults=True):
    presence: Presence = Presence.REQUIRED
    definition_hash: str | None = None
    statuses: tuple[Status, ...] | None = None
    claim: ClaimKey | None = None
    version: int | None = None
    incarnation: str | None = None
    idle: bool = False
    signals: tuple[SignalMark, ...] | None = None
    head: tuple[str, int] | None = None


class _Entry(Struct, kw_only=True, omit_defaults=True):
    node_id: str
    kind: EntryKind
    due_at: int | None = None
    due_after: int | None = None
    early: bool = False
    fresh: bool = False
    done: bool = False
    reason: ReadyReason = ReadyReason.TASK
    priority: int = USUAL_PRIORITY
    tags: tuple[str, ...] = ()
    input_from: str | None = None
    avoid: str | None = None
    event: str | None = None
    until_at: int | None = None
    until_after: int | None = None
    elapses_at: int | None = None
    elapses_after: int | None = None


class _Content(Struct, kw_only=True, omit_defaults=True):
    body: Raw
    status: Status
    status_is_new: bool = False
    definition_hash: str
    priority: int = USUAL_PRIORITY
    tags: tuple[str, ...] = ()
    last_completed: str | None = None
    entries: tuple[_Entry, ...]
    idle: bool = False
    input: Raw | None = None
    gained: dict[str, Raw]
    dropped: frozenset[str] = frozenset()


class _Unit(Struct, kw_only=True, omit_defaults=True):
    """A `Unit`, but for its payloads: what is false, empty or `None` is left out."""

    instance_id: str
    guard: _Guard
    create: str | None = None
    restart: bool = False
    replace: bool = False
    delete: bool = False
    content: _Content | None = None
    record: tuple[str, Raw] | None = None
    signal: SignalMark | None = None
    clear: frozenset[SignalKind] = frozenset()
    push: tuple[str, Raw, str | None, int] | None = None
    pop: str | None = None
    release: ClaimKey | None = None
    revoke: str | None = None
    claim_next: ClaimNext | None = None
    view: bool = False


_encoder: Final = msgspec.msgpack.Encoder()
_row_decoder: Final = msgspec.msgpack.Decoder(StoredRow)
_claim_decoder: Final = msgspec.msgpack.Decoder(StoredClaim)
_hint_decoder: Final = msgspec.msgpack.Decoder(tuple[str, str, str, tuple[str, ...]])

packed: Callable[[Any], bytes] = _encoder.encode
"""One argument of a script."""


def _raw(data: bytes) -> Raw:
    """A payload as a string: Redis reads no other kind of bytes."""
    size = len(data)

    if size < 32:
        return Raw(b"%c%b" % (0xA0 | size, data))

    if size < 1 << 8:
        return Raw(b"\xd9%c%b" % (size, data))

    if size < 1 << 16:
        return Raw(b"\xda%b%b" % (size.to_bytes(2, "big"), data))

    return Raw(b"\xdb%b%b" % (size.to_bytes(4, "big"), data))


def commits(unit: Unit) -> bool:
    """Whether a unit only saves a version of what is there, releases and claims."""
    guard = unit.guard
    return not (
        unit.content is None
        or unit.create is not None
        or unit.clear
        or unit.view
        or guard.idle
        or guard.signals is not None
        or guard.head is not None
        or unit.push is not None
        or unit.pop is not None
        or unit.record is not None
        or unit.signal is not None
        or unit.revoke is not None
        or unit.delete
        or unit.restart
    )


def packed_unit(unit: Unit) -> bytes:
    """The argument of `apply.lua`."""
    content, record, push, wish = unit.content, unit.record, unit.push, unit.claim_next
    sent = _Unit(
        instance_id=unit.instance_id,
        guard=_guard(unit.guard),
        create=unit.create,
        restart=unit.restart,
        replace=unit.replace,
        delete=unit.delete,
        content=None if content is None else _content(content),
        record=None if record is None else (record.node_id, _raw(record.output)),
        signal=unit.signal,
        clear=unit.clear,
        push=None if push is None else (push.name, _raw(push.payload), push.event_id, push.limit),
        pop=unit.pop,
        release=unit.release,
        revoke=unit.revoke,
        claim_next=wish,
        view=unit.view,
    )
    return _encoder.encode((sent, exact(wish.ttl) if wish else None))


def _guard(guard: Guard) -> _Guard:
    return _Guard(
        presence=guard.presence,
        definition_hash=guard.definition_hash,
        statuses=guard.statuses,
        claim=guard.claim,
        version=guard.version,
        incarnation=guard.incarnation,
        idle=guard.idle,
        signals=guard.signals,
        head=guard.head,
    )


def _entry(entry: Entry) -> _Entry:
    due, until, elapses = entry.due, entry.event_until, entry.elapses
    return _Entry(
        node_id=entry.node_id,
        kind=entry.kind,
        due_at=due.at,
        due_after=due.after,
        early=entry.early,
        fresh=entry.fresh,
        done=entry.done,
        reason=entry.reason,
        priority=entry.priority,
        tags=entry.tags,
        input_from=entry.input_from,
        avoid=entry.avoid,
        event=entry.event,
        until_at=until.at,
        until_after=until.after,
        elapses_at=elapses.at,
        elapses_after=elapses.after,
    )


def _content(content: Content) -> _Content:
    return _Content(
        body=_raw(content.body),
        status=content.status,
        status_is_new=content.status_is_new,
        definition_hash=content.definition_hash,
        priority=content.priority,
        tags=content.tags,
        last_completed=content.last_completed,
        entries=tuple(map(_entry, content.entries)),
        idle=content.idle,
        input=None if content.input is None else _raw(content.input),
        gained={node_id: _raw(output) for node_id, output in content.gained.items()},
        dropped=content.dropped,
    )


def cut(number: int | None) -> int | None:
    """An integer that can be packed."""
    return None if number is None else min(number, _LARGEST)


def exact(ttl: int | None) -> str | None:
    """A ttl as scripts pass it on."""
    return None if ttl is None else str(ttl)


def aggregate_of(instance_id: str, row: bytes, body: bytes = b"") -> Aggregate:
    """The instance that a stored row holds.

    Raises:
        CodecError: It is not what any release wrote.
    """
    try:
        stored = _row_decoder.decode(row)
    except msgspec.MsgspecError as error:
        raise CodecError(f"the row of {instance_id!r} is damaged: {error}") from error

    claims, signals = stored.claims, stored.signals
    return Aggregate(
        incarnation=stored.incarnation,
        version=stored.version,
        status=stored.status,
        definition_hash=stored.definition_hash,
        body=body,
        body_at=stored.body_at,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        status_since=stored.status_since,
        priority=stored.priority,
        tags=stored.tags,
        last_completed=stored.last_completed,
        idle=stored.idle,
        entries=cast("list[IndexedEntry]", stored.entries),
        claims={key: claim.record() for key, claim in claims.items()} if claims else {},
        signals={kind: mark.mark() for kind, mark in signals.items()} if signals else {},
    )


def claim_of(data: bytes) -> ClaimRecord:
    """A claim that a script packed."""
    return _claim_decoder.decode(data).record()


def view_of(
    instance_id: str,
    now: int,
    aggregate: Aggregate,
    parts: Sequence[Any],
    results: Mapping[str, bytes] | None,
    *,
    body: bool = True,
    payloads: bool = False,
) -> View:
    """A view from what `view.lua` answers: body, input and heads.

    Raises:
        CodecError: A part of the instance is missing.
    """
    stored, data, heads = parts

    if body and stored is None:
        raise CodecError(f"the body of {instance_id!r} is missing")

    now = max(now, aggregate.updated_at)
    return View(
        instance_id=instance_id,
        now=now,
        facts=aggregate.facts(now),
        body=stored or b"",
        body_at=aggregate.body_at,
        priority=aggregate.priority,
        tags=aggregate.tags,
        input=data,
        done=frozenset([entry.node_id for entry in aggregate.entries if entry.done]),
        results=results,
        heads=dict(_head(member, payloads=payloads) for member in heads) if heads else {},
    )


def _head(member: bytes, *, payloads: bool) -> tuple[str, Head]:
    """Name, U+0000, number, arrival, payload: see `queue.lua`."""
    name, _, rest = member.partition(b"\0")
    number, rest = rest[:_NUMBER_WIDTH], rest[_NUMBER_WIDTH:]
    arrived_at, payload = rest[:_NUMBER_WIDTH], rest[_NUMBER_WIDTH:]
    head = Head(int(number), int(arrived_at), payload if payloads else None)
    return name.decode(), head


def results_of(pairs: Sequence[Any] | None) -> dict[str, bytes] | None:
    """Results from names and outputs in turn; `None` stands for one that is not there."""
    if pairs is None:
        return None

    named = zip(pairs[::2], pairs[1::2], strict=True)
    return {name.decode(): output for name, output in named if output is not None}


def paired(reply: Any) -> dict[str, str]:
    """Settings, which RESP3 answers as a map and RESP2 as names and values in turn."""
    if isinstance(reply, dict):
        found = cast("dict[bytes, bytes]", reply)
        return {name.decode(): value.decode() for name, value in found.items()}

    texts: list[str] = [each.decode() for each in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def row_of(instance_id: str, data: bytes) -> Row:
    """One line of a listing.

    Raises:
        CodecError: The row is damaged.
    """
    found = aggregate_of(instance_id, data)
    return Row(
        instance_id=instance_id,
        definition_hash=found.definition_hash,
        status=found.status,
        version=found.version,
        created_at=found.created_at,
        updated_at=found.updated_at,
        status_since=found.status_since,
        priority=found.priority,
        tags=found.tags,
    )


def hint_of(data: bytes) -> WakeHint:
    """A hint as it was published."""
    if not data:
        return ANYTHING

    try:
        instance_id, task_id, definition_hash, tags = _hint_decoder.decode(data)
    except msgspec.MsgspecError:
        return ANYTHING

    return WakeHint(
        instance_id=instance_id, task_id=task_id, definition_hash=definition_hash, tags=tags
    )
