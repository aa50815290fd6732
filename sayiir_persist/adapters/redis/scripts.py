"""The Lua scripts: pieces that are composed when the package is loaded, none of them copied."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from sayiir_persist.adapters.redis.keys import PARTITION_KEYS, bulk
from sayiir_persist.dispatch import EntryKind
from sayiir_persist.driver import DAY, REMEMBERED_EVENT_IDS, Presence, Refusal
from sayiir_persist.positions import INSTANCE_INPUT, ReadyReason
from sayiir_persist.snapshot import Status
from sayiir_persist.validation import LATEST

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGE: Final = "sayiir_persist.adapters.redis"
USUAL_PRIORITY: Final = 3
MOST_HINTS: Final = 16
"""A write that makes more tasks available than that gives one hint that anything may be."""

_PIECES: Final = {
    "apply": (
        *("keys", "instance", "live", "index", "queue", "heads"),
        *("guard", "refusal", "content"),
    ),
    "commit": ("keys", "instance", "index", "queue", "guard", "content"),
    "claim": ("keys", "instance", "index", "store"),
    "extend": ("keys", "instance", "index", "store"),
    "read": ("keys", "instance", "heads"),
    "poll": ("keys", "instance", "index", "store", "heads", "results", "walk"),
    "page": ("keys", "instance", "live", "walk"),
    "chores": ("keys", "instance", "live", "index", "store", "walk"),
    "now": (),
    "layout": (),
}


_FLAWS: Final = {
    "ROW_FLAW": "DAMAGED its row cannot be read",
    "RESULTS_FLAW": "DAMAGED results are missing",
    "QUEUE_FLAW": "DAMAGED its event queue is not what was written",
}
"""What scripts answer where something was deleted or overwritten by hand."""

_EXTRA: Final = re.compile(r"^--\{\n.*?^--\}\n", re.MULTILINE | re.DOTALL)
_LANE: Final = re.compile(r"\bLANE\((\w+)\)")
_NAME: Final = re.compile(r"\b[A-Z][A-Z_]+\b")


class Script(NamedTuple):
    """A script, and what a call of it begins with.

    Attributes:
        name: Of its file.
        text: Composed.
        head: `EVALSHA` and the digest, framed.
        load: The command that loads it, framed.
    """

    name: str
    text: bytes
    head: bytes
    load: bytes


class Scripts(NamedTuple):
    """All scripts of one server: they differ in how hints are published."""

    apply: Script
    commit: Script
    claim: Script
    extend: Script
    read: Script
    poll: Script
    page: Script
    chores: Script
    now: Script
    layout: Script


def composed(*, publish: str, clock: str | None = None) -> Scripts:
    """Compose the scripts.

    Args:
        publish: The command that publishes a hint.
        clock: A piece that defines `clock()` in the place of the server's time; for tests.
    """
    names = _constants(publish)
    beginning = clock or _piece("clock")
    return Scripts(
        **{
            name: _script(name, beginning + "".join(map(_piece, pieces)) + _main(name), names)
            for name, pieces in _PIECES.items()
        }
    )


@lru_cache
def _piece(name: str) -> str:
    return files(_PACKAGE).joinpath("lua", f"{name}.lua").read_text("utf-8")


def _main(name: str) -> str:
    return _EXTRA.sub("", _piece("apply")) if name == "commit" else _piece(name)


def _script(name: str, text: str, names: Mapping[str, str]) -> Script:
    # In the place of a name, not as a local: a script begins anew with each call, and what a
    # function holds of its surroundings costs more than what it does.
    text = _LANE.sub(rf"KEYS[{PARTITION_KEYS.index('lane0') + 1} + \1]", text)
    body = _NAME.sub(lambda found: names.get(found[0], found[0]), text).encode()
    digest = sha1(body, usedforsecurity=False).hexdigest().encode()
    return Script(
        name,
        body,
        bulk(b"EVALSHA") + bulk(digest),
        b"*3\r\n" + bulk(b"SCRIPT") + bulk(b"LOAD") + bulk(body),
    )


def _constants(publish: str) -> dict[str, str]:
    """What stands in capitals in Lua, spelled where the rest of the package spells it."""
    values: dict[str, str | int] = {
        "IN_PROGRESS": Status.IN_PROGRESS.value,
        "PAUSED": Status.PAUSED.value,
        "TASK": EntryKind.TASK.value,
        "ADVANCE": EntryKind.ADVANCE.value,
        "USUAL_REASON": ReadyReason.TASK.value,
        "USUAL_PRIORITY": USUAL_PRIORITY,
        "REQUIRED": Presence.REQUIRED.value,
        "ABSENT": Presence.ABSENT.value,
        "GUARD": Refusal.GUARD.value,
        "ELAPSED": Refusal.ELAPSED.value,
        "QUEUE_FULL": Refusal.QUEUE_FULL.value,
        "INSTANCE_INPUT": INSTANCE_INPUT,
        "REMEMBERED_EVENT_IDS": REMEMBERED_EVENT_IDS,
        "DAY": DAY,
        "LATEST": LATEST,
        "MOST_HINTS": MOST_HINTS,
        "PUBLISH": publish,
        **_FLAWS,
    }
    literals = {
        name: str(value) if isinstance(value, int) else f"'{value}'"
        for name, value in values.items()
    }
    keys = {name.upper(): f"KEYS[{at}]" for at, name in enumerate(PARTITION_KEYS, 1)}
    statuses = ", ".join(f"'{status.value}'" for status in Status)
    own = ("ROW", "RESULTS", "EVENTS", "IDS")
    first = len(PARTITION_KEYS) + 1
    return {
        **literals,
        **keys,
        **{f"OWN_{name}": f"KEYS[{at}]" for at, name in enumerate(own, first)},
        "STATUSES": f"{{ {statuses} }}",
    }
