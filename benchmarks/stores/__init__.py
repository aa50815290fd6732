"""The stores that can be measured; a new one is a module here and an entry below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.stores.memory import Memory
from benchmarks.stores.sqlite import Sqlite

if TYPE_CHECKING:
    from benchmarks.harness import Store

STORES: Final[tuple[Store, ...]] = (Memory(), Sqlite())
