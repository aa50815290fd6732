"""A plain model of the contract, to compare a store with: slow, sequential, easy to check by eye.

It keeps one dictionary of runs, walks all of it for every question, and has its own logic for the
status machine, versions, claims, signals, events, elapsed time and the order of dispatch. From the
library it takes the values and their transitions, nothing else. What a store is free to choose
(fences, nonces, incarnations) the model takes over from the store's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from msgspec.structs import replace

from sayiir_persist.claims import AcquiredTask, AvailableTask, Commit, SweepReport, TaskClaim
from sayiir_persist.errors import (
    CannotCancelError,
    CannotPauseError,
    ClaimLostError,
    ClaimNotFoundError,
    DefinitionMismatchError,
    EventQueueFullError,
    InstanceExistsError,
    InstanceNotFoundError,
    InstancePausedError,
    InvalidArgumentError,
    ResultsNotLoadedError,
    StaleSnapshotError,
    TerminalStateError,
)
from sayiir_persist.positions import (
    INSTANCE_INPUT,
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Position,
    ReadyReason,
)
from sayiir_persist.results import Results
from sayiir_persist.signals import SignalKind, SignalRequest
from sayiir_persist.snapshot import (
    Change,
    ConflictPolicy,
    InProgress,
    Paused,
    SnapshotInfo,
    StartOutcome,
    Status,
    WorkflowSnapshot,
)

BIAS_WITHOUT_AGING: Final = timedelta(minutes=5)
CLAIMS_KEPT: Final = timedelta(hours=1)

Leaf = AtTask | AtDelay | AtSignal | AtNode
Park = AtDelay | AtSignal
Enter = Callable[[Position, datetime], Position]


class Event(NamedTuple):
    """A queued event."""

    payload: bytes
    arrived_at: datetime


@dataclass(slots=True)
class Run:
    """A stored instance: its snapshot as written, its signals and the records of its claims."""

    body: WorkflowSnapshot
    signals: dict[SignalKind, SignalRequest] = field(
        default_factory=dict[SignalKind, SignalRequest]
    )
    claims: dict[str, TaskClaim] = field(default_factory=dict[str, TaskClaim])


class Model:
    """What a store must answer, call by call; the methods are those of `PersistentBackend`.

    Attributes:
        now: The store's time, moved by whoever drives the model.
        runs: The stored instances.
        queues: Queued events by instance id and name, also of ids that do not exist yet.
        fences: The largest fence seen for each instance id.
        nodes: Every node id that was ever used.
    """

    def __init__(
        self, now: datetime, *, aging_interval: timedelta | None, max_queued_events: int
    ) -> None:
        self.now = now
        self.runs: dict[str, Run] = {}
        self.queues: dict[str, dict[str, list[Event]]] = {}
        self.fences: dict[str, int] = {}
        self.nodes: set[str] = set()
        self._event_ids: dict[str, set[tuple[str, str]]] = {}
        self._aging_interval = aging_interval
        self._max_queued_events = max_queued_events

    # What the model cannot know.

    def adopt_claim(self, claim: TaskClaim) -> None:
        """Take over the fence and the nonce that the store chose."""
        self.fences[claim.instance_id] = max(claim.fence, self.fences.get(claim.instance_id, 0))
        self.runs[claim.instance_id].claims[claim.task_id] = claim

    def adopt_birth(self, snapshot: WorkflowSnapshot) -> None:
        """Take over the incarnation that the store chose."""
        run = self.runs[snapshot.instance_id]
        run.body = replace(run.body, incarnation=snapshot.incarnation)

    # Snapshots.

    def start_instance(
        self,
        instance_id: str,
        definition_hash: str,
        *,
        start_at: str | Position,
        input: bytes | None = None,
        priority: int = 3,
        tags: Sequence[str] = (),
        on_conflict: ConflictPolicy = ConflictPolicy.FAIL,
    ) -> StartOutcome:
        """Create an instance, or do what the policy says."""
        first = WorkflowSnapshot.start(
            instance_id,
            definition_hash,
            start_at=start_at,
            input=input,
            priority=priority,
            tags=tags,
        )

        if run := self.runs.get(instance_id):
            stored = run.body

            if stored.definition_hash != definition_hash:
                raise DefinitionMismatchError(
                    instance_id, expected=definition_hash, found=stored.definition_hash
                )

            if on_conflict is ConflictPolicy.FAIL:
                raise InstanceExistsError(instance_id, stored.status)

            if on_conflict is ConflictPolicy.USE_EXISTING:
                return StartOutcome(self.view(instance_id), created=False)

            self.delete_snapshot(instance_id)

        self._create(first)
        return StartOutcome(self.view(instance_id), created=True)

    def save_snapshot(
        self, snapshot: WorkflowSnapshot, *, overwrite: bool = False
    ) -> WorkflowSnapshot:
        """Create, replace by compare-and-swap, or replace blindly."""
        instance_id = snapshot.instance_id
        run = self.runs.get(instance_id)

        if overwrite and not snapshot.results.loaded:
            raise InvalidArgumentError("the results were not loaded")

        if run is None and (overwrite or snapshot.version == 0):
            self._create(snapshot)
            return self.view(instance_id)

        if overwrite:
            run = self._guard(instance_id, becomes=snapshot.status)
            new = snapshot if snapshot.version else never_stored(snapshot)
            self._write(run, new, results=dict(snapshot.results))
        elif snapshot.version == 0:
            raise InstanceExistsError(instance_id, self.view(instance_id).status)
        else:
            run = self._guard(instance_id, given=snapshot, becomes=snapshot.status)
            self._write(run, snapshot)

        self._drain(run)
        return self.view(instance_id)

    def update_snapshot(
        self, instance_id: str, change: Change, *, claim: TaskClaim | None = None
    ) -> WorkflowSnapshot:
        """Apply a pure change to what is stored."""
        run = self._guard(instance_id, claim=claim)
        before = self.view(instance_id)
        after = change(before)

        if after is before:
            return before

        self._guard(instance_id, claim=claim, given=before, becomes=after.status)
        self._write(run, after, keep=claim)
        self._drain(run)
        return self.view(instance_id)

    def save_task_result(
        self, instance_id: str, task_id: str, output: bytes, *, claim: TaskClaim | None = None
    ) -> int:
        """Record the result of a task without moving the position."""
        run = self._guard(instance_id, claim=claim)
        view = self.view(instance_id)
        to_mark = any(t.task_id == task_id and not t.done for t in view.ready_tasks())

        if run.body.results.get(task_id) == output and not to_mark:
            return run.body.version

        def mark(leaf: Leaf) -> Leaf:
            if isinstance(leaf, AtTask) and leaf.task_id == task_id:
                return replace(leaf, done=True)

            return leaf

        recorded = view.record_result(task_id, output)

        if view.position is not None:
            recorded = at(recorded, changed_leaves(view.position, mark))

        self._write(run, recorded)
        return run.body.version

    def load_task_result(self, instance_id: str, task_id: str) -> bytes | None:
        """The result that is written for a task."""
        return self._run(instance_id).body.results.get(task_id)

    def delete_snapshot(self, instance_id: str) -> None:
        """Remove everything but the memory of the fences."""
        self._run(instance_id)
        del self.runs[instance_id]
        self.queues.pop(instance_id, None)
        self._event_ids.pop(instance_id, None)

    def list_snapshots(
        self,
        *,
        status: Status | None = None,
        definition_hash: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[SnapshotInfo]:
        """A page of instances, by the bytes of their ids."""
        wanted = [
            info_of(run.body)
            for instance_id, run in sorted(self.runs.items(), key=lambda item: item[0].encode())
            if (status is None or run.body.status is status)
            and (definition_hash is None or run.body.definition_hash == definition_hash)
            and (after is None or instance_id.encode() > after.encode())
        ]
        return wanted[: max(limit, 0)]

    # Claims.

    def claim_task(
        self,
        instance_id: str,
        task_id: str,
        *,
        worker_id: str,
        ttl: timedelta | None,
        tags: Sequence[str] = (),
        nonce: str | None = None,
    ) -> TaskClaim | None:
        """Claim a current task, if nobody else holds it."""
        run = self._run(instance_id)
        record = run.claims.get(task_id)

        if record is not None and self.is_live(record):
            mine = nonce is not None and (record.worker_id, record.nonce) == (worker_id, nonce)
            return record if mine else None

        undo = self._remember(instance_id)

        while not self._can_be_claimed(run, task_id) and self.advance_is_due(run):
            self.advance(run)

        if not self._can_be_claimed(run, task_id):
            self._restore(instance_id, undo)
            return None

        return self._claim(run, task_id, worker_id, ttl, tags, nonce or "")

    def find_available_tasks(
        self,
        *,
        worker_id: str,
        limit: int = 10,
        tags: Sequence[str] = (),
        definition_hashes: Collection[str] | None = None,
    ) -> list[AvailableTask]:
        """What may be run now, in the exact order of dispatch."""
        if limit <= 0:
            return []

        for run in self.runs.values():
            if definition_hashes is None or run.body.definition_hash in definition_hashes:
                self._advance_all(run)

        offers = [
            (self._order_key(run, view, task, worker_id), view, task)
            for run, view, task in self._offers(tags, definition_hashes)
        ]
        offers.sort(key=lambda offer: offer[0])
        return [available(view, task) for _, view, task in offers[:limit]]

    def acquire_tasks(
        self,
        *,
        worker_id: str,
        ttl: timedelta | None,
        limit: int = 1,
        tags: Sequence[str] = (),
        definition_hashes: Collection[str] | None = None,
    ) -> list[AcquiredTask]:
        """Find and claim."""
        found = self.find_available_tasks(
            worker_id=worker_id, limit=limit, tags=tags, definition_hashes=definition_hashes
        )
        return [
            acquired(
                task,
                self._claim(self.runs[task.instance_id], task.task_id, worker_id, ttl, tags, ""),
            )
            for task in found
        ]

    def extend_task_claim(self, claim: TaskClaim, *, ttl: timedelta) -> TaskClaim:
        """Let a live claim end `ttl` from now."""
        run, record = self._own_record(claim)

        if not self.is_live(record):
            raise ClaimLostError(claim.instance_id, claim.task_id, record.worker_id)

        expires_at = None if record.expires_at is None else self.now + ttl
        extended = replace(record, expires_at=expires_at, pending_signal=pending(run))
        run.claims[claim.task_id] = extended
        return extended

    def release_task_claim(self, claim: TaskClaim) -> None:
        """Remove the record of one's own claim."""
        run, _ = self._own_record(claim)
        del run.claims[claim.task_id]

    def revoke_task_claim(self, instance_id: str, task_id: str) -> TaskClaim | None:
        """Remove a live claim, whoever holds it."""
        run = self._run(instance_id)
        record = run.claims.get(task_id)

        if record is None or not self.is_live(record):
            return None

        return run.claims.pop(task_id)

    def commit_task(
        self,
        claim: TaskClaim,
        work: WorkflowSnapshot | Change,
        *,
        claim_next: timedelta | None = None,
    ) -> Commit:
        """Write, release the claim, and perhaps claim what the write made ready."""
        instance_id = claim.instance_id

        if isinstance(work, WorkflowSnapshot):
            before, after = None, work
        else:
            self._guard(instance_id, claim=claim)
            before = self.view(instance_id)
            after = work(before)

        run = self._guard(instance_id, claim=claim, given=before or after, becomes=after.status)
        del run.claims[claim.task_id]
        fresh = fresh_tasks(after)

        if after is not before:
            self._write(run, after)

        if run.signals:
            if not self.has_live_claim(run):
                self.check_control_signals(instance_id)

            return Commit(self.view(instance_id), None)

        drained = self._drain(run)
        view = self.view(instance_id)

        if claim_next is None or drained or after is before:
            return Commit(view, None)

        for task in view.ready_tasks():
            if task.task_id in fresh and self._is_offered(run, view, task, claim.worker_tags):
                record = self._claim(
                    run, task.task_id, claim.worker_id, claim_next, claim.worker_tags, claim.nonce
                )
                return Commit(view, acquired(available(view, task), record))

        return Commit(view, None)

    def find_stalled(self, *, idle_for: timedelta) -> list[SnapshotInfo]:
        """Instances of which dispatch can never offer anything."""
        return [
            info_of(run.body)
            for instance_id, run in self.runs.items()
            if run.body.status is Status.IN_PROGRESS
            and not self.has_live_claim(run)
            and run.body.updated_at is not None
            and self.now - run.body.updated_at >= idle_for
            and all(
                isinstance(leaf, AtNode) or (isinstance(leaf, AtTask) and leaf.done)
                for leaf in open_leaves(self.view(instance_id).position)
            )
        ]

    def sweep(self) -> SweepReport:
        """Apply what is due on instances that nobody works on, and purge old claims."""
        applied: dict[SignalKind, list[str]] = {SignalKind.CANCEL: [], SignalKind.PAUSE: []}
        advanced: list[str] = []

        for instance_id, run in self.runs.items():
            if self.has_live_claim(run):
                continue

            if kind := self.check_control_signals(instance_id):
                applied[kind].append(instance_id)
            elif self._advance_all(run):
                advanced.append(instance_id)

        return SweepReport(
            cancelled=tuple(applied[SignalKind.CANCEL]),
            paused=tuple(applied[SignalKind.PAUSE]),
            advanced=tuple(advanced),
            purged_claims=self._purge(),
            more=False,
        )

    # Control signals.

    def store_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> None:
        """Leave a request, where the status allows one."""
        run = self._run(instance_id)
        status = run.body.status

        match kind, status:
            case SignalKind.CANCEL, Status.COMPLETED | Status.FAILED:
                raise CannotCancelError(instance_id, status)
            case SignalKind.PAUSE, Status.COMPLETED | Status.FAILED | Status.CANCELLED:
                raise CannotPauseError(instance_id, status)
            case (SignalKind.CANCEL, Status.CANCELLED) | (SignalKind.PAUSE, Status.PAUSED):
                pass
            case _:
                run.signals[kind] = replace(request or SignalRequest(), requested_at=self.now)

    def get_signal(self, instance_id: str, kind: SignalKind) -> SignalRequest | None:
        """The request that waits, if any."""
        run = self.runs.get(instance_id)
        return run.signals.get(kind) if run else None

    def clear_signal(self, instance_id: str, kind: SignalKind) -> None:
        """Take a request back."""
        if run := self.runs.get(instance_id):
            run.signals.pop(kind, None)

    def request_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> Status:
        """Leave a request, and apply what waits if nobody works on the instance."""
        self.store_signal(instance_id, kind, request)
        run = self._run(instance_id)

        if not self.has_live_claim(run):
            self.check_control_signals(instance_id)

        return run.body.status

    def check_and_cancel(self, instance_id: str, *, interrupted_at_task: str | None = None) -> bool:
        """Apply a pending cancel."""
        run = self.runs.get(instance_id)

        if run is None or SignalKind.CANCEL not in run.signals:
            return False

        request = run.signals[SignalKind.CANCEL]
        view = self.view(instance_id)
        self._write(run, view.cancel(request, interrupted_at_task=interrupted_at_task))
        return True

    def check_and_pause(self, instance_id: str) -> bool:
        """Apply a pending pause, unless a cancel waits as well."""
        run = self.runs.get(instance_id)

        if run is None or run.body.status is not Status.IN_PROGRESS:
            return False

        if SignalKind.CANCEL in run.signals or SignalKind.PAUSE not in run.signals:
            return False

        request = run.signals.pop(SignalKind.PAUSE)
        self._write(run, self.view(instance_id).pause(request))
        return True

    def check_control_signals(
        self, instance_id: str, *, interrupted_at_task: str | None = None
    ) -> SignalKind | None:
        """Apply what waits; a cancel wins."""
        if self.check_and_cancel(instance_id, interrupted_at_task=interrupted_at_task):
            return SignalKind.CANCEL

        return SignalKind.PAUSE if self.check_and_pause(instance_id) else None

    def unpause(self, instance_id: str) -> WorkflowSnapshot:
        """Go on where the pause stopped."""
        run = self._run(instance_id)

        if run.body.status is not Status.PAUSED:
            raise CannotPauseError(instance_id, run.body.status)

        self._write(run, self.view(instance_id).unpause())
        run.signals.pop(SignalKind.PAUSE, None)
        return self.view(instance_id)

    # Events.

    def send_event(
        self, instance_id: str, name: str, payload: bytes, *, event_id: str | None = None
    ) -> None:
        """Queue an event, or hand it to a wait at once."""
        seen = self._event_ids.setdefault(instance_id, set())

        if event_id is not None and (name, event_id) in seen:
            return

        queues = self.queues.setdefault(instance_id, {})
        queued = sum(map(len, queues.values()))
        queue = queues.setdefault(name, [])
        queue.append(Event(payload, self.now))
        run = self.runs.get(instance_id)
        drained = self._drain(run) if run else 0

        if not drained and queued >= self._max_queued_events:
            queue.pop()
            raise EventQueueFullError(instance_id, self._max_queued_events)

        if event_id is not None:
            seen.add((name, event_id))

    def consume_event(self, instance_id: str, name: str) -> bytes | None:
        """Take the oldest event of a name."""
        queue = self.queues.get(instance_id, {}).get(name)
        return queue.pop(0).payload if queue else None

    def drain_signal(
        self, instance_id: str, *, version: int | None = None
    ) -> WorkflowSnapshot | None:
        """Hand the oldest event to the first wait that it meets."""
        run = self._run(instance_id)

        if version is not None and version != run.body.version:
            raise StaleSnapshotError(instance_id, version, run.body.version)

        if self._first_met(run) is None:
            return None

        self.advance(run)
        return self.view(instance_id)

    # Elapsed time.

    def view(self, instance_id: str) -> WorkflowSnapshot:
        """The stored snapshot as it shows now: every park that ended gives way to its `next`."""
        body = self._run(instance_id).body
        horizon = self.now

        if isinstance(body.state, Paused) and body.status_since is not None:
            horizon = min(horizon, body.status_since)

        while True:
            ended = [
                (ends_at, park)
                for park in open_leaves(body.position)
                if isinstance(park, AtDelay | AtSignal)
                and (ends_at := park.ends_at) is not None
                and ends_at <= horizon
                and not self._is_met(instance_id, park)
                and not ends_workflow(body, park)
            ]

            if not ended:
                return body

            ends_at, park = min(ended, key=lambda item: item[0])
            body = passed(body, park, ends_at)

    def advance_is_due(self, run: Run) -> bool:
        """Whether something has to be written before dispatch can go on."""
        if run.body.status is not Status.IN_PROGRESS or run.signals:
            return False

        if self._first_met(run) is not None:
            return True

        return any(
            isinstance(leaf, AtDelay | AtSignal) and self._leads_elsewhere(leaf)
            for leaf in open_leaves(run.body.position)
        )

    def advance(self, run: Run) -> None:
        """Write one move that is due: an event that met a wait, an end, or elapsed time."""
        instance_id = run.body.instance_id
        view = self.view(instance_id)

        if wait := self._first_met(run):
            event = self.queues[instance_id][wait.name].pop(0)
            self._write(run, answered(view, wait, event))
            return

        for park in open_leaves(view.position):
            if not isinstance(park, AtDelay | AtSignal) or park.ends_at is None:
                continue

            if park.ends_at <= self.now:
                self._write(run, ended(view, park))
                return

        self._write(run, view)

    def instants(self) -> list[datetime]:
        """When something will change by time alone, in ascending order."""
        instants: set[datetime | None] = set()

        for instance_id, run in self.runs.items():
            view = self.view(instance_id)
            instants.update(claim.expires_at for claim in run.claims.values())
            instants.update(retry.retry_at for retry in view.retries.values())
            instants.update(
                leaf.ends_at
                for leaf in open_leaves(view.position)
                if isinstance(leaf, AtDelay | AtSignal)
            )

        return sorted(instant for instant in instants if instant and instant > self.now)

    def is_live(self, claim: TaskClaim) -> bool:
        """Whether a claim is valid by the store's clock."""
        return claim.expires_at is None or self.now < claim.expires_at

    def has_live_claim(self, run: Run) -> bool:
        """Whether anybody works on the instance."""
        return any(map(self.is_live, run.claims.values()))

    def _advance_all(self, run: Run) -> bool:
        due = self.advance_is_due(run)

        while self.advance_is_due(run):
            self.advance(run)

        return due

    def _leads_elsewhere(self, park: Park) -> bool:
        ends_at, following = park.ends_at, park.next

        while ends_at is not None and isinstance(following, AtDelay):
            ends_at = replace(following, entered_at=ends_at).ends_at
            following = following.next

        return ends_at is not None and ends_at <= self.now and not isinstance(following, AtTask)

    def _is_met(self, instance_id: str, leaf: Leaf) -> bool:
        if not isinstance(leaf, AtSignal) or leaf.entered_at is None:
            return False

        if not (queue := self.queues.get(instance_id, {}).get(leaf.name)):
            return False

        arrived_at = queue[0].arrived_at
        in_time = leaf.ends_at is None or arrived_at < leaf.ends_at
        return in_time or arrived_at <= leaf.entered_at

    def _first_met(self, run: Run, *, written: bool = False) -> AtSignal | None:
        if run.body.status is not Status.IN_PROGRESS or run.signals:
            return None

        instance_id = run.body.instance_id
        position = run.body.position if written else self.view(instance_id).position

        for leaf in open_leaves(position):
            if isinstance(leaf, AtSignal) and self._is_met(instance_id, leaf):
                return leaf

        return None

    def _drain(self, run: Run) -> int:
        """Hand over every event that meets a wait that the last write entered."""
        drained = 0

        while self._first_met(run, written=True):
            self.advance(run)
            drained += 1

        return drained

    # Writing.

    def _run(self, instance_id: str) -> Run:
        if (run := self.runs.get(instance_id)) is None:
            raise InstanceNotFoundError(instance_id)

        return run

    def _guard(
        self,
        instance_id: str,
        *,
        claim: TaskClaim | None = None,
        given: WorkflowSnapshot | None = None,
        becomes: Status | None = None,
    ) -> Run:
        """The order of checks: no row, terminal, fence, paused, version and incarnation."""
        run = self.runs.get(instance_id)

        if run is None:
            if claim is not None:
                raise ClaimLostError(instance_id, claim.task_id)

            if given is not None:
                raise StaleSnapshotError(instance_id, given.version, None)

            raise InstanceNotFoundError(instance_id)

        stored = run.body

        if stored.status.is_terminal:
            raise TerminalStateError(instance_id, stored.status)

        if claim is not None:
            record = run.claims.get(claim.task_id)

            if record is None or record.fence != claim.fence or not self.is_live(record):
                raise ClaimLostError(
                    instance_id, claim.task_id, record.worker_id if record else None
                )

        current = given is not None and (given.version, given.incarnation) == (
            stored.version,
            stored.incarnation,
        )

        if stored.status is Status.PAUSED and becomes is not None:
            ends = becomes in (Status.COMPLETED, Status.FAILED)
            allowed = current and (claim is not None or not ends)

            if becomes is not Status.PAUSED and not allowed:
                raise InstancePausedError(instance_id)

        if given is not None and not current:
            raise StaleSnapshotError(instance_id, given.version, stored.version)

        return run

    def _create(self, snapshot: WorkflowSnapshot) -> None:
        self.nodes.update(node_ids(snapshot.position))
        new = stamped(never_stored(snapshot), self.now, self.now)
        run = self.runs[snapshot.instance_id] = Run(
            replace(
                new,
                version=1,
                created_at=self.now,
                updated_at=self.now,
                results=Results(dict(snapshot.results)),
            )
        )
        self._drain(run)

    def _write(
        self,
        run: Run,
        new: WorkflowSnapshot,
        *,
        keep: TaskClaim | None = None,
        results: dict[str, bytes] | None = None,
    ) -> None:
        old = run.body
        self.nodes.update(node_ids(new.position))

        if results is None:
            results = merged(dict(old.results), new.results, self.nodes)

        since = old.status_since if new.status is old.status else self.now
        run.body = replace(
            stamped(new, self.now, since or self.now),
            version=old.version + 1,
            incarnation=old.incarnation,
            created_at=old.created_at,
            updated_at=self.now,
            results=Results(results),
        )

        entered = tasks_in_line(new.position) - tasks_in_line(old.position)

        for task_id in entered | fresh_tasks(new):
            if keep is None or keep.task_id != task_id:
                run.claims.pop(task_id, None)

        if run.body.status.is_terminal:
            run.claims.clear()
            run.signals.clear()

    def _remember(self, instance_id: str) -> tuple[Run, dict[str, list[Event]]]:
        run = self.runs[instance_id]
        copy = Run(run.body, dict(run.signals), dict(run.claims))
        return copy, deepcopy(self.queues.get(instance_id, {}))

    def _restore(self, instance_id: str, undo: tuple[Run, dict[str, list[Event]]]) -> None:
        self.runs[instance_id], self.queues[instance_id] = undo

    # Claiming and offering.

    def _own_record(self, claim: TaskClaim) -> tuple[Run, TaskClaim]:
        run = self.runs.get(claim.instance_id)
        record = run.claims.get(claim.task_id) if run else None

        if run is None or record is None:
            raise ClaimNotFoundError(claim.instance_id, claim.task_id)

        if record.fence != claim.fence:
            raise ClaimLostError(claim.instance_id, claim.task_id, record.worker_id)

        return run, record

    def _claim(
        self,
        run: Run,
        task_id: str,
        worker_id: str,
        ttl: timedelta | None,
        tags: Sequence[str],
        nonce: str,
    ) -> TaskClaim:
        instance_id = run.body.instance_id
        claim = TaskClaim(
            instance_id,
            task_id,
            worker_id,
            fence=self.fences.get(instance_id, 0) + 1,
            claimed_at=self.now,
            expires_at=None if ttl is None else self.now + ttl,
            nonce=nonce,
            worker_tags=tuple(tags),
            pending_signal=pending(run),
        )
        run.claims[task_id] = claim
        return claim

    def _can_be_claimed(self, run: Run, task_id: str) -> bool:
        """Whether the task is current without anything having to be written first."""
        view = self.view(run.body.instance_id)
        written = tasks_in_line(run.body.position)
        current = {task.task_id for task in view.ready_tasks()}
        return view.status is Status.IN_PROGRESS and task_id in current & written

    def _offers(
        self, tags: Sequence[str], definition_hashes: Collection[str] | None
    ) -> Iterator[tuple[Run, WorkflowSnapshot, AtTask]]:
        for instance_id, run in self.runs.items():
            if definition_hashes is not None and run.body.definition_hash not in definition_hashes:
                continue

            if run.body.status is not Status.IN_PROGRESS or run.signals:
                continue

            view = self.view(instance_id)

            for task in view.ready_tasks():
                if self._is_offered(run, view, task, tags):
                    yield run, view, task

    def _is_offered(
        self, run: Run, view: WorkflowSnapshot, task: AtTask, accepted: Sequence[str]
    ) -> bool:
        record = run.claims.get(task.task_id)
        retry = view.retries.get(task.task_id)
        backs_off = retry is not None and retry.retry_at is not None and retry.retry_at > self.now
        tags = view.tags if task.tags is None else task.tags
        return (
            view.status is Status.IN_PROGRESS
            and not task.done
            and not backs_off
            and (not accepted or set(tags) <= set(accepted))
            and (record is None or not self.is_live(record))
        )

    def _order_key(
        self, run: Run, view: WorkflowSnapshot, task: AtTask, worker_id: str
    ) -> tuple[bool, int, datetime, bytes, bytes]:
        assert task.ready_at is not None
        record = run.claims.get(task.task_id)
        since = task.ready_at

        if record is not None and record.expires_at is not None:
            since = max(since, record.expires_at)

        retry = view.retries.get(task.task_id)
        bias_ends = task.ready_at + (self._aging_interval or BIAS_WITHOUT_AGING)
        biased = retry is not None and retry.last_worker == worker_id and self.now < bias_ends
        priority = view.priority if task.priority is None else task.priority
        micro = timedelta(microseconds=1)

        if self._aging_interval is not None:
            # priority - age / interval, times the interval, is free of fractions.
            priority = priority * (self._aging_interval // micro) - (self.now - since) // micro

        return biased, priority, since, view.instance_id.encode(), task.task_id.encode()

    def _purge(self) -> int:
        purged = 0

        for run in self.runs.values():
            for task_id, claim in list(run.claims.items()):
                if claim.expires_at is not None and claim.expires_at + CLAIMS_KEPT < self.now:
                    del run.claims[task_id]
                    purged += 1

        return purged


# Trees of positions.


def open_leaves(position: Position | None) -> list[Leaf]:
    """The open leaves, in tree order."""
    if position is None:
        return []

    if not isinstance(position, AtFork):
        return [position]

    return [leaf for branch in position.branches.values() for leaf in open_leaves(branch)]


def node_ids(position: Position | None) -> Iterator[str]:
    """Every node id of the tree, `next`s included."""
    if position is None:
        return

    yield position.node_id

    if isinstance(position, AtFork):
        for branch in position.branches.values():
            yield from node_ids(branch)

    if isinstance(position, AtDelay | AtSignal | AtFork):
        yield from node_ids(position.next)


def opened(position: Position | None) -> Position | None:
    """What is entered when a position is: a fork without open branches is its `next`."""
    if not isinstance(position, AtFork):
        return position

    branches = {key: opened(branch) for key, branch in position.branches.items()}
    return replace(position, branches=branches) if any(branches.values()) else opened(position.next)


def changed_leaves(position: Position, change: Callable[[Leaf], Leaf]) -> Position:
    """The tree with every open leaf changed."""
    if not isinstance(position, AtFork):
        return change(position)

    branches = {
        key: None if branch is None else changed_leaves(branch, change)
        for key, branch in position.branches.items()
    }
    return replace(position, branches=branches)


def replaced(
    position: Position, node_id: str, following: Position | None, ended_at: datetime, enter: Enter
) -> tuple[Position | None, datetime]:
    """The tree with `following` in the place of a leaf, and when it ended if nothing is left."""
    if not isinstance(position, AtFork):
        new = opened(following)
        return (enter(new, ended_at) if new else None), ended_at

    key, branch = next(
        (key, branch)
        for key, branch in position.branches.items()
        if branch is not None and node_id in {leaf.node_id for leaf in open_leaves(branch)}
    )
    new_branch, branch_ended_at = replaced(branch, node_id, following, ended_at, enter)
    branches = {**position.branches, key: new_branch}
    joined_at = position.joined_at

    if new_branch is None:
        joined_at = max(branch_ended_at, joined_at or branch_ended_at)

    if any(branches.values()):
        return replace(position, branches=branches, joined_at=joined_at), ended_at

    joined_at = joined_at or branch_ended_at
    new = opened(position.next)
    return (enter(new, joined_at) if new else None), joined_at


def fresh_tasks(snapshot: WorkflowSnapshot) -> set[str]:
    """The tasks that the write of this snapshot enters, or will be entered by time alone."""
    fresh: set[str] = set()

    for leaf in open_leaves(snapshot.position):
        if isinstance(leaf, AtTask) and leaf.ready_at is None:
            fresh.add(leaf.task_id)
        elif isinstance(leaf, AtDelay | AtSignal) and leaf.entered_at is None:
            fresh |= tasks_in_line(leaf)

    return fresh


def tasks_in_line(position: Position | None) -> set[str]:
    """The tasks that are open, or will be by time alone, with nothing but delays in between."""
    tasks: set[str] = set()

    for leaf in open_leaves(position):
        following: Position | None = leaf

        if isinstance(leaf, AtSignal):
            endless = leaf.wake_after is None and leaf.wake_at is None
            following = None if endless else leaf.next

        while isinstance(following, AtDelay):
            following = following.next

        if isinstance(following, AtTask):
            tasks.add(following.task_id)

    return tasks


# Snapshots.


def at(snapshot: WorkflowSnapshot, position: Position) -> WorkflowSnapshot:
    """The snapshot at another position."""
    assert isinstance(snapshot.state, InProgress | Paused)
    return replace(snapshot, state=replace(snapshot.state, position=position))


def never_stored(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    """The snapshot without what a store stamps."""

    def strip(position: Position | None) -> Position | None:
        match position:
            case AtTask():
                return replace(position, ready_at=None, reason=None, done=False)
            case AtDelay() | AtSignal():
                return replace(position, entered_at=None)
            case AtFork():
                branches = {key: strip(branch) for key, branch in position.branches.items()}
                return replace(position, branches=branches, joined_at=None)
            case AtNode() | None:
                return position

    retries = {key: replace(retry, retry_at=None) for key, retry in snapshot.retries.items()}
    bare = replace(snapshot, retries=retries, version=0, incarnation="")

    if snapshot.position is None:
        return bare

    first = opened(strip(snapshot.position))
    return bare.complete(b"") if first is None else at(bare, first)


def stamped(snapshot: WorkflowSnapshot, now: datetime, since: datetime) -> WorkflowSnapshot:
    """The snapshot as a write at `now` leaves it, with its status unchanged since `since`."""
    retries = {
        task_id: replace(retry, retry_at=now + retry.retry_after)
        if retry.retry_after is not None and retry.retry_at is None
        else retry
        for task_id, retry in snapshot.retries.items()
    }
    snapshot = replace(snapshot, retries=retries, status_since=since)

    def stamp(position: Position) -> Position:
        match position:
            case AtTask(ready_at=None):
                return ready(snapshot, position, now, ReadyReason.TASK)
            case AtTask():
                assert position.ready_at is not None
                return replace(position, ready_at=not_before(snapshot, position.ready_at))
            case AtDelay(entered_at=None) | AtSignal(entered_at=None):
                return replace(position, entered_at=now)
            case AtFork():
                return stamp_fork(position)
            case _:
                return position

    def stamp_fork(fork: AtFork) -> AtFork:
        branches = {key: branch and stamp(branch) for key, branch in fork.branches.items()}
        joined_at = fork.joined_at

        if joined_at is None and None in branches.values():
            joined_at = now

        return replace(fork, branches=branches, joined_at=joined_at)

    return snapshot if snapshot.position is None else at(snapshot, stamp(snapshot.position))


def not_before(snapshot: WorkflowSnapshot, instant: datetime) -> datetime:
    """Nothing is ready before its instance is in progress."""
    if isinstance(snapshot.state, InProgress) and snapshot.status_since is not None:
        return max(instant, snapshot.status_since)

    return instant


def ready(
    snapshot: WorkflowSnapshot, task: AtTask, instant: datetime, reason: ReadyReason
) -> AtTask:
    """The task as entered at `instant`; one that backs off is ready when its retry is due."""
    retry = snapshot.retries.get(task.task_id)

    if retry is not None and retry.retry_at is not None:
        instant = max(instant, retry.retry_at)
        reason = ReadyReason.RETRY if reason is ReadyReason.TASK else reason

    return replace(task, ready_at=not_before(snapshot, instant), reason=reason)


def entering(snapshot: WorkflowSnapshot, reason: ReadyReason) -> Enter:
    """How a position is entered at an instant of the past."""

    def enter(position: Position, instant: datetime) -> Position:
        match position:
            case AtTask():
                return ready(snapshot, position, instant, reason)
            case AtDelay() | AtSignal():
                return replace(position, entered_at=instant)
            case AtFork():
                branches = {
                    key: branch and enter(branch, instant)
                    for key, branch in position.branches.items()
                }
                joined_at = instant if None in branches.values() else None
                return replace(position, branches=branches, joined_at=joined_at)
            case AtNode():
                return position

    return enter


def passed(snapshot: WorkflowSnapshot, park: Park, ends_at: datetime) -> WorkflowSnapshot:
    """The snapshot past a park that ended by time, with more to follow."""
    reason = ReadyReason.DELAY_ELAPSED

    if isinstance(park, AtSignal):
        snapshot, reason = timed_out(snapshot, park), ReadyReason.SIGNAL_TIMEOUT

    assert snapshot.position is not None
    enter = entering(snapshot, reason)
    position, _ = replaced(snapshot.position, park.node_id, park.next, ends_at, enter)
    assert position is not None
    return at(snapshot, position)


def answered(snapshot: WorkflowSnapshot, wait: AtSignal, event: Event) -> WorkflowSnapshot:
    """The snapshot past a wait that met its event."""
    assert snapshot.position is not None
    at_root = snapshot.position == wait and wait.next is None
    recorded = snapshot.record_result(wait.node_id, event.payload)
    met_at = max(event.arrived_at, wait.entered_at or event.arrived_at)
    enter = entering(snapshot, ReadyReason.EVENT)
    position, _ = replaced(snapshot.position, wait.node_id, wait.next, met_at, enter)

    if position is None:
        return recorded.complete(event.payload if at_root else b"")

    return at(recorded, position)


def ended(snapshot: WorkflowSnapshot, park: Park) -> WorkflowSnapshot:
    """The snapshot completed by the last park, which ended by time."""
    if isinstance(park, AtSignal):
        return timed_out(snapshot, park).complete(b"")

    at_root = snapshot.position == park and park.next is None
    return snapshot.complete(snapshot.results.get(park.node_id, b"") if at_root else b"")


def timed_out(snapshot: WorkflowSnapshot, wait: AtSignal) -> WorkflowSnapshot:
    """The snapshot with a wait marked as ended without its event."""
    recorded = snapshot.record_result(wait.node_id, b"")
    return replace(recorded, timed_out=recorded.timed_out | {wait.node_id})


def ends_workflow(snapshot: WorkflowSnapshot, park: Park) -> bool:
    """Whether nothing is left once this park has ended."""
    assert snapshot.position is not None
    epoch = park.entered_at
    assert epoch is not None
    position, _ = replaced(
        snapshot.position, park.node_id, park.next, epoch, lambda position, _: position
    )
    return position is None


def merged(
    stored: dict[str, bytes], given: Mapping[str, bytes], nodes: Collection[str]
) -> dict[str, bytes]:
    """What is stored after a write: what was gained comes, what was forgotten goes."""
    if not isinstance(given, Results) or given.loaded:
        return dict(given)

    for node_id in {*nodes, *stored, *given.at_hand()}:
        try:
            stored[node_id] = given[node_id]
        except ResultsNotLoadedError:
            continue
        except KeyError:
            stored.pop(node_id, None)

    return stored


def pending(run: Run) -> SignalKind | None:
    """What a claim reports: a cancel wins."""
    return next((kind for kind in SignalKind if kind in run.signals), None)


def available(view: WorkflowSnapshot, task: AtTask) -> AvailableTask:
    """How a task is handed out."""
    retry = view.retries.get(task.task_id)
    source = task.input_from

    input = view.results.get(source) if source else None

    if source == INSTANCE_INPUT:
        input = view.input

    return AvailableTask(
        instance_id=view.instance_id,
        task_id=task.task_id,
        definition_hash=view.definition_hash,
        reason=task.reason or ReadyReason.TASK,
        attempt=1 + (retry.attempts if retry else 0),
        input=input,
        trace_parent=view.trace_parent,
        snapshot=view,
    )


def acquired(task: AvailableTask, claim: TaskClaim) -> AcquiredTask:
    """How a task is handed out together with its claim."""
    return AcquiredTask(
        instance_id=task.instance_id,
        task_id=task.task_id,
        definition_hash=task.definition_hash,
        reason=task.reason,
        attempt=task.attempt,
        input=task.input,
        trace_parent=task.trace_parent,
        snapshot=task.snapshot,
        claim=claim,
    )


def info_of(body: WorkflowSnapshot) -> SnapshotInfo:
    """What a listing shows of an instance."""
    assert body.created_at is not None
    assert body.updated_at is not None
    assert body.status_since is not None
    return SnapshotInfo(
        body.instance_id,
        body.definition_hash,
        body.status,
        body.version,
        body.created_at,
        body.updated_at,
        body.status_since,
        body.priority,
        body.tags,
    )
