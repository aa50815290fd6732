"""`StandardBackend`: the whole public API, written once over a `Driver`."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, overload

from msgspec.structs import replace

from sayiir_persist.body import arrivals, settled
from sayiir_persist.claims import (
    AcquiredTask,
    AvailableTask,
    Commit,
    SweepReport,
    TaskClaim,
    WakeHint,
)
from sayiir_persist.codecs import register_codec
from sayiir_persist.dispatch import settle
from sayiir_persist.driver import (
    Answer,
    Chores,
    ClaimKey,
    ClaimNext,
    Driver,
    Extend,
    Guard,
    Offer,
    Opened,
    Page,
    Poll,
    Presence,
    Push,
    Record,
    Refusal,
    SignalMark,
    Take,
    Unit,
)
from sayiir_persist.engine import MAX_ATTEMPTS, Engine, can_move, drain_step, required
from sayiir_persist.errors import (
    BackendError,
    CannotCancelError,
    CannotPauseError,
    ClaimNotFoundError,
    CodecError,
    ContentionError,
    InstanceExistsError,
    InstanceNotFoundError,
    InstancePausedError,
    InvalidArgumentError,
    InvalidTransitionError,
    StaleSnapshotError,
)
from sayiir_persist.options import DEFAULT_AGING, Options, read_options
from sayiir_persist.positions import INSTANCE_INPUT, Position
from sayiir_persist.protocols import BackendInfo
from sayiir_persist.signals import SignalKind, SignalRequest
from sayiir_persist.snapshot import (
    Change,
    ConflictPolicy,
    SnapshotInfo,
    StartOutcome,
    Status,
    WorkflowSnapshot,
    marked_done,
    never_stored,
)
from sayiir_persist.validation import (
    MICROSECOND,
    check_definitions,
    check_duration,
    check_id,
    check_limit,
    check_member,
    check_payload,
    check_tags,
    check_text,
    check_ttl,
    from_micros,
)
from sayiir_persist.values import (
    attempt_of,
    available_task,
    claim_of,
    facts_of,
    info_of,
    input_of,
    pending_mark,
    request_of,
    stored_form,
    with_all_results,
    with_results_of,
)
from sayiir_persist.writes import OPEN, PAUSED, RUNNING, claim_lost, key_of, refusal, save_guard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

ADVANCES_PER_POLL: Final = 100
PURGE_AFTER: Final = timedelta(hours=1)

D = TypeVar("D", bound=Driver)
A = TypeVar("A", bound=AvailableTask)


class StandardBackend(Generic[D]):
    """Every operation of the public API over the eleven methods of a `Driver`.

    A composite is always the same loop: read, decide (pure), write under a guard; again if
    somebody else was faster. Subclasses hold constructors, nothing else.

    Args:
        driver: Makes the driver from the options.
        options: See `sayiir_persist.connect`.
    """

    def __init__(self, driver: Callable[[Options], D], **options: Any) -> None:
        chosen = read_options(options)
        register_codec(chosen.codec)  # what it writes, it can read
        self._engine = Engine(driver(chosen), chosen)

    @property
    def info(self) -> BackendInfo:
        """What this backend is and what it cannot promise."""
        options, opened = self._engine.options, self._engine.opened or Opened()
        return BackendInfo(
            name=self._engine.name,
            namespace=options.namespace,
            server=opened.server,
            codec=options.codec.name,
            limits=self._engine.limits,
            caveats=opened.caveats,
        )

    async def __aenter__(self) -> Self:
        await self._engine.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what `async with` opened; idempotent."""
        await self._engine.close()

    async def now(self) -> datetime:
        """The store's time."""
        return from_micros(await self._engine.driver.now())

    async def wait_for_wakeup(self, timeout: timedelta) -> WakeHint | None:
        """Wait for a hint that a task became executable; see `WakeupSource`."""
        check_duration("timeout", timeout)
        return await self._engine.driver.wait(timeout.total_seconds())

    # --- Snapshots ---

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
        policy = check_member("on_conflict", ConflictPolicy, on_conflict)
        snapshot = WorkflowSnapshot.start(
            instance_id,
            definition_hash,
            start_at=start_at,
            input=input,
            priority=priority,
            tags=tags,
            trace_parent=trace_parent,
        )
        restart = policy is ConflictPolicy.TERMINATE_EXISTING
        unit = Unit(
            instance_id=instance_id,
            guard=Guard(
                presence=Presence.ANY if restart else Presence.ABSENT,
                definition_hash=definition_hash,
            ),
            create=_new_incarnation(),
            restart=restart,
            content=self._engine.content(snapshot),
            view=policy is ConflictPolicy.USE_EXISTING,
        )
        answer = await self._engine.submit(unit)

        if answer.refused is None:
            return StartOutcome(await self._engine.after_write(snapshot, answer), created=True)

        error = required(refusal(unit, answer))

        if answer.view is not None and isinstance(error, InstanceExistsError):
            return StartOutcome(settled(answer.view), created=False)

        raise error

    async def save_snapshot(
        self, snapshot: WorkflowSnapshot, *, overwrite: bool = False
    ) -> WorkflowSnapshot:
        _check_snapshot_type(snapshot)

        if overwrite:
            unit, snapshot = self._overwriting(snapshot)
        elif snapshot.version == 0:
            snapshot = never_stored(snapshot)
            unit = self._creating(snapshot)
        else:
            unit = self._engine.saving(snapshot, None)

        answer = await self._engine.write(unit)

        return await self._engine.after_write(snapshot, answer)

    def _creating(self, snapshot: WorkflowSnapshot) -> Unit:
        return Unit(
            instance_id=snapshot.instance_id,
            guard=Guard(presence=Presence.ABSENT),
            create=_new_incarnation(),
            content=self._engine.content(with_all_results(snapshot)),
        )

    def _overwriting(self, snapshot: WorkflowSnapshot) -> tuple[Unit, WorkflowSnapshot]:
        if snapshot.version == 0:
            snapshot = never_stored(snapshot)

        unit = Unit(
            instance_id=snapshot.instance_id,
            guard=Guard(
                presence=Presence.ANY,
                statuses=OPEN if snapshot.status is Status.PAUSED else RUNNING,
            ),
            create=_new_incarnation(),
            replace=True,
            content=self._engine.content(with_all_results(snapshot)),
        )
        return unit, snapshot

    async def update_snapshot(
        self, instance_id: str, change: Change, *, claim: TaskClaim | None = None
    ) -> WorkflowSnapshot:
        check_id("instance_id", instance_id)
        _check_claim(claim, instance_id)

        for _ in range(MAX_ATTEMPTS):
            current = await self._engine.load_for_change(instance_id, claim)
            new = await self._changed(change, current, claim)

            if new is current:
                if claim is not None:
                    await self._engine.check_live(claim)

                return current

            unit = self._engine.saving(new, claim)
            answer = await self._engine.submit(unit)

            if answer.refused is None:
                return await self._engine.after_write(new, answer)

            _raise_unless_moved(unit, answer)

        raise ContentionError(instance_id, MAX_ATTEMPTS)

    async def _changed(
        self, change: Change, current: WorkflowSnapshot, claim: TaskClaim | None
    ) -> WorkflowSnapshot:
        """What the change makes of it; where the claim is lost, that is the answer instead."""
        try:
            new = change(current)
        except InvalidTransitionError:
            if claim is not None:
                await self._engine.check_live(claim)

            raise

        _check_changed(new, current)
        return new

    async def save_task_result(
        self, instance_id: str, task_id: str, output: bytes, *, claim: TaskClaim | None = None
    ) -> int:
        check_id("instance_id", instance_id)
        check_id("task_id", task_id)
        check_payload("output", output, self._engine.limits.max_payload)
        _check_claim(claim, instance_id)
        unit = Unit(
            instance_id=instance_id,
            guard=Guard(statuses=OPEN, claim=key_of(claim)),
            record=Record(task_id, output),
        )
        answer = await self._engine.submit(unit)

        if answer.refused is Refusal.ELAPSED:
            return await self._record_with_body(instance_id, task_id, output, claim)

        if answer.refused is not None:
            raise required(refusal(unit, answer))

        return facts_of(answer).version

    async def _record_with_body(
        self, instance_id: str, task_id: str, output: bytes, claim: TaskClaim | None
    ) -> int:
        """Record a result where elapsed time, too, has to be written: ahead of the result."""
        for _ in range(MAX_ATTEMPTS):
            current = await self._engine.load_for_change(instance_id, claim)
            marked = marked_done(current, task_id)

            if marked is current and current.results.get(task_id) == output:
                return current.version

            unit = self._engine.saving(marked.record_result(task_id, output), claim)
            answer = await self._engine.submit(unit)

            if answer.refused is None:
                return facts_of(answer).version

            _raise_unless_moved(unit, answer)

        raise ContentionError(instance_id, MAX_ATTEMPTS)

    async def load_snapshot(self, instance_id: str, *, results: bool = True) -> WorkflowSnapshot:
        check_id("instance_id", instance_id)
        view = await self._engine.view(instance_id, results=results)

        if view is None:
            raise InstanceNotFoundError(instance_id)

        return settled(view)

    async def load_task_result(self, instance_id: str, task_id: str) -> bytes | None:
        check_id("instance_id", instance_id)
        check_id("task_id", task_id)
        view = await self._engine.view(instance_id, body=False, results=(task_id,))

        if view is None:
            raise InstanceNotFoundError(instance_id)

        return view.results.get(task_id) if view.results else None

    async def delete_snapshot(self, instance_id: str) -> None:
        check_id("instance_id", instance_id)
        unit = Unit(instance_id=instance_id, delete=True)
        await self._engine.write(unit)

    async def list_snapshots(
        self,
        *,
        status: Status | None = None,
        definition_hash: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[SnapshotInfo]:
        limit = check_limit(limit)

        if definition_hash is not None:
            check_id("definition_hash", definition_hash)

        if after is not None:
            check_id("after", after)

        query = Page(
            status=None if status is None else check_member("status", Status, status),
            definition_hash=definition_hash,
            after=after,
            limit=limit,
        )
        return await self._list(query)

    async def find_stalled(self, *, idle_for: timedelta, limit: int = 100) -> list[SnapshotInfo]:
        check_duration("idle_for", idle_for)
        query = Page(limit=check_limit(limit), idle_for=idle_for // MICROSECOND)
        return await self._list(query)

    async def _list(self, query: Page) -> list[SnapshotInfo]:
        driver = self._engine.driver
        return [info_of(row) for row in await driver.page(query)] if query.limit else []

    # --- Claims and dispatch ---

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
        check_id("instance_id", instance_id)
        check_id("task_id", task_id)
        check_id("worker_id", worker_id)

        if nonce is not None:
            check_id("nonce", nonce)

        take = Take(
            instance_id=instance_id,
            task_id=task_id,
            worker_id=worker_id,
            ttl=_ttl(ttl),
            nonce=nonce or _new_nonce(),
            tags=check_tags("tags", tags),
        )

        for _ in range(MAX_ATTEMPTS):
            taken = await self._engine.driver.claim(take)

            if taken.facts is None:
                raise InstanceNotFoundError(instance_id)

            if taken.claim is not None:
                return claim_of(instance_id, taken.claim, taken.facts.signals)

            if not taken.facts.advance_due or not await self._engine.advance(instance_id):
                return None

        raise ContentionError(instance_id, MAX_ATTEMPTS)

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
        query = self._poll_for(worker_id, limit, tags, definition_hashes, results=results)
        claiming = replace(query, claim=True, ttl=_ttl(ttl), nonce=_new_nonce())

        def acquired(offer: Offer) -> AcquiredTask:
            task = available_task(offer)

            if offer.claim is None:
                raise BackendError("the store offered a task without the claim that was asked for")

            return AcquiredTask(
                instance_id=task.instance_id,
                task_id=task.task_id,
                definition_hash=task.definition_hash,
                reason=task.reason,
                attempt=task.attempt,
                input=task.input,
                trace_parent=task.trace_parent,
                snapshot=task.snapshot,
                claim=claim_of(task.instance_id, offer.claim, offer.view.facts.signals),
            )

        return await self._poll(claiming, acquired)

    async def find_available_tasks(
        self,
        *,
        worker_id: str,
        limit: int = 10,
        tags: Sequence[str] = (),
        definition_hashes: Collection[str] | None = None,
        results: bool = False,
    ) -> list[AvailableTask]:
        query = self._poll_for(worker_id, limit, tags, definition_hashes, results=results)
        return await self._poll(query, available_task)

    def _poll_for(
        self,
        worker_id: str,
        limit: int,
        tags: Sequence[str],
        definition_hashes: Collection[str] | None,
        *,
        results: bool,
    ) -> Poll:
        check_id("worker_id", worker_id)
        accepted = check_tags("tags", tags)
        aging = self._engine.options.aging_interval
        return Poll(
            worker_id=worker_id,
            tags=frozenset(accepted),
            definitions=check_definitions(definition_hashes),
            limit=check_limit(limit),
            advances=ADVANCES_PER_POLL,
            aging=None if aging is None else aging // MICROSECOND,
            bias=(aging or DEFAULT_AGING) // MICROSECOND,
            claim=False,
            ttl=None,
            nonce="",
            worker_tags=accepted,
            results=results,
            exclude=frozenset(),
        )

    async def _poll(self, query: Poll, value: Callable[[Offer], A]) -> list[A]:
        """Carry out due advances, then hand out tasks; an unreadable instance is passed over."""
        driver = self._engine.driver
        found: list[A] = []

        if not query.limit or (query.definitions is not None and not query.definitions):
            return found

        for attempt in range(MAX_ATTEMPTS):
            polled = await driver.poll(query)
            unreadable: set[str] = set()

            for instance_id in polled.advances:
                if not await self._advance_for_dispatch(instance_id):
                    unreadable.add(instance_id)

            for offer in polled.offers:
                try:
                    found.append(value(offer))
                except CodecError as error:
                    unreadable.add(offer.view.instance_id)
                    await self._pass_over(offer, error)

            wanted = query.limit - len(polled.offers) + len(unreadable)

            if polled.offers or not polled.advances:
                if not unreadable or wanted <= 0:
                    break

                query = replace(query, limit=wanted)

            query = replace(
                query,
                exclude=query.exclude | unreadable,
                advances=ADVANCES_PER_POLL if attempt < MAX_ATTEMPTS - 2 else 0,
                nonce=_new_nonce() if query.claim else "",
            )

        return found

    async def _pass_over(self, offer: Offer, error: CodecError) -> None:
        self._engine.report(offer.view.instance_id, offer.view.facts, error)

        if offer.claim is not None:
            key = ClaimKey(offer.claim.task_id, offer.claim.fence)
            await self._engine.submit(Unit(instance_id=offer.view.instance_id, release=key))

    async def _advance_for_dispatch(self, instance_id: str) -> bool:
        try:
            await self._engine.advance(instance_id)
        except CodecError as error:
            await self._engine.report_unreadable(instance_id, error)
            return False
        except ContentionError:
            return False

        return True

    async def extend_task_claim(self, claim: TaskClaim, *, ttl: timedelta) -> TaskClaim:
        _check_claim(claim, None)
        key = ClaimKey(claim.task_id, claim.fence)
        extended = await self._engine.driver.extend(
            Extend(instance_id=claim.instance_id, key=key, ttl=check_ttl(ttl))
        )
        record = extended.claim

        if record is None:
            raise ClaimNotFoundError(claim.instance_id, claim.task_id)

        if not extended.extended:
            raise claim_lost(claim.instance_id, key, record)

        return claim_of(claim.instance_id, record, extended.signals)

    async def release_task_claim(self, claim: TaskClaim) -> None:
        _check_claim(claim, None)
        key = ClaimKey(claim.task_id, claim.fence)
        answer = await self._engine.submit(
            Unit(instance_id=claim.instance_id, guard=Guard(presence=Presence.ANY), release=key)
        )

        if answer.refused is None:
            return

        if answer.claim is None:
            raise ClaimNotFoundError(claim.instance_id, claim.task_id)

        raise claim_lost(claim.instance_id, key, answer.claim)

    async def revoke_task_claim(self, instance_id: str, task_id: str) -> TaskClaim | None:
        check_id("instance_id", instance_id)
        check_id("task_id", task_id)
        answer = await self._engine.submit(Unit(instance_id=instance_id, revoke=task_id))

        if answer.facts is None:
            raise InstanceNotFoundError(instance_id)

        if answer.claim is None:
            return None

        return claim_of(instance_id, answer.claim, answer.facts.signals)

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

    async def commit_task(
        self,
        claim: TaskClaim,
        *step: WorkflowSnapshot | Change,
        snapshot: WorkflowSnapshot | None = None,
        change: Change | None = None,
        base: WorkflowSnapshot | None = None,
        claim_next: timedelta | None = None,
    ) -> Commit:
        _check_claim(claim, None)
        wish = _claim_next(claim, claim_next)
        given = step or tuple(it for it in (snapshot, change) if it is not None)

        if len(given) != 1 or (step and (snapshot or change)):
            raise InvalidArgumentError(
                "commit_task takes a claim and either a snapshot or a change"
            )

        [new] = given

        if not isinstance(new, WorkflowSnapshot):
            return await self._commit_change(claim, new, base, wish)

        if base is not None:
            raise InvalidArgumentError("base goes with a change, not with a snapshot")

        _check_same_instance(new, claim)
        answer = await self._engine.write(
            self._engine.saving(new, claim, release=True, claim_next=wish)
        )
        return await self._committed(claim, new, answer)

    async def _commit_change(
        self,
        claim: TaskClaim,
        change: Change,
        base: WorkflowSnapshot | None,
        wish: ClaimNext | None,
    ) -> Commit:
        if not callable(change):
            raise InvalidArgumentError(
                "commit_task takes a claim and either a snapshot or a change"
            )

        if base is not None:
            _check_same_instance(base, claim)
            base = None if base.status.is_terminal else settle(base, claim.claimed_at)

        for _ in range(MAX_ATTEMPTS):
            current = base or await self._engine.load_for_change(claim.instance_id, claim)
            base = None
            new = await self._changed(change, current, claim)

            if new is current:
                unit = Unit(
                    instance_id=claim.instance_id,
                    guard=replace(save_guard(current, claim), statuses=OPEN),
                    release=key_of(claim),
                )
            else:
                unit = self._engine.saving(new, claim, release=True, claim_next=wish)

            answer = await self._engine.submit(unit)

            if answer.refused is None:
                return await self._committed(claim, new, answer, wrote=new is not current)

            _raise_unless_moved(unit, answer)

        raise ContentionError(claim.instance_id, MAX_ATTEMPTS)

    async def _committed(
        self, claim: TaskClaim, snapshot: WorkflowSnapshot, answer: Answer, *, wrote: bool = True
    ) -> Commit:
        facts = facts_of(answer)
        stored = await self._engine.after_write(snapshot, answer) if wrote else snapshot

        if facts.signals and not facts.live_claims:
            stored = await self._finish_signals(stored)

        if answer.claim is None or answer.entry is None:
            return Commit(stored, None)

        entry = answer.entry
        task_input = stored.input if entry.input_from == INSTANCE_INPUT else answer.input
        return Commit(
            stored,
            AcquiredTask(
                instance_id=claim.instance_id,
                task_id=entry.node_id,
                definition_hash=stored.definition_hash,
                reason=entry.reason,
                attempt=attempt_of(stored, entry.node_id),
                input=input_of(stored, entry.node_id, task_input),
                trace_parent=stored.trace_parent,
                snapshot=stored,
                claim=claim_of(claim.instance_id, answer.claim, facts.signals),
            ),
        )

    async def _finish_signals(self, stored: WorkflowSnapshot) -> WorkflowSnapshot:
        """Apply what is pending right after a commit; if that fails, sweep does it."""
        applied = await self._engine.follow_up(
            stored.instance_id, self._engine.apply_signals, idle=True
        )
        return stored if applied is None else with_results_of(applied.snapshot, stored)

    async def sweep(self, *, limit: int = 100) -> SweepReport:
        limit = check_limit(limit)
        driver = self._engine.driver

        if not limit:
            return SweepReport((), (), (), 0, more=False)

        done: dict[Status, list[str]] = {status: [] for status in Status}
        unreadable: set[str] = set()
        purged, left = 0, limit

        while True:
            chores = await driver.chores(
                Chores(
                    limit=left,
                    purge_after=PURGE_AFTER // MICROSECOND,
                    exclude=frozenset(unreadable),
                )
            )
            purged += chores.purged
            missed = len(unreadable)

            for instance_id in chores.instances:
                try:
                    became = await self._do_chores(instance_id)
                except CodecError as error:
                    await self._engine.report_unreadable(instance_id, error)
                    unreadable.add(instance_id)
                except ContentionError:
                    continue  # somebody is at it
                else:
                    if became is not None:
                        done[became].append(instance_id)

            left -= len(chores.instances) - (len(unreadable) - missed)

            if len(unreadable) == missed or not chores.more or left <= 0:
                break

        return SweepReport(
            cancelled=tuple(done[Status.CANCELLED]),
            paused=tuple(done[Status.PAUSED]),
            advanced=tuple(done[Status.IN_PROGRESS]),
            purged_claims=purged,
            more=chores.more,
        )

    async def _do_chores(self, instance_id: str) -> Status | None:
        """What became of an instance: cancelled, paused, moved on (in progress), or nothing."""
        applied = await self._engine.apply_signals(instance_id, idle=True)

        if applied is not None:
            return applied.snapshot.status

        return Status.IN_PROGRESS if await self._engine.advance(instance_id) else None

    # --- Control signals ---

    async def store_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> None:
        await self._mark(instance_id, check_member("kind", SignalKind, kind), request)

    async def _mark(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None
    ) -> Answer:
        """Store a signal, unless the status has it already or cannot take it."""
        check_id("instance_id", instance_id)
        request = request or SignalRequest()
        check_text("reason", request.reason)
        check_text("requested_by", request.requested_by)
        cancels = kind is SignalKind.CANCEL
        unit = Unit(
            instance_id=instance_id,
            guard=Guard(statuses=OPEN if cancels else RUNNING),
            signal=SignalMark(kind, request.reason, request.requested_by, 0),
            view=True,
        )
        answer = await self._engine.submit(unit)

        if answer.refused is None:
            return answer

        if answer.facts is None:
            raise InstanceNotFoundError(instance_id)

        status = answer.facts.status

        if status is (Status.CANCELLED if cancels else Status.PAUSED):
            return answer

        raise (CannotCancelError if cancels else CannotPauseError)(instance_id, status)

    async def get_signal(self, instance_id: str, kind: SignalKind) -> SignalRequest | None:
        check_id("instance_id", instance_id)
        view = await self._engine.view(instance_id, body=False, results=False)
        mark = (
            pending_mark(view.facts.signals, check_member("kind", SignalKind, kind))
            if view
            else None
        )
        return request_of(mark) if mark else None

    async def clear_signal(self, instance_id: str, kind: SignalKind) -> None:
        check_id("instance_id", instance_id)
        await self._engine.submit(
            Unit(
                instance_id=instance_id,
                guard=Guard(presence=Presence.ANY),
                clear=frozenset({check_member("kind", SignalKind, kind)}),
            )
        )

    async def request_signal(
        self, instance_id: str, kind: SignalKind, request: SignalRequest | None = None
    ) -> Status:
        answer = await self._mark(instance_id, check_member("kind", SignalKind, kind), request)
        facts = facts_of(answer)

        if not facts.signals or facts.live_claims:
            return facts.status

        applied = await self._engine.apply_signals(instance_id, idle=True, view=answer.view)

        if applied is not None:
            return applied.snapshot.status

        view = await self._engine.view(instance_id, body=False, results=False)

        if view is None:
            raise InstanceNotFoundError(instance_id)

        return view.facts.status

    async def check_and_cancel(
        self, instance_id: str, *, interrupted_at_task: str | None = None
    ) -> bool:
        kinds = frozenset({SignalKind.CANCEL})
        return bool(await self._check_signals(instance_id, kinds, interrupted_at_task))

    async def check_and_pause(self, instance_id: str) -> bool:
        return bool(await self._check_signals(instance_id, frozenset({SignalKind.PAUSE}), None))

    async def check_control_signals(
        self, instance_id: str, *, interrupted_at_task: str | None = None
    ) -> SignalKind | None:
        return await self._check_signals(instance_id, frozenset(SignalKind), interrupted_at_task)

    async def _check_signals(
        self, instance_id: str, kinds: frozenset[SignalKind], interrupted_at_task: str | None
    ) -> SignalKind | None:
        check_id("instance_id", instance_id)

        if interrupted_at_task is not None:
            check_id("interrupted_at_task", interrupted_at_task)

        applied = await self._engine.apply_signals(
            instance_id, kinds=kinds, interrupted_at_task=interrupted_at_task
        )
        return applied.kind if applied else None

    async def unpause(self, instance_id: str) -> WorkflowSnapshot:
        check_id("instance_id", instance_id)

        for _ in range(MAX_ATTEMPTS):
            view = await self._engine.view(instance_id)

            if view is None:
                raise InstanceNotFoundError(instance_id)

            if view.facts.status is not Status.PAUSED:
                raise CannotPauseError(instance_id, view.facts.status)

            new = settled(view).unpause()
            guard = Guard(
                statuses=PAUSED, version=view.facts.version, incarnation=view.facts.incarnation
            )
            answer = await self._engine.submit(
                Unit(
                    instance_id=instance_id,
                    guard=guard,
                    clear=frozenset({SignalKind.PAUSE}),
                    content=self._engine.content(new),
                )
            )

            if answer.refused is None:
                return settle(stored_form(new, answer), from_micros(answer.now), arrivals(view))

        raise ContentionError(instance_id, MAX_ATTEMPTS)

    # --- Events ---

    async def send_event(
        self, instance_id: str, name: str, payload: bytes, *, event_id: str | None = None
    ) -> None:
        check_id("instance_id", instance_id)
        check_id("event name", name)
        check_payload("payload", payload, self._engine.limits.max_payload)

        if event_id is not None:
            check_id("event_id", event_id)

        unit = Unit(
            instance_id=instance_id,
            guard=Guard(presence=Presence.ANY),
            push=Push(name, payload, event_id, self._engine.limits.max_queued_events),
        )
        answer = await self._engine.write(unit)

        if answer.facts is not None and answer.facts.advance_due:
            await self._engine.follow_up(instance_id, self._engine.advance, answers=True)

    async def consume_event(self, instance_id: str, name: str) -> bytes | None:
        check_id("instance_id", instance_id)
        check_id("event name", name)
        answer = await self._engine.submit(
            Unit(instance_id=instance_id, guard=Guard(presence=Presence.ANY), pop=name)
        )
        return answer.event

    async def drain_signal(
        self, instance_id: str, *, version: int | None = None
    ) -> WorkflowSnapshot | None:
        check_id("instance_id", instance_id)

        for _ in range(MAX_ATTEMPTS):
            view = await self._engine.view(instance_id, payloads=True)

            if view is None:
                raise InstanceNotFoundError(instance_id)

            if version is not None and version != view.facts.version:
                raise StaleSnapshotError(instance_id, version, view.facts.version)

            step = drain_step(view, settled(view)) if can_move(view.facts) else None

            if step is None:
                return None

            answer = await self._engine.submit(self._engine.stepping(view, step))

            if answer.refused is None:
                stored = stored_form(step.snapshot, answer)
                return await self._engine.shown(stored, from_micros(answer.now))

        raise ContentionError(instance_id, MAX_ATTEMPTS)


def _new_incarnation() -> str:
    return secrets.token_hex(8)


def _new_nonce() -> str:
    return secrets.token_hex(16)


def _raise_unless_moved(unit: Unit, answer: Answer) -> None:
    """Raise what no other try can change; return where the instance has only moved on."""
    error = refusal(unit, answer)

    if error is None or isinstance(error, StaleSnapshotError):
        return

    moved = answer.facts is not None and answer.facts.version != unit.guard.version

    if isinstance(error, InstancePausedError) and moved:
        return

    raise error


def _check_changed(new: WorkflowSnapshot, current: WorkflowSnapshot) -> None:
    _check_snapshot_type(new)

    if (new.instance_id, new.version, new.incarnation) != (
        current.instance_id,
        current.version,
        current.incarnation,
    ):
        raise InvalidArgumentError("a change must keep instance_id, version and incarnation")


def _check_snapshot_type(snapshot: object) -> None:
    if not isinstance(snapshot, WorkflowSnapshot):
        raise InvalidArgumentError(f"a WorkflowSnapshot is wanted, not {type(snapshot).__name__}")


def _check_claim(claim: TaskClaim | None, instance_id: str | None) -> None:
    if claim is None:
        return

    if not isinstance(claim, TaskClaim):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError(f"a TaskClaim is wanted, not {type(claim).__name__}")

    check_id("instance_id", claim.instance_id)
    check_id("task_id", claim.task_id)

    if instance_id is not None and claim.instance_id != instance_id:
        raise InvalidArgumentError(f"the claim is on {claim.instance_id!r}, not {instance_id!r}")


def _check_same_instance(snapshot: WorkflowSnapshot, claim: TaskClaim) -> None:
    _check_snapshot_type(snapshot)
    _check_claim(claim, snapshot.instance_id)

    if snapshot.version == 0:
        raise InvalidArgumentError("a write with a claim never creates: version 0 was never stored")


def _claim_next(claim: TaskClaim, ttl: timedelta | None) -> ClaimNext | None:
    if ttl is None:
        return None

    return ClaimNext(claim.worker_id, claim.nonce, claim.worker_tags, check_ttl(ttl))


def _ttl(ttl: timedelta | None) -> int | None:
    return None if ttl is None else check_ttl(ttl)
