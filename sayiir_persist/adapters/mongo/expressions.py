"""Expressions of the server's own, from which updates and reads are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sayiir_persist.adapters.mongo.layout import LANES
from sayiir_persist.aggregate import ADVANCE_LANE
from sayiir_persist.snapshot import Status
from sayiir_persist.validation import LATEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.dispatch import When

Expression = Any

NONE: Final[Expression] = []
"""An empty array."""

SERVER_TIME: Final[Expression] = {"$multiply": [{"$toLong": "$$NOW"}, 1000]}
"""What every decision about time asks: the server's clock, in microseconds."""

_LONG: Final = 10**17
"""In microseconds: thousands of years, after which the calendar might end."""

SEEN: Final = "$seen"
"""Within an update, after its first stage: the time of this very write."""


def literal(value: object) -> Expression:
    """A value of a user's: not a path, even where it begins with a dollar."""
    return {"$literal": value}


def no_earlier(now: Expression) -> Expression:
    """The time, which for one document never goes back."""
    return {"$max": [now, SEEN]}


def array(field: str) -> Expression:
    """An array that may not be there yet."""
    return {"$ifNull": [f"${field}", NONE]}


def resolved(when: When) -> Expression:
    """An instant that may depend on the moment of the write, see `When.resolve`."""
    if when.after is None:
        return literal(None if when.at is None else min(when.at, LATEST))

    later: Expression = {"$add": [SEEN, min(when.after, LATEST)]} if when.after else SEEN

    if when.at is not None:
        later = {"$max": [when.at, later]}

    return {"$min": [later, LATEST]} if when.after > _LONG else later


def first_where(field: Expression, name: str, condition: Expression) -> Expression:
    """The first element for which the condition holds; missing: none."""
    found = {"$filter": {"input": field, "as": name, "cond": condition}}
    return {"$arrayElemAt": [found, 0]}


def last_where(field: Expression, name: str, condition: Expression) -> Expression:
    """The last element for which the condition holds; missing: none."""
    found = {"$filter": {"input": field, "as": name, "cond": condition}}
    return {"$arrayElemAt": [found, -1]}


def has_live_claim(task_id: str, fence: int, now: Expression) -> Expression:
    """Whether this claim is on record and live."""
    claim = first_where(
        "$claims",
        "c",
        {"$and": [{"$eq": ["$$c.fence", fence]}, {"$eq": ["$$c.task", literal(task_id)]}]},
    )
    lives = {"$gt": [{"$ifNull": ["$$c.to", 2**62]}, no_earlier(now)]}
    return {"$let": {"vars": {"c": claim}, "in": {"$and": [{"$gt": ["$$c.fence", 0]}, lives]}}}


def is_idle(now: Expression) -> Expression:
    """Whether no claim is live."""
    return {"$not": [any_of(array("claims"), "c", _is_live(no_earlier(now)))]}


def _is_live(now: Expression) -> Expression:
    return {"$or": [{"$eq": ["$$c.to", None]}, {"$gt": ["$$c.to", now]}]}


def any_of(field: Expression, name: str, condition: Expression) -> Expression:
    """Whether the condition holds for any element."""
    return {"$anyElementTrue": [{"$map": {"input": field, "as": name, "in": condition}}]}


def is_ready(task_id: str, now: Expression) -> Expression:
    """Whether a task may be claimed as things are, leaving claims on it aside."""
    return any_of(
        array("entries"),
        "e",
        {
            "$and": [
                {"$eq": ["$$e.node", literal(task_id)]},
                "$$e.task",
                {"$eq": ["$$e.met", None]},
                {
                    "$or": [
                        "$$e.early",
                        {
                            "$and": [
                                {"$ne": ["$$e.due", None]},
                                {"$lte": ["$$e.due", no_earlier(now)]},
                            ]
                        },
                    ]
                },
            ]
        },
    )


def is_unclaimed(task_id: str, now: Expression) -> Expression:
    """Whether no live claim is on a task."""
    held = {"$and": [{"$eq": ["$$c.task", literal(task_id)]}, _is_live(no_earlier(now))]}
    return {"$not": [any_of(array("claims"), "c", held)]}


def is_offered(task_id: str, now: Expression) -> Expression:
    """Whether a poll finds a task."""
    return any_of(
        array("entries"),
        "e",
        {
            "$and": [
                {"$eq": ["$$e.node", literal(task_id)]},
                *_available(no_earlier(now)),
            ]
        },
    )


def has_elapsed(now: Expression) -> Expression:
    """Whether time has moved the position on since the body was written."""
    horizon = {"$cond": [{"$eq": ["$status", Status.PAUSED.value]}, "$since", no_earlier(now)]}
    return any_of(
        array("entries"),
        "e",
        {
            "$and": [
                {"$ne": ["$$e.elapses", None]},
                {"$lte": ["$$e.elapses", horizon]},
                {"$eq": ["$$e.met", None]},
            ]
        },
    )


