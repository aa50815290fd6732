"""Units as one guarded update of one document: filter, pipeline, and nothing else.

A pipeline does what `aggregate.carry_out` does, in the same order, in the server. What cannot be
said in one update (restarts, deletions, payloads that lie beside) is left to `slow`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sayiir_persist.adapters.mongo.expressions import (
    ALL_LANES,
    DISPATCHABLE,
    NONE,
    PLACED,
    SEEN,
    any_of,
    array,
    earliest,
    first_where,
    has_elapsed,
    has_live_claim,
    hinted,
    is_idle,
    last_where,
    literal,
    met,
    no_earlier,
    offered,
    resolved,
    unless_claimed,
)
from sayiir_persist.adapters.mongo.layout import (
    INLINE,
    INLINE_EVENT,
    INLINE_QUEUE,
    LANES,
    LARGEST_TAIL,
    LONGEST_TAIL,
    TAIL_BYTES,
    TAIL_COUNT,
    fixed_part,
    key_of,
    weight_of,
)
from sayiir_persist.aggregate import ADVANCE_LANE
from sayiir_persist.dispatch import AT_ONCE, NEVER, EntryKind, fits
from sayiir_persist.driver import REMEMBERED_EVENT_IDS, Guard, Presence, Unit
from sayiir_persist.snapshot import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.adapters.mongo.expressions import Expression
    from sayiir_persist.adapters.mongo.layout import Document
    from sayiir_persist.dispatch import Entry
    from sayiir_persist.driver import ClaimNext, Content, Push, Record

_REMOVED: Final = "$$REMOVE"
_RECEIPTS: Final = 8


class Update(NamedTuple):
    """One statement.

    Attributes:
        query: The guard.
        stages: What it does.
        upsert: Where there is no document, it makes one.
    """

    query: Document
    stages: list[Document]
    upsert: bool = False


def is_native(unit: Unit) -> bool:
    """Whether one update can say it."""
    if unit.restart or unit.replace or unit.delete or unit.revoke is not None:
        return False

    guard, content = unit.guard, unit.content

    if unit.push is not None and unit != _pushing(unit):
        return False

    if unit.create is not None:
        if guard.presence is not Presence.ABSENT or guard.head is not None:
            return False
    elif guard.presence is Presence.ABSENT:
        return False

    if content is not None and (
        unit.record is not None or (unit.signal is not None and content.status.is_terminal)
    ):
        return False

    return (
        (unit.content is None or _is_small(unit.content))
        and (unit.record is None or len(unit.record.output) <= INLINE)
        and (unit.push is None or len(unit.push.payload) <= INLINE_EVENT)
    )


def _pushing(unit: Unit) -> Unit:
    """A push and nothing else, whatever is there: an upsert cannot ask for more."""
    return Unit(
        instance_id=unit.instance_id,
        guard=Guard(presence=Presence.ANY),
        push=unit.push,
        view=unit.view,
    )


def _is_small(content: Content) -> bool:
    if len(content.body) > INLINE or len(content.input or b"") > INLINE:
        return False

    if len(content.gained) + len(content.dropped) > TAIL_COUNT:
        return False

    return sum(map(len, content.gained.values())) <= TAIL_BYTES


def update_of(
    unit: Unit,
    namespace: str,
    now: Expression,
    *,
    floor: int = 0,
    receipt: str | None = None,
) -> Update:
    """The statement of a native unit.

    Args:
        unit: What to do.
        namespace: Of the instance.
        now: The expression of the time.
        floor: Where a new document begins its fences.
        receipt: A name under which the write is found afterwards.
    """
    query = _guard(unit, namespace, now)
    upsert = unit.create is not None or unit.push is not None
    counted: Document = {"rev": {"$add": [{"$ifNull": ["$rev", 0]}, 1]}, "seen": no_earlier(now)}

    if upsert:
        counted["ns"] = namespace

    is_watched = unit.content is not None or unit.record is None
    content = unit.content
    news = _News(content, creates=unit.create is not None) if is_watched else None

    if news is not None and news.asks_before and _foreseen(unit, unit.content) is None:
        counted["was"] = offered(no_earlier(now))

    stages: list[Document] = [{"$set": counted}]

    if content is not None and (known := _foreseen(unit, content)) is not None:
        return Update(
            query, [*stages, {"$set": _hot(unit, content, known, floor, receipt)}], upsert
        )

    if unit.create is not None and content is not None:
        stages.append({"$set": _created(unit.create, content, floor)})

    if content is not None:
        stages += _content(unit, content)
    elif unit.record is not None:
        stages += _record(unit.record)

    stages += _small_changes(unit)
    stages += _places(unit)

    if unit.claim_next is not None and content is not None:
        stages += _claim_next(unit.claim_next, content)

    last = _derived(unit, news)

    if receipt is not None:
        last["log"] = _receipt(receipt)

    if last:
        stages.append({"$set": last})

    if news is not None and news.asks_before:
        stages.append({"$unset": "was"})

    return Update(query, stages, upsert)


# --- Guards -----------------------------------------------------------------------------------


def _guard(unit: Unit, namespace: str, now: Expression) -> Document:
    guard = unit.guard
    query: Document = {"_id": key_of(namespace, unit.instance_id)}
    facts: list[Expression] = []

    if unit.create is not None:
        query["status"] = {"$exists": False}
        return query

    if unit.push is not None:
        _guard_push(unit.push, query)
        return query

    if guard.statuses is not None:
        query["status"] = {"$in": [status.value for status in guard.statuses]}
    else:
        query["status"] = {"$exists": True}

    if guard.definition_hash is not None:
        query["def"] = guard.definition_hash

    if guard.version is not None:
        query["ver"] = guard.version

    if guard.incarnation is not None:
        query["inc"] = guard.incarnation

    if guard.claim is not None:
        facts.append(has_live_claim(guard.claim.task_id, guard.claim.fence, now))

    if guard.idle:
        facts.append(is_idle(now))

    if unit.release is not None and unit.release != guard.claim:
        key = unit.release
        query["claims"] = {"$elemMatch": {"task": key.task_id, "fence": key.fence}}

    _guard_others(guard, query, facts)
    _guard_contents(unit, query, facts, now)

    if facts:
        query["$expr"] = facts[0] if len(facts) == 1 else {"$and": facts}

    return query


def _guard_others(guard: Guard, query: Document, facts: list[Expression]) -> None:
    if guard.signals is not None:
        query["signals"] = {"$size": len(guard.signals)}

        if guard.signals:
            query["$and"] = [
                {
                    "signals": {
                        "$elemMatch": {
                            "kind": mark.kind.value,
                            "reason": mark.reason,
                            "by": mark.requested_by,
                            "at": mark.requested_at,
                        }
                    }
                }
                for mark in guard.signals
            ]

    if guard.head is not None:
        name, number = guard.head
        head = first_where(array("queue"), "q", {"$eq": ["$$q.name", literal(name)]})
        facts.append({"$let": {"vars": {"h": head}, "in": {"$eq": ["$$h.no", number]}}})


def _guard_contents(unit: Unit, query: Document, facts: list[Expression], now: Expression) -> None:
    """What one update cannot do to the document as it is."""
    if unit.content is not None:
        query["body.ref"] = {"$exists": False}

    if unit.content is not None or unit.record is not None:
        query["tail_n"] = {"$lt": LONGEST_TAIL}
        query["tail_b"] = {"$lt": LARGEST_TAIL}

    if unit.record is not None:
        facts.append({"$not": [has_elapsed(now)]})
        facts.append(_is_known(unit.record.node_id))


def _is_known(node_id: str) -> Expression:
    """Whether the document tells if a record changes anything: else what is beside decides."""
    node = literal(node_id)
    here = last_where("$tail", "r", {"$eq": ["$$r.n", node]})
    is_here = {
        "$let": {
            "vars": {"r": {"$ifNull": [here, None]}},
            "in": {
                "$and": [
                    {"$ne": ["$$r", None]},
                    {"$ne": [{"$type": "$$r.o"}, "object"]},
                ]
            },
        }
    }
    return {"$or": [{"$not": ["$moved"]}, _marks(node_id), is_here]}


def _marks(node_id: str) -> Expression:
    return any_of(
        "$entries",
        "e",
        {
            "$and": [
                {"$eq": ["$$e.node", literal(node_id)]},
                "$$e.early",
                {"$not": ["$$e.done"]},
            ]
        },
    )


def _guard_push(push: Push, query: Document) -> None:
    """An upsert takes no expressions; what this refuses is looked at once more."""
    query["queued"] = {"$not": {"$gte": push.limit}}
    query["queued_bytes"] = {"$not": {"$gte": INLINE_QUEUE - len(push.payload)}}


# --- Contents ---------------------------------------------------------------------------------


def _created(incarnation: str, content: Content, floor: int) -> Document:
    return {
        "inc": incarnation,
        "ver": 0,
        "created": SEEN,
        "since": SEEN,
        "status": content.status.value,
        "input": literal(content.input),
        "entries": [],
        "claims": [],
        "signals": [],
        "fence": {"$max": [SEEN, floor, "$fence"]},
        "base": 0,
        "tail": [],
        "tail_n": 0,
        "tail_b": 0,
        "large": [],
        "moved": False,
        "purge": None,
    }


def _content(unit: Unit, content: Content) -> list[Document]:
    # The entries need the new `since`, and the claims need the old entries.
    return [{"$set": _fields(unit, content)}, {"$set": {"entries": _entries(content)}}]


def _fields(unit: Unit, content: Content) -> Document:
    since: Expression = SEEN

    if not content.status_is_new:
        same = {"$eq": ["$status", content.status.value]}
        since = {"$cond": [same, "$since", SEEN]}

    version = unit.guard.version
    fields: Document = {
        "ver": {"$add": ["$ver", 1]} if version is None else version + 1,
        "since": since,
        "updated": SEEN,
        "body_at": SEEN,
        "status": content.status.value,
        "def": literal(content.definition_hash),
        "body": content.body,
        "prio": content.priority,
        "tags": literal(list(content.tags)),
        "last": literal(content.last_completed),
        "idle": SEEN if content.idle else None,
        "claims": _claims_left(unit, content),
    }

    if content.status.is_terminal:
        fields["signals"] = []

    if unit.pop is None:
        fields["popped"] = _REMOVED

    if content.gained or content.dropped:
        fields.update(_results(content, version))

    return fields


def _claims_left(unit: Unit, content: Content) -> Expression:
    if content.status.is_terminal:
        return []

    if unit.create is not None:
        return []

    fenced = unit.guard.claim.task_id if unit.guard.claim else None
    gone: list[Expression] = []
    tasks = [
        entry
        for entry in content.entries
        if entry.kind is EntryKind.TASK and entry.node_id != fenced
    ]
    fresh = [entry.node_id for entry in tasks if entry.fresh]
    stale = [entry.node_id for entry in tasks if not entry.fresh]

    if unit.release is not None:
        gone.append({"$eq": ["$$c.fence", unit.release.fence]})

    if fresh:
        gone.append({"$in": ["$$c.task", literal(fresh)]})

    if stale:
        before = any_of(
            "$entries",
            "e",
            {
                "$and": [
                    {"$eq": ["$$e.node", "$$c.task"]},
                    "$$e.task",
                    {"$eq": ["$$e.met", None]},
                ]
            },
        )
        gone.append({"$and": [{"$in": ["$$c.task", literal(stale)]}, {"$not": [before]}]})

    if not gone:
        return "$claims"

    return {"$filter": {"input": "$claims", "as": "c", "cond": {"$not": [{"$or": gone}]}}}


def _results(content: Content, version: int | None) -> Document:
    """Appended alone: of two results of one node the later counts, see `results_of`."""
    at: Expression = {"$add": ["$ver", 1]} if version is None else version + 1
    dropped = sorted(content.dropped - content.gained.keys())
    new: list[Expression] = [
        *({"n": literal(node), "v": at, "o": None, "gone": True} for node in dropped),
        *(
            {"n": literal(node), "v": at, "o": literal(output)}
            for node, output in content.gained.items()
        ),
    ]
    weight = sum(weight_of(node, output) for node, output in content.gained.items())
    weight += sum(weight_of(node, None) for node in dropped)
    return {
        "tail": {"$concatArrays": ["$tail", new]},
        "tail_n": {"$add": ["$tail_n", len(new)]},
        "tail_b": {"$add": ["$tail_b", weight]},
    }


def _entries(content: Content) -> Expression:
    return [_entry(entry, content.definition_hash) for entry in content.entries]


def _entry(entry: Entry, definition_hash: str) -> Expression:
    """An entry with its instants, not in its place yet."""
    fixed = fixed_part(entry, definition_hash)
    moving: Document = {"due": _due(entry)}

    for name, when in (("until", entry.event_until), ("elapses", entry.elapses)):
        if when == NEVER:
            fixed[name] = None
        else:
            moving[name] = resolved(when)

    return {"$mergeObjects": [literal(fixed), moving]}


def _due(entry: Entry) -> Expression:
    due = resolved(entry.due)

    # What is due after the write is due after everything that the write began.
    if entry.kind is EntryKind.TASK and entry.due != NEVER and entry.due.after is None:
        return {"$max": [due, "$since"]}

    return due


def _record(record: Record) -> list[Document]:
    """Only where `_is_known` holds: what the document does not show is not asked for."""
    node = literal(record.node_id)
    here = last_where("$tail", "r", {"$eq": ["$$r.n", node]})
    same = {
        "$let": {
            "vars": {"r": {"$ifNull": [here, None]}},
            "in": {"$eq": ["$$r.o", literal(record.output)]},
        }
    }
    changes = {"$or": [_marks(record.node_id), {"$not": [same]}]}
    others = {"$filter": {"input": "$tail", "as": "r", "cond": {"$ne": ["$$r.n", node]}}}
    new = [{"n": node, "v": {"$add": ["$ver", 1]}, "o": literal(record.output)}]
    marked = {
        "$cond": [
            {"$and": [{"$eq": ["$$e.node", node]}, "$$e.early"]},
            {"$mergeObjects": ["$$e", {"done": True}]},
            "$$e",
        ]
    }
    all_done = {
        "$and": [
            "$marks",
            {"$eq": ["$status", Status.IN_PROGRESS.value]},
            {"$allElementsTrue": [{"$map": {"input": "$entries", "as": "e", "in": "$$e.done"}}]},
        ]
    }

    def if_changed(new_value: Expression, old: str) -> Expression:
        return {"$cond": ["$changes", new_value, old]}

    return [
        {"$set": {"changes": changes, "marks": _marks(record.node_id)}},
        {
            "$set": {
                "tail": if_changed({"$concatArrays": [others, new]}, "$tail"),
                "tail_n": if_changed({"$add": ["$tail_n", 1]}, "$tail_n"),
                "tail_b": if_changed(
                    {"$add": ["$tail_b", weight_of(record.node_id, record.output)]}, "$tail_b"
                ),
                "last": if_changed(node, "$last"),
                "ver": if_changed({"$add": ["$ver", 1]}, "$ver"),
                "updated": if_changed(SEEN, "$updated"),
                "entries": {"$map": {"input": "$entries", "as": "e", "in": marked}},
            }
        },
        {
            "$set": {
                "idle": {
                    "$switch": {
                        "branches": [
                            {"case": all_done, "then": "$updated"},
                            {"case": {"$eq": ["$idle", None]}, "then": None},
                        ],
                        "default": "$updated",
                    }
                }
            }
        },
        {"$unset": ["changes", "marks"]},
    ]


# --- What is known beforehand -----------------------------------------------------------------


class _Foreseen(NamedTuple):
    """What the server need not find out: nothing waits for events, and all tasks are new.

    Attributes:
        chosen: The place of the entry that `claim_next` claims unless a signal is pending.
    """

    chosen: int | None


def _foreseen(unit: Unit, content: Content | None) -> _Foreseen | None:
    """Nearly every write is like that; `None`: this one is not."""
    if content is None or unit.signal is not None or unit.clear or unit.pop is not None:
        return None

    for entry in content.entries:
        if entry.event is not None or (entry.kind is EntryKind.TASK and not entry.fresh):
            return None

        if entry.done or not _has_no_claim(unit, entry):
            return None

    wish = unit.claim_next

    if wish is None or content.status is not Status.IN_PROGRESS:
        return _Foreseen(None)

    if not wish.ttl:
        return None

    accepted = frozenset(wish.tags)

    for place, entry in enumerate(content.entries):
        if entry.kind is not EntryKind.TASK or not fits(entry.tags, accepted):
            continue

        if entry.due == AT_ONCE:
            return _Foreseen(place)

        if entry.due.at is not None:
            return None  # whether that is past, the server knows

    return _Foreseen(None)


def _hot(
    unit: Unit, content: Content, known: _Foreseen, floor: int, receipt: str | None
) -> Document:
    """All that a foreseen write does, in one stage."""
    creates = unit.create is not None
    fields: Document = _fields(unit, content)

    if unit.create is not None:
        created = _created(unit.create, content, floor)
        fields = {**created, **fields, "ver": 1, "since": SEEN, "signalled": None}

        if content.gained or content.dropped:
            fields.update(_results_of_creation(content))

    def unless_signalled(value: Expression, otherwise: Expression = None) -> Expression:
        return value if creates else {"$cond": [{"$eq": ["$signals", NONE]}, value, otherwise]}

    runs = content.status is Status.IN_PROGRESS
    lanes: dict[str, list[Expression]] = {}
    entries: list[Expression] = []
    hints = ""

    for place, entry in enumerate(content.entries):
        is_task = entry.kind is EntryKind.TASK
        fixed = fixed_part(entry, content.definition_hash)
        due = _due(entry)
        at: Expression = None

        if runs and entry.due != NEVER:
            claimed = place == known.chosen and unit.claim_next is not None
            end = {"$add": [SEEN, unit.claim_next.ttl]} if claimed and unit.claim_next else due
            at = unless_signalled(end)
            lane = entry.priority if is_task else ADVANCE_LANE
            lanes.setdefault(LANES[lane], []).append(at)

            if is_task and entry.due == AT_ONCE and not claimed:
                hints += f"\n{fixed['hint']}"

        fixed["met"] = None
        fixed["lane"] = entry.priority if is_task else ADVANCE_LANE
        moving: Document = {"due": due, "at": at}

        for name, when in (("until", entry.event_until), ("elapses", entry.elapses)):
            if when == NEVER:
                fixed[name] = None
            else:
                moving[name] = resolved(when)

        entries.append({"$mergeObjects": [literal(fixed), moving]})

    fields["entries"] = entries
    fields.update(dict.fromkeys(LANES))
    fields.update({name: at[0] if len(at) == 1 else {"$min": at} for name, at in lanes.items()})

    if hints:
        rev: Expression = {"$toString": "$rev"}
        fields["hint"] = unless_signalled({"$concat": [rev, literal(hints)]}, "$hint")
        fields["hinted"] = unless_signalled("$rev", "$hinted")

    if known.chosen is not None and unit.claim_next is not None:
        wish, node = unit.claim_next, content.entries[known.chosen].node_id
        end = {"$add": [SEEN, wish.ttl]}
        fence = {"$add": ["$fence", 1]}
        tags = list(wish.tags)
        claim = {
            "task": literal(node),
            "worker": literal(wish.worker_id),
            "nonce": literal(wish.nonce),
            "tags": literal(tags),
            "fence": fence,
            "from": SEEN,
            "to": end,
        }
        claims = {"$concatArrays": [fields["claims"], unless_signalled([claim], NONE)]}
        fields["claims"] = claims
        fields["fence"] = unless_signalled(fence, "$fence")
        fields["purge"] = unless_signalled({"$min": ["$purge", end]}, "$purge")

    if content.status.is_terminal:
        fields["signalled"] = fields["purge"] = None

    if receipt is not None:
        fields["log"] = _receipt(receipt, fields["ver"], fields["since"], fields.get("inc", "$inc"))

    return fields


def _results_of_creation(content: Content) -> Document:
    results = _results(content, 0)
    [_, new] = results["tail"]["$concatArrays"]
    weight = results["tail_b"]["$add"][1]
    return {"tail": new, "tail_n": len(new), "tail_b": weight}


# --- Signals, events, claims ------------------------------------------------------------------


def _small_changes(unit: Unit) -> list[Document]:
    fields: Document = {}

    if unit.signal is not None or unit.clear:
        fields["signals"] = _signals(unit)

    if unit.content is None and unit.release is not None:
        others = {"$ne": ["$$c.fence", unit.release.fence]}
        fields["claims"] = {"$filter": {"input": "$claims", "as": "c", "cond": others}}

    if unit.push is not None:
        return [{"$set": fields}, *_push(unit.push)] if fields else _push(unit.push)

    if unit.pop is not None:
        return [*([{"$set": fields}] if fields else []), *_pop(unit.pop)]

    return [{"$set": fields}] if fields else []


def _signals(unit: Unit) -> Expression:
    gone = {kind.value for kind in unit.clear}
    new: list[Expression] = []
    mark = unit.signal

    if mark is not None:
        if mark.kind not in unit.clear:
            fixed = {"kind": mark.kind.value, "reason": mark.reason, "by": mark.requested_by}
            new = [{"$mergeObjects": [literal(fixed), {"at": SEEN}]}]

        gone.add(mark.kind.value)

    others = {"$not": [{"$in": ["$$s.kind", sorted(gone)]}]}
    kept = {"$filter": {"input": "$signals", "as": "s", "cond": others}}
    return {"$concatArrays": [kept, new]} if new else kept


def _push(push: Push) -> list[Document]:
    number = {"$add": [{"$ifNull": ["$last_no", 0]}, 1]}
    event = {
        "$mergeObjects": [
            literal({"name": push.name, "data": push.payload}),
            {"no": number, "at": SEEN},
        ]
    }
    fields: Document = {
        "queue": {"$concatArrays": [array("queue"), [event]]},
        "queued": {"$add": [{"$ifNull": ["$queued", 0]}, 1]},
        "queued_bytes": {"$add": [{"$ifNull": ["$queued_bytes", 0]}, len(push.payload)]},
        "last_no": number,
    }

    if push.event_id is None:
        return [{"$set": fields}]

    known = {"name": push.name, "id": push.event_id}
    ids = {"$concatArrays": [array("ids"), [literal(known)]]}
    fields["ids"] = {"$slice": [ids, -REMEMBERED_EVENT_IDS]}
    repeated = any_of(
        array("ids"),
        "i",
        {
            "$and": [
                {"$eq": ["$$i.id", literal(push.event_id)]},
                {"$eq": ["$$i.name", literal(push.name)]},
            ]
        },
    )
    old: Document = {
        "queue": array("queue"),
        "queued": {"$ifNull": ["$queued", 0]},
        "queued_bytes": {"$ifNull": ["$queued_bytes", 0]},
        "last_no": {"$ifNull": ["$last_no", 0]},
        "ids": array("ids"),
    }
    return [
        {"$set": {"repeated": repeated}},
        {
            "$set": {
                name: {"$cond": ["$repeated", old[name], value]} for name, value in fields.items()
            }
        },
        {"$unset": "repeated"},
    ]


def _pop(name: str) -> list[Document]:
    head = first_where(array("queue"), "q", {"$eq": ["$$q.name", literal(name)]})
    others = {
        "$filter": {
            "input": array("queue"),
            "as": "q",
            "cond": {"$ne": ["$$q.no", "$popped.no"]},
        }
    }
    size = {
        "$cond": [
            {"$eq": [{"$type": "$popped.data"}, "binData"]},
            {"$binarySize": "$popped.data"},
            0,
        ]
    }
    return [
        {"$set": {"popped": {"$ifNull": [head, None]}}},
        {
            "$set": {
                "queue": {"$cond": [{"$eq": ["$popped", None]}, array("queue"), others]},
                "queued_bytes": {"$subtract": [{"$ifNull": ["$queued_bytes", 0]}, size]},
            }
        },
        {"$set": {"queued": {"$size": "$queue"}}},
    ]


# --- Places -----------------------------------------------------------------------------------


def _places(unit: Unit) -> list[Document]:
    content = unit.content

    if content is None:
        return [{"$set": {"entries": PLACED}}]

    if not content.entries:
        return []

    places = [_place(unit, content, entry, at) for at, entry in enumerate(content.entries)]
    return [{"$set": {"entries": places}}]


def _place(unit: Unit, content: Content, entry: Entry, number: int) -> Expression:
    """One new entry in its place: as in `PLACED`, less what is known beforehand."""
    stored = {"$arrayElemAt": ["$entries", number]}
    is_task = entry.kind is EntryKind.TASK
    has_met: Expression = None

    if entry.event is not None:
        has_met = {
            "$let": {
                "vars": {"e": stored},
                "in": met(literal(entry.event), "$$e.until"),
            }
        }

    at: Expression = None

    if content.status is Status.IN_PROGRESS:
        due: Expression = {"$let": {"vars": {"e": stored}, "in": "$$e.due"}}

        if not is_task:
            at = due
        elif entry.done or entry.due == NEVER:
            at = None
        elif _has_no_claim(unit, entry):
            at = due
        else:
            at = unless_claimed(literal(entry.node_id), due)

        if entry.event is not None:
            at = {"$cond": [{"$ne": ["$$met", None]}, "$$met", at]}

        at = {"$cond": [{"$eq": ["$signals", NONE]}, at, None]}

    task_lane = entry.priority if is_task else ADVANCE_LANE
    lane: Expression = task_lane

    if entry.event is not None and is_task:
        lane = {"$cond": [{"$ne": ["$$met", None]}, ADVANCE_LANE, task_lane]}

    if entry.event is None:
        return {"$mergeObjects": [stored, {"met": None, "lane": lane, "at": at}]}

    return {
        "$let": {
            "vars": {"met": has_met},
            "in": {"$mergeObjects": [stored, {"met": "$$met", "lane": lane, "at": at}]},
        }
    }


def _has_no_claim(unit: Unit, entry: Entry) -> bool:
    """Whether this very write leaves no claim on the entry's task, whatever there was."""
    if unit.create is not None:
        return True

    fenced = unit.guard.claim

    if fenced is None or fenced.task_id != entry.node_id:
        return entry.fresh

    return unit.release == fenced


