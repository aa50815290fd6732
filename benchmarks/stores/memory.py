"""The store in memory. It has no floor: there is nothing that it cannot do without."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from benchmarks.harness import Floor, Target
from benchmarks.stores.common import FLAT
from benchmarks.workloads import COMMIT
from sayiir_persist import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Mapping


class Memory:
    """`MemoryBackend` on a store of its own."""

    name = "memory"
    floors: Mapping[str, Mapping[str, Floor]] = MappingProxyType({})
    targets = (Target("commit", COMMIT, None, 40), *FLAT)

    def open(self) -> MemoryBackend:
        """A backend on an empty store of its own."""
        return MemoryBackend()

    def describe(self) -> str:
        """Nothing to say."""
        return "in the process"
