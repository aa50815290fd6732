"""The stores that can be measured; a new one is a module here and an entry below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.harness import Variant
from benchmarks.stores.memory import Memory
from benchmarks.stores.mongo import Mongo
from benchmarks.stores.postgres import SLOW_DISK, Postgres
from benchmarks.stores.redis import Redis
from benchmarks.stores.sqlite import Sqlite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.harness import Store

STORES: Final[tuple[Store, ...]] = (Memory(), Sqlite(), Postgres(), Redis(), Mongo())

VARIANTS: Final[Mapping[str, Sequence[Variant]]] = {
    "postgres": (
        Variant("uvloop", Postgres(), uvloop=True),
        Variant("commit_delay", Postgres(SLOW_DISK)),
        Variant("both", Postgres(SLOW_DISK), uvloop=True),
    ),
    "mongo": (Variant("Motor", Mongo(motor=True)),),
}
"""By the name of the store that they are measured beside."""