def _claim_next(wish: ClaimNext, content: Content) -> list[Document]:
    accepted = frozenset(wish.tags)
    places = [
        number
        for number, entry in enumerate(content.entries)
        if entry.fresh and entry.kind is EntryKind.TASK and fits(entry.tags, accepted)
    ]

    if not places or content.status is not Status.IN_PROGRESS:
        return []

    waits = any(entry.event is not None for entry in content.entries)
    free: list[Expression] = [DISPATCHABLE]

    if waits:
        nobody = {"$not": [any_of("$entries", "e", {"$ne": ["$$e.met", None]})]}
        free.append(nobody)

    def available(number: int) -> Expression:
        at = {"$let": {"vars": {"e": {"$arrayElemAt": ["$entries", number]}}, "in": "$$e.at"}}
        return {"$let": {"vars": {"at": at}, "in": _is_past("$$at")}}

    branches = [
        {"case": available(number), "then": literal(content.entries[number].node_id)}
        for number in places
    ]
    chosen = {
        "$cond": [
            {"$and": free} if len(free) > 1 else free[0],
            {"$switch": {"branches": branches, "default": None}},
            None,
        ]
    }
    expiry = {"$add": [SEEN, wish.ttl]}
    others = {"$filter": {"input": "$claims", "as": "c", "cond": {"$ne": ["$$c.task", "$next"]}}}
    fixed = {"worker": wish.worker_id, "nonce": wish.nonce, "tags": list(wish.tags)}
    claim = {
        "$mergeObjects": [
            literal(fixed),
            {
                "task": "$next",
                "fence": {"$add": ["$fence", 1]},
                "from": SEEN,
                "to": expiry,
            },
        ]
    }
    claimed = {
        "$cond": [
            {"$and": [{"$eq": ["$$e.node", "$next"]}, "$$e.task"]},
            {"$mergeObjects": ["$$e", {"at": {"$max": ["$$e.due", expiry]}}]},
            "$$e",
        ]
    }
    entries: Expression = {"$map": {"input": "$entries", "as": "e", "in": claimed}}

    def if_claimed(new: Expression, old: Expression) -> Expression:
        return {"$cond": [{"$eq": ["$next", None]}, old, new]}

    return [
        {"$set": {"next": chosen}},
        {
            "$set": {
                "claims": if_claimed({"$concatArrays": [others, [claim]]}, "$claims"),
                "fence": if_claimed({"$add": ["$fence", 1]}, "$fence"),
                "entries": if_claimed(entries, "$entries"),
                "purge": if_claimed({"$min": ["$purge", expiry]}, "$purge"),
                "next": _REMOVED,
            }
        },
    ]


