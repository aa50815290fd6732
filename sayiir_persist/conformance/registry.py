"""The checks of the kit: registered once each, under an id that never changes its meaning."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Final

from msgspec import Struct

from sayiir_persist.conformance.kit import Kit

KIT_VERSION: Final = 1
"""Counts changes by which a backend that passed may fail."""

CheckFunction = Callable[[Kit], Awaitable[None]]

_ID: Final = re.compile(r"[A-Z]+-[0-9]{3}")
_registered: Final[dict[str, Check]] = {}


class Check(Struct, frozen=True):
    """One promise of the contract, and the code that puts a backend to the test.

    Attributes:
        id: The group, and a number that is never reused.
        sentence: What is promised.
        run: Raises `ExpectationError` where the promise is broken.
    """

    id: str
    sentence: str
    run: CheckFunction

    @property
    def group(self) -> str:
        """The part of the contract that it belongs to."""
        return self.id.partition("-")[0]


def check(id: str, sentence: str) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check under a stable id such as `"CLAIM-003"`, with its one sentence of contract.

    Raises:
        ValueError: The id is malformed or taken.
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"a check id looks like CLAIM-003, not {id!r}")

    def register(run: CheckFunction) -> CheckFunction:
        if id in _registered:
            raise ValueError(f"the check id {id} is taken")

        _registered[id] = Check(id, sentence, run)
        return run

    return register


def checks(
    groups: Collection[str] | None = None, ids: Collection[str] | None = None
) -> tuple[Check, ...]:
    """The checks of the kit in the order of their ids.

    Args:
        groups: Only those of these groups, such as `"CLAIM"`.
        ids: Only these.

    Raises:
        ValueError: A group or an id is unknown.
    """
    _load()
    known_groups = {found.group for found in _registered.values()}

    if unknown := {*(groups or ()), *(ids or ())} - known_groups - _registered.keys():
        raise ValueError(f"no such checks: {', '.join(sorted(unknown))}")

    return tuple(
        found
        for _, found in sorted(_registered.items())
        if (groups is None or found.group in groups) and (ids is None or found.id in ids)
    )


@cache
def _load() -> None:
    package = import_module("sayiir_persist.conformance.checks")

    for module in iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)
