"""Dispatch: gates, order, time, hints and chores."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from conformance.saboteurs.base import SabotagedBackend, SabotagedDriver, caught_by
from msgspec.structs import replace

from sayiir_persist import InProgress, Status, WakeHint
from sayiir_persist.dispatch import AT_ONCE, When, fits
from sayiir_persist.driver import DAY
from sayiir_persist.positions import unstamped
from sayiir_persist.wakeups import Wakeups
from sayiir_persist.writes import PAUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sayiir_persist import MemoryStore, WorkflowSnapshot
    from sayiir_persist.aggregate import IndexedEntry
    from sayiir_persist.dispatch import Entry
    from sayiir_persist.driver import (
        Answer,
        ChoreList,
        Chores,
        Page,
        Poll,
        Polled,
        Row,
        Unit,
    )

    Chosen = list[tuple[str, IndexedEntry]]

EVERYTHING = 1_000_000


# --- Gates ---------------------------------------------------------------------------------------


@caught_by("DISPATCH-008")
class LimitBeforeGates(SabotagedDriver):
    """A poll reads as many rows as were asked for, and only then looks who may have them."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        first = super()._choose(replace(query, tags=frozenset(), definitions=None), now)
        return [
            (instance_id, entry)
            for instance_id, entry in first
            if self._asked_for(query, instance_id) and fits(entry.tags, query.tags)
        ]


@caught_by("DISPATCH-002")
class FindingClaims(SabotagedDriver):
    """Who only looks for tasks holds them."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, claim=True, ttl=query.ttl or DAY))


@caught_by("DISPATCH-003", "CLAIM-025")
class OneMoreThanAsked(SabotagedDriver):
    """A poll hands out one task more than was asked for."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, limit=query.limit + 1))


@caught_by("DISPATCH-004")
class NoLimitIsOne(SabotagedBackend):
    """A limit below one is raised to one."""

    def _poll_for(self, worker_id: str, limit: int, *args: Any, **options: Any) -> Poll:
        return super()._poll_for(worker_id, max(1, limit), *args, **options)


@caught_by("DISPATCH-006")
class TagsReversed(SabotagedDriver):
    """A task goes to workers whose tags are a part of its own."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        found = super()._choose(replace(query, tags=frozenset(), limit=EVERYTHING), now)
        return [
            (instance_id, entry)
            for instance_id, entry in found
            if not query.tags or not entry.tags or query.tags.issubset(entry.tags)
        ][: query.limit]


@caught_by("DISPATCH-006", "DISPATCH-007", "TENANCY-008")
class TagsIgnored(SabotagedDriver):
    """Every worker gets every task."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, tags=frozenset()))


@caught_by("DISPATCH-006")
class UntaggedTasksForNobody(SabotagedDriver):
    """A task without tags goes only to workers without tags."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        found = super()._choose(replace(query, limit=EVERYTHING), now)
        return [(id, entry) for id, entry in found if entry.tags or not query.tags][: query.limit]


@caught_by("DISPATCH-005", "DISPATCH-039")
class DefinitionsIgnored(SabotagedDriver):
    """A worker gets the tasks of definitions that it does not know."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, definitions=None))


@caught_by("SIGNAL-014", "DISPATCH-029")
class OffersSignalled(SabotagedDriver):
    """Tasks of an instance with a pending signal are offered like any other."""

    async def offer(self, query: Poll) -> Polled:
        signals = {instance_id: row.signals for instance_id, row in self.rows().items()}

        for instance_id, row in self.rows().items():
            row.signals = {}
            self.reindex(instance_id)

        polled = await super().offer(query)

        for instance_id, row in self.rows().items():
            row.signals = signals[instance_id]
            self.reindex(instance_id)

        return polled


@caught_by("DISPATCH-030", "SIGNAL-024")
class OffersPaused(SabotagedDriver):
    """Tasks of a paused instance are offered like any other."""

    async def offer(self, query: Poll) -> Polled:
        paused = [id for id, row in self.rows().items() if row.status is Status.PAUSED]
        self._set_status(paused, Status.IN_PROGRESS)
        polled = await super().offer(query)
        self._set_status(paused, Status.PAUSED)
        return polled

    def _set_status(self, instance_ids: list[str], status: Status) -> None:
        for instance_id in instance_ids:
            self.rows()[instance_id].status = status
            self.reindex(instance_id)


