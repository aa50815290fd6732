"""Saves, results, deletion and listings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint
from conformance.saboteurs.base import (
    SabotagedBackend,
    SabotagedDriver,
    caught_by,
    unguarded,
)
from msgspec.structs import replace

from sayiir_persist import (
    AtTask,
    BackendError,
    InstanceNotFoundError,
    StaleSnapshotError,
    Status,
    WorkflowSnapshot,
)
from sayiir_persist.body import restore
from sayiir_persist.driver import Guard, Presence
from sayiir_persist.writes import OPEN, PAUSED, RUNNING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from sayiir_persist import Change
    from sayiir_persist.driver import Answer, Page, Read, Row, Take, Taken, Unit, View


@caught_by(
    "SNAPSHOT-005",
    "SNAPSHOT-006",
    "SNAPSHOT-010",
    "CLAIM-105",
    "RACE-015",
    "RACE-018",
    "RACE-043",
    "SNAPSHOT-018",
    "SNAPSHOT-219",
    "CLAIM-104",
)
class LostUpdate(SabotagedDriver):
    """The last writer wins: nobody compares versions."""

    def write(self, unit: Unit) -> Answer:
        return super().write(unguarded(unit, "version"))


@caught_by("SNAPSHOT-008", "START-010", "RACE-013")
class IncarnationUnchecked(SabotagedDriver):
    """Versions are compared, incarnations are not."""

    def write(self, unit: Unit) -> Answer:
        return super().write(unguarded(unit, "incarnation"))


@caught_by("SNAPSHOT-009", "START-008", "START-013", "RACE-010", "START-015")
class IncarnationReused(SabotagedDriver):
    """Every creation of an id is the same incarnation."""

    def write(self, unit: Unit) -> Answer:
        return super().write(replace(unit, create="always" if unit.create else None))


@caught_by("SNAPSHOT-014")
class OverwritesWhatHasEnded(SabotagedDriver):
    """A blind overwrite replaces an instance that has ended."""

    def write(self, unit: Unit) -> Answer:
        return super().write(unguarded(unit, "statuses") if unit.replace else unit)


@caught_by("SNAPSHOT-111", "SNAPSHOT-112")
class SavesWhatHasEnded(SabotagedDriver):
    """A save of the right version changes an instance that has ended."""

    def write(self, unit: Unit) -> Answer:
        return super().write(unguarded(unit, "statuses"))


@caught_by("SNAPSHOT-015")
class OverwritesPaused(SabotagedDriver):
    """A blind overwrite sets a paused instance going."""

    def write(self, unit: Unit) -> Answer:
        if unit.replace and unit.guard.statuses == RUNNING:
            unit = replace(unit, guard=replace(unit.guard, statuses=OPEN))

        return super().write(unit)


@caught_by("SNAPSHOT-105", "SNAPSHOT-109", "EVENT-047", "SIGNAL-050", "SNAPSHOT-110")
class WorkerSetsPausedGoing(SabotagedDriver):
    """A worker's save from before a pause is accepted, and ends the pause."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)

        if row is not None and row.status is Status.PAUSED and unit.guard.statuses == OPEN:
            unit = unguarded(unit, "version")

        return super().write(unit)


@caught_by("SNAPSHOT-107")
class AnybodyEndsPaused(SabotagedDriver):
    """A paused instance is completed by a save without a claim."""

    def write(self, unit: Unit) -> Answer:
        if unit.content and unit.content.status.is_terminal and unit.guard.statuses == RUNNING:
            unit = replace(unit, guard=replace(unit.guard, statuses=OPEN))

        return super().write(unit)


@caught_by("SNAPSHOT-005", "CLAIM-105", "FENCE-001", "RACE-014", "RACE-008")
class VersionGaps(SabotagedDriver):
    """A write that is refused takes a version all the same."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if answer.refused is not None and unit.content is not None and row is not None:
            row.version += 1

        return answer


@caught_by("SNAPSHOT-017")
class ClaimsTakeVersions(SabotagedDriver):
    """A claim counts as a write of the snapshot."""

    async def grant(self, take: Take) -> Taken:
        taken = await super().grant(take)
        row = self.row(take.instance_id)

        if row is not None and taken.claim is not None:
            row.version += 1

        return taken


@caught_by("SNAPSHOT-211", "SNAPSHOT-213", "RACE-016", "RACE-022", "TENANCY-007")
class ResultPushesOutOthers(SabotagedDriver):
    """save_task_result writes back the results that it knows, which is its own."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.record is not None and answer.refused is None:
            shelf = self._space.shelf(unit.instance_id)
            shelf.drop_results(shelf.results().keys() - {unit.record.node_id})

        return answer


