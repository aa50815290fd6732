"""Between the values of the SPI and the arguments and rows of the statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from sayiir_persist.claims import WakeHint
from sayiir_persist.dispatch import AT_ONCE, NEVER, Entry, EntryKind, When, fits
from sayiir_persist.driver import (
    Answer,
    ClaimNext,
    ClaimRecord,
    Content,
    Extended,
    Facts,
    Head,
    Offer,
    Refusal,
    Row,
    SignalMark,
    Taken,
    Unit,
    View,
)
from sayiir_persist.positions import ReadyReason
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import Status
from sayiir_persist.writes import OPEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Arguments = tuple[Any, ...]
"""What the function `write` takes after the namespace."""

_NODES: Final = 18
_OUTPUTS: Final = 19
"""Where lists stand among the arguments of a write."""

_HEAVY: Final = 1 << 18
"""Of the bytes that a batch of 256 may have: a statement holds 1 GB, and has its time limit."""

DEFAULT_PRIORITY: Final = 3
"""As the function `write` has it."""

_STATUSES: Final = {status.value: status for status in Status}
_REFUSALS: Final = {refusal.value: refusal for refusal in Refusal}
_NO_CONTENT: Final[Arguments] = (None,) * 12


class _Mark(Struct):
    reason: str | None
    requested_by: str | None
    requested_at: int


class _Hint(Struct):
    task_id: str
    tags: tuple[str, ...]


class _ViewState(Struct):
    body_at: int
    priority: int
    tags: tuple[str, ...]
    done: frozenset[str] | None
    heads: dict[str, tuple[int, int]] | None


_decode_marks: Final = msgspec.json.Decoder(dict[SignalKind, _Mark]).decode
_decode_claim: Final = msgspec.json.Decoder(ClaimRecord).decode
_decode_hints: Final = msgspec.json.Decoder(tuple[_Hint, ...]).decode
_decode_tags: Final = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_heads: Final = msgspec.json.Decoder(dict[str, tuple[int, int]]).decode
_decode_view: Final = msgspec.json.Decoder(_ViewState).decode
_encoder: Final = msgspec.json.Encoder()


def to_json(value: Any) -> str:
    """JSON as asyncpg takes it."""
    return _encoder.encode(value).decode()


# --- Writes -----------------------------------------------------------------------------------


def arguments(unit: Unit) -> Arguments:
    """What the function `write` takes for a unit, after the namespace."""
    guard, content = unit.guard, unit.content
    task = fence = None

    if guard.claim is not None:
        task, fence = guard.claim.task_id, guard.claim.fence

    statuses = None if guard.statuses is None else ",".join(guard.statuses)
    more = _more(unit)
    return (
        unit.instance_id,
        guard.presence.value,
        statuses,
        guard.version,
        guard.incarnation,
        task,
        fence,
        unit.release is not None and unit.release == guard.claim,
        *(_NO_CONTENT if content is None else _content(content)),
        None if unit.claim_next is None else _claim_next(unit.claim_next, content),
        to_json(more) if more else None,
        _data(unit),
    )


def _content(content: Content) -> Arguments:
    nodes = outputs = None

    if content.gained:
        nodes, outputs = list(content.gained), list(content.gained.values())

    entries = content.entries
    return (
        content.body,
        content.status.value,
        content.status_is_new,
        content.definition_hash,
        content.priority,
        to_json(content.tags) if content.tags else "[]",
        content.last_completed,
        content.idle,
        to_json([_entry(entry) for entry in entries]) if entries else "[]",
        not all(entry.fresh for entry in entries),
        nodes,
        outputs,
    )


def _entry(entry: Entry) -> dict[str, Any]:
    said: dict[str, Any] = {"node_id": entry.node_id}

    if entry.due != AT_ONCE:
        said["due"] = _moment(entry.due)

    if entry.kind is EntryKind.ADVANCE:
        said["advance"] = True

    if not entry.fresh:
        said["stays"] = True

    if entry.early:
        said["early"] = True

    if entry.done:
        said["done"] = True

    if entry.reason is not ReadyReason.TASK:
        said["reason"] = entry.reason

    if entry.priority != DEFAULT_PRIORITY:
        said["priority"] = entry.priority

    if entry.tags:
        said["tags"] = entry.tags

    if entry.input_from is not None:
        said["input_from"] = entry.input_from

    if entry.avoid is not None:
        said["avoid"] = entry.avoid

    if entry.event is not None:
        said["event"] = entry.event

        if entry.event_until != NEVER:
            said["until"] = _moment(entry.event_until)

    if entry.elapses != NEVER:
        said["elapses"] = _moment(entry.elapses)

    return said


def _moment(when: When) -> tuple[int | None, int | None]:
    return when.at, when.after


def _claim_next(wish: ClaimNext, content: Content | None) -> str:
    said: dict[str, Any] = {
        "claim": claim_fields(wish.worker_id, wish.nonce, wish.tags),
        "ttl": wish.ttl,
    }

    if wish.tags:
        said["tags"] = wish.tags

    if content is not None and any(entry.event is not None for entry in content.entries):
        said["waits"] = True

    return to_json(said)


def claim_fields(worker_id: str, nonce: str, tags: Sequence[str]) -> dict[str, Any]:
    """What the claimer says of a claim."""
    return {"worker_id": worker_id, "nonce": nonce, "worker_tags": tags}


def _more(unit: Unit) -> dict[str, Any]:
    """What few writes say."""
    guard, content = unit.guard, unit.content
    said: dict[str, Any] = {}

    if guard.definition_hash is not None:
        said["definition_hash"] = guard.definition_hash

    if guard.idle:
        said["idle"] = True

    if guard.signals is not None:
        said["signals"] = {
            mark.kind: _Mark(mark.reason, mark.requested_by, mark.requested_at)
            for mark in guard.signals
        }

    if guard.head is not None:
        said["head"] = guard.head

    if unit.release is not None and unit.release != guard.claim:
        said["release"] = unit.release

    if unit.create is not None:
        said["create"] = unit.create

    if content is not None and content.dropped:
        said["dropped"] = content.dropped

    if unit.record is not None:
        said["record"] = unit.record.node_id

    if unit.signal is not None:
        mark = unit.signal
        said["signal"] = {
            "kind": mark.kind,
            "reason": mark.reason,
            "requested_by": mark.requested_by,
        }

    if unit.clear:
        said["clear"] = unit.clear

    if unit.push is not None:
        push = unit.push
        said["push"] = {"name": push.name, "event_id": push.event_id, "limit": push.limit}

    if unit.pop is not None:
        said["pop"] = unit.pop

    if unit.revoke is not None:
        said["revoke"] = unit.revoke

    for name in ("restart", "replace", "delete", "view"):
        if getattr(unit, name):
            said[name] = True

    return said


def _data(unit: Unit) -> bytes | None:
    if unit.push is not None:
        return unit.push.payload

    if unit.record is not None:
        return unit.record.output

    if unit.content is not None and (unit.create is not None or unit.replace):
        return unit.content.input

    return None


def step(unit: Unit) -> Arguments | None:
    """What the statement `step` takes after the namespace; `None`: it is not for this write.

    It is for a worker's commit that says nothing out of the ordinary: at most one result, and one
    task that it enters or the end.
    """
    guard, content, wish = unit.guard, unit.content, unit.claim_next

    if content is None or guard.claim is None or unit.release != guard.claim:
        return None

    if guard.version is None or guard.statuses != OPEN or content.status is Status.PAUSED:
        return None

    if len(content.entries) > 1 or len(content.gained) > 1 or content.dropped:
        return None

    if content.idle or _more(unit):
        return None

    if content.status_is_new and content.status is Status.IN_PROGRESS:
        return None  # any other is new to a row in progress, and it is for no other row

    node = priority = tags = input_from = claim = ttl = None

    if content.entries:
        [entry] = content.entries

        if not _is_entered_task(entry):
            return None

        node, priority, input_from = entry.node_id, entry.priority, entry.input_from
        tags = _array(entry.tags) if entry.tags else "{}"

        if wish is not None and fits(entry.tags, frozenset(wish.tags)):
            ttl = wish.ttl
            claim = to_json(
                {"task_id": node, **claim_fields(wish.worker_id, wish.nonce, wish.tags)}
            )
    elif content.status is Status.IN_PROGRESS:
        return None

    gained = output = None

    if content.gained:
        [(gained, output)] = content.gained.items()

    return (
        unit.instance_id,
        guard.version,
        guard.incarnation,
        guard.claim.task_id,
        guard.claim.fence,
        content.body,
        content.status.value,
        content.definition_hash,
        content.priority,
        to_json(content.tags) if content.tags else "[]",
        content.last_completed,
        node,
        priority,
        tags,
        input_from,
        gained,
        output,
        claim,
        ttl,
    )


def _is_entered_task(entry: Entry) -> bool:
    return (
        entry.fresh
        and entry.early
        and entry.due == AT_ONCE
        and not entry.done
        and entry.kind is EntryKind.TASK
        and entry.reason is ReadyReason.TASK
        and entry.avoid is None
        and entry.event is None
    )


def _array(items: Sequence[str]) -> str:
    """An array of text as PostgreSQL writes it."""
    quoted = (item.replace("\\", "\\\\").replace('"', '\\"') for item in items)
    return "{" + ",".join(f'"{item}"' for item in quoted) + "}"


def stepped(unit: Unit, row: Sequence[Any]) -> tuple[Answer, Sequence[WakeHint]]:
    """What the statement `step` says of a write that it did, and the hints to send."""
    _, now, created_at, status_since, fence, found_input = row
    guard, content, wish = unit.guard, unit.content, unit.claim_next
    assert content is not None  # noqa: S101  (see `step`)
    assert guard.version is not None  # noqa: S101
    assert guard.incarnation is not None  # noqa: S101
    claim: ClaimRecord | None = None
    entry: Entry | None = None
    hints: Sequence[WakeHint] = ()

    if content.entries:
        entry = content.entries[0]

        if fence is not None and wish is not None:
            claim = ClaimRecord(
                task_id=entry.node_id,
                worker_id=wish.worker_id,
                fence=fence,
                claimed_at=now,
                expires_at=now + wish.ttl,
                nonce=wish.nonce,
                worker_tags=wish.tags,
            )

        if claim is None or not claim.live(now):
            hints = (
                WakeHint(
                    instance_id=unit.instance_id,
                    task_id=entry.node_id,
                    definition_hash=content.definition_hash,
                    tags=entry.tags,
                ),
            )

    return (
        Answer(
            now=now,
            refused=None,
            facts=Facts(
                incarnation=guard.incarnation,
                version=guard.version + 1,
                status=content.status,
                definition_hash=content.definition_hash,
                created_at=created_at,
                updated_at=now,
                status_since=status_since,
                last_completed=content.last_completed,
                signals=(),
                live_claims=claim is not None and claim.live(now),
                advance_due=False,
            ),
            claim=claim,
            entry=None if claim is None else entry,
            input=found_input
            if entry is None or entry.input_from is None
            else content.gained.get(entry.input_from, found_input),
        ),
        hints,
    )


def is_wide(said: Arguments) -> bool:
    """Whether a write brings more results than one, so that it goes alone."""
    return said[_NODES] is not None and len(said[_NODES]) > 1


def is_heavy(unit: Unit) -> bool:
    """Whether a write brings so many bytes that neighbours would have to wait for them."""
    content = unit.content
    size = len(_data(unit) or b"")

    if content is not None:
        size += len(content.body) + sum(map(len, content.gained.values()))

    return size > _HEAVY


def columns(batch: Iterable[Arguments]) -> list[list[Any]]:
    """The arguments of several statements, as arrays."""
    return [list(column) for column in zip(*batch, strict=True)]


def narrow_columns(batch: Iterable[Arguments]) -> list[list[Any]]:
    """The arguments of several writes that are not wide, as arrays."""
    turned = columns(batch)

    for lists in (_NODES, _OUTPUTS):
        turned[lists] = [each[0] if each else None for each in turned[lists]]

    return turned


def answer(unit: Unit, row: Sequence[Any]) -> tuple[Answer, Sequence[WakeHint]]:
    """What the function `write` says, and the hints to send."""
    now, refused = row[0], row[1]
    facts = _facts(row, 2)
    claim, ordinal, found_input, event, hints, view_state, view_body, view_input = row[13:21]
    entry: Entry | None = None

    if ordinal is not None and unit.content is not None:
        entry = unit.content.entries[int(ordinal)]

    return (
        Answer(
            now=now,
            refused=None if refused is None else _REFUSALS[refused],
            facts=facts,
            claim=None if claim is None else _decode_claim(claim),
            entry=entry,
            input=found_input,
            event=event,
            view=None
            if view_state is None or facts is None
            else _answered_view(unit, now, facts, view_state, view_body, view_input),
        ),
        () if hints is None else _hints(unit.instance_id, row[5], hints),
    )


def _facts(row: Sequence[Any], at: int) -> Facts | None:
    (
        incarnation,
        version,
        status,
        definition_hash,
        created_at,
        updated_at,
        status_since,
        last_completed,
        signals,
        live_claims,
        advance_due,
    ) = row[at : at + 11]

    if incarnation is None:
        return None

    return Facts(
        incarnation=incarnation,
        version=version,
        status=_STATUSES[status],
        definition_hash=definition_hash,
        created_at=created_at,
        updated_at=updated_at,
        status_since=status_since,
        last_completed=last_completed,
        signals=() if signals is None else _marks(signals),
        live_claims=live_claims,
        advance_due=advance_due,
    )


def _marks(signals: str) -> tuple[SignalMark, ...]:
    return tuple(
        SignalMark(kind, mark.reason, mark.requested_by, mark.requested_at)
        for kind, mark in _decode_marks(signals).items()
    )


def _hints(instance_id: str, definition_hash: str, hints: str) -> Sequence[WakeHint]:
    return [
        WakeHint(
            instance_id=instance_id,
            task_id=hint.task_id,
            definition_hash=definition_hash,
            tags=hint.tags,
        )
        for hint in _decode_hints(hints)
    ]


def _answered_view(
    unit: Unit, now: int, facts: Facts, state: str, body: bytes, given: bytes | None
) -> View:
    said = _decode_view(state)
    return View(
        instance_id=unit.instance_id,
        now=now,
        facts=facts,
        body=body,
        body_at=said.body_at,
        priority=said.priority,
        tags=said.tags,
        input=given,
        done=said.done or frozenset(),
        results=None,
        heads=_heads(said.heads),
    )


def _heads(heads: Mapping[str, tuple[int, int]] | None) -> dict[str, Head]:
    return {name: Head(*head) for name, head in heads.items()} if heads else {}


# --- Reading ----------------------------------------------------------------------------------


def view(instance_id: str, row: Sequence[Any], *, results: bool) -> View:
    """What the statement `read` says."""
    body, body_at, priority, tags, done, heads, given, nodes, outputs, names, payloads = row[12:23]
    facts = _facts(row, 1)
    assert facts is not None  # noqa: S101  (a row has an incarnation)
    found = _heads(None if heads is None else _decode_heads(heads))

    if names:
        for name, payload in zip(names, payloads, strict=True):
            found[name] = Head(found[name].number, found[name].arrived_at, payload)

    return View(
        instance_id=instance_id,
        now=row[0],
        facts=facts,
        body=body or b"",
        body_at=body_at,
        priority=priority,
        tags=_tags(tags),
        input=given,
        done=frozenset(done) if done else frozenset(),
        results=_results(nodes, outputs) if results else None,
        heads=found,
    )


def _tags(tags: str) -> tuple[str, ...]:
    return () if tags == "[]" else _decode_tags(tags)


def _results(nodes: list[str] | None, outputs: list[bytes]) -> dict[str, bytes]:
    return dict(zip(nodes, outputs, strict=True)) if nodes else {}


def taken(row: Sequence[Any]) -> Taken:
    """What the function `claim` says."""
    return Taken(facts=_facts(row, 2), claim=None if row[1] is None else _decode_claim(row[1]))


def extended(row: Sequence[Any]) -> Extended:
    """What the function `extend` says."""
    done, claim, signals = row
    return Extended(
        extended=done,
        claim=None if claim is None else _decode_claim(claim),
        signals=() if signals is None else _marks(signals),
    )


def offer(row: Sequence[Any], *, results: bool) -> Offer:
    """What the function `poll` says of a task."""
    instance_id, task_id, reason, claim, now = row[:5]
    facts = _facts(row, 5)
    assert facts is not None  # noqa: S101  (a row has an incarnation)
    body, body_at, priority, tags, done, heads, given, task_input, nodes, outputs = row[16:26]
    return Offer(
        view=View(
            instance_id=instance_id,
            now=now,
            facts=facts,
            body=body,
            body_at=body_at,
            priority=priority,
            tags=_tags(tags),
            input=given,
            done=frozenset(done) if done else frozenset(),
            results=_results(nodes, outputs) if results else None,
            heads=_heads(None if heads is None else _decode_heads(heads)),
        ),
        task_id=task_id,
        reason=ReadyReason(reason),
        input=task_input,
        claim=None if claim is None else _decode_claim(claim),
    )


def listed(row: Sequence[Any]) -> Row:
    """One line of a listing."""
    instance_id, definition_hash, status, version, created, updated, since, priority, tags = row
    return Row(
        instance_id=instance_id,
        definition_hash=definition_hash,
        status=_STATUSES[status],
        version=version,
        created_at=created,
        updated_at=updated,
        status_since=since,
        priority=priority,
        tags=_tags(tags),
    )
