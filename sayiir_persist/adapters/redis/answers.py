"""From what the scripts answer to the values of the SPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sayiir_persist.adapters.redis.errors import in_our_words
from sayiir_persist.adapters.redis.wire import aggregate_of, claim_of, results_of, view_of
from sayiir_persist.dispatch import order_key
from sayiir_persist.driver import Answer, Offer, Refusal
from sayiir_persist.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.dispatch import Entry
    from sayiir_persist.driver import Poll, Read, Unit, View


class Ranked(NamedTuple):
    """An offer, and its place in the exact order of dispatch."""

    rank: tuple[Any, ...]
    offer: Offer


class Found(NamedTuple):
    """What one partition answers to a poll, and why it could not read some instances."""

    advances: tuple[str, ...]
    offers: list[Ranked]
    unreadable: dict[str, str]


def found_of(query: Poll, reply: Sequence[Any]) -> Found:
    """The answer of `poll.lua`."""
    now, advances, offers, flaws = reply
    named = zip(flaws[::2], flaws[1::2], strict=True)
    unreadable = {name.decode(): flaw.decode() for name, flaw in named}
    found: list[Ranked] = []

    for each in offers:
        try:
            found.append(_offer(query, now, each))
        except CodecError as error:
            unreadable[each[0].decode()] = str(error)

    return Found(tuple(each.decode() for each in advances), found, unreadable)


def _offer(query: Poll, now: int, reply: Sequence[Any]) -> Ranked:
    name, node, row, parts, results, data, at, lane, yields = reply
    instance_id, node_id = name.decode(), node.decode()
    found = aggregate_of(instance_id, row)
    entry = next(it for it in found.entries if it.is_task and it.node_id == node_id)
    return Ranked(
        (yields, *order_key(lane, at, query.aging), name, node),
        Offer(
            view=view_of(instance_id, now, found, parts, results_of(results)),
            task_id=node_id,
            reason=entry.reason,
            input=data,
            claim=found.claims[node_id] if query.claim else None,
        ),
    )


def view_answer(read: Read, reply: Any) -> View | None:
    """The answer of `read.lua`, or the error that stands in its place, raised."""
    if reply is None:
        return None

    if isinstance(reply, Exception):
        raise in_our_words(reply, writes=False, about=read.instance_id)

    now, row, body, data, heads, results = reply
    return view_of(
        read.instance_id,
        now,
        aggregate_of(read.instance_id, row),
        (body, data, heads),
        results_of(results),
        body=read.body,
        payloads=read.payloads,
    )


def unit_answer(unit: Unit, reply: Any) -> Answer | Exception:
    """The answer of `apply.lua`, or the error that stands in its place."""
    if isinstance(reply, Exception):
        return in_our_words(reply, writes=True, about=unit.instance_id)

    try:
        return _answered(unit, reply)
    except CodecError as error:
        return error


def _answered(unit: Unit, reply: Sequence[Any]) -> Answer:
    refused, now, row, _, data = reply[:5]
    number: int = reply[3]
    revoked, event, parts = reply[5:] or (None, None, None)
    found = None if row is None else aggregate_of(unit.instance_id, row)
    claim = None if revoked is None else claim_of(revoked)
    entry: Entry | None = None

    if refused:
        key = unit.release or unit.guard.claim
        claim = found.claims.get(key.task_id) if found and key else None
    elif number and unit.content and found:
        entry = unit.content.entries[number - 1]
        claim = found.claims[entry.node_id]

    return Answer(
        now=now,
        refused=Refusal(refused.decode()) if refused else None,
        facts=found.facts(now) if found else None,
        claim=claim,
        entry=entry,
        input=data,
        event=event,
        view=view_of(unit.instance_id, now, found, parts, None) if found and parts else None,
    )