def _is_past(at: Expression) -> Expression:
    return {"$and": [{"$ne": [at, None]}, {"$lte": [at, SEEN]}]}


class _News:
    """Of which tasks this write has to tell that they became executable."""

    def __init__(self, content: Content | None, *, creates: bool) -> None:
        self.fresh: list[str] = []
        self.may_tell = True
        self.asks_before = True

        if content is None:
            return

        tasks = [entry for entry in content.entries if entry.kind is EntryKind.TASK]
        self.fresh = [entry.node_id for entry in tasks if entry.fresh]
        self.may_tell = bool(tasks) and content.status is Status.IN_PROGRESS
        self.asks_before = self.may_tell and not creates and any(not entry.fresh for entry in tasks)

    @property
    def text(self) -> Expression:
        return hinted(self.fresh, asks_before=self.asks_before)


def _derived(unit: Unit, news: _News | None) -> Document:
    content = unit.content
    fields: Document = {}

    if content is None or any(entry.event is not None for entry in content.entries):
        fields.update(ALL_LANES)
    else:
        fields.update(_lanes(content))

    if unit.signal is not None or unit.clear:
        fields["signalled"] = earliest("signals", "at")

    if content is not None and content.status.is_terminal:
        fields["signalled"], fields["purge"] = None, None
    elif unit.create is not None:
        fields["signalled"] = None

    if news is not None and news.may_tell:
        text = news.text
        fields["hint"] = {
            "$let": {
                "vars": {"text": text},
                "in": {
                    "$cond": [
                        {"$eq": ["$$text", ""]},
                        "$hint",
                        {"$concat": [{"$toString": "$rev"}, "$$text"]},
                    ]
                },
            }
        }
        fields["hinted"] = {"$cond": [{"$eq": [text, ""]}, "$hinted", "$rev"]}

    return fields


def _lanes(content: Content) -> Document:
    """As `ALL_LANES`, less the lanes in which nothing can be."""
    lanes: Document = dict.fromkeys(LANES)
    places: dict[int, list[int]] = {}

    for number, entry in enumerate(content.entries):
        lane = entry.priority if entry.kind is EntryKind.TASK else ADVANCE_LANE
        places.setdefault(lane, []).append(number)

    for lane, numbers in places.items():
        lanes[LANES[lane]] = _first_at(numbers)

    return lanes


def _first_at(numbers: Sequence[int]) -> Expression:
    instants = [
        {"$let": {"vars": {"e": {"$arrayElemAt": ["$entries", number]}}, "in": "$$e.at"}}
        for number in numbers
    ]
    return {"$min": instants} if len(instants) > 1 else instants[0]


def _receipt(
    name: str,
    version: Expression = "$ver",
    since: Expression = "$since",
    incarnation: Expression = "$inc",
) -> Expression:
    new = {"x": name, "r": "$rev", "t": SEEN, "v": version, "s": since, "i": incarnation}
    return {"$slice": [{"$concatArrays": [array("log"), [new]]}, -_RECEIPTS]}
