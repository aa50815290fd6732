"""An instance as a row and back, and what of it stands in the index of dispatch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Struct

from sayiir_persist.aggregate import Aggregate, IndexedEntry
from sayiir_persist.driver import ClaimRecord, Row, SignalMark
from sayiir_persist.errors import CodecError
from sayiir_persist.signals import SignalKind
from sayiir_persist.snapshot import Status

Places = tuple[Any, ...]
"""The columns that few writes change, in the order in which `find_instance` begins."""

ReadyRow = tuple[int, int, str, str, str, str | None]
"""Lane, available_at, node_id, definition_hash, tags, avoid."""

PLACES: Final = slice(0, 10)
PURGE_AT: Final = 9
VERSION: Final = 10
FENCE: Final = 11
STATE: Final = 15
KEY: Final = 16
BODY: Final = 17


class State(Struct, array_like=True):
    """What of an instance no statement looks at."""

    entries: list[IndexedEntry]
    claims: dict[str, ClaimRecord]
    signals: dict[SignalKind, SignalMark]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(State)
_tags_decoder: Final = msgspec.json.Decoder(tuple[str, ...])


@lru_cache(maxsize=1024)
def encode_tags(tags: tuple[str, ...]) -> str:
    """Tags as a column holds them."""
    return msgspec.json.encode(tags).decode()


@lru_cache(maxsize=1024)
def decode_tags(tags: str) -> tuple[str, ...]:
    """The tags that a column holds."""
    return _tags_decoder.decode(tags)


def encode_state(aggregate: Aggregate) -> bytes:
    """Entries, claims and signals as a column holds them."""
    return _encoder.encode(State(aggregate.entries, aggregate.claims, aggregate.signals))


def aggregate_of(instance_id: str, row: tuple[Any, ...], body: bytes) -> Aggregate:
    """The instance that stands in a row of `find_instance`.

    Raises:
        CodecError: The row is not what any release wrote.
    """
    try:
        state = _decoder.decode(row[STATE])
        return Aggregate(
            incarnation=row[0],
            status=Status(row[1]),
            definition_hash=row[2],
            priority=row[3],
            tags=decode_tags(row[4]),
            created_at=row[5],
            status_since=row[6],
            idle=row[7] is not None,
            version=row[VERSION],
            last_completed=row[12],
            updated_at=row[13],
            body_at=row[14],
            body=body,
            entries=state.entries,
            claims=state.claims,
            signals=state.signals,
        )
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise CodecError(f"the row of {instance_id!r} is damaged: {error}") from error


def has_live_claim(state: bytes, now: int) -> bool:
    """Whether any claim is live; a damaged state has none."""
    try:
        return any(claim.live(now) for claim in _decoder.decode(state).claims.values())
    except msgspec.MsgspecError:
        return False


def places_of(aggregate: Aggregate | None, before: Places | None) -> Places | None:
    """The columns by which an instance is found, apart from its ids.

    `purge_at` says that no claim on record ends before. Most claims are gone long before a sweep
    would ask, so a bound that still holds stays, and the index rests.
    """
    if aggregate is None:
        return None

    signals = aggregate.signals.values()
    places = (
        aggregate.incarnation,
        str(aggregate.status),
        aggregate.definition_hash,
        aggregate.priority,
        encode_tags(aggregate.tags),
        aggregate.created_at,
        aggregate.status_since,
        aggregate.updated_at if aggregate.idle else None,
        min(mark.requested_at for mark in signals) if signals else None,
    )
    ends = [claim.expires_at for claim in aggregate.claims.values()]
    purge_at = min((end for end in ends if end is not None), default=None) if ends else None

    if before is not None and places == before[:PURGE_AT]:
        bound = before[PURGE_AT]

        if bound is not None and (purge_at is None or bound <= purge_at):
            return before

    return (*places, purge_at)


def ready_rows(aggregate: Aggregate | None) -> list[ReadyRow]:
    """The rows of an instance in the index of dispatch."""
    if aggregate is None or not aggregate.dispatchable:
        return []

    return [
        (
            entry.lane,
            at,
            entry.node_id,
            aggregate.definition_hash,
            encode_tags(entry.tags),
            entry.avoid,
        )
        for entry in aggregate.entries
        if (at := aggregate.available_at(entry)) is not None
    ]


def listed(row: tuple[Any, ...]) -> Row:
    """A row of a listing."""
    return Row(
        instance_id=row[0],
        definition_hash=row[1],
        status=Status(row[2]),
        version=row[3],
        created_at=row[4],
        updated_at=row[5],
        status_since=row[6],
        priority=row[7],
        tags=decode_tags(row[8]),
    )