@caught_by("DISPATCH-027", "CLAIM-124", "DISPATCH-042")
class BackoffIgnored(SabotagedDriver):
    """A task that failed is offered again at once."""

    def write(self, unit: Unit) -> Answer:
        def at_once(entry: Entry) -> Entry:
            return replace(entry, due=AT_ONCE) if entry.early else entry

        return super().write(_with_entries(unit, at_once))


@caught_by("DISPATCH-033", "DISPATCH-032")
class ParksEndLate(SabotagedDriver):
    """What follows a park is offered after the instant at which that ends, not at it."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        found = super()._choose(query, now)
        return [(id, entry) for id, entry in found if entry.early or entry.due != now]


@caught_by("DISPATCH-023")
class ExpiredClaimsHideTasks(SabotagedDriver):
    """A task whose claim ends now is offered from the next instant on."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        def is_free(instance_id: str, entry: IndexedEntry) -> bool:
            claim = self.rows()[instance_id].claims.get(entry.node_id)
            return claim is None or claim.expires_at != now

        return [found for found in super()._choose(query, now) if is_free(*found)]


@caught_by("DISPATCH-012", "RACE-046")
class OffersNothingWithoutInput(SabotagedDriver):
    """A task whose input is not there is not offered."""

    async def offer(self, query: Poll) -> Polled:
        polled = await super().offer(query)
        return replace(polled, offers=tuple(it for it in polled.offers if it.input is not None))


@caught_by("DISPATCH-001", "DISPATCH-009", "START-002")
class InputForgotten(SabotagedDriver):
    """Where results are not asked for, the input of a task does not come along either."""

    async def offer(self, query: Poll) -> Polled:
        polled = await super().offer(query)

        if query.results:
            return polled

        return replace(polled, offers=tuple(replace(offer, input=None) for offer in polled.offers))


@caught_by("CODEC-014")
class DamagedComesBack(SabotagedDriver):
    """A poll that passes an unreadable instance over gets it again."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, exclude=frozenset()))


# --- Order ---------------------------------------------------------------------------------------


@caught_by("DISPATCH-007", "DISPATCH-013")
class PriorityIgnored(SabotagedDriver):
    """Whoever has waited longest comes first, whatever the priorities."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        found = super()._choose(replace(query, limit=EVERYTHING, aging=None), now)
        return sorted(found, key=lambda it: (it[1].due or 0, it[0], it[1].node_id))[: query.limit]


@caught_by("DISPATCH-017", "DISPATCH-018")
class AgingIgnored(SabotagedDriver):
    """A task of low priority waits for ever while there are others."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, aging=None))


@caught_by("DISPATCH-013", "DISPATCH-014")
class OrderedById(SabotagedDriver):
    """Available tasks come in the order of their ids."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        found = super()._choose(replace(query, limit=EVERYTHING), now)
        return sorted(found, key=lambda it: (it[0], it[1].node_id))[: query.limit]


@caught_by("DISPATCH-013")
class TakesThenSorts(SabotagedDriver):
    """A poll takes as many tasks as it needs in any order, and sorts those."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        found = super()._choose(replace(query, limit=EVERYTHING), now)
        taken = sorted(found, key=lambda it: it[0])[: query.limit]
        return [each for each in found if each in taken]


@caught_by("DISPATCH-015")
class TiesByChance(SabotagedDriver):
    """Tasks that are equal otherwise come in the order of their creation, not of their ids."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        created = list(self.rows())
        found = super()._choose(replace(query, limit=EVERYTHING), now)
        return sorted(found, key=lambda it: (it[1].priority, it[1].due or 0, created.index(it[0])))[
            : query.limit
        ]


