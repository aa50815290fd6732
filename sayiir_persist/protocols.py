"""The contract: what every backend does, operation by operation.

`SnapshotStore`, `TaskClaimStore` and `SignalStore` are one idea each; `PersistentBackend` is all
three, and what the built-in stores are. The following holds for every operation and is not
repeated below.

**Atomic, and linearizable per instance.** An operation is seen whole or not at all, and only once
what it wrote is durable. Nothing is promised about the order of writes to different instances,
and they never wait for each other. Where an operation takes several steps its docstring says so.

**Isolated.** No operation sees, or touches, anything of another namespace. Values that go in or
come out are the caller's own: changing them changes nothing that is stored. `b""` is a payload
like any other and differs from `None`. Instants keep their microseconds.

**One clock.** Everything about time is decided by the store's clock, and a boundary is inclusive:
at exactly `expires_at` a claim is dead, at exactly its end a delay has elapsed. A snapshot is
shown as time has made it: elapsed delays and timed-out waits have given way to what follows.

**One order of refusals.** A write that is refused raises, changes nothing and takes no version.
The first that applies is the answer: nothing is stored (with a claim `ClaimLostError`, with a
version `StaleSnapshotError`, else `InstanceNotFoundError`); `TerminalStateError`; the claim
(`ClaimLostError`); `InstancePausedError`; the version (`StaleSnapshotError`).

**Cancellation** leaves each atomic step whole or absent, and nothing locked. A step that was on
its way may still land, and does so before any later write of the same backend object to that
instance.

**Errors of every operation**, besides those that it lists:

- `InvalidArgumentError`: an argument breaks a limit, which the message names. Raised before any
  I/O. Ids are 1 to 256 bytes of UTF-8 without U+0000; text is at most 4 KiB; tags are at most 64.
- `BackendUnavailableError`: certainly nothing was applied, within `operation_timeout`; try again.
- `OutcomeUnknownError`: a write was sent and its answer lost. A read never raises it.
- `BackendClosedError`: outside of the backend's `async with` block.
- `CodecError`, where a snapshot is read: its bytes cannot be decoded. Dispatch, sweeping and
  listing pass over such an instance and go on with the others.
"""

# ruff: noqa: D417  (arguments that their type explains are not listed)

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, overload, runtime_checkable

from msgspec import Struct

from sayiir_persist.snapshot import ConflictPolicy

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta

    from sayiir_persist.claims import (
        AcquiredTask,
        AvailableTask,
        Commit,
        SweepReport,
        TaskClaim,
        WakeHint,
    )
    from sayiir_persist.positions import Position
    from sayiir_persist.signals import SignalKind, SignalRequest
    from sayiir_persist.snapshot import (
        Change,
        SnapshotInfo,
        StartOutcome,
        Status,
        WorkflowSnapshot,
    )


