"""Control signals."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint
from conformance.saboteurs.base import (
    SabotagedBackend,
    SabotagedDriver,
    caught_by,
    unguarded,
)
from msgspec.structs import replace

from sayiir_persist import CannotPauseError, InstanceNotFoundError, SignalKind, Status
from sayiir_persist.writes import OPEN, PAUSED

if TYPE_CHECKING:
    from typing import Any

    from sayiir_persist import SignalRequest, WorkflowSnapshot
    from sayiir_persist.driver import Answer, ChoreList, Chores, Read, Unit, View


@caught_by("SIGNAL-004", "SIGNAL-033")
class PauseOutlivesUnpause(SabotagedDriver):
    """A pause that is asked for while paused is kept, and pauses again after the unpause."""

    def write(self, unit: Unit) -> Answer:
        if unit.signal is not None:
            unit = replace(unit, guard=replace(unit.guard, statuses=OPEN))

        if unit.guard.statuses == PAUSED:
            unit = replace(unit, clear=frozenset())

        return super().write(unit)


@caught_by("SIGNAL-034")
class UnpauseDropsCancel(SabotagedDriver):
    """Unpausing forgets the cancel that is pending as well."""

    def write(self, unit: Unit) -> Answer:
        if unit.guard.statuses == PAUSED:
            unit = replace(unit, clear=frozenset(SignalKind))

        return super().write(unit)


@caught_by("SIGNAL-023", "SIGNAL-025", "SIGNAL-043")
class PauseBeatsCancel(SabotagedDriver):
    """Of two pending signals the pause is applied."""

    def show(self, read: Read, now: int) -> View | None:
        view = super().show(read, now)

        if view is None or len(view.facts.signals) < 2:
            return view

        pauses = tuple(mark for mark in view.facts.signals if mark.kind is SignalKind.PAUSE)
        return replace(view, facts=replace(view.facts, signals=pauses))

    def write(self, unit: Unit) -> Answer:
        return super().write(unguarded(unit, "signals"))


@caught_by("SIGNAL-018", "SNAPSHOT-113", "CLAIM-131")
class CancelLeavesSignals(SabotagedDriver):
    """The status changes, but the signals of the instance stay pending."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)
        signals = dict(row.signals) if row else {}
        answer = super().write(unit)

        if row is not None and row.status is Status.CANCELLED and answer.refused is None:
            row.signals.update(signals)

        return answer


@caught_by("SIGNAL-018", "SIGNAL-048", "FENCE-008", "SIGNAL-027")
class CancelLeavesClaims(SabotagedDriver):
    """The status changes, but the claims on the cancelled instance stay."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)
        claims = dict(row.claims) if row else {}
        answer = super().write(unit)

        if row is not None and row.status is Status.CANCELLED and answer.refused is None:
            row.claims.update(claims)

        return answer


@caught_by("CANCEL-023")
class CancelInTwoSteps(SabotagedBackend):
    """A cancel takes the request away, awaits, and then cancels, whatever has come meanwhile."""

    async def check_and_cancel(
        self, instance_id: str, *, interrupted_at_task: str | None = None
    ) -> bool:
        request = await self.get_signal(instance_id, SignalKind.CANCEL)

        if request is None:
            return False

        await self.clear_signal(instance_id, SignalKind.CANCEL)
        await checkpoint()
        await self.store_signal(instance_id, SignalKind.CANCEL, request)
        return await super().check_and_cancel(instance_id, interrupted_at_task=interrupted_at_task)


@caught_by("SIGNAL-005", "SIGNAL-006", "RACE-042")
class SignalsAnyStatus(SabotagedDriver):
    """A signal is stored without a look at the status."""

    def write(self, unit: Unit) -> Answer:
        return super().write(unguarded(unit, "statuses") if unit.signal else unit)


@caught_by("SIGNAL-007")
class FirstSignalStays(SabotagedDriver):
    """A second request does not replace the first one's reason."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)
        first = row.signals.get(unit.signal.kind) if row and unit.signal else None
        answer = super().write(unit)

        if row is not None and first is not None and answer.refused is None:
            row.signals[first.kind] = first

        return answer


@caught_by("SIGNAL-012")
class ClearsBothKinds(SabotagedDriver):
    """Clearing one kind of signal clears the other as well."""

    def write(self, unit: Unit) -> Answer:
        if unit.clear and unit.content is None:
            unit = replace(unit, clear=frozenset(SignalKind))

        return super().write(unit)