@caught_by("DISPATCH-021", "DISPATCH-022")
class BiasForEver(SabotagedDriver):
    """A task that failed on a worker yields to all others for ever."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, bias=365 * DAY))


@caught_by("DISPATCH-020")
class BiasIgnored(SabotagedDriver):
    """A worker gets the task that failed on it back first."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, bias=0))


@caught_by("DISPATCH-020")
class BiasHides(SabotagedDriver):
    """A task that failed on a worker is not offered to it at all."""

    def _choose(self, query: Poll, now: int) -> Chosen:
        found = super()._choose(query, now)
        return [(id, entry) for id, entry in found if entry.avoid != query.worker_id]


@caught_by("DISPATCH-019", "LIFECYCLE-013")
class AgingUnchecked(SabotagedBackend):
    """An aging interval below a second is raised to one without a word."""

    def __init__(self, store: MemoryStore, **options: Any) -> None:
        if options.get("aging_interval") is not None:
            options["aging_interval"] = max(options["aging_interval"], timedelta(seconds=1))

        super().__init__(store, **options)


@caught_by("DISPATCH-016")
class SavesRejuvenate(SabotagedDriver):
    """Any save of an instance sends its ready tasks to the end of the queue."""

    def write(self, unit: Unit) -> Answer:
        def younger(entry: Entry) -> Entry:
            return replace(entry, due=When(entry.due.at, 0)) if entry.early else entry

        return super().write(_with_entries(unit, younger))


@caught_by("DISPATCH-048")
class PausedTimeAges(SabotagedDriver):
    """A task that was paused has waited all the while."""

    def write(self, unit: Unit) -> Answer:
        row = self.row(unit.instance_id)
        waiting = {entry.node_id: entry.due for entry in row.entries} if row else {}
        answer = super().write(unit)

        if unit.guard.statuses == PAUSED and (row := self.row(unit.instance_id)) is not None:
            for entry in row.entries:
                entry.due = waiting.get(entry.node_id, entry.due)

            self._space.store(unit.instance_id, row, self._space.shelf(unit.instance_id))

        return answer


@caught_by("DISPATCH-066")
class OverwriteBelievesOldStamps(SabotagedDriver):
    """What is overwritten blindly queues since the instant that its old stamps say."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if unit.replace and unit.content is not None and row is not None:
            for projected, entry in zip(unit.content.entries, row.entries, strict=True):
                entry.due = projected.due.resolve(answer.now)

            self._space.store(unit.instance_id, row, self._space.shelf(unit.instance_id))

        return answer


# --- Time ----------------------------------------------------------------------------------------


@caught_by("DISPATCH-033", "DISPATCH-034", "DISPATCH-040", "DISPATCH-043")
class DelayEndsWhenPolled(SabotagedBackend):
    """A delay ends when somebody polls after its time, and what follows counts from there."""

    async def _poll(self, query: Poll, value: Callable[..., Any]) -> list[Any]:
        for info in await self.list_snapshots(status=Status.IN_PROGRESS):
            await self.update_snapshot(info.instance_id, _entered_now)

        return await super()._poll(query, value)


def _entered_now(found: WorkflowSnapshot) -> WorkflowSnapshot:
    position, written = found.position, found.updated_at
    entered = getattr(position, "entered_at", None) or getattr(position, "ready_at", None)

    if position is None or entered is None or written is None or entered <= written:
        return found

    return replace(found, state=InProgress(unstamped(position)))


@caught_by("DISPATCH-035", "DISPATCH-036", "DISPATCH-037", "DISPATCH-044", "DISPATCH-049")
class NobodyAdvances(SabotagedDriver):
    """Polls offer tasks, but leave to others what has to be moved on first."""

    async def offer(self, query: Poll) -> Polled:
        return await super().offer(replace(query, advances=0))


@caught_by("DISPATCH-046", "SNAPSHOT-606")
class PauseDoesNotStopTime(SabotagedDriver):
    """While an instance is paused its delays go on."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and row.status is Status.PAUSED:
            row.status_since += 365 * DAY

        return answer


# --- Stalled, and sweep ------------------------------------------------------------------------


