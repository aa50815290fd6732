"""start_instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio.lowlevel import checkpoint
from conformance.saboteurs.base import (
    SabotagedBackend,
    SabotagedDriver,
    caught_by,
    unguarded,
)
from msgspec.structs import replace

from sayiir_persist import ConflictPolicy, InstanceNotFoundError
from sayiir_persist.driver import Presence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist import StartOutcome
    from sayiir_persist.driver import Answer, Unit


@caught_by("SNAPSHOT-003", "START-011", "START-012", "RACE-009", "RACE-011")
class StartsRace(SabotagedDriver):
    """Creating looks whether the id is free, awaits, and then writes without looking again."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        looked = []

        for unit in units:
            absent = unit.guard.presence is Presence.ABSENT
            free = absent and self.row(unit.instance_id) is None
            guard = replace(unit.guard, presence=Presence.ANY) if free else unit.guard
            looked.append(replace(unit, guard=guard, replace=unit.replace or free))

        await checkpoint()
        return await super().apply(looked)


@caught_by("START-007")
class DefinitionUnchecked(SabotagedDriver):
    """A start does not compare the definition with the one that is stored."""

    def write(self, unit: Unit) -> Answer:
        return super().write(unguarded(unit, "definition_hash"))


@caught_by("SNAPSHOT-002", "START-004", "START-005")
class TakesOverWhatHasEnded(SabotagedDriver):
    """A start under the id of an instance that has ended replaces it, whatever the policy."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)

        if row is not None and row.status.is_terminal and unit.create and not unit.replace:
            unit = replace(unit, guard=replace(unit.guard, presence=Presence.ANY), restart=True)

        return super().write(unit)


@caught_by("START-005")
class UseExistingTouches(SabotagedBackend):
    """use_existing writes to the instance that it finds."""

    async def start_instance(self, instance_id: str, *args: Any, **options: Any) -> StartOutcome:
        outcome = await super().start_instance(instance_id, *args, **options)

        if not outcome.created and not outcome.snapshot.status.is_terminal:
            await self.save_snapshot(outcome.snapshot)

        return outcome


@caught_by("START-014", "CANCEL-002")
class RestartsInTwoSteps(SabotagedBackend):
    """A restart deletes, awaits, and then creates."""

    async def start_instance(self, instance_id: str, *args: Any, **options: Any) -> StartOutcome:
        if options.get("on_conflict") is ConflictPolicy.TERMINATE_EXISTING:
            try:
                await self.delete_snapshot(instance_id)
            except InstanceNotFoundError:
                pass
            else:
                await checkpoint()

        return await super().start_instance(instance_id, *args, **options)


@caught_by("EVENT-009", "START-009")
class RestartKeepsEvents(SabotagedDriver):
    """Events of the old run reach the new one."""

    def write(self, unit: Unit) -> Answer:
        shelf = self._space.shelf(unit.instance_id)
        queue = shelf._queue
        answer = super().write(unit)

        if unit.restart and answer.refused is None:
            shelf._queue = queue

        return answer


@caught_by("START-009")
class RestartKeepsSignals(SabotagedDriver):
    """A cancel of the old run reaches the new one."""

    def write(self, unit: Unit) -> Answer:
        old = self.row(unit.instance_id)
        answer = super().write(unit)
        new = self.row(unit.instance_id)

        if unit.restart and old is not None and new is not None and answer.refused is None:
            new.signals.update(old.signals)
            self.reindex(unit.instance_id)

        return answer


@caught_by("START-009", "START-010", "FENCE-007")
class RestartKeepsClaims(SabotagedDriver):
    """A worker of the old run holds a task of the new one."""

    def write(self, unit: Unit) -> Answer:
        old = self.row(unit.instance_id)
        answer = super().write(unit)
        new = self.row(unit.instance_id)

        if unit.restart and old is not None and new is not None and answer.refused is None:
            new.claims.update(old.claims)
            self.reindex(unit.instance_id)

        return answer


@caught_by("START-008")
class RestartKeepsResults(SabotagedDriver):
    """Results of the old run stand in the new one."""

    def write(self, unit: Unit) -> Answer:
        shelf = self._space.shelf(unit.instance_id)
        results = shelf.results()
        answer = super().write(unit)

        if unit.restart and answer.refused is None:
            for node_id, output in results.items():
                shelf.put_result(node_id, output)

        return answer


@caught_by("START-001", "CODEC-001", "CODEC-002")
class StartsWithoutTags(SabotagedDriver):
    """An instance forgets the tags that it was started with."""

    def write(self, unit: Unit) -> Answer:
        if unit.content is not None:
            unit = replace(unit, content=replace(unit.content, tags=()))

        return super().write(unit)


@caught_by("SNAPSHOT-024", "DISPATCH-012", "CODEC-005")
class EmptyInputIsNone(SabotagedDriver):
    """An empty input is stored as no input."""

    def write(self, unit: Unit) -> Answer:
        if unit.content is not None:
            unit = replace(unit, content=replace(unit.content, input=unit.content.input or None))

        return super().write(unit)