@caught_by(
    "SNAPSHOT-214",
    "SNAPSHOT-216",
    "SNAPSHOT-218",
    "SNAPSHOT-220",
    "SNAPSHOT-221",
    "DISPATCH-026",
    "RACE-017",
    "SIGNAL-051",
)
class NoDoneMark(SabotagedDriver):
    """A recorded result does not keep the task from being offered again."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if unit.record is not None and row is not None and answer.refused is None:
            for entry in row.entries:
                entry.done = False

            self.reindex(unit.instance_id)

        return answer


@caught_by("SNAPSHOT-201", "SNAPSHOT-204", "SNAPSHOT-205", "SNAPSHOT-301")
class DropsNothing(SabotagedDriver):
    """A result that was forgotten stays in the store."""

    def write(self, unit: Unit) -> Answer:
        if unit.content is not None:
            unit = replace(unit, content=replace(unit.content, dropped=frozenset()))

        return super().write(unit)


@caught_by("SNAPSHOT-202", "START-017")
class ForgetsWhatWasNotLoaded(SabotagedBackend):
    """Saving a snapshot that was loaded without its results removes them."""

    async def save_snapshot(
        self, snapshot: WorkflowSnapshot, *, overwrite: bool = False
    ) -> WorkflowSnapshot:
        if not overwrite and not snapshot.results.loaded:
            stored = await self.load_snapshot(snapshot.instance_id)
            snapshot = snapshot.forget(*stored.results)

        return await super().save_snapshot(snapshot, overwrite=overwrite)


@caught_by("SNAPSHOT-021")
class SharesItsResults(SabotagedDriver):
    """A loaded snapshot looks into the store, and changes as the store does."""

    def show(self, read: Read, now: int) -> View | None:
        view = super().show(read, now)

        if view is None or view.results is None:
            return view

        return replace(view, results=self._space.shelf(read.instance_id)._results)


@caught_by("SNAPSHOT-020", "SNAPSHOT-021")
class SharesItsObjects(SabotagedBackend):
    """The store keeps the caller's snapshot, and hands the same object to others."""

    async def save_snapshot(
        self, snapshot: WorkflowSnapshot, *, overwrite: bool = False
    ) -> WorkflowSnapshot:
        stored = await super().save_snapshot(snapshot, overwrite=overwrite)
        self._kept = stored
        return stored

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        loaded = await super().load_snapshot(instance_id, results=results)
        kept = getattr(self, "_kept", loaded)
        same = (kept.instance_id, kept.version) == (instance_id, loaded.version)
        return kept if same and results else loaded


@caught_by("CANCEL-004", "CANCEL-005", "CANCEL-006", "CANCEL-015", "RACE-019", "SNAPSHOT-235")
class WritesInTwoSteps(SabotagedDriver):
    """Results become visible before the snapshot that they belong to."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        for unit in units:
            if unit.content is not None and self.row(unit.instance_id) is not None:
                for node_id, output in unit.content.gained.items():
                    self._space.shelf(unit.instance_id).put_result(node_id, output)

        await checkpoint()
        return await super().apply(units)


@caught_by("SNAPSHOT-306", "SNAPSHOT-308")
class UpdatesOnce(SabotagedBackend):
    """update_snapshot does not try again when another writer was faster."""

    async def update_snapshot(self, instance_id: str, change: Change, **options: Any) -> Any:
        def once(found: WorkflowSnapshot) -> WorkflowSnapshot:
            versions.append(found.version)

            if len(versions) > 1:
                raise StaleSnapshotError(instance_id, versions[0], found.version)

            return change(found)

        versions: list[int] = []
        return await super().update_snapshot(instance_id, once, **options)


@caught_by("SNAPSHOT-303", "SNAPSHOT-304", "SNAPSHOT-306", "RACE-018")
class UpdatesBlindly(SabotagedBackend):
    """update_snapshot loads, awaits, and then overwrites."""

    async def update_snapshot(self, instance_id: str, change: Change, **options: Any) -> Any:
        if options.get("claim") is not None:
            return await super().update_snapshot(instance_id, change, **options)

        loaded = await self.load_snapshot(instance_id)
        changed = change(loaded)
        await checkpoint()
        return loaded if changed is loaded else await self.save_snapshot(changed, overwrite=True)


@caught_by("CLAIM-012")
class MillisecondClaims(SabotagedDriver):
    """The end of a claim is cut to whole milliseconds."""

    async def grant(self, take: Take) -> Taken:
        taken = await super().grant(take)
        row = self.row(take.instance_id)

        if row is None or taken.claim is None or taken.claim.expires_at is None:
            return taken

        cut = replace(taken.claim, expires_at=taken.claim.expires_at // 1000 * 1000)
        row.claims[take.task_id] = cut
        return replace(taken, claim=cut)


@caught_by("SNAPSHOT-022", "SNAPSHOT-025")
class MillisecondSnapshots(SabotagedBackend):
    """Instants of a snapshot are cut to whole milliseconds."""

    async def save_snapshot(
        self, snapshot: WorkflowSnapshot, *, overwrite: bool = False
    ) -> WorkflowSnapshot:
        if snapshot.deadline is not None:
            whole = snapshot.deadline.microsecond // 1000 * 1000
            snapshot = snapshot.with_deadline(snapshot.deadline.replace(microsecond=whole))

        return await super().save_snapshot(snapshot, overwrite=overwrite)


@caught_by(
    "SIGNAL-017", "SNAPSHOT-117", "SNAPSHOT-232", "SNAPSHOT-101", "SNAPSHOT-102", "SNAPSHOT-234"
)
class CancelForgetsResults(SabotagedDriver):
    """Cancelling drops what the workflow had completed."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and row.status is Status.CANCELLED and answer.refused is None:
            self._space.shelf(unit.instance_id).drop_results(None)

        return answer