@caught_by("DISPATCH-051")
class StalledAtOnce(SabotagedDriver):
    """find_stalled lists an instance as soon as it is idle."""

    async def page(self, query: Page) -> Sequence[Row]:
        return await super().page(replace(query, idle_for=0) if query.idle_for else query)


@caught_by("DISPATCH-050", "DISPATCH-052")
class StalledForgetsDone(SabotagedDriver):
    """find_stalled does not see a task that is done and never moved on."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        if row is not None and unit.record is not None:
            row.idle = False
            self.reindex(unit.instance_id)

        return answer


@caught_by("DISPATCH-053")
class SweepsWhereSomebodyWorks(SabotagedDriver):
    """A sweep applies signals under the hands of a worker."""

    async def chores(self, query: Chores) -> ChoreList:
        for row in self.rows().values():
            if row.signals:
                row.claims.clear()

        return await super().chores(query)


@caught_by("DISPATCH-054", "DISPATCH-057", "RACE-044", "EVENT-042", "EVENT-043")
class SweepsOnlySignals(SabotagedDriver):
    """A sweep leaves moves that are due to the next poll."""

    async def chores(self, query: Chores) -> ChoreList:
        found = await super().chores(query)
        return replace(
            found, instances=tuple(id for id in found.instances if self.rows()[id].signals)
        )


@caught_by("DISPATCH-055")
class SweepsWithoutLimit(SabotagedDriver):
    """A sweep does all that there is, whatever its limit."""

    async def chores(self, query: Chores) -> ChoreList:
        return await super().chores(replace(query, limit=EVERYTHING))


# --- Hints ---------------------------------------------------------------------------------------


@caught_by("DISPATCH-060")
class HintsAtParkedTasks(SabotagedDriver):
    """Every write hints at the task that will follow, though it is not due."""

    def write(self, unit: Unit) -> Answer:
        answer = super().write(unit)
        row = self.row(unit.instance_id)

        for entry in row.entries if row and unit.content else ():
            self._space.notify(WakeHint(instance_id=unit.instance_id, task_id=entry.node_id))

        return answer


@caught_by("DISPATCH-059", "DISPATCH-058")
class HintsAtTheWrongTask(SabotagedDriver):
    """Hints carry the name of the definition where that of the task should be."""

    async def wait(self, timeout: float) -> WakeHint | None:
        hint = await super().wait(timeout)
        return hint and replace(hint, task_id=hint.definition_hash)


@caught_by("LIFECYCLE-015")
class HintsAtNothing(SabotagedDriver):
    """A wait for a hint never ends without one."""

    async def wait(self, timeout: float) -> WakeHint | None:
        return await super().wait(timeout) or WakeHint()


@caught_by("DISPATCH-061", "CANCEL-034")
class HintsForgotten(SabotagedDriver):
    """A hint that comes while nobody waits is lost."""

    async def wait(self, timeout: float) -> WakeHint | None:
        listeners = self._space.listeners
        listeners.discard(self._wakeups)
        self._wakeups = Wakeups()
        listeners.add(self._wakeups)
        return await super().wait(timeout)


@caught_by("DISPATCH-062")
class HintsToItselfOnly(SabotagedDriver):
    """A hint reaches the backend object that wrote, and no other."""

    def write(self, unit: Unit) -> Answer:
        everybody = set(self._space.listeners)
        self._space.listeners.intersection_update({self._wakeups})
        answer = super().write(unit)
        self._space.listeners.update(everybody)
        return answer


@caught_by("DISPATCH-063", "LIFECYCLE-014", "CANCEL-033")
class CloseLeavesWaiters(SabotagedDriver):
    """aclose leaves those who wait for a hint waiting."""

    async def close(self) -> None:
        if self._opened is not None:
            self._opened.listeners.discard(self._wakeups)

        self._opened = None


def _with_entries(unit: Unit, change: Callable[[Entry], Entry]) -> Unit:
    if unit.content is None:
        return unit

    entries = tuple(change(entry) for entry in unit.content.entries)
    return replace(unit, content=replace(unit.content, entries=entries))
