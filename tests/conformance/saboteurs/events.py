"""Events and the waits that they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio.lowlevel import checkpoint
from conformance.saboteurs.base import SabotagedBackend, SabotagedDriver, caught_by, unguarded
from msgspec.structs import replace

from sayiir_persist import InstanceNotFoundError, Status
from sayiir_persist.driver import DAY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sayiir_persist import MemoryStore, WorkflowSnapshot
    from sayiir_persist.driver import Answer, Read, Unit, View


@caught_by("EVENT-001", "EVENT-007", "EVENT-019", "EVENT-022")
class LastInFirstOut(SabotagedDriver):
    """The newest event of a name is taken first."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.push is not None and answer.refused is None:
            queue = self._space.shelf(unit.instance_id)._queue
            events = queue.by_name[unit.push.name] if queue else ()

            if events:
                events.rotate(1)

        return answer


@caught_by("EVENT-012", "EVENT-013", "EVENT-014", "EVENT-015", "CLAIM-139", "RACE-025")
class EventLostWhileParking(SabotagedDriver):
    """A wait that is entered does not look at the events that are there already."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if unit.content is None or row is None or answer.facts is None:
            return answer

        for entry in row.entries:
            entry.met = None

        self.reindex(unit.instance_id)
        return replace(answer, facts=row.facts(answer.now))


@caught_by("EVENT-005", "EVENT-006", "CODEC-004")
class EventsOnlyForWaits(SabotagedDriver):
    """An event that nobody waits for is dropped."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)
        wanted = {entry.event for entry in row.entries} if row else set()

        if unit.push is not None and unit.push.name not in wanted:
            unit = replace(unit, push=None)

        return super().write(unit)


@caught_by("EVENT-005", "EVENT-020", "EVENT-034", "EVENT-045", "EVENT-046")
class EventLostWhilePaused(SabotagedDriver):
    """An event for a paused instance is dropped."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)

        if unit.push is not None and row is not None and row.status is Status.PAUSED:
            unit = replace(unit, push=None)

        return super().write(unit)


@caught_by("EVENT-007", "EVENT-012")
class EarlyEventsDropped(SabotagedDriver):
    """Creating an instance clears the queue of its id."""

    def write(self, unit: Unit) -> Answer:
        if unit.create is not None and self.row(unit.instance_id) is None:
            self._space.shelf(unit.instance_id).clear()

        return super().write(unit)


@caught_by(
    "EVENT-011",
    "EVENT-021",
    "EVENT-023",
    "EVENT-031",
    "RACE-026",
    "RACE-028",
    "RACE-029",
    "RACE-031",
    "EVENT-039",
    "RACE-045",
)
class DeliveredTwice(SabotagedDriver):
    """The event that resumes a wait stays in the queue."""

    def write(self, unit: Unit) -> Answer:
        return super().write(replace(unit, pop=None) if unit.content else unit)


@caught_by("RACE-023", "RACE-024")
class ConsumedTwice(SabotagedDriver):
    """Consuming an event looks at the oldest, awaits, and then removes the oldest."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        heads = [self._space.shelf(unit.instance_id).head(unit.pop or "") for unit in units]
        await checkpoint()
        answers = await super().apply(units)
        return [
            replace(answer, event=head.payload) if head else answer
            for head, answer in zip(heads, answers, strict=True)
        ]


@caught_by("CANCEL-026", "CANCEL-028", "CANCEL-029")
class DrainsInTwoSteps(SabotagedDriver):
    """The event is taken, and then the wait is moved on."""

    async def apply(self, units: Sequence[Unit]) -> Sequence[Answer]:
        for unit in units:
            if unit.pop is not None and unit.content is not None:
                self.write(replace(unit, content=None))

        await checkpoint()
        return await super().apply(
            [
                replace(unit, pop=None, guard=replace(unit.guard, head=None))
                if unit.content
                else unit
                for unit in units
            ]
        )


@caught_by("EVENT-048", "RACE-027")
class EventIdIgnored(SabotagedDriver):
    """A send that is repeated with the same event_id queues a second event."""

    def write(self, unit: Unit) -> Answer:
        if unit.push is not None:
            unit = replace(unit, push=replace(unit.push, event_id=None))

        return super().write(unit)


