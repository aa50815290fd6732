"""Writes that are half done when their caller is cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import Semaphore, fail_after
from anyio.lowlevel import checkpoint
from conformance.saboteurs.base import SabotagedDriver, caught_by
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sayiir_persist.aggregate import Aggregate
    from sayiir_persist.driver import (
        Answer,
        Extend,
        Extended,
        Poll,
        Polled,
        Read,
        Take,
        Taken,
        Unit,
        View,
    )


@caught_by("CANCEL-016", "CLAIM-131", "RACE-039", "CLAIM-125")
class CommitsInTwoSteps(SabotagedDriver):
    """A commit saves, awaits, and then releases."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        answers = await super().apply(
            [replace(unit, release=None) if unit.content else unit for unit in units]
        )
        await checkpoint()

        for unit, answer in zip(units, answers, strict=True):
            row = self.row(unit.instance_id)

            if unit.content and unit.release and row is not None and answer.refused is None:
                row.claims.pop(unit.release.task_id, None)
                self.reindex(unit.instance_id)

        return answers


@caught_by("CANCEL-007")
class RecordsInTwoSteps(SabotagedDriver):
    """save_task_result records, awaits, and then marks the task done."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        for unit in units:
            if unit.record is not None and self.row(unit.instance_id) is not None:
                shelf = self._space.shelf(unit.instance_id)
                shelf.put_result(unit.record.node_id, unit.record.output)

        await checkpoint()
        return await super().apply(units)


@caught_by("CANCEL-016", "CANCEL-017", "CANCEL-023")
class AppliesSignalsInTwoSteps(SabotagedDriver):
    """Applying a signal takes the request away, awaits, and then changes the status."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        for unit in units:
            row = self.row(unit.instance_id)

            if unit.clear and unit.content is not None and row is not None:
                for kind in unit.clear:
                    row.signals.pop(kind, None)

        await checkpoint()
        return await super().apply(
            [
                replace(unit, guard=replace(unit.guard, signals=None)) if unit.clear else unit
                for unit in units
            ]
        )


@caught_by("CANCEL-025", "CANCEL-026")
class QueuesInTwoSteps(SabotagedDriver):
    """An event id is remembered, and then the event is queued."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        known = []

        for unit in units:
            push, shelf = unit.push, self._space.shelf(unit.instance_id)

            if push is not None and push.event_id is not None:
                known.append(shelf.remembers(push.name, push.event_id))
                shelf.remember(push.name, push.event_id, await self.now())
                self._space.store(unit.instance_id, self.row(unit.instance_id), shelf)

        await checkpoint()
        return await super().apply(
            [
                replace(unit, push=replace(unit.push, event_id=None))
                if unit.push and not any(known)
                else unit
                for unit in units
            ]
        )


@caught_by("CANCEL-009")
class HoldsALock(SabotagedDriver):
    """A look-up that is cancelled leaves the store locked for everybody."""

    async def read(self, reads: Sequence[Read]) -> Sequence[View | None]:
        lock: Semaphore = self.notes.setdefault("lock", Semaphore(1))

        with fail_after(0.1):
            await lock.acquire()

        found = await super().read(reads)
        lock.release()
        return found


@caught_by("CANCEL-011")
class LeaksAConnection(SabotagedDriver):
    """Of the five connections of the pool a claim that is cancelled keeps one."""

    async def claim(self, take: Take) -> Taken:
        pool: Semaphore = self.notes.setdefault("pool", Semaphore(5))

        with fail_after(0.1):
            await pool.acquire()

        taken = await super().claim(take)
        pool.release()
        return taken


@caught_by("CANCEL-012")
class HidesBeforeItClaims(SabotagedDriver):
    """Acquiring takes what it finds off the list, awaits, and then claims it."""

    async def poll(self, query: Poll) -> Polled:
        found = await self.offer(replace(query, claim=False))
        rows = [self.rows()[offer.view.instance_id] for offer in found.offers]
        self._hide(rows, hidden=True)
        await checkpoint()
        self._hide(rows, hidden=False)
        return await super().poll(query)

    def _hide(self, rows: list[Aggregate], *, hidden: bool) -> None:
        for row in rows:
            for entry in row.entries:
                entry.done = hidden


@caught_by("CANCEL-013")
class ExtendsInTwoSteps(SabotagedDriver):
    """An extension ends the claim, awaits, and then gives it another end."""

    async def extend(self, extend: Extend) -> Extended:
        row = self.row(extend.instance_id)
        held = row.claims.get(extend.key.task_id) if row else None

        if row is None or held is None or held.fence != extend.key.fence:
            return await super().extend(extend)

        row.claims[held.task_id] = replace(held, expires_at=held.claimed_at)
        await checkpoint()
        row.claims[held.task_id] = held
        return await super().extend(extend)


@caught_by("CANCEL-014")
class ReleasesInTwoSteps(SabotagedDriver):
    """A release marks the task, awaits, and then removes the claim and the mark."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        marked = []

        for unit in units:
            row = self.row(unit.instance_id)

            if row is not None and unit.release is not None and unit.content is None:
                marked += [entry for entry in row.entries if not entry.done]

        for entry in marked:
            entry.done = True

        await checkpoint()

        for entry in marked:
            entry.done = False

        return await super().apply(units)


@caught_by("CANCEL-003")
class CreatesInTwoSteps(SabotagedDriver):
    """A new instance is there before its results are."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        answers = await super().apply(
            [
                replace(unit, content=replace(unit.content, gained={}))
                if unit.create and unit.content
                else unit
                for unit in units
            ]
        )
        await checkpoint()

        for unit, answer in zip(units, answers, strict=True):
            if unit.create and unit.content and answer.refused is None:
                for node_id, output in unit.content.gained.items():
                    self._space.shelf(unit.instance_id).put_result(node_id, output)

        return answers