class SnapshotStore(Protocol):
    """Keeps the snapshots of workflow instances, and the results that belong to them.

    A snapshot's `version` is 1 after the first accepted write of an incarnation and grows by 1
    with every further one, without gaps. Only writes of the snapshot count, never claims, pending
    signals or queued events. Successive reads never go back in version.

    A snapshot that has ended stays as it is: but for `delete_snapshot` and a `start_instance` that
    restarts, every write to it raises `TerminalStateError`, an identical one too. The write that
    ends an instance also drops its pending signals and its claims; queued events stay.

    Example:
        >>> async def ship(store: SnapshotStore) -> WorkflowSnapshot:
        ...     started = await store.start_instance("order-7", "v1", start_at="ship")
        ...     step = started.snapshot.complete_task("ship", b"sent", next=None)
        ...     return await store.save_snapshot(step)
    """

    async def start_instance(
        self,
        instance_id: str,
        definition_hash: str,
        *,
        start_at: str | Position,
        input: bytes | None = None,
        priority: int = 3,
        tags: Sequence[str] = (),
        trace_parent: str | None = None,
        on_conflict: ConflictPolicy = ConflictPolicy.FAIL,
    ) -> StartOutcome:
        """Create an instance in progress, or decide what a taken id means.

        Of any number of concurrent calls exactly one creates, and its input is the one that is
        stored. The id is taken whether its instance runs or has ended. An instance of another
        definition is refused under every policy. Otherwise, where the id is taken:

        - `FAIL` raises.
        - `USE_EXISTING` returns what is stored, without its results, and writes nothing.
        - `TERMINATE_EXISTING` deletes and creates in one step: claims, pending signals and queued
          events of the old run are gone, and no worker of it can write into the new one.

        Events that were sent to the id before it existed belong to what creates it. A wait that
        meets one of them is answered by a second step, before this returns. A blind repeat raises,
        returns the same instance, or restarts it, by policy.

        Args:
            start_at: A position, or the id of the task to begin with.
            priority: 1 (first) to 5, for tasks that name none.
            tags: What a worker must accept, for tasks that name none.
            on_conflict: What to do where the id is taken.

        Returns:
            The stored snapshot, and whether this call created it.

        Raises:
            DefinitionMismatchError: The instance runs another definition.
            InstanceExistsError: The id is taken and the policy is `FAIL`.
            PayloadTooLargeError: The input exceeds `max_payload`.
        """
        ...

    async def save_snapshot(
        self, snapshot: WorkflowSnapshot, *, overwrite: bool = False
    ) -> WorkflowSnapshot:
        """Store a snapshot, if the stored one is still what it was made from.

        - Version 0 creates; stamps that it carries are dropped. Of concurrent calls exactly one
          creates.
        - Any other version replaces the same version of the same incarnation, paused or not, and
          never creates. What was paused is ended (completed, failed) only by a worker that holds a
          claim, see `commit_task`.
        - With `overwrite` it creates or replaces blindly: the incarnation stays, the definition
          may change, and all results are replaced. A paused instance is replaced only by a paused
          snapshot.

        Writes the results that were gained since the snapshot was loaded, and drops those that it
        forgot, no others. The position, the results and what dispatch knows of them change
        together. A wait that meets a queued event is answered by a second step, before this
        returns. After a blind repeat, or `OutcomeUnknownError`, a stored version of one more than
        the given one tells that the first call may have taken effect.

        Returns:
            The snapshot as stored: go on with this one. The argument stays as it was.

        Raises:
            InstanceExistsError: Version 0, and the id is taken, by an ended instance too.
            StaleSnapshotError: Another version or incarnation is stored, or none.
            TerminalStateError: The instance has ended.
            InstancePausedError: It is paused, and this would set it going or end it unseen.
            PayloadTooLargeError: The input, a result or the output exceeds `max_payload`.
            InvalidArgumentError: `overwrite`, or version 0, with results that were not loaded.
            CodecError: The codec cannot write the snapshot.
        """
        ...

    async def update_snapshot(
        self, instance_id: str, change: Change, *, claim: TaskClaim | None = None
    ) -> WorkflowSnapshot:
        """Apply a pure function to the stored snapshot: the way to merge concurrent progress.

        Loads with all results, applies the change, saves as `save_snapshot` does; again, a bounded
        number of times, where another write came between. A change that returns its argument
        writes nothing. A claim is checked in the same step as each write and is kept.

        Args:
            change: May be called more than once; must keep id, version and incarnation. What it
                raises comes out, and nothing is written.
            claim: Write only while this claim is live.

        Returns:
            The snapshot as stored.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`, and no claim was given.
            TerminalStateError: The instance has ended; the change is not called then.
            ClaimLostError: The claim expired, was taken over, revoked or dropped.
            InstancePausedError: The change would end a paused instance without a claim, or set it
                going though it was not paused when the change saw it.
            ContentionError: Every try was overtaken.
            PayloadTooLargeError: A result or the output exceeds `max_payload`.
            CodecError: The snapshot cannot be read or written.
        """
        ...

    async def save_task_result(
        self, instance_id: str, task_id: str, output: bytes, *, claim: TaskClaim | None = None
    ) -> int:
        """Record one result, without moving the position.

        Sets the last completed task and touches no other result, so concurrent calls for different
        tasks all survive. A ready task whose result is recorded is marked `done`: no longer
        offered, though it may still be claimed. Works on a paused instance. Sends no wake hint. A
        claim is checked in the same step and is kept.

        The last write to a result wins; an identical one, with nothing left to mark, takes no
        version, so a blind repeat is harmless. A snapshot that was read before is stale
        afterwards: merge by this call or by `commit_task`, not by both.

        Returns:
            The version that is stored now.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`, and no claim was given.
            TerminalStateError: The instance has ended, whatever the output.
            ClaimLostError: The claim expired, was taken over, revoked or dropped.
            PayloadTooLargeError: The output exceeds `max_payload`.
        """
        ...

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        """Read one committed version of an instance, never a mix of two.

        Args:
            results: `False` leaves the results out; looking one up then raises
                `ResultsNotLoadedError`. Saving such a snapshot loses none.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
            CodecError: The snapshot cannot be decoded.
        """
        ...

    async def load_task_result(self, instance_id: str, task_id: str) -> bytes | None:
        """Read one result as it is written, whatever the instance's status.

        Returns:
            The result, or `None`: the task is unknown, never completed, or was forgotten. That a
            wait has timed out shows only once a write has recorded it.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
        """
        ...

    async def delete_snapshot(self, instance_id: str) -> None:
        """Remove an instance with its results, claims, signals and queued events.

        All of it goes out of sight in one step. A worker of the deleted run can no longer write,
        and fences of later claims on the id are above all of its own.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`; so a blind repeat too.
        """
        ...

    async def list_snapshots(
        self,
        *,
        status: Status | None = None,
        definition_hash: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[SnapshotInfo]:
        """List instances, ascending by the UTF-8 bytes of their ids.

        Decodes no body. An id that is there throughout a traversal appears in it exactly once,
        whatever is inserted or deleted meanwhile.

        Args:
            status: Only these, by stored status.
            definition_hash: Only these.
            after: Only ids greater than this one, which need not exist: the last of a page.
            limit: How many at most; 0 or less gives none.
        """
        ...


class TaskClaimStore(Protocol):
    """Hands each ready task to one worker at a time.

    A claim is on one task of one instance; claims on several tasks of one instance stand side by
    side. It is live until `expires_at`, by the store's clock, or for ever without one. An expired
    claim stays on record until it is overwritten, released or swept, and no outcome depends on
    when that is. Its `fence` is larger than that of every earlier claim on the instance id,
    deleted runs included.

    A write that carries a claim is accepted only while that very claim is live, checked in the
    same step as the write, and never creates. A task that a write enters anew loses the claims it
    had, but for the one that the write carries.

    Example:
        >>> async def work(store: TaskClaimStore) -> None:
        ...     for task in await store.acquire_tasks(worker_id="w1", ttl=timedelta(seconds=30)):
        ...         step = task.snapshot.complete_task(task.task_id, b"done", next=None)
        ...         await store.commit_task(task.claim, step)
    """

    async def claim_task(
        self,
        instance_id: str,
        task_id: str,
        *,
        worker_id: str,
        ttl: timedelta | None,
        tags: Sequence[str] = (),
        nonce: str | None = None,
    ) -> TaskClaim | None:
        """Try to become the only worker allowed to run a task.

        Of concurrent callers exactly one gets a claim; an expired one is taken over in the same
        step. Advances of the instance that are due are carried out first. Granted also while the
        task backs off, is marked `done` (recovery), or a control signal is pending, which the
        claim tells; not while a delay or wait still stands before the task. Tags are no condition:
        they are kept for `claim_next`.

        A blind repeat gets `None`; with the same worker and nonce it gets the claim that the first
        call made, unchanged, which resolves `OutcomeUnknownError`. A claim that was made by
        `claim_next` has the nonce of the claim before it.

        Args:
            ttl: Length of the claim. `None` never expires, 0 is expired at once.
            tags: What the worker accepts; none accepts everything.
            nonce: Names this request. One is generated where none is given.

        Returns:
            The claim; `None` while another one is live, the worker's own included, the instance is
            not in progress, or the task is not ready.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
            ContentionError: Advances were overtaken by other writers at every try.
            CodecError: An advance is due, and the snapshot cannot be decoded.
        """
        ...

    async def acquire_tasks(
        self,
        *,
        worker_id: str,
        ttl: timedelta | None,
        limit: int = 1,
        tags: Sequence[str] = (),
        definition_hashes: Collection[str] | None = None,
        results: bool = False,
    ) -> list[AcquiredTask]:
        """Find ready tasks and claim them, in one step.

        Offers what `find_available_tasks` offers, in the same order; concurrent callers get
        disjoint tasks. A blind repeat gets other tasks, and what a lost answer had claimed comes
        back when its `ttl` ends.

        Args:
            ttl: Length of each claim. `None` never expires.
            limit: How many at most; 0 or less gives none.
            tags: What the worker accepts; none accepts everything.
            definition_hashes: Only tasks of these; an empty one matches nothing.
            results: Whether snapshots come with all results. A task's input comes in any case.
        """
        ...

    async def find_available_tasks(
        self,
        *,
        worker_id: str,
        limit: int = 10,
        tags: Sequence[str] = (),
        definition_hashes: Collection[str] | None = None,
        results: bool = False,
    ) -> list[AvailableTask]:
        """Find tasks that may be run now, without claiming them.

        Advances that are due (of the definitions asked for, whatever their tags) are carried out
        first, each a step of its own. A task is offered if, at one instant for all of them,

        - its instance is in progress, of a definition asked for, with no control signal pending;
        - it is ready: an open task, or what follows a delay or wait whose end has come;
        - its result is not recorded yet, and if it failed before, its retry is due;
        - no live claim is on it;
        - it has no tag that the worker does not accept.

        All of this is decided before `limit` cuts, so a task that does not fit never takes the
        place of one that does; instances that have ended, or wait for later, cost a call nothing.

        The order is total: a task whose last failure was on this worker comes after all others,
        for the first aging interval (5 minutes where aging is off); then by priority less age,
        where the age counts from `ready_at`, or from the expiry of its last claim, and each
        `aging_interval` is worth one step of priority; then the one ready first; then by the bytes
        of instance id and task id. A partitioned store keeps this order within a partition.

        Args:
            worker_id: Who asks.
            limit: How many at most; 0 or less gives none.
            tags: What the worker accepts; none accepts everything.
            definition_hashes: Only tasks of these; an empty one matches nothing.
            results: Whether snapshots come with all results. A task's input comes in any case.
        """
        ...

    async def extend_task_claim(self, claim: TaskClaim, *, ttl: timedelta) -> TaskClaim:
        """Let a live claim end `ttl` from now, which may be sooner than before.

        An eternal claim stays eternal; one that has expired is never revived. Of an extension and
        a take-over at the same time exactly one succeeds. A blind repeat only moves the end.

        Returns:
            The claim with its new end, and a control signal that is pending on the instance.

        Raises:
            ClaimNotFoundError: No claim on the task is on record.
            ClaimLostError: The claim has expired, or another one is on record.
        """
        ...

    async def release_task_claim(self, claim: TaskClaim) -> None:
        """Give a claim back, live or expired.

        Raises:
            ClaimNotFoundError: No claim on the task is on record; so a blind repeat too.
            ClaimLostError: Another claim is on record, be it the same worker's.
        """
        ...

    async def revoke_task_claim(self, instance_id: str, task_id: str) -> TaskClaim | None:
        """End the live claim on a task, whoever holds it: an operator's call.

        The holder's next write with it raises `ClaimLostError`.

        Returns:
            The claim that was ended; `None` if none was live.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
        """
        ...

    @overload
    async def commit_task(
        self,
        claim: TaskClaim,
        snapshot: WorkflowSnapshot,
        *,
        claim_next: timedelta | None = None,
    ) -> Commit: ...

    @overload
    async def commit_task(
        self,
        claim: TaskClaim,
        change: Change,
        *,
        base: WorkflowSnapshot | None = None,
        claim_next: timedelta | None = None,
    ) -> Commit: ...

    async def commit_task(self, claim: TaskClaim, *step: object, **options: object) -> Commit:
        """Save a snapshot, release the claim and, if wished, claim what comes next, in one step.

        With a snapshot it saves as `save_snapshot` does, once. With a change it is
        `update_snapshot`: the change is tried on `base` first (settled to the instant of the
        claim), which costs one round trip, and on the loaded snapshot where that is stale; so
        branches of a fork commit side by side. A change that returns its argument only releases
        the claim, and takes no version.

        `claim_next` claims, in the same step, a task that this very write made ready and due: the
        first in tree order whose tags the claim's worker accepts. The claim inherits the nonce.
        None is claimed while a control signal is pending, or where a wait met its event.

        A commit is accepted while the instance is paused, and a change is then applied to the
        paused snapshot; that may also end it. A control signal that is pending is applied by a
        second step, right after the commit, if no live claim is left; a wait that meets a queued
        event is answered likewise. If the process dies in between, dispatch or a sweep does it.

        A blind repeat raises `ClaimLostError`, or `TerminalStateError` where the first call ended
        the instance. After `OutcomeUnknownError` the stored version tells, and `claim_task` with
        the claim's nonce gives back what `claim_next` claimed.

        Args:
            claim: What makes the write legitimate; checked in the same step, and released by it.
            step: `snapshot`, the new one; or `change`, a pure function that makes it and may be
                called more than once.
            options: `base`, only with a change: the snapshot that came with the task.
                `claim_next`: length of the next claim; `None` claims nothing.

        Returns:
            The snapshot as stored, and the task that was claimed, if any.

        Raises:
            ClaimLostError: The claim expired, was taken over, revoked or dropped; the instance may
                be gone.
            TerminalStateError: The instance has ended.
            StaleSnapshotError: Another version or incarnation than the snapshot's is stored.
            InstancePausedError: The snapshot would set an instance going that was paused since.
            ContentionError: Every try with a change was overtaken.
            PayloadTooLargeError: A result or the output exceeds `max_payload`.
            CodecError: The snapshot cannot be read or written.
        """
        ...

    async def find_stalled(self, *, idle_for: timedelta, limit: int = 100) -> list[SnapshotInfo]:
        """List instances that are in progress though dispatch can never offer anything of them.

        Those whose every open leaf is an `AtNode`, or a task marked `done`, that have no live
        claim and were not updated for `idle_for`; longest idle first. A pending signal hides none.

        Args:
            idle_for: How long at least.
            limit: How many at most; 0 or less gives none.
        """
        ...

    async def sweep(self, *, limit: int = 100) -> SweepReport:
        """Finish what nobody was there to finish.

        For at most `limit` instances without live claim, oldest first: applies the control signal
        that is pending, or carries out the advances that are due. Then purges claims that expired
        more than an hour ago. Each instance is a step of its own. Safe to run anywhere, by any
        number at once; a blind repeat finds nothing more to do.

        Args:
            limit: How many instances, and how many claims, at most; 0 or less does nothing.
        """
        ...


class SignalStore(Protocol):
    """Takes requests to cancel or pause, and queues events until somebody waits for them.

    At most one request of each kind is pending on an instance; while any is, nothing of the
    instance is offered or advanced. Events are a queue for each instance id and name, first in,
    first out; they need no instance to be there.

    Example:
        >>> async def approve(store: SignalStore) -> None:
        ...     await store.send_event("order-7", "approved", b"yes", event_id="click-1")
    """

    async def store_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> None:
        """Make a request pending, in the same step that checks the status.

        A pending one of that kind is replaced, so a blind repeat is harmless. Nothing is stored,
        and that is a success, where the instance is what was asked for already: a cancel of a
        cancelled one, a pause of a paused one. A paused instance can be cancelled.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
            CannotCancelError: The instance has completed or failed.
            CannotPauseError: The instance has ended.
        """
        ...

    async def get_signal(self, instance_id: str, kind: SignalKind) -> SignalRequest | None:
        """Read the pending request of a kind; `None` if there is none, or no such instance."""
        ...

    async def clear_signal(self, instance_id: str, kind: SignalKind) -> None:
        """Withdraw the pending request of a kind, if there is one; the other kind stays.

        A wait that has met an event meanwhile is due at once.
        """
        ...

    async def request_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> Status:
        """Store a control signal and, where nobody is at work, apply it.

        Two steps: `store_signal`, then what `check_control_signals` does, guarded so that no claim
        can slip in between. With a live claim the second step is left to its worker; a crash in
        between, to a sweep. A cancel wins over a pause.

        Returns:
            The status after it.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
            CannotCancelError: The instance has completed or failed.
            CannotPauseError: The instance has ended.
            ContentionError: The signal is stored, but each try to apply it was overtaken.
            CodecError: The signal is stored, but the snapshot cannot be decoded.
        """
        ...

    async def check_and_cancel(
        self, instance_id: str, *, interrupted_at_task: str | None = None
    ) -> bool:
        """Cancel the instance if a cancel is pending and it is in progress or paused.

        One atomic step that also drops all its pending signals and claims; results are kept. Of
        concurrent callers exactly one gets `True`, and a blind repeat gets `False`.

        Args:
            interrupted_at_task: Recorded with the state.

        Returns:
            Whether this call cancelled it; `False` for an unknown instance too.

        Raises:
            ContentionError: Every try was overtaken.
            CodecError: A cancel is pending, and the snapshot cannot be decoded.
        """
        ...

    async def check_and_pause(self, instance_id: str) -> bool:
        """Pause the instance if a pause is pending and it is in progress.

        One atomic step, like `check_and_cancel`. With a cancel pending as well it does nothing,
        and both stay. Claims stay, and their workers may commit.

        Returns:
            Whether this call paused it; `False` for an unknown instance too.

        Raises:
            ContentionError: Every try was overtaken.
            CodecError: A pause is pending, and the snapshot cannot be decoded.
        """
        ...

    async def check_control_signals(
        self, instance_id: str, *, interrupted_at_task: str | None = None
    ) -> SignalKind | None:
        """Apply the pending control signal, whichever it is; a cancel wins over a pause.

        One atomic step, whether or not claims are live. With nothing pending it is one cheap read.

        Args:
            interrupted_at_task: Recorded with the state, if it is a cancel.

        Returns:
            What this call applied, or `None`.

        Raises:
            ContentionError: Every try was overtaken.
            CodecError: A signal is pending, and the snapshot cannot be decoded.
        """
        ...

    async def unpause(self, instance_id: str) -> WorkflowSnapshot:
        """Let a paused instance go on exactly where it stopped.

        A pending pause goes, a pending cancel stays. Tasks are ready since now, so that paused
        time ages none; the end of a delay or wait has not moved, and an event that was queued
        meanwhile wins over it.

        Returns:
            The snapshot as stored, in progress.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
            CannotPauseError: The instance is not paused; so a blind repeat too.
            ContentionError: Every try was overtaken.
            CodecError: The snapshot cannot be decoded.
        """
        ...

    async def send_event(
        self, instance_id: str, name: str, payload: bytes, *, event_id: str | None = None
    ) -> None:
        """Queue an event; where a wait is open for its name, answer it.

        An event meets a wait if it arrived before the wait's end, or was queued when the wait was
        entered, whenever anyone looks; the oldest of a name comes first, and several waits for one
        name are served in tree order. A meeting makes what follows due in the very step that
        brings it about. A second step then takes the event off the queue, records it under the
        wait's node and moves on (completing the workflow with it, at the root without `next`);
        when this call and the one that entered the wait have returned, it is done. If the process
        dies in between, dispatch, a sweep or `drain_signal` does it: an event is never lost, and
        moves an instance once.

        Otherwise it is queued, without an error: no wait is open, the instance has ended, is
        paused, has a control signal pending or does not exist yet. A blind repeat queues a second
        event, unless it carries the same `event_id`.

        Args:
            event_id: Remembered with the name for this instance, at least for its last 1,000 ids
                or 24 hours, whichever is less, consumed or not. A repeat is a no-op, whatever its
                payload.

        Raises:
            EventQueueFullError: `max_queued_events` of this instance are queued. One that is
                answered at once needs no room.
            PayloadTooLargeError: The payload exceeds `max_payload`.
        """
        ...

    async def consume_event(self, instance_id: str, name: str) -> bytes | None:
        """Take the oldest event of a name off the queue.

        Each event goes to exactly one consumer. An answer that is lost loses its event, and a
        blind repeat takes the next one; `drain_signal` does neither.

        Returns:
            The payload; `None` only if the queue was empty at that moment.
        """
        ...

    async def drain_signal(
        self, instance_id: str, *, version: int | None = None
    ) -> WorkflowSnapshot | None:
        """Take an event off the queue and move the wait that it met on, in one step.

        One wait a call. With `version` a blind repeat does nothing twice.

        Args:
            version: Do it only if this is the stored version.

        Returns:
            The snapshot as stored; `None` if no wait has met an event, the instance is not in
            progress, or a control signal is pending.

        Raises:
            InstanceNotFoundError: Nothing is stored under `instance_id`.
            StaleSnapshotError: The instance is at another version than `version`.
            ContentionError: Every try was overtaken.
            CodecError: The snapshot cannot be decoded.
        """
        ...


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of a backend that its options set.

    Attributes:
        max_payload: Bytes of one input, result, output or event.
        max_queued_events: How many events of one instance may be queued.
    """

    max_payload: int
    max_queued_events: int


class BackendInfo(Struct, frozen=True, kw_only=True):
    """What a backend is, and what it cannot promise.

    Attributes:
        name: `"memory"`, `"sqlite"`, `"postgres"`, `"redis"`, `"mongo"`, or a third party's.
        namespace: The one that it is bound to.
        server: Product and version; `""` where there is none, and before it is open.
        codec: The name of the codec that it writes with.
        limits: Those in force.
        caveats: What this deployment cannot promise, in words for a log.
    """

    name: str
    namespace: str
    server: str
    codec: str
    limits: Limits
    caveats: tuple[str, ...]


class PersistentBackend(SnapshotStore, TaskClaimStore, SignalStore, Protocol):
    """Everything that a workflow runtime needs of a store, bound to one namespace.

    Open it with `async with`; then any number of tasks may use it at once.

    Example:
        >>> async def run(backend: PersistentBackend) -> None:
        ...     async with backend:
        ...         await backend.start_instance("order-7", "v1", start_at="charge")
        ...         [task] = await backend.acquire_tasks(worker_id="w1", ttl=None)
    """

    @property
    def info(self) -> BackendInfo:
        """What this backend is; at hand without any I/O."""
        ...

    async def now(self) -> datetime:
        """Read the store's clock, to derive the absolute instants of positions from."""
        ...

    async def aclose(self) -> None:
        """Close what entering opened, and end every wait for a wake hint; idempotent.

        What was handed in by the caller, such as a pool, stays open.
        """
        ...

    async def __aenter__(self) -> Self:
        """Open the backend: connect, check the schema and migrate it if that is wanted.

        Safe under any number of concurrent starters; one that fails closes what it opened. Nothing
        needs to be opened by default.

        Raises:
            SchemaVersionError: The schema is not one that this release works with.
            ConfigurationError: The store's settings contradict the options.
        """
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the backend."""
        await self.aclose()


@runtime_checkable
class WakeupSource(Protocol):
    """Tells when something may have become ready. Optional: polling is the truth.

    Hints may be lost, late or double, and correctness never depends on one. The answer to a hint
    is `acquire_tasks`, which decides everything.

    Example:
        >>> async def idle(backend: PersistentBackend) -> None:
        ...     if isinstance(backend, WakeupSource):
        ...         await backend.wait_for_wakeup(timedelta(seconds=1))
        ...     else:
        ...         await anyio.sleep(1)
    """

    async def wait_for_wakeup(self, timeout: timedelta) -> WakeHint | None:
        """Wait for a hint that a task became executable.

        A hint is sent only after the commit that made a task executable now; nothing is sent for
        what is parked, paused, ended or backing off. One that came since this call returned last
        is answered at once, so nothing is missed between an empty poll and the wait.

        Args:
            timeout: How long to wait at most.

        Returns:
            The hint; `None` when the time is over.

        Raises:
            BackendClosedError: The backend is not open, or was closed meanwhile.
        """
        ...