@caught_by("EVENT-049", "EVENT-050", "EVENT-052")
class EventIdForgottenWhenConsumed(SabotagedDriver):
    """An event_id is known only as long as its event is queued."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        queue = self._space.shelf(unit.instance_id)._queue

        if unit.pop is not None and queue is not None and not queue.count:
            queue.ids.clear()

        return answer


@caught_by("EVENT-051")
class EventIdForAllNames(SabotagedDriver):
    """An event_id that came under one name is a repeat under every other."""

    def write(self, unit: Unit) -> Answer:
        queue = self._space.shelf(unit.instance_id)._queue

        if unit.push is not None and queue is not None:
            known = {event_id for _, event_id in queue.ids}
            unit = replace(unit, push=None) if unit.push.event_id in known else unit

        return super().write(unit)


@caught_by("EVENT-048")
class EventIdMeansPayload(SabotagedDriver):
    """A repeat of an event_id with another payload is a second event."""

    def write(self, unit: Unit) -> Answer:
        if unit.push is not None and unit.push.event_id is not None:
            event_id = f"{unit.push.event_id}:{unit.push.payload.hex()}"
            unit = replace(unit, push=replace(unit.push, event_id=event_id))

        return super().write(unit)


@caught_by("EVENT-002")
class OneQueueForAllNames(SabotagedDriver):
    """Events of one name are handed out under another."""

    def write(self, unit: Unit) -> Answer:
        shelf = self._space.shelf(unit.instance_id)

        if unit.pop is not None and unit.content is None:
            unit = replace(unit, pop=next(iter(shelf.names()), unit.pop))

        return super().write(unit)


@caught_by("EVENT-055", "EVENT-057", "RACE-030", "EVENT-058")
class QueueWithoutEnd(SabotagedDriver):
    """The number of queued events is not limited."""

    def write(self, unit: Unit) -> Answer:
        if unit.push is not None:
            unit = replace(unit, push=replace(unit.push, limit=1_000_000))

        return super().write(unit)


@caught_by("EVENT-056")
class FullQueueDropsWaited(SabotagedDriver):
    """A full queue drops even the event that an instance waits for."""

    def write(self, unit: Unit) -> Answer:
        shelf = self._space.shelf(unit.instance_id)

        if unit.push is not None and shelf.queued() >= unit.push.limit:
            unit = replace(unit, push=None)

        return super().write(unit)


@caught_by("EVENT-032", "EVENT-036", "EVENT-029")
class DeadlineIncluded(SabotagedDriver):
    """An event that arrives at exactly the end of a wait still meets it."""

    def write(self, unit: Unit) -> Answer:
        if unit.push is None:
            return super().write(unit)

        with self.clock_ahead(-1):
            return super().write(unit)


@caught_by("EVENT-004", "CODEC-005")
class EmptyEventIsNone(SabotagedBackend):
    """An event without payload looks like no event."""

    async def consume_event(self, instance_id: str, name: str) -> bytes | None:
        return await super().consume_event(instance_id, name) or None


@caught_by("EVENT-011", "EVENT-024", "EVENT-027", "EVENT-026")
class NobodyDrains(SabotagedDriver):
    """Sending queues the event, and leaves it to the next poll to resume the wait."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.push is None or answer.facts is None:
            return answer

        return replace(answer, facts=replace(answer.facts, advance_due=False))


@caught_by("EVENT-044", "EVENT-060", "RACE-032", "EVENT-065", "SIGNAL-047")
class EventMeetsDespiteSignal(SabotagedDriver):
    """An event resumes a wait though a control signal is pending."""

    def show(self, read: Read, now: int) -> View | None:
        view = super().show(read, now)

        if view is None or not read.payloads:
            return view

        return replace(view, facts=replace(view.facts, signals=(), advance_due=True))

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unguarded(unit, "signals"))

        if unit.push is None or answer.facts is None:
            return answer

        return replace(answer, facts=replace(answer.facts, advance_due=True))


