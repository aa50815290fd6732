"""The document of an instance, and what lies in it.

One document for each instance id holds everything that decides: entries, claims, signals, the
queue and the last results. Names of users are values in it, never names of fields. A document
without `status` is a mailbox: events that wait for an instance to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from sayiir_persist.aggregate import ADVANCE_LANE, Aggregate, IndexedEntry
from sayiir_persist.dispatch import EntryKind
from sayiir_persist.driver import ClaimRecord, Facts, Head, Row, SignalMark
from sayiir_persist.positions import ReadyReason
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sayiir_persist.dispatch import Entry

Document = dict[str, Any]

INSTANCES: Final = "sayiir_instances"
RESULTS: Final = "sayiir_results"
PAYLOADS: Final = "sayiir_payloads"
META: Final = "sayiir_meta"

CLOCK: Final = "clock"
"""The document of `META` that is always there, so that a read of nothing still tells the time."""

LANES: Final = tuple(f"lane{number}" for number in range(6))
"""From when on a poll finds the first entry of each lane; null: none."""

INLINE: Final = 128 * 1024
"""A larger body, input or result lies beside the document."""

INLINE_EVENT: Final = 32 * 1024
INLINE_QUEUE: Final = 128 * 1024
"""Payloads of events lie beside the document where one, or all of them, would be larger."""

TAIL_COUNT: Final = 64
TAIL_BYTES: Final = 64 * 1024
"""A tail of results that has grown so far is moved beside the document."""

LONGEST_TAIL: Final = 4 * TAIL_COUNT
LARGEST_TAIL: Final = 4 * TAIL_BYTES
"""No write makes a tail longer than that without moving it first."""

CHUNK: Final = 512 * 1024
"""The most that one document beside an instance holds."""

SMALL: Final = {"body": 0, "input": 0, "tail": 0, "queue": 0, "ids": 0, "popped": 0, "log": 0}
"""A projection of what is small: without what bodies, results and events carry."""

_json: Final = msgspec.json.Encoder()
_KINDS: Final = {kind.value: kind for kind in SignalKind}
_REASONS: Final = {reason.value: reason for reason in ReadyReason}
_STATUSES: Final = {status.value: status for status in Status}


def key_of(namespace: str, instance_id: str) -> str:
    """The `_id` of an instance's document: a namespace has no slash, so none contains another."""
    return f"{namespace}/{instance_id}"


def id_of(key: str) -> str:
    """The instance id in an `_id`."""
    return key.partition("/")[2]


def floor_of(namespace: str) -> str:
    """The document of `META` below which no new instance of the namespace begins its fences."""
    return f"floor/{namespace}"


# --- Reading ----------------------------------------------------------------------------------


def facts_of(document: Document, now: int) -> Facts:
    """What stands beside the body, as of now."""
    return Facts(
        incarnation=document["inc"],
        version=document["ver"],
        status=_STATUSES[document["status"]],
        definition_hash=document["def"],
        created_at=document["created"],
        updated_at=document["updated"],
        status_since=document["since"],
        last_completed=document["last"],
        signals=tuple(map(mark_of, document["signals"])),
        live_claims=any(c["to"] is None or now < c["to"] for c in document["claims"]),
        advance_due=any(
            e["lane"] == ADVANCE_LANE and e["at"] is not None and e["at"] <= now
            for e in document["entries"]
        ),
    )


def mark_of(signal: Document) -> SignalMark:
    """A pending control signal."""
    return SignalMark(_KINDS[signal["kind"]], signal["reason"], signal["by"], signal["at"])


def claim_of(claim: Document) -> ClaimRecord:
    """A claim on record."""
    return ClaimRecord(
        task_id=claim["task"],
        worker_id=claim["worker"],
        fence=claim["fence"],
        claimed_at=claim["from"],
        expires_at=claim["to"],
        nonce=claim["nonce"],
        worker_tags=tuple(claim["tags"]),
    )


def claim_on(document: Document, task_id: str) -> ClaimRecord | None:
    """The claim on record of one task."""
    return next((claim_of(c) for c in document["claims"] if c["task"] == task_id), None)


def row_of(document: Document) -> Row:
    """One line of a listing."""
    return Row(
        instance_id=id_of(document["_id"]),
        definition_hash=document["def"],
        status=_STATUSES[document["status"]],
        version=document["ver"],
        created_at=document["created"],
        updated_at=document["updated"],
        status_since=document["since"],
        priority=document["prio"],
        tags=tuple(document["tags"]),
    )


def aggregate_of(document: Document) -> Aggregate:
    """The instance as a value; payloads may be references."""
    return Aggregate(
        incarnation=document["inc"],
        version=document["ver"],
        status=_STATUSES[document["status"]],
        definition_hash=document["def"],
        body=document.get("body", b""),
        body_at=document["body_at"],
        created_at=document["created"],
        updated_at=document["updated"],
        status_since=document["since"],
        priority=document["prio"],
        tags=tuple(document["tags"]),
        last_completed=document["last"],
        idle=document["idle"] is not None,
        entries=[_entry_of(entry) for entry in document["entries"]],
        claims={claim["task"]: claim_of(claim) for claim in document["claims"]},
        signals={(mark := mark_of(signal)).kind: mark for signal in document["signals"]},
    )


def _entry_of(entry: Document) -> IndexedEntry:
    return IndexedEntry(
        node_id=entry["node"],
        kind=EntryKind.TASK if entry["task"] else EntryKind.ADVANCE,
        due=entry["due"],
        early=entry["early"],
        done=entry["done"],
        reason=_REASONS[entry["reason"]],
        priority=entry["prio"],
        tags=tuple(entry["tags"]),
        input_from=entry["input"],
        avoid=entry["avoid"],
        event=entry["event"],
        until=entry["until"],
        met=entry["met"],
        elapses=entry["elapses"],
    )


