"""Codecs, opening and closing."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from conformance.saboteurs.base import SabotagedBackend, SabotagedDriver, caught_by
from msgspec.structs import replace

from sayiir_persist import (
    BackendError,
    CodecError,
    InstanceNotFoundError,
    WorkflowSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist import SnapshotInfo
    from sayiir_persist.driver import Answer, Unit


# --- Codecs --------------------------------------------------------------------------------------


@caught_by("CODEC-011")
class DamagedIsMissing(SabotagedBackend):
    """An instance that cannot be read is not found."""

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        try:
            return await super().load_snapshot(instance_id, results=results)
        except CodecError:
            raise InstanceNotFoundError(instance_id) from None


@caught_by("CODEC-011")
class DamagedIsFresh(SabotagedBackend):
    """An instance that cannot be read looks like one that has just begun."""

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        try:
            return await super().load_snapshot(instance_id, results=results)
        except CodecError:
            return WorkflowSnapshot.start(instance_id, "v1", start_at="charge")


@caught_by("CODEC-013")
class DamagedIsNotListed(SabotagedBackend):
    """A listing leaves out what cannot be read."""

    async def list_snapshots(self, **query: Any) -> list[SnapshotInfo]:
        listed = []

        for info in await super().list_snapshots(**query):
            with suppress(CodecError):
                await self.load_snapshot(info.instance_id)
                listed.append(info)

        return listed


@caught_by("CODEC-015")
class DamagedStays(SabotagedBackend):
    """An instance that cannot be read cannot be deleted."""

    async def delete_snapshot(self, instance_id: str) -> None:
        with suppress(CodecError):
            await self.load_snapshot(instance_id)
            await super().delete_snapshot(instance_id)


@caught_by("CODEC-004", "CODEC-005")
class TextPayloads(SabotagedDriver):
    """Payloads are stored as text, and bytes that are none get lost."""

    def write(self, unit: Unit) -> Answer:
        if unit.record is not None:
            text = unit.record.output.decode(errors="replace")
            unit = replace(unit, record=replace(unit.record, output=text.encode()))

        if unit.push is not None:
            text = unit.push.payload.decode(errors="replace")
            unit = replace(unit, push=replace(unit.push, payload=text.encode()))

        return super().write(unit)


# --- Opening and closing -------------------------------------------------------------------------


@caught_by("LIFECYCLE-002", "LIFECYCLE-010", "LIFECYCLE-016")
class UseAfterCloseWorks(SabotagedBackend):
    """A closed backend goes on as if nothing had happened."""

    async def aclose(self) -> None:
        return


@caught_by("LIFECYCLE-001")
class UseBeforeOpenWorks(SabotagedBackend):
    """A backend opens itself at its first use."""

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        if self._engine.opened is None:
            await self._engine.open()

        return await super().load_snapshot(instance_id, results=results)


@caught_by("LIFECYCLE-012")
class OneBadFailsAll(SabotagedDriver):
    """A write that is refused takes those with it that share its batch."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        answers = await super().apply(units)

        if len(answers) > 1 and any(answer.refused for answer in answers):
            raise BackendError("the batch was refused")

        return answers


@caught_by("LIFECYCLE-007")
class WrongName(SabotagedBackend):
    """The backend does not know its own namespace."""

    @property
    def info(self) -> Any:
        return replace(super().info, namespace="default")


@caught_by("LIFECYCLE-008")
class NaiveNow(SabotagedBackend):
    """The store's time has no zone."""

    async def now(self) -> Any:
        return (await super().now()).replace(tzinfo=None)


@caught_by("LIFECYCLE-009")
class SwallowsTheError(SabotagedBackend):
    """`async with` swallows what its block raised."""

    async def __aexit__(self, *exc: object) -> bool:  # type: ignore[override]
        await super().__aexit__(*exc)
        return True