@caught_by("EVENT-017", "EVENT-016", "EVENT-030", "EVENT-066")
class EventForTheName(SabotagedDriver):
    """An event is recorded under its own name, not under the node that waited for it."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.pop is not None and unit.content is not None and answer.refused is None:
            shelf = self._space.shelf(unit.instance_id)

            for node_id, payload in unit.content.gained.items():
                shelf.drop_results({node_id})
                shelf.put_result(unit.pop, payload)

        return answer


@caught_by("EVENT-034", "EVENT-035")
class CountsFromTheDrain(SabotagedDriver):
    """What follows a wait is ready since somebody noticed the event, not since it arrived."""

    def show(self, read: Read, now: int) -> View | None:
        view = super().show(read, now)

        if view is None or not read.payloads:
            return view

        heads = {name: replace(head, arrived_at=now) for name, head in view.heads.items()}
        return replace(view, heads=heads)


@caught_by("EVENT-032", "EVENT-036", "EVENT-037", "EVENT-025", "EVENT-028", "EVENT-033")
class ArrivalForgotten(SabotagedDriver):
    """An event that comes after the end of a wait meets it, if nobody has looked meanwhile."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        queue = self._space.shelf(unit.instance_id)._queue

        if unit.push is not None and queue is not None and answer.refused is None:
            for events in queue.by_name.values():
                events[-1] = replace(events[-1], arrived_at=0)

        return answer


@caught_by("EVENT-053")
class FewEventIds(SabotagedDriver):
    """Only the last ten event ids are remembered."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        queue = self._space.shelf(unit.instance_id)._queue

        while queue is not None and len(queue.ids) > 10:
            queue.ids.popitem(last=False)

        return answer


@caught_by("EVENT-054")
class EventIdsOfAnHour(SabotagedDriver):
    """An event id is forgotten after an hour."""

    def write(self, unit: Unit) -> Answer:
        queue, now = self._space.shelf(unit.instance_id)._queue, self._store.now()

        for known, came_at in list(queue.ids.items()) if queue else ():
            if came_at <= now - DAY // 24:
                del queue.ids[known]

        return super().write(unit)


@caught_by("EVENT-055")
class FullQueueDropsTheOldest(SabotagedDriver):
    """A full queue makes room by dropping its oldest event."""

    def write(self, unit: Unit) -> Answer:
        shelf = self._space.shelf(unit.instance_id)

        while unit.push is not None and shelf.queued() >= unit.push.limit:
            shelf.pop(next(iter(shelf.names())))

        return super().write(unit)


@caught_by("EVENT-010")
class UseExistingDropsEvents(SabotagedDriver):
    """A start that finds its instance there clears its queue."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)

        if unit.create is not None and answer.refused is not None:
            self._space.shelf(unit.instance_id)._queue = None

        return answer


@caught_by("EVENT-068")
class DrainStopsTheClock(SabotagedBackend):
    """What a write returns does not show what has elapsed since it was entered."""

    def __init__(self, store: MemoryStore, **options: Any) -> None:
        super().__init__(store, **options)

        async def as_written(stored: WorkflowSnapshot, now: datetime) -> WorkflowSnapshot:
            del now
            return stored

        self._engine.shown = as_written


@caught_by("EVENT-061")
class DrainsAnyVersion(SabotagedBackend):
    """drain_signal does not look at the version that it is given."""

    async def drain_signal(
        self, instance_id: str, *, version: int | None = None
    ) -> WorkflowSnapshot | None:
        return await super().drain_signal(instance_id)


@caught_by("EVENT-062")
class DrainsNothingOfNobody(SabotagedBackend):
    """drain_signal of an unknown instance drains nothing."""

    async def drain_signal(
        self, instance_id: str, *, version: int | None = None
    ) -> WorkflowSnapshot | None:
        try:
            return await super().drain_signal(instance_id, version=version)
        except InstanceNotFoundError:
            return None


@caught_by("EVENT-064")
class DrainsEverything(SabotagedBackend):
    """drain_signal moves on as long as it can."""

    async def drain_signal(
        self, instance_id: str, *, version: int | None = None
    ) -> WorkflowSnapshot | None:
        drained = await super().drain_signal(instance_id, version=version)

        while drained and (further := await super().drain_signal(instance_id)):
            drained = further

        return drained
