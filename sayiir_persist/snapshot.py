"""The snapshot of a workflow: its state, its results, and the pure transitions between states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from sayiir_persist.errors import (
    CannotCancelError,
    CannotPauseError,
    InvalidArgumentError,
    InvalidTransitionError,
    TerminalStateError,
)
from sayiir_persist.positions import (
    INSTANCE_INPUT,
    AtFork,
    AtTask,
    Leaf,
    Position,
    ReadyReason,
    check_tree,
    entered,
    leaves,
    map_open,
    replace_leaf,
    stamp,
    unstamped,
    wired,
)
from sayiir_persist.results import Results
from sayiir_persist.validation import (
    MICROSECOND,
    check_duration,
    check_id,
    check_instant,
    check_priority,
    check_tags,
    check_text,
    clip_error,
    later,
)

if TYPE_CHECKING:
    from sayiir_persist.signals import SignalRequest


class Status(StrEnum):
    """Where an instance is in its life."""

    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing but deletion or a restart changes the instance."""
        return self is not Status.IN_PROGRESS and self is not Status.PAUSED


class ConflictPolicy(StrEnum):
    """What `start_instance` does when the instance id is taken."""

    FAIL = "fail"
    USE_EXISTING = "use_existing"
    TERMINATE_EXISTING = "terminate_existing"


class InProgress(Struct, frozen=True, tag="in_progress"):
    """The workflow runs, or waits, at a position."""

    position: Position


class _PausedAt(Struct, frozen=True):
    position: Position


class Paused(_PausedAt, frozen=True, kw_only=True, tag="paused", omit_defaults=True):
    """No new work starts until `unpause`; the position is kept."""

    reason: str | None = None
    requested_by: str | None = None


class Completed(Struct, frozen=True, tag="completed"):
    """The workflow ended well."""

    output: bytes


class Failed(Struct, frozen=True, tag="failed"):
    """The workflow ended by an error; longer than 64 KiB of UTF-8 it is cut, with a mark."""

    error: str

    def __post_init__(self) -> None:
        if (clipped := clip_error(self.error)) != self.error:
            force_setattr(self, "error", clipped)


class Cancelled(Struct, frozen=True, kw_only=True, tag="cancelled", omit_defaults=True):
    """The workflow was cancelled."""

    reason: str | None = None
    requested_by: str | None = None
    interrupted_at_task: str | None = None


State = InProgress | Paused | Completed | Failed | Cancelled

_STATUS: dict[type[State], Status] = {
    InProgress: Status.IN_PROGRESS,
    Paused: Status.PAUSED,
    Completed: Status.COMPLETED,
    Failed: Status.FAILED,
    Cancelled: Status.CANCELLED,
}


class RetryPolicy(Struct, frozen=True):
    """How often and how late a failed task is tried again.

    Attributes:
        max_retries: The failure after this many retries fails the workflow.
        initial_delay: How long the first retry waits.
        multiplier: By how much each further delay grows; finite and above 0.
        max_delay: The longest delay; `None`: as long as the calendar.

    Example:
        >>> RetryPolicy(3, timedelta(seconds=1)).delay(3)
        datetime.timedelta(seconds=4)
    """

    max_retries: int
    initial_delay: timedelta
    multiplier: float = 2.0
    max_delay: timedelta | None = None

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise InvalidArgumentError(f"max_retries must not be negative: {self.max_retries}")

        check_duration("initial_delay", self.initial_delay)

        if not (math.isfinite(self.multiplier) and self.multiplier > 0):
            raise InvalidArgumentError(f"multiplier must be finite and > 0: {self.multiplier}")

        if self.max_delay is not None:
            check_duration("max_delay", self.max_delay)

    def delay(self, attempt: int) -> timedelta:
        """`min(initial_delay * multiplier ** (attempt - 1), max_delay)`, saturating.

        Args:
            attempt: Counts from 1.
        """
        longest = timedelta.max if self.max_delay is None else self.max_delay
        initial = self.initial_delay // MICROSECOND

        if initial == 0:
            return timedelta(0)

        try:
            micros = initial * self.multiplier ** (attempt - 1)
        except OverflowError:
            return longest

        if micros >= longest // MICROSECOND:
            return longest

        return timedelta(microseconds=round(micros))