def _available(now: Expression) -> list[Expression]:
    return [
        {"$gt": ["$$e.lane", ADVANCE_LANE]},
        {"$ne": ["$$e.at", None]},
        {"$lte": ["$$e.at", now]},
    ]


def offered(now: Expression) -> Expression:
    """The nodes that a poll finds."""
    found = {"$filter": {"input": array("entries"), "as": "e", "cond": {"$and": _available(now)}}}
    return {"$map": {"input": found, "as": "e", "in": "$$e.node"}}


DISPATCHABLE: Final[Expression] = {
    "$and": [{"$eq": ["$status", Status.IN_PROGRESS.value]}, {"$eq": ["$signals", NONE]}]
}


def met(event: Expression, until: Expression) -> Expression:
    """When the event arrived that an entry has met; null: none has."""
    head = first_where(array("queue"), "q", {"$eq": ["$$q.name", event]})
    return {
        "$let": {
            "vars": {"head": {"$ifNull": [head, None]}},
            "in": {
                "$cond": [
                    {
                        "$and": [
                            {"$ne": ["$$head", None]},
                            {
                                "$or": [
                                    {"$eq": [until, None]},
                                    {"$lt": ["$$head.at", until]},
                                ]
                            },
                        ]
                    },
                    "$$head.at",
                    None,
                ]
            },
        }
    }


def unless_claimed(node: Expression, due: Expression) -> Expression:
    """From when on a poll finds a task that is due then and not done: not while it is claimed."""
    claim = first_where("$claims", "c", {"$eq": ["$$c.task", node]})
    return {
        "$let": {
            "vars": {"claim": {"$ifNull": [claim, None]}},
            "in": {
                "$switch": {
                    "branches": [
                        {"case": {"$eq": ["$$claim", None]}, "then": due},
                        {"case": {"$eq": ["$$claim.to", None]}, "then": None},
                    ],
                    "default": {"$max": [due, "$$claim.to"]},
                }
            },
        }
    }


def _placed() -> Expression:
    """One stored entry, in line with the signals, claims and events of its document."""
    at = {
        "$switch": {
            "branches": [
                {"case": {"$not": [DISPATCHABLE]}, "then": None},
                {"case": {"$ne": ["$$met", None]}, "then": "$$met"},
                {"case": {"$not": ["$$e.task"]}, "then": "$$e.due"},
                {"case": {"$or": ["$$e.done", {"$eq": ["$$e.due", None]}]}, "then": None},
            ],
            "default": unless_claimed("$$e.node", "$$e.due"),
        }
    }
    lane = {
        "$cond": [
            {"$or": [{"$not": ["$$e.task"]}, {"$ne": ["$$met", None]}]},
            ADVANCE_LANE,
            "$$e.prio",
        ]
    }
    return {
        "$let": {
            "vars": {
                "met": {
                    "$cond": [
                        {"$eq": ["$$e.event", None]},
                        None,
                        met("$$e.event", "$$e.until"),
                    ]
                }
            },
            "in": {"$mergeObjects": ["$$e", {"met": "$$met", "lane": lane, "at": at}]},
        }
    }


PLACED: Final[Expression] = {"$map": {"input": array("entries"), "as": "e", "in": _placed()}}
"""All stored entries, in line with the signals, claims and events of their document."""


def first_of_lane(lane: int) -> Expression:
    """The first instant in a lane."""
    entries = {
        "$filter": {"input": array("entries"), "as": "e", "cond": {"$eq": ["$$e.lane", lane]}}
    }
    return {"$min": {"$map": {"input": entries, "as": "e", "in": "$$e.at"}}}


ALL_LANES: Final[Expression] = {name: first_of_lane(lane) for lane, name in enumerate(LANES)}


def earliest(field: str, name: str) -> Expression:
    """The smallest of a field over an array."""
    return {"$min": f"${field}.{name}"}


def hinted(fresh: Sequence[str], *, asks_before: bool) -> Expression:
    """What wake hints say of the tasks that this write made executable; `""`: of none.

    Args:
        fresh: Nodes that are new in any case.
        asks_before: The others are new unless they are in `was`; else all are.
    """
    conditions = _available(SEEN)

    if asks_before:
        new: list[Expression] = [{"$not": [{"$in": ["$$e.node", "$was"]}]}]

        if fresh:
            new.append({"$in": ["$$e.node", literal(list(fresh))]})

        conditions.append({"$or": new})

    ready = {"$filter": {"input": array("entries"), "as": "e", "cond": {"$and": conditions}}}
    return {
        "$reduce": {
            "input": ready,
            "initialValue": "",
            "in": {"$concat": ["$$value", "\n", "$$this.hint"]},
        }
    }