@caught_by("SIGNAL-032")
class UnpauseForgetsThePosition(SabotagedBackend):
    """Unpausing keeps one task, and forgets the tree in which it stood."""

    async def unpause(self, instance_id: str) -> WorkflowSnapshot:
        unpaused = await super().unpause(instance_id)

        if isinstance(unpaused.position, AtTask):
            return unpaused

        first = next(iter(unpaused.ready_tasks()), AtTask("start"))
        return await self.update_snapshot(instance_id, lambda found: found.move_to(first))


@caught_by("SNAPSHOT-401", "SNAPSHOT-406")
class DeletesTwice(SabotagedBackend):
    """Deleting what is not there is a success."""

    async def delete_snapshot(self, instance_id: str) -> None:
        try:
            await super().delete_snapshot(instance_id)
        except InstanceNotFoundError:
            return


@caught_by("EVENT-008", "SNAPSHOT-403", "SNAPSHOT-405")
class DeleteKeepsEvents(SabotagedDriver):
    """Queued events survive the deletion of their instance."""

    def write(self, unit: Unit) -> Answer:
        shelf = self._space.shelf(unit.instance_id)
        queue = shelf._queue
        answer = super().write(unit)

        if unit.delete and answer.refused is None:
            shelf._queue = queue
            self._space.store(unit.instance_id, None, shelf)

        return answer


@caught_by("SIGNAL-054", "SNAPSHOT-405")
class DeleteKeepsSignals(SabotagedDriver):
    """Pending signals survive the deletion, and reach the next instance of that id."""

    def write(self, unit: Unit) -> Answer:
        before = self.row(unit.instance_id)
        answer = super().write(unit)
        after = self.row(unit.instance_id)

        if before is not None and after is None:
            self.notes[unit.instance_id] = before.signals
        elif after is not None and before is None:
            after.signals.update(self.notes.pop(unit.instance_id, {}))
            self.reindex(unit.instance_id)

        return answer


@caught_by("SNAPSHOT-405", "FENCE-006")
class DeleteKeepsClaims(SabotagedDriver):
    """Claims survive the deletion, and hold the next instance of that id."""

    def write(self, unit: Unit) -> Answer:
        before = self.row(unit.instance_id)
        answer = super().write(unit)
        after = self.row(unit.instance_id)

        if before is not None and after is None:
            self.notes[unit.instance_id] = before.claims
        elif after is not None and before is None:
            after.claims.update(self.notes.pop(unit.instance_id, {}))
            self.reindex(unit.instance_id)

        return answer