def heads_of(document: Document, *, payloads: bool) -> dict[str, Head]:
    """The oldest queued event of each name, where anything may wait for it."""
    queue = document.get("queue") or ()
    heads: dict[str, Head] = {}

    if not queue:
        return heads

    waited_for = payloads or any(
        not entry["task"] or entry["event"] is not None for entry in document["entries"]
    )

    for event in queue if waited_for else ():
        if event["name"] not in heads:
            payload = event["data"] if payloads else None
            heads[event["name"]] = Head(event["no"], event["at"], payload)

    return heads


# --- Writing ----------------------------------------------------------------------------------


def fixed_part(entry: Entry | IndexedEntry, definition_hash: str) -> Document:
    """What an entry says that depends on nothing else."""
    tags = list(entry.tags)
    return {
        "node": entry.node_id,
        "task": entry.kind is EntryKind.TASK,
        "early": entry.early,
        "done": entry.done,
        "reason": entry.reason.value,
        "prio": entry.priority,
        "tags": tags,
        "input": entry.input_from,
        "avoid": entry.avoid,
        "event": entry.event,
        "hint": hint_text(entry.node_id, definition_hash, tags),
    }


def hint_text(node_id: str, definition_hash: str, tags: list[str]) -> str:
    """What a wake hint says, as one string: a change of it shows as a whole."""
    return _json.encode([node_id, definition_hash, tags]).decode()


def claim_document(claim: ClaimRecord) -> Document:
    """A claim as it is stored."""
    return {
        "task": claim.task_id,
        "worker": claim.worker_id,
        "fence": claim.fence,
        "from": claim.claimed_at,
        "to": claim.expires_at,
        "nonce": claim.nonce,
        "tags": list(claim.worker_tags),
    }


def signal_document(mark: SignalMark) -> Document:
    """A control signal as it is stored."""
    return {
        "kind": mark.kind.value,
        "reason": mark.reason,
        "by": mark.requested_by,
        "at": mark.requested_at,
    }


def row_part(aggregate: Aggregate) -> Document:
    """The fields of a document that an aggregate decides."""
    entries = [_entry_document(aggregate, entry) for entry in aggregate.entries]
    ends = [c.expires_at for c in aggregate.claims.values() if c.expires_at is not None]
    return {
        "inc": aggregate.incarnation,
        "ver": aggregate.version,
        "status": aggregate.status.value,
        "def": aggregate.definition_hash,
        "body": aggregate.body,
        "body_at": aggregate.body_at,
        "created": aggregate.created_at,
        "updated": aggregate.updated_at,
        "since": aggregate.status_since,
        "prio": aggregate.priority,
        "tags": list(aggregate.tags),
        "last": aggregate.last_completed,
        "idle": aggregate.updated_at if aggregate.idle else None,
        "entries": entries,
        "claims": [claim_document(claim) for claim in aggregate.claims.values()],
        "signals": [signal_document(mark) for mark in aggregate.signals.values()],
        "signalled": min((mark.requested_at for mark in aggregate.signals.values()), default=None),
        "purge": min(ends, default=None),
        **lanes_of(entries),
    }


def lanes_of(entries: Iterable[Document]) -> Document:
    """The first instant of each lane."""
    lanes: Document = dict.fromkeys(LANES)

    for entry in entries:
        number: int = entry["lane"]
        lane, at = LANES[number], entry["at"]

        if at is not None and (lanes[lane] is None or at < lanes[lane]):
            lanes[lane] = at

    return lanes


def _entry_document(aggregate: Aggregate, entry: IndexedEntry) -> Document:
    return {
        **fixed_part(entry, aggregate.definition_hash),
        "due": entry.due,
        "until": entry.until,
        "elapses": entry.elapses,
        "met": entry.met,
        "lane": entry.lane,
        "at": aggregate.available_at(entry),
    }


# --- Results ----------------------------------------------------------------------------------


def results_of(
    document: Document, segments: Iterable[Document], wanted: Collection[str] | None = None
) -> dict[str, Any]:
    """The results that a document's version covers, in the order of recording.

    A result says in which version it was recorded, and may be there twice: once in the tail of the
    document, once in a segment beside it. The last one counts; `gone` means dropped.

    Args:
        document: With its tail.
        segments: Those of the same instance id, in any order.
        wanted: These nodes alone; `None`: all.
    """
    version, since, incarnation = document["ver"], document["base"], document["inc"]
    large = frozenset(document["large"])
    newest: dict[str, Document] = {}

    def add(results: Iterable[Document]) -> None:
        for result in results:
            node, at = result["n"], result["v"]

            if not since <= at <= version or (wanted is not None and node not in wanted):
                continue

            if node not in newest or newest[node]["v"] <= at:
                newest[node] = result

    for segment in segments:
        if segment["inc"] == incarnation and (segment["w"] is None or segment["w"] in large):
            add(segment["r"])

    add(document["tail"])
    ordered = sorted(newest.values(), key=_version)
    return {result["n"]: result["o"] for result in ordered if not result.get("gone")}


def _version(result: Document) -> int:
    return int(result["v"])


def weight_of(node_id: str, output: object) -> int:
    """About how many bytes a result takes in a tail."""
    return len(node_id.encode()) + (len(output) if isinstance(output, bytes) else 64) + 32


def by_id(documents: Iterable[Document]) -> Mapping[str, Document]:
    """Documents by their `_id`."""
    return {document["_id"]: document for document in documents}
