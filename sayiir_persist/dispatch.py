"""Pure rules of readiness: what a store may index, and how elapsed time shows.

`project` says, for the moment of a write, everything that dispatch will ever need to find the
instance again. `settle` says, for any later moment, what the same instance looks like then. No
store computes either by itself, so no two stores can disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from sayiir_persist.positions import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Leaf,
    Position,
    ReadyReason,
    entered,
    leaves,
    replace_leaf,
    stamp,
)
from sayiir_persist.snapshot import (
    InProgress,
    Paused,
    RetryState,
    Status,
    WorkflowSnapshot,
    ready_stamps,
)
from sayiir_persist.validation import LATEST, MICROSECOND, to_micros

Heads = Mapping[str, datetime]
"""When the oldest queued event of each name arrived."""

NO_HEADS: Final[Heads] = {}


class EntryKind(StrEnum):
    """What dispatch does with an entry once it is due."""

    TASK = "task"
    """Offer it, and let it be claimed."""

    ADVANCE = "advance"
    """Move the instance on; the instance is read, settled and written."""


class When(Struct, frozen=True):
    """An instant that may depend on the moment of the write: the later one of both parts.

    Attributes:
        at: Microseconds since 1970, or `None`.
        after: Microseconds after the write, or `None`. Both `None`: never.
    """

    at: int | None = None
    after: int | None = None

    def resolve(self, now: int) -> int | None:
        """The instant, for a write at `now`; not beyond the end of the calendar."""
        if self.after is None:
            return None if self.at is None else min(self.at, LATEST)

        return min(max(self.at or 0, now + self.after), LATEST)


NEVER: Final = When()
AT_ONCE: Final = When(after=0)


class Entry(Struct, frozen=True, kw_only=True):
    """What a store indexes for one open leaf.

    Attributes:
        node_id: The task that can be claimed, or the leaf that has to be moved on.
        kind: What to do once it is due.
        due: From when on it is offered or advanced.
        early: It may be claimed before it is due: a task that backs off, not one behind a park.
        fresh: Entered by this write: an old claim on it goes, unless it fences the write.
        done: Its result is recorded: claimable, but never offered.
        reason: Why it is offered.
        priority: The lane, 1 (first) to 5.
        tags: What a worker must accept.
        input_from: The node whose result is its input; `""` is the instance's input.
        avoid: The worker of the last failure.
        event: The name of the event that the leaf waits for.
        event_until: An event that arrives from then on comes too late; `NEVER`: none does.
        elapses: From when on time alone has moved the leaf on: the end of the park itself.
    """

    node_id: str
    kind: EntryKind
    due: When
    early: bool = False
    fresh: bool = False
    done: bool = False
    reason: ReadyReason = ReadyReason.TASK
    priority: int = 3
    tags: tuple[str, ...] = ()
    input_from: str | None = None
    avoid: str | None = None
    event: str | None = None
    event_until: When = NEVER
    elapses: When = NEVER


class Projection(Struct, frozen=True):
    """Everything that a store may index about an instance.

    Attributes:
        status: The stored status.
        entries: One for each open leaf that dispatch may ever act on, in tree order.
        idle: In progress, and no leaf is open but nodes and tasks marked done: `find_stalled`.
    """

    status: Status
    entries: tuple[Entry, ...]

    @property
    def idle(self) -> bool:
        """Whether dispatch can never offer anything of this instance."""
        return self.status is Status.IN_PROGRESS and all(entry.done for entry in self.entries)


def project(snapshot: WorkflowSnapshot) -> Projection:
    """Say what a store indexes when it writes `snapshot`.

    Leaves without stamps count from the write; so does everything of a snapshot whose status is
    new, for nothing is ready before its instance is in progress.
    """
    position = snapshot.position

    if position is None:
        return Projection(snapshot.status, ())

    if isinstance(position, AtTask):  # the common case, without a walk
        return Projection(snapshot.status, (_task_entry(position, snapshot),))

    entries = (_entry(leaf, snapshot) for leaf in leaves(position))
    return Projection(snapshot.status, tuple(entry for entry in entries if entry))


def _entry(leaf: Leaf, snapshot: WorkflowSnapshot) -> Entry | None:
    if isinstance(leaf, AtTask):
        return _task_entry(leaf, snapshot)

    if isinstance(leaf, AtNode):
        return None

    return _park_entry(leaf, snapshot)


def _task_entry(task: AtTask, snapshot: WorkflowSnapshot) -> Entry:
    retry = snapshot.retries.get(task.task_id)
    fresh = task.ready_at is None
    due = AT_ONCE if task.ready_at is None else When(at=to_micros(task.ready_at))
    due = _not_before_retry(due, retry)
    backing_off = retry is not None and (
        retry.retry_after is not None or retry.retry_at is not None
    )
    reason = task.reason or (ReadyReason.RETRY if backing_off else ReadyReason.TASK)
    return _offer(task, snapshot, due=due, reason=reason, early=True, fresh=fresh, done=task.done)


def _park_entry(park: AtDelay | AtSignal, snapshot: WorkflowSnapshot) -> Entry:
    """A park whose successor, through delays, is a task is that task; else something to advance."""
    end = _end(park, AT_ONCE if park.entered_at is None else When(at=to_micros(park.entered_at)))
    wait = park if isinstance(park, AtSignal) else None
    event = wait.name if wait else None
    event_until = _too_late(wait) if wait else NEVER
    due, last, following = end, park, park.next

    while isinstance(following, AtDelay) and due != NEVER:
        due, last, following = _end(following, due), following, following.next

    if not isinstance(following, AtTask) or due == NEVER:
        return Entry(
            node_id=park.node_id,
            kind=EntryKind.ADVANCE,
            due=due,
            event=event,
            event_until=event_until,
            elapses=end,
        )

    timed_out = isinstance(last, AtSignal)
    reason = ReadyReason.SIGNAL_TIMEOUT if timed_out else ReadyReason.DELAY_ELAPSED
    retry = snapshot.retries.get(following.task_id)
    return _offer(
        following,
        snapshot,
        due=_not_before_retry(due, retry),
        reason=reason,
        fresh=park.entered_at is None,
        event=event,
        event_until=event_until,
        elapses=end,
    )


def _offer(
    task: AtTask,
    snapshot: WorkflowSnapshot,
    *,
    due: When,
    reason: ReadyReason,
    early: bool = False,
    fresh: bool = False,
    done: bool = False,
    event: str | None = None,
    event_until: When = NEVER,
    elapses: When = NEVER,
) -> Entry:
    retry = snapshot.retries.get(task.task_id)

    if due.after is None and isinstance(snapshot.state, InProgress):
        if snapshot.status_since is None:
            due = When(due.at, 0)
        elif due.at is not None:
            due = When(max(to_micros(snapshot.status_since), due.at))

    return Entry(
        node_id=task.task_id,
        kind=EntryKind.TASK,
        due=due,
        early=early,
        fresh=fresh,
        done=done,
        reason=reason,
        priority=snapshot.priority if task.priority is None else task.priority,
        tags=snapshot.tags if task.tags is None else task.tags,
        input_from=task.input_from,
        avoid=retry.last_worker if retry else None,
        event=event,
        event_until=event_until,
        elapses=elapses,
    )


def _end(park: AtDelay | AtSignal, entered: When) -> When:
    """When a park ends that is entered at `entered`; a wait without an end never does."""
    if park.wake_after is not None:
        micros = park.wake_after // MICROSECOND
        return When(
            None if entered.at is None else min(entered.at + micros, LATEST),
            None if entered.after is None else min(entered.after + micros, LATEST),
        )

    if park.wake_at is None:
        return NEVER

    return When(max(to_micros(park.wake_at), entered.at or 0), entered.after)


def _too_late(wait: AtSignal) -> When:
    """From when on an event misses the wait: its end, but not before one that was there already.

    One microsecond is the resolution of every store, so an event "there when the wait was
    entered" is one that arrived before the microsecond after.
    """
    if wait.entered_at is None:
        end = _end(wait, AT_ONCE)
        return end if end == NEVER else When(end.at, max(end.after or 0, 1))

    end = _end(wait, When(at=to_micros(wait.entered_at)))
    return end if end.at is None else When(max(end.at, to_micros(wait.entered_at) + 1))


def _not_before_retry(due: When, retry: RetryState | None) -> When:
    if retry is None:
        return due

    if retry.retry_at is not None:
        return When(max(to_micros(retry.retry_at), due.at or 0), due.after)

    if retry.retry_after is not None:
        after = min(retry.retry_after // MICROSECOND, LATEST)
        return When(due.at, max(after, due.after or 0))

    return due


def meets(wait: AtSignal, heads: Heads) -> bool:
    """Whether the oldest queued event of its name arrived before the wait's end.

    An event that was there when the wait was entered counts too. A wait that met its event is
    left for its advance: it never times out.
    """
    head = heads.get(wait.name)

    if head is None or wait.entered_at is None:
        return False

    ends_at = wait.ends_at
    return ends_at is None or head < ends_at or head <= wait.entered_at


class _Elapsed(NamedTuple):
    at: datetime
    park: AtDelay | AtSignal


def settle(snapshot: WorkflowSnapshot, now: datetime, heads: Heads = NO_HEADS) -> WorkflowSnapshot:
    """Show time as it is: every park that has ended by `now` gives way to what follows it.

    A delay becomes its `next`, entered at exactly the instant at which it ended; so does a wait
    that nobody answered, with its node recorded as `b""` and marked as timed out. Several are
    taken in the order of their instants. It never ends a workflow: an elapsed park that would is
    left as it is, for an advance. A paused snapshot settles only up to `status_since`.

    Args:
        snapshot: With its stamps, as a store returns it.
        now: The store's time.
        heads: When the oldest queued event of each name arrived.
    """
    position = snapshot.position

    if position is None or isinstance(position, AtTask | AtNode):
        return snapshot

    horizon = now

    if isinstance(snapshot.state, Paused) and snapshot.status_since is not None:
        horizon = min(now, snapshot.status_since)

    while (elapsed := _next_elapsed(snapshot, horizon, heads)) is not None:
        snapshot = _elapse(snapshot, elapsed)

    return snapshot


def _next_elapsed(snapshot: WorkflowSnapshot, horizon: datetime, heads: Heads) -> _Elapsed | None:
    first: _Elapsed | None = None
    position = snapshot.position

    for leaf in leaves(position):
        if not isinstance(leaf, AtDelay | AtSignal):
            continue

        at = leaf.ends_at

        if at is None or at > horizon or (first is not None and at >= first.at):
            continue

        if isinstance(leaf, AtSignal) and meets(leaf, heads):
            continue

        if position is not None and _ends_workflow(position, leaf):
            continue

        first = _Elapsed(at, leaf)

    return first


def _ends_workflow(position: Position, park: AtDelay | AtSignal) -> bool:
    """Whether nothing is left to enter after this park; a fork without open branches is nothing."""
    return entered(park.next) is None and replace_leaf(position, park.node_id, None) is None


def _elapse(snapshot: WorkflowSnapshot, elapsed: _Elapsed) -> WorkflowSnapshot:
    at, park = elapsed

    if isinstance(park, AtDelay):
        return _move_on(snapshot, park, at, ReadyReason.DELAY_ELAPSED)

    return _move_on(time_out(snapshot, park), park, at, ReadyReason.SIGNAL_TIMEOUT)


def time_out(snapshot: WorkflowSnapshot, wait: AtSignal) -> WorkflowSnapshot:
    """Record that a wait ended without its event: `b""`, and a mark."""
    recorded = snapshot.record_result(wait.node_id, b"")
    return replace(recorded, timed_out=recorded.timed_out | {wait.node_id})


def _move_on(
    snapshot: WorkflowSnapshot, park: AtDelay | AtSignal, at: datetime, reason: ReadyReason
) -> WorkflowSnapshot:
    state = snapshot.state

    if not isinstance(state, InProgress | Paused):
        return snapshot

    def enter(position: Position, instant: datetime | None) -> Position:
        return _entered_at(position, instant or at, reason, snapshot)

    moved = replace_leaf(state.position, park.node_id, park.next, ended_at=at, enter=enter)

    if moved is None:
        return snapshot

    return replace(snapshot, state=replace(state, position=moved))


def _entered_at(
    position: Position, at: datetime, reason: ReadyReason, snapshot: WorkflowSnapshot
) -> Position:
    if isinstance(position, AtTask):
        running = isinstance(snapshot.state, InProgress)
        since = snapshot.status_since if running else None
        ready_at = max(at, since) if since is not None else at
        retry = snapshot.retries.get(position.task_id)
        stamped = ready_stamps(position, ready_at, reason, retry)
        return replace(stamped, reason=reason)

    if isinstance(position, AtFork):
        branches = {
            key: None if branch is None else _entered_at(branch, at, reason, snapshot)
            for key, branch in position.branches.items()
        }
        return stamp(replace(position, branches=branches), at)

    return stamp(position, at)


def answered(
    snapshot: WorkflowSnapshot, wait: AtSignal, payload: bytes, arrived_at: datetime
) -> WorkflowSnapshot:
    """The snapshot after a wait met its event: recorded under the wait's node, and moved on.

    What follows counts from the event's arrival, or from entering the wait if that was later.
    Without anything left to follow, the workflow completes, at the root with the payload.
    """
    recorded = snapshot.record_result(wait.node_id, payload)
    since = max(arrived_at, wait.entered_at or arrived_at)

    position = snapshot.position

    if position is not None and _ends_workflow(position, wait):
        at_root = isinstance(position, AtSignal) and wait.next is None
        return recorded.complete(payload if at_root else b"")

    return _move_on(recorded, wait, since, ReadyReason.EVENT)


def first_met(snapshot: WorkflowSnapshot, heads: Heads) -> AtSignal | None:
    """The first wait in tree order that met its event."""
    if not heads:
        return None

    for leaf in leaves(snapshot.position):
        if isinstance(leaf, AtSignal) and meets(leaf, heads):
            return leaf

    return None


def elapsed_end(snapshot: WorkflowSnapshot, now: datetime) -> AtDelay | AtSignal | None:
    """The park whose end, which has come, completes the workflow; of a settled snapshot."""
    position = snapshot.position

    if position is None:
        return None

    for leaf in leaves(position):
        if not isinstance(leaf, AtDelay | AtSignal):
            continue

        if (at := leaf.ends_at) is not None and at <= now and _ends_workflow(position, leaf):
            return leaf

    return None


def ended(snapshot: WorkflowSnapshot, park: AtDelay | AtSignal) -> WorkflowSnapshot:
    """The snapshot completed by the elapsed park `park`.

    At the root a delay gives the result that was recorded under its node, else `b""`; a wait that
    timed out gives `b""`, and so does the last branch of a fork.
    """
    if isinstance(park, AtSignal):
        return time_out(snapshot, park).complete(b"")

    at_root = isinstance(snapshot.position, AtDelay) and park.next is None
    return snapshot.complete(snapshot.results.get(park.node_id, b"") if at_root else b"")


def order_key(priority: int, available_at: int, aging_interval: int | None) -> tuple[int, int]:
    """The exact order of dispatch, before ids: priority less age, then first come.

    With aging, the effective priority `priority - (now - available_at) / aging_interval` orders
    like `priority * aging_interval + available_at`, whatever the time is.

    Args:
        priority: 1 (first) to 5.
        available_at: Since when it is available, in microseconds.
        aging_interval: In microseconds; `None`: no aging.
    """
    if aging_interval is None:
        return priority, available_at

    return priority * aging_interval + available_at, available_at


def fits(tags: Sequence[str], accepted: frozenset[str]) -> bool:
    """Whether a worker that accepts these tags takes a task that has those; none accepts all."""
    return not accepted or not tags or accepted.issuperset(tags)
