"""Namespaces, ids and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.saboteurs.base import SabotagedBackend, SabotagedDriver, caught_by
from msgspec.structs import replace

from sayiir_persist.adapters.memory import MemoryDriver
from sayiir_persist.backend import StandardBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist import BackendInfo, MemoryStore, SnapshotInfo, WorkflowSnapshot
    from sayiir_persist.driver import Answer, Opened, Page, Row, Unit


@caught_by("TENANCY-001")
class OneNamespaceForAll(SabotagedDriver):
    """Everybody sees everything."""

    async def open(self) -> Opened:
        self.namespace = "shared"
        return await super().open()


@caught_by("TENANCY-003")
class NamespacesFolded(SabotagedDriver):
    """Namespaces that differ in case are the same."""

    async def open(self) -> Opened:
        self.namespace = self.namespace.casefold()
        return await super().open()


@caught_by("TENANCY-001")
class ListsAllNamespaces(SabotagedDriver):
    """A listing shows the instances of other namespaces as well."""

    async def page(self, query: Page) -> Sequence[Row]:
        mine, found = self._opened, []

        for space in self._store._namespaces.values():
            self._opened = space
            found.extend(await super().page(query))

        self._opened = mine
        return sorted(found, key=lambda row: row.instance_id)[: query.limit]


@caught_by("TENANCY-004")
class NamespaceUnchecked(StandardBackend[MemoryDriver]):
    """Any text is taken for a namespace."""

    def __init__(self, store: MemoryStore, *, namespace: str, **options: Any) -> None:
        super().__init__(lambda _: MemoryDriver(store, namespace), **options)


@caught_by("TENANCY-009")
class IdsUnchecked(SabotagedBackend):
    """A look-up under an id that cannot exist answers that there is nothing."""

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        if not instance_id:
            instance_id = "nothing has this id"

        return await super().load_snapshot(instance_id, results=results)


@caught_by("TENANCY-005")
class PercentIsAWildcard(SabotagedDriver):
    """A deletion takes an instance id for a pattern."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.delete and unit.instance_id.endswith(("%", "*")):
            for instance_id in [*self.rows()]:
                if instance_id.startswith(unit.instance_id[:-1]):
                    super().write(replace(unit, instance_id=instance_id))

        return answer


@caught_by("TENANCY-008")
class TagsFolded(SabotagedDriver):
    """Tags that differ in case are the same."""

    def write(self, unit: Unit) -> Answer:
        if unit.content is not None:
            entries = tuple(
                replace(entry, tags=tuple(tag.casefold() for tag in entry.tags))
                for entry in unit.content.entries
            )
            unit = replace(unit, content=replace(unit.content, entries=entries))

        return super().write(unit)


@caught_by("SNAPSHOT-707", "CLAIM-112", "EVENT-059", "START-016")
class LimitsUnchecked(SabotagedBackend):
    """A payload of any size is stored, whatever max_payload says."""

    def __init__(self, store: MemoryStore, *, max_payload: int = 16 << 20, **options: Any) -> None:
        super().__init__(store, **options)
        self._promised = max_payload

    @property
    def info(self) -> BackendInfo:
        info = super().info
        return replace(info, limits=replace(info.limits, max_payload=self._promised))


@caught_by("SNAPSHOT-504")
class NegativeLimitIsAll(SabotagedBackend):
    """A listing with a limit below one is a listing of everything."""

    async def list_snapshots(self, *, limit: int = 100, **query: Any) -> list[SnapshotInfo]:
        return await super().list_snapshots(limit=limit if limit > 0 else 1_000_000, **query)