class _Attempts(Struct, frozen=True):
    attempts: int


class RetryState(_Attempts, frozen=True, kw_only=True, omit_defaults=True):
    """The failures of a task so far.

    Attributes:
        attempts: How many there were.
        last_error: The last one's text, cut like `Failed.error`.
        last_worker: Who it failed on; dispatch prefers others for one aging interval.
        retry_after: How long the retry waits, counted from the save that recorded the failure.
        retry_at: When the retry is due; stamped by the store.
    """

    last_error: str | None = None
    last_worker: str | None = None
    retry_after: timedelta | None = None
    retry_at: datetime | None = None


class _Identity(Struct, frozen=True):
    instance_id: str
    definition_hash: str
    state: State


class WorkflowSnapshot(_Identity, frozen=True, kw_only=True):
    """One workflow run at one moment. Immutable: a transition returns another snapshot.

    Transitions read no clock and do no I/O. On a snapshot that has ended they raise
    `TerminalStateError`; on a paused one they work and it stays paused.

    Attributes:
        instance_id: The run.
        definition_hash: What it runs, see `sayiir_persist.definition`.
        state: Where it stands.
        input: The instance's input; fixed when the instance is created.
        results: What its nodes gave.
        last_completed_task_id: The node whose result was recorded last.
        retries: Failures by task, until the task succeeds.
        timed_out: Waits that ended without their event.
        loop_iterations: Counters by loop.
        deadline: The runtime's own; the store only keeps it.
        priority: 1 (first) to 5, for tasks that name none.
        tags: What a worker must accept, for tasks that name none.
        trace_parent: The runtime's own; at most 4 KiB.
        version: Counts accepted writes; 0 was never stored. Stamped by the store.
        incarnation: Differs for each creation of the same id. Stamped by the store.
        created_at: Stamped by the store.
        updated_at: Stamped by the store.
        status_since: Since when it has this status. Stamped by the store.

    Example:
        >>> run = WorkflowSnapshot.start("order-7", "v1", start_at="charge")
        >>> run.complete_task("charge", b"paid", next=None).status
        <Status.COMPLETED: 'completed'>
    """

    input: bytes | None = None
    results: Results = field(default_factory=Results)
    last_completed_task_id: str | None = None
    retries: Mapping[str, RetryState] = field(default_factory=dict[str, RetryState])
    timed_out: frozenset[str] = frozenset()
    loop_iterations: Mapping[str, int] = field(default_factory=dict[str, int])
    deadline: datetime | None = None
    priority: int = 3
    tags: tuple[str, ...] = ()
    trace_parent: str | None = None
    version: int = 0
    incarnation: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    status_since: datetime | None = None

    @classmethod
    def start(
        cls,
        instance_id: str,
        definition_hash: str,
        *,
        start_at: str | Position,
        input: bytes | None = None,
        priority: int = 3,
        tags: Sequence[str] = (),
        trace_parent: str | None = None,
    ) -> Self:
        """A new run, not stored yet, in progress at `start_at` (a string is a task's id).

        Leaves of `start_at` without `input_from` get the instance's input.

        Raises:
            InvalidArgumentError: An argument breaks a limit.
        """
        position = AtTask(start_at) if isinstance(start_at, str) else start_at
        check_tree(position)
        first = entered(wired(unstamped(position), INSTANCE_INPUT))
        new = cls(
            instance_id=instance_id,
            definition_hash=definition_hash,
            state=Completed(b"") if first is None else InProgress(first),
            input=input,
            priority=priority,
            tags=check_tags("tags", tags),
            trace_parent=trace_parent,
        )
        check_snapshot(new)
        return new

    @property
    def status(self) -> Status:
        """The status that the state stands for."""
        return _STATUS[type(self.state)]

    @property
    def position(self) -> Position | None:
        """The tree of open positions; `None` when the workflow has ended."""
        return self.state.position if isinstance(self.state, InProgress | Paused) else None

    def ready_tasks(self) -> tuple[AtTask, ...]:
        """The tasks that stand open, in tree order, done or backing-off ones included."""
        position = self.position

        if isinstance(position, AtTask):  # most snapshots
            return (position,)

        return tuple(leaf for leaf in leaves(position) if isinstance(leaf, AtTask))

    def record_result(self, node_id: str, output: bytes) -> Self:
        """Record what a node gave, without moving the position."""
        self._require_open()
        return self._with(
            results=self.results.with_result(node_id, output), last_completed_task_id=node_id
        )

    def complete_task(self, task_id: str, output: bytes, *, next: Position | None) -> Self:
        """Record a task's result and put `next` in its place, wherever it stands in the tree.

        `None` ends the branch; the last branch enters the fork's `next`; at the root it completes
        the workflow with this output. Leaves of `next` without `input_from` get this task's
        result; after a wait they get the event, after a fork none.

        Raises:
            InvalidTransitionError: The task is not ready.
            InvalidArgumentError: `next` breaks a limit or repeats a node id.
        """
        position = self._require_ready(task_id)
        recorded = self._with(
            results=self.results.with_result(task_id, output),
            last_completed_task_id=task_id,
            retries=_without(self.retries, task_id),
        )

        if next is not None:
            check_tree(next)  # the walks below rely on it
            next = wired(unstamped(next), task_id)

        end = output if next is None and not isinstance(position, AtFork) else b""
        return recorded._moved(replace_leaf(position, task_id, next), end=end)

    def move_to(self, position: Position) -> Self:
        """Replace the whole tree of positions.

        Leaves without `input_from` get the result of the last completed task, or the instance's
        input where none has completed. A leaf that is handed in with its stamps stays the one
        that it was.

        Raises:
            InvalidArgumentError: The position breaks a limit or repeats a node id.
        """
        self._require_open()
        check_tree(position)  # the walks below rely on it
        source = self.last_completed_task_id
        return self._moved(
            entered(wired(position, INSTANCE_INPUT if source is None else source)), end=b""
        )

    def record_failure(
        self, task_id: str, policy: RetryPolicy, *, error: str, worker_id: str | None = None
    ) -> Self:
        """Schedule the retry of a task that failed, or fail the workflow.

        The retry is due `policy.delay(attempts)` after the save that stores this; the failure
        after `policy.max_retries` retries fails the workflow with `error`.

        Raises:
            InvalidTransitionError: The task is not ready.
        """
        position = self._require_ready(task_id)
        known = self.retries.get(task_id)
        attempts = 1 + (known.attempts if known else 0)

        if attempts > policy.max_retries:
            return self.fail(error)

        failure = RetryState(
            attempts,
            last_error=clip_error(error),
            last_worker=worker_id,
            retry_after=policy.delay(attempts),
        )

        def enter_again(leaf: Leaf) -> Leaf:
            if not isinstance(leaf, AtTask) or leaf.task_id != task_id:
                return leaf

            return replace(leaf, ready_at=None, reason=None, done=False)

        return self._with(
            retries={**self.retries, task_id: failure},
            state=replace(self.state, position=map_open(position, enter_again)),
        )

    def complete(self, output: bytes) -> Self:
        """End the workflow well, from wherever it stands."""
        self._require_open()
        return self._ended(Completed(output))

    def fail(self, error: str) -> Self:
        """End the workflow by an error, from wherever it stands."""
        self._require_open()
        return self._ended(Failed(error))

    def cancel(
        self, request: SignalRequest | None = None, *, interrupted_at_task: str | None = None
    ) -> Self:
        """Cancel the workflow, running or paused. Results are kept.

        Raises:
            CannotCancelError: It has ended.
        """
        if self.status.is_terminal:
            raise CannotCancelError(self.instance_id, self.status)

        cancelled = Cancelled(
            reason=request.reason if request else None,
            requested_by=request.requested_by if request else None,
            interrupted_at_task=interrupted_at_task,
        )
        return self._with(state=cancelled, deadline=None, status_since=None)

    def pause(self, request: SignalRequest | None = None) -> Self:
        """Keep the position, and let nothing new start until `unpause`.

        Raises:
            CannotPauseError: It is not in progress.
        """
        if not isinstance(self.state, InProgress):
            raise CannotPauseError(self.instance_id, self.status)

        paused = Paused(
            self.state.position,
            reason=request.reason if request else None,
            requested_by=request.requested_by if request else None,
        )
        return self._with(state=paused, deadline=None, status_since=None)

    def unpause(self) -> Self:
        """Go on exactly where `pause` stopped.

        Raises:
            CannotPauseError: It is not paused.
        """
        if not isinstance(self.state, Paused):
            raise CannotPauseError(self.instance_id, self.status)

        return self._with(state=InProgress(self.state.position), status_since=None)

    def forget(self, *node_ids: str) -> Self:
        """Drop results, retry state and time-out marks: a loop body that runs again."""
        self._require_open()
        results = self.results

        for node_id in node_ids:
            results = results.without(node_id)

        return self._with(
            results=results,
            retries=_without(self.retries, *node_ids),
            timed_out=self.timed_out.difference(node_ids),
        )

    def count_iteration(self, loop_id: str) -> Self:
        """Count one more iteration of a loop."""
        self._require_open()
        count = self.loop_iterations.get(loop_id, 0) + 1
        return self._with(loop_iterations={**self.loop_iterations, loop_id: count})

    def with_deadline(self, deadline: datetime | None) -> Self:
        """Set or clear the runtime's own deadline; the store only keeps it."""
        self._require_open()

        return self._with(
            deadline=None if deadline is None else check_instant("deadline", deadline)
        )

    def _with(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def _moved(self, position: Position | None, *, end: bytes) -> Self:
        if position is None:
            return self._ended(Completed(end))

        check_tree(position)
        return self._with(state=replace(self.state, position=position))

    def _ended(self, state: Completed | Failed) -> Self:
        return self._with(
            state=state, deadline=None, retries={}, loop_iterations={}, status_since=None
        )

    def _require_open(self) -> Position:
        if not isinstance(self.state, InProgress | Paused):
            raise TerminalStateError(self.instance_id, self.status)

        return self.state.position

    def _require_ready(self, task_id: str) -> Position:
        position = self._require_open()

        if not any(
            isinstance(leaf, AtTask) and leaf.task_id == task_id for leaf in leaves(position)
        ):
            raise InvalidTransitionError(self.instance_id, f"task {task_id!r} is not ready")

        return position


def _without(retries: Mapping[str, RetryState], *node_ids: str) -> Mapping[str, RetryState]:
    if retries.keys().isdisjoint(node_ids):
        return retries

    return {task_id: retry for task_id, retry in retries.items() if task_id not in node_ids}


def ready_stamps(
    leaf: AtTask, at: datetime, reason: ReadyReason, retry: RetryState | None
) -> AtTask:
    """The task as entered at `at`; a retry that is due later makes it ready then."""
    if retry is None or retry.retry_at is None:
        return replace(leaf, ready_at=at, reason=reason)

    return replace(leaf, ready_at=max(at, retry.retry_at), reason=ReadyReason.RETRY)


def stamped(
    snapshot: WorkflowSnapshot,
    entered_at: datetime,
    *,
    status_since: datetime,
    done: frozenset[str] = frozenset(),
) -> WorkflowSnapshot:
    """The whole overlay of what a store keeps beside the body onto its positions.

    Leaves without stamps were entered by the write at `entered_at`. While in progress, nothing
    is ready before `status_since`, so paused time does not age a task.
    """
    retries = {
        task_id: retry
        if retry.retry_after is None or retry.retry_at is not None
        else replace(retry, retry_at=later(entered_at, retry.retry_after))
        for task_id, retry in snapshot.retries.items()
    }
    running = isinstance(snapshot.state, InProgress)

    def stamp_task(leaf: Leaf) -> Leaf:
        if not isinstance(leaf, AtTask):
            return leaf

        task = leaf

        if task.ready_at is None:
            task = ready_stamps(task, entered_at, ReadyReason.TASK, retries.get(task.task_id))

        if running and task.ready_at is not None and task.ready_at < status_since:
            task = replace(task, ready_at=status_since)

        marked = task.task_id in done
        return task if task.done == marked else replace(task, done=marked)

    changes: dict[str, Any] = {"status_since": status_since}

    if retries:
        changes["retries"] = retries

    if isinstance(snapshot.state, InProgress | Paused):
        position = snapshot.state.position

        if isinstance(position, AtTask):  # most snapshots, without a walk
            position = stamp_task(position)
        else:
            position = map_open(stamp(position, entered_at), stamp_task)

        if position is not snapshot.state.position:
            changes["state"] = replace(snapshot.state, position=position)

    return replace(snapshot, **changes)


def marked_done(snapshot: WorkflowSnapshot, task_id: str) -> WorkflowSnapshot:
    """The snapshot with an open task marked as done; the same object where nothing changes."""
    state = snapshot.state

    if not isinstance(state, InProgress | Paused):
        return snapshot

    def mark(leaf: Leaf) -> Leaf:
        if not isinstance(leaf, AtTask) or leaf.task_id != task_id or leaf.done:
            return leaf

        return replace(leaf, done=True)

    position = map_open(state.position, mark)

    if position is state.position:
        return snapshot

    return replace(snapshot, state=replace(state, position=position))


def never_stored(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    """The snapshot without anything that a store stamps: version 0."""
    state = snapshot.state

    if isinstance(state, InProgress | Paused):
        first = entered(unstamped(state.position))
        state = Completed(b"") if first is None else replace(state, position=first)

    return replace(
        snapshot,
        state=state,
        retries={k: replace(v, retry_at=None) for k, v in snapshot.retries.items()},
        version=0,
        incarnation="",
        created_at=None,
        updated_at=None,
        status_since=None,
    )


Change = Callable[[WorkflowSnapshot], WorkflowSnapshot]


def check_snapshot(snapshot: WorkflowSnapshot) -> None:
    """Refuse a snapshot that breaks a limit, before it is written."""
    check_id("instance_id", snapshot.instance_id)
    check_id("definition_hash", snapshot.definition_hash)
    check_priority("priority", snapshot.priority)
    check_tags("tags", snapshot.tags)
    check_text("trace_parent", snapshot.trace_parent)

    if snapshot.deadline is not None:
        check_instant("deadline", snapshot.deadline)

    for task_id in snapshot.retries:
        check_id("task_id", task_id)

    for node_id in snapshot.timed_out:
        check_id("node_id", node_id)

    for loop_id in snapshot.loop_iterations:
        check_id("loop_id", loop_id)

    match snapshot.state:
        case InProgress(position):
            check_tree(position)
        case Paused(position) as paused:
            check_tree(position)
            check_text("reason", paused.reason)
            check_text("requested_by", paused.requested_by)
        case Cancelled() as cancelled:
            check_text("reason", cancelled.reason)
            check_text("requested_by", cancelled.requested_by)
        case Completed() | Failed():
            pass


class SnapshotInfo(Struct, frozen=True):
    """What listings show; never needs the body to be decoded."""

    instance_id: str
    definition_hash: str
    status: Status
    version: int
    created_at: datetime
    updated_at: datetime
    status_since: datetime
    priority: int
    tags: tuple[str, ...]


class StartOutcome(Struct, frozen=True):
    """What `start_instance` found or made.

    Attributes:
        snapshot: The stored snapshot; an existing one comes without its results.
        created: Whether this call created it.
    """

    snapshot: WorkflowSnapshot
    created: bool