@caught_by("SIGNAL-036", "SIGNAL-039", "DISPATCH-047", "RACE-038", "RACE-033", "SIGNAL-035")
class RequestOnlyStores(SabotagedBackend):
    """request_signal leaves an idle instance to a worker that never comes."""

    async def request_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> Status:
        await self.store_signal(instance_id, kind, request)
        return (await self.load_snapshot(instance_id, results=False)).status


@caught_by("SIGNAL-037", "SIGNAL-038", "RACE-037")
class RequestUnderWorkersHands(SabotagedBackend):
    """request_signal applies the signal though a worker holds a claim."""

    async def request_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> Status:
        await self.store_signal(instance_id, kind, request)
        await self.check_control_signals(instance_id)
        return (await self.load_snapshot(instance_id, results=False)).status


@caught_by("SIGNAL-016", "SIGNAL-053")
class PausedCannotBeCancelled(SabotagedDriver):
    """A cancel waits until the paused instance goes on."""

    def show(self, read: Read, now: int) -> View | None:
        view = super().show(read, now)

        if view is None or view.facts.status is not Status.PAUSED or not read.body:
            return view

        return replace(view, facts=replace(view.facts, signals=()))


@caught_by("SIGNAL-043", "SIGNAL-044", "CLAIM-131", "CLAIM-132")
class CommitForgetsSignals(SabotagedDriver):
    """A commit leaves the pending signal to a sweep, though nobody works any more."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.release is None or answer.facts is None:
            return answer

        return replace(answer, facts=replace(answer.facts, signals=()))


@caught_by("SIGNAL-002", "SIGNAL-009", "SIGNAL-016", "SIGNAL-021", "SIGNAL-003")
class SignalOfNobody(SabotagedDriver):
    """A signal loses who asked for it."""

    def write(self, unit: Unit) -> Answer:
        if unit.signal is not None:
            unit = replace(unit, signal=replace(unit.signal, requested_by=None))

        return super().write(unit)


@caught_by("SIGNAL-001")
class SignalsToNobody(SabotagedBackend):
    """A signal for an instance that is not there is a success."""

    async def store_signal(self, *args: Any) -> None:
        with suppress(InstanceNotFoundError):
            await super().store_signal(*args)


@caught_by("SIGNAL-002", "SIGNAL-008")
class SignalWithoutTime(SabotagedDriver):
    """Nobody knows any more when a signal was requested."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and unit.signal is not None and answer.refused is None:
            row.signals[unit.signal.kind] = unit.signal

        return answer


@caught_by("SNAPSHOT-109", "FENCE-026")
class PauseDropsClaims(SabotagedDriver):
    """A pause takes their claims from the workers that are at work."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and row.status is Status.PAUSED and answer.refused is None:
            row.claims.clear()

        return answer


@caught_by("SIGNAL-030", "SIGNAL-031", "RACE-036")
class UnpausesAnything(SabotagedBackend):
    """Unpausing what is not paused is a success."""

    async def unpause(self, instance_id: str) -> WorkflowSnapshot:
        try:
            return await super().unpause(instance_id)
        except CannotPauseError:
            return await self.load_snapshot(instance_id)


@caught_by("SIGNAL-019", "SIGNAL-020", "RACE-034")
class CancelledTwice(SabotagedBackend):
    """check_and_cancel is True for whoever finds the instance cancelled."""

    async def check_and_cancel(
        self, instance_id: str, *, interrupted_at_task: str | None = None
    ) -> bool:
        done = await super().check_and_cancel(instance_id, interrupted_at_task=interrupted_at_task)

        if done:
            return True

        with suppress(InstanceNotFoundError):
            snapshot = await self.load_snapshot(instance_id, results=False)
            return snapshot.status is Status.CANCELLED

        return False


@caught_by("DISPATCH-053", "SIGNAL-041")
class SweepForgetsSignals(SabotagedDriver):
    """A sweep moves on what is due, and leaves pending signals to workers that never come."""

    async def chores(self, query: Chores) -> ChoreList:
        found = await super().chores(query)
        return replace(
            found, instances=tuple(id for id in found.instances if not self.rows()[id].signals)
        )