@caught_by("CANCEL-008")
class DeletesInTwoSteps(SabotagedDriver):
    """A deletion removes the results, awaits, and then removes the instance."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        for unit in units:
            if unit.delete and self.row(unit.instance_id) is not None:
                self._space.shelf(unit.instance_id).drop_results(None)
                await checkpoint()

        return await super().apply(units)


@caught_by("SNAPSHOT-501", "SNAPSHOT-503", "SNAPSHOT-507")
class ListsInAnyOrder(SabotagedDriver):
    """A listing comes in the order of creation."""

    async def page(self, query: Page) -> Sequence[Row]:
        everything = await super().page(replace(query, after=None, limit=1_000_000))
        created = list(self.rows())
        rows = sorted(everything, key=lambda row: created.index(row.instance_id))
        first = created.index(query.after) + 1 if query.after in created else 0
        return [row for row in rows if created.index(row.instance_id) >= first][: query.limit]


@caught_by("SNAPSHOT-501", "TENANCY-006")
class ListsByCollation(SabotagedDriver):
    """A listing is ordered as a dictionary for people is: without regard to case."""

    async def page(self, query: Page) -> Sequence[Row]:
        everything = await super().page(replace(query, after=None, limit=1_000_000))
        rows = sorted(everything, key=lambda row: row.instance_id.casefold())

        if query.after is not None:
            rows = [row for row in rows if row.instance_id.casefold() > query.after.casefold()]

        return rows[: query.limit]


@caught_by("SNAPSHOT-503", "SNAPSHOT-507")
class ListsAfterInclusively(SabotagedDriver):
    """A page begins with the id that the one before it ended with."""

    async def page(self, query: Page) -> Sequence[Row]:
        rows = await super().page(replace(query, after=None, limit=1_000_000))
        return [row for row in rows if row.instance_id >= (query.after or "")][: query.limit]


@caught_by("SNAPSHOT-506")
class ListsCutPages(SabotagedDriver):
    """The limit of a listing counts what its filters leave out."""

    async def page(self, query: Page) -> Sequence[Row]:
        if query.idle_for is not None:
            return await super().page(query)

        return [
            row
            for row in await super().page(replace(query, status=None, definition_hash=None))
            if query.status in {None, row.status}
            and query.definition_hash in {None, row.definition_hash}
        ]


@caught_by("SNAPSHOT-118", "SNAPSHOT-609", "SNAPSHOT-004")
class StatusSinceMoves(SabotagedDriver):
    """Every write says that the status is new."""

    def write(self, unit: Unit) -> Answer:
        if unit.content is not None:
            unit = replace(unit, content=replace(unit.content, status_is_new=True))

        return super().write(unit)


@caught_by("LIFECYCLE-006")
class CachesSnapshots(SabotagedBackend):
    """A backend object answers from what it loaded before, whoever has written since."""

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        cache: dict[object, WorkflowSnapshot] = self.__dict__.setdefault("_cache", {})

        if (instance_id, results) not in cache:
            cache[instance_id, results] = await super().load_snapshot(instance_id, results=results)

        return cache[instance_id, results]


@caught_by(
    "SNAPSHOT-602",
    "SNAPSHOT-603",
    "SNAPSHOT-604",
    "SNAPSHOT-606",
    "SNAPSHOT-608",
    "SNAPSHOT-607",
    "SNAPSHOT-614",
    "SNAPSHOT-615",
)
class ShowsWhatWasWritten(SabotagedBackend):
    """A load shows what was written last, not what time has made of it."""

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        loaded = await super().load_snapshot(instance_id, results=results)
        view = await self._engine.view(instance_id, results=results)
        return loaded if view is None else restore(view)


@caught_by("SNAPSHOT-610")
class DelaysCountFromCreation(SabotagedDriver):
    """What a write enters counts from the creation of the instance."""

    def show(self, read: Read, now: int) -> View | None:
        view = super().show(read, now)
        return view and replace(view, body_at=view.facts.created_at)


@caught_by("SNAPSHOT-007", "SNAPSHOT-407")
class StaleSaveBringsBack(SabotagedDriver):
    """A save of a version recreates the instance that was deleted meanwhile."""

    def write(self, unit: Unit) -> Answer:
        gone = self.row(unit.instance_id) is None

        if gone and unit.content is not None and unit.guard.claim is None and unit.guard.version:
            unit = replace(unit, guard=Guard(presence=Presence.ANY), create="late")

        return super().write(unit)


@caught_by("SNAPSHOT-012")
class OverwriteMerges(SabotagedDriver):
    """A blind overwrite keeps the results that were there."""

    def write(self, unit: Unit) -> Answer:
        return super().write(replace(unit, replace=False))


@caught_by("SNAPSHOT-012", "SNAPSHOT-013")
class OverwriteIsANewIncarnation(SabotagedDriver):
    """A blind overwrite is a new incarnation."""

    def write(self, unit: Unit) -> Answer:
        return super().write(replace(unit, restart=unit.restart or unit.replace))


@caught_by("SNAPSHOT-203", "SNAPSHOT-016")
class NotLoadedLooksEmpty(SabotagedDriver):
    """A snapshot that was loaded without its results claims that there are none."""

    def show(self, read: Read, now: int) -> View | None:
        view = super().show(read, now)
        return view and replace(view, results=view.results or {})


@caught_by("SNAPSHOT-302")
class EveryUpdateWrites(SabotagedBackend):
    """A change that returns its argument is written like any other."""

    async def update_snapshot(self, instance_id: str, change: Change, **options: Any) -> Any:
        return await super().update_snapshot(
            instance_id, lambda found: replace(change(found)), **options
        )


@caught_by("SNAPSHOT-708")
class TakesAnythingForBytes(SabotagedBackend):
    """A payload that is no bytes is turned into some."""

    async def save_task_result(
        self, instance_id: str, task_id: str, output: Any, **options: Any
    ) -> int:
        if isinstance(output, str | bytearray | memoryview):
            output = output.encode() if isinstance(output, str) else bytes(output)

        return await super().save_task_result(instance_id, task_id, output, **options)


@caught_by("SNAPSHOT-502")
class ListsOldVersions(SabotagedDriver):
    """A listing shows instances as they were created."""

    async def page(self, query: Page) -> Sequence[Row]:
        return [replace(row, version=1) for row in await super().page(query)]


@caught_by("SNAPSHOT-505")
class ListsPausedAsRunning(SabotagedDriver):
    """A listing of running instances shows the paused ones too."""

    async def page(self, query: Page) -> Sequence[Row]:
        rows = [*await super().page(query)]

        if query.status is Status.IN_PROGRESS:
            rows += await super().page(replace(query, status=Status.PAUSED))

        return sorted(rows, key=lambda row: row.instance_id.encode())[: query.limit]


@caught_by("SNAPSHOT-233")
class UnknownHasNoResults(SabotagedBackend):
    """A result of an instance that is not there reads as none."""

    async def load_task_result(self, instance_id: str, task_id: str) -> bytes | None:
        try:
            return await super().load_task_result(instance_id, task_id)
        except InstanceNotFoundError:
            return None


@caught_by("SNAPSHOT-231")
class UnknownIsFresh(SabotagedBackend):
    """An instance that is not there is loaded as one that has just begun."""

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        try:
            return await super().load_snapshot(instance_id, results=results)
        except InstanceNotFoundError:
            return WorkflowSnapshot.start(instance_id, "v1", start_at="charge")


@caught_by("SNAPSHOT-116")
class UnpauseForgetsLastCompleted(SabotagedDriver):
    """Unpausing does not know any more which task was completed last."""

    def write(self, unit: Unit) -> Answer:
        if unit.guard.statuses == PAUSED and unit.content is not None:
            unit = replace(unit, content=replace(unit.content, last_completed=None))

        return super().write(unit)


@caught_by("SNAPSHOT-214")
class ResultMarksEverything(SabotagedDriver):
    """A recorded result marks all that is open, parks included."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and unit.record is not None and answer.refused is None:
            for entry in row.entries:
                entry.done = True

            self.reindex(unit.instance_id)

        return answer


@caught_by("SNAPSHOT-307")
class WrapsErrorsOfChanges(SabotagedBackend):
    """What the caller's own change raises arrives as an error of the store."""

    async def update_snapshot(self, instance_id: str, change: Change, **options: Any) -> Any:
        def wrapped(found: WorkflowSnapshot) -> WorkflowSnapshot:
            try:
                return change(found)
            except ArithmeticError as error:
                raise BackendError("the change failed") from error

        return await super().update_snapshot(instance_id, wrapped, **options)


@caught_by("SNAPSHOT-402")
class EndedStays(SabotagedDriver):
    """Deleting what has ended is a success without effect."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)

        if unit.delete and row is not None and row.status.is_terminal:
            unit = replace(unit, delete=False)

        return super().write(unit)


@caught_by("SNAPSHOT-616")
class DeadlinesEnd(SabotagedBackend):
    """The store fails an instance whose deadline has come."""

    async def save_snapshot(
        self, snapshot: WorkflowSnapshot, *, overwrite: bool = False
    ) -> WorkflowSnapshot:
        if snapshot.deadline is not None and snapshot.deadline <= await self.now():
            snapshot = snapshot.fail("the deadline has come")

        return await super().save_snapshot(snapshot, overwrite=overwrite)
