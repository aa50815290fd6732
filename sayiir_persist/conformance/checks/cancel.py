"""CANCEL: a call that is cancelled at any of its suspension points is whole or absent.

Each check makes its call again and again, cancelled at the 1st, 2nd, ... n-th suspension point
until the call gets through, each time on a new instance. Afterwards the instance is as before the
call or as after it (or at a step between, where the contract names one), versions are dense, and
both the same and another backend object go on at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Final

import anyio
from anyio.lowlevel import checkpoint
from msgspec import Struct
from msgspec.structs import replace

from sayiir_persist import (
    AtDelay,
    AtSignal,
    AtTask,
    BackendClosedError,
    ClaimLostError,
    ConflictPolicy,
    InstanceNotFoundError,
    PersistentBackend,
    PersistError,
    Position,
    SignalKind,
    SignalRequest,
    StaleSnapshotError,
    Status,
    TaskClaim,
    TerminalStateError,
    WakeupSource,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.interrupt import Interruption, interrupted
from sayiir_persist.conformance.kit import ExpectationError, Kit, expect, expect_equal
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import claim, fork, shape, state_of

MOST_SUSPENSIONS: Final = 200
"""A call that is suspended more often is cut short here."""

PATIENCE: Final = 10.0
"""Seconds after which somebody else's call is held up for good."""

MOST_CONNECTIONS: Final = 24
"""More than a pool has where nothing else is said, so that a leak of one at a time shows."""

MARK: Final = "after-the-cancellation"


class Prepared(Struct, frozen=True):
    """What a call starts from."""

    instance_id: str
    snapshot: WorkflowSnapshot | None = None
    claim: TaskClaim | None = None

    @property
    def stored(self) -> WorkflowSnapshot:
        """The instance as it was stored."""
        if self.snapshot is None:
            raise ExpectationError("the instance is prepared")

        return self.snapshot

    @property
    def held(self) -> TaskClaim:
        """The claim on its task."""
        if self.claim is None:
            raise ExpectationError("the task is claimed")

        return self.claim


Prepare = Callable[[PersistentBackend, str], Awaitable[Prepared]]
Act = Callable[[PersistentBackend, Prepared], Awaitable[object]]


class View(Struct, frozen=True):
    """Everything that can be seen of an instance, apart from instants and ids."""

    status: Status | None = None
    version: int = 0
    position: Position | None = None
    done: tuple[str, ...] = ()
    results: Mapping[str, bytes] = {}
    loops: Mapping[str, int] = {}
    signals: tuple[SignalKind, ...] = ()
    claims: tuple[tuple[str, str], ...] = ()
    events: tuple[bytes, ...] = ()


# --- The sweep ------------------------------------------------------------------------------------


async def _sweep(
    kit: Kit,
    prepare: Prepare,
    act: Act,
    *,
    between: tuple[Act, ...] = (),
    then: Act | None = None,
    flush: Act | None = None,
) -> None:
    """Cancel `act` at each of its suspension points, and look at what is left.

    Args:
        kit: The check's.
        prepare: Makes the instance.
        act: The call.
        between: What leads to the steps at which the call may be left.
        then: What finishes a call that was left there.
        flush: A later write of the same backend object to the instance; default: an update.
    """
    backend, other = await kit.open(), await kit.open()

    async def reference(*acts: Act) -> View:
        prepared = await prepare(backend, kit.instance())

        for each in acts:
            await each(backend, prepared)

        return await _look(backend, other, prepared, flush)

    before, after = await reference(), await reference(act)
    steps = [await reference(each) for each in between]

    for at in range(1, MOST_SUSPENSIONS):
        prepared = await prepare(backend, kit.instance())

        outcome = await interrupted(partial(act, backend, prepared), at)

        if outcome.error is not None:
            raise ExpectationError(
                f"cancelled at suspension {at} the call ends in its cancellation,"
                f" not in {outcome.error!r}"
            ) from outcome.error

        try:
            with anyio.fail_after(PATIENCE):
                if then is not None and outcome.reached:
                    await then(backend, prepared)

                left = await _look(backend, other, prepared, flush)
        except TimeoutError as error:
            raise ExpectationError(
                f"cancelled at suspension {at} the call leaves nothing held"
            ) from error

        if outcome.returned or then is not None:
            expect_equal(
                left, after, f"a call that returned, or was finished (suspension {at}), is whole"
            )
        else:
            expect(
                left in (before, after, *steps),
                f"cancelled at suspension {at} the call is whole or absent,"
                f" versions included: {left!r} is neither {before!r} nor {after!r}",
            )

        if not outcome.reached:
            return


async def _look(
    backend: PersistentBackend, other: PersistentBackend, prepared: Prepared, flush: Act | None
) -> View:
    """What is left of an instance, which is deleted afterwards.

    A cancelled write may still be on its way; a later write of the same backend object to the
    same instance is behind it, so the instance is written first, and looked at then.
    """
    instance_id = prepared.instance_id
    marks = 0

    try:
        if flush is None:
            await backend.update_snapshot(instance_id, lambda found: found.count_iteration(MARK))
            marks = 1
        else:
            await flush(backend, prepared)
    except PersistError:
        marks = 0  # there is nothing, or it has ended

    signals = tuple(
        [kind for kind in SignalKind if await other.get_signal(instance_id, kind) is not None]
    )
    events: list[bytes] = []

    while (payload := await other.consume_event(instance_id, "paid")) is not None:
        events.append(payload)

    try:
        snapshot = await other.load_snapshot(instance_id)
    except InstanceNotFoundError:
        return View(signals=signals, events=tuple(events))

    claims: list[tuple[str, str]] = []

    for task in snapshot.ready_tasks():
        revoked = await other.revoke_task_claim(instance_id, task.task_id)

        if revoked is not None:
            claims.append((revoked.task_id, revoked.worker_id))

    await other.delete_snapshot(instance_id)
    loops = {name: n for name, n in snapshot.loop_iterations.items() if name != MARK}
    return View(
        status=snapshot.status,
        version=snapshot.version - marks,
        position=shape(snapshot),
        done=tuple(task.task_id for task in snapshot.ready_tasks() if task.done),
        results=dict(snapshot.results),
        loops=loops,
        signals=signals,
        claims=tuple(claims),
        events=tuple(events),
    )


# --- Scenes ---------------------------------------------------------------------------------------


async def _nothing(_backend: PersistentBackend, instance_id: str) -> Prepared:
    return Prepared(instance_id)


async def _running(
    backend: PersistentBackend, instance_id: str, at: str | Position = "charge"
) -> Prepared:
    await backend.start_instance(instance_id, "v1", start_at=at, input=b"order")
    await backend.save_task_result(instance_id, "prepare", b"ready")
    return Prepared(instance_id, await backend.load_snapshot(instance_id))


async def _forked(backend: PersistentBackend, instance_id: str) -> Prepared:
    position = fork("charge", "pack", next=AtTask("join"))
    return await _claimed(backend, await _running(backend, instance_id, position))


async def _held(backend: PersistentBackend, instance_id: str) -> Prepared:
    return await _claimed(backend, await _running(backend, instance_id))


async def _claimed(backend: PersistentBackend, prepared: Prepared) -> Prepared:
    return replace(prepared, claim=await claim(backend, prepared.instance_id))


async def _waiting(backend: PersistentBackend, instance_id: str) -> Prepared:
    return await _running(backend, instance_id, AtSignal("wait", "paid", next=AtTask("ship")))


async def _queued(backend: PersistentBackend, instance_id: str) -> Prepared:
    prepared = await _running(backend, instance_id)
    await backend.send_event(instance_id, "paid", b"1")
    await backend.send_event(instance_id, "paid", b"2")
    return prepared


async def _met_while_paused(backend: PersistentBackend, instance_id: str) -> Prepared:
    """A wait whose event came during a pause: due, and drained by nobody yet."""
    prepared = await _waiting(backend, instance_id)
    await backend.save_snapshot(prepared.stored.pause())
    await backend.send_event(instance_id, "paid", b"1")
    await backend.unpause(instance_id)
    return prepared


async def _paused(backend: PersistentBackend, instance_id: str) -> Prepared:
    prepared = await _running(backend, instance_id)
    await backend.save_snapshot(prepared.stored.pause())
    return Prepared(instance_id, await backend.load_snapshot(instance_id))


async def _signalled(backend: PersistentBackend, instance_id: str) -> Prepared:
    prepared = await _running(backend, instance_id)
    await backend.store_signal(instance_id, SignalKind.CANCEL, SignalRequest(reason="enough"))
    return prepared


async def _to_be_paused(backend: PersistentBackend, instance_id: str) -> Prepared:
    prepared = await _running(backend, instance_id)
    await backend.store_signal(instance_id, SignalKind.PAUSE)
    return prepared


def _step(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
    forgotten = snapshot.forget("prepare").count_iteration("loop")
    return forgotten.complete_task("charge", b"paid", next=AtTask("ship"))


async def _start(backend: PersistentBackend, prepared: Prepared) -> object:
    return await backend.start_instance(
        prepared.instance_id,
        "v1",
        start_at=fork("pack", "ship"),
        input=b"order",
        on_conflict=ConflictPolicy.USE_EXISTING,
    )


# --- Snapshots ------------------------------------------------------------------------------------


@check("CANCEL-001", "A cancelled start_instance has created the instance whole, or not at all.")
async def start_instance(kit: Kit) -> None:
    await _sweep(kit, _nothing, _start, flush=_start)


@check("CANCEL-002", "A cancelled restart has replaced the instance whole, or not at all.")
async def start_instance_again(kit: Kit) -> None:
    await _sweep(
        kit,
        _held,
        lambda backend, prepared: backend.start_instance(
            prepared.instance_id,
            "v1",
            start_at="charge",
            on_conflict=ConflictPolicy.TERMINATE_EXISTING,
        ),
    )


@check("CANCEL-003", "A cancelled save_snapshot of version 0 has created the instance, or not.")
async def save_snapshot_new(kit: Kit) -> None:
    async def create(backend: PersistentBackend, prepared: Prepared) -> object:
        snapshot = WorkflowSnapshot.start(prepared.instance_id, "v1", start_at="charge")
        return await backend.save_snapshot(snapshot.record_result("step", b"x"))

    await _sweep(kit, _nothing, create, flush=create)


@check("CANCEL-004", "A cancelled save_snapshot of a version is whole or absent.")
async def save_snapshot(kit: Kit) -> None:
    await _sweep(
        kit, _running, lambda backend, prepared: backend.save_snapshot(_step(prepared.stored))
    )


@check("CANCEL-005", "A cancelled overwrite is whole or absent.")
async def save_snapshot_overwrite(kit: Kit) -> None:
    await _sweep(
        kit,
        _running,
        lambda backend, prepared: backend.save_snapshot(_step(prepared.stored), overwrite=True),
    )


@check("CANCEL-006", "A cancelled update_snapshot is whole or absent, with or without a claim.")
async def update_snapshot(kit: Kit) -> None:
    await _sweep(
        kit,
        _running,
        lambda backend, prepared: backend.update_snapshot(prepared.instance_id, _step),
    )
    await _sweep(
        kit,
        _held,
        lambda backend, prepared: backend.update_snapshot(
            prepared.instance_id,
            lambda found: found.record_result("step", b"x").forget("prepare"),
            claim=prepared.held,
        ),
    )


@check("CANCEL-007", "A cancelled save_task_result is whole or absent, its done mark included.")
async def save_task_result(kit: Kit) -> None:
    await _sweep(
        kit,
        _held,
        lambda backend, prepared: backend.save_task_result(
            prepared.instance_id, "charge", b"paid", claim=prepared.held
        ),
    )


@check("CANCEL-008", "A cancelled delete_snapshot has removed everything, or nothing.")
async def delete_snapshot(kit: Kit) -> None:
    async def prepare(backend: PersistentBackend, instance_id: str) -> Prepared:
        prepared = await _claimed(backend, await _queued(backend, instance_id))
        await backend.store_signal(instance_id, SignalKind.PAUSE)
        return prepared

    await _sweep(
        kit, prepare, lambda backend, prepared: backend.delete_snapshot(prepared.instance_id)
    )


@check("CANCEL-009", "A cancelled look-up changes nothing and holds nothing.")
async def look_ups(kit: Kit) -> None:
    calls: tuple[Act, ...] = (
        lambda backend, prepared: backend.load_snapshot(prepared.instance_id),
        lambda backend, prepared: backend.load_snapshot(prepared.instance_id, results=False),
        lambda backend, prepared: backend.load_task_result(prepared.instance_id, "prepare"),
        lambda backend, _: backend.list_snapshots(),
        lambda backend, _: backend.find_available_tasks(worker_id="worker", results=True),
        lambda backend, _: backend.find_stalled(idle_for=timedelta(0)),
        lambda backend, prepared: backend.get_signal(prepared.instance_id, SignalKind.CANCEL),
        lambda backend, prepared: backend.check_control_signals(prepared.instance_id),
        lambda backend, _: backend.now(),
    )

    for call in calls:
        await _sweep(kit, _held, call)


# --- Claims ---------------------------------------------------------------------------------------


@check("CANCEL-011", "A cancelled claim_task has made its claim or not; its nonce finds it again.")
async def claim_task(kit: Kit) -> None:
    async def ask(backend: PersistentBackend, prepared: Prepared) -> object:
        return await backend.claim_task(
            prepared.instance_id, "charge", worker_id="worker", ttl=kit.long, nonce="n-1"
        )

    async def ask_again(backend: PersistentBackend, prepared: Prepared) -> object:
        granted = await ask(backend, prepared)
        expect(granted is not None, "after a cancelled claim_task its nonce gets the claim")
        return granted

    await _sweep(kit, _running, ask)
    await _sweep(kit, _running, ask, then=ask_again)

    backend = await kit.open()

    for _ in range(MOST_CONNECTIONS):
        prepared = await _running(backend, kit.instance())
        await interrupted(partial(ask, backend, prepared), 1)

    try:
        with anyio.fail_after(PATIENCE):
            prepared = await _running(backend, kit.instance())
            await ask(backend, prepared)
    except (TimeoutError, PersistError) as error:
        raise ExpectationError(f"cancelled claims keep nothing: {error!r}") from error


@check("CANCEL-012", "A cancelled acquire_tasks has claimed or not, and nothing but that.")
async def acquire_tasks(kit: Kit) -> None:
    await _sweep(
        kit,
        _running,
        lambda backend, _: backend.acquire_tasks(worker_id="worker", ttl=kit.long, limit=3),
    )


@check("CANCEL-013", "A cancelled extend_task_claim leaves the claim live.")
async def extend_task_claim(kit: Kit) -> None:
    await _sweep(
        kit,
        _held,
        lambda backend, prepared: backend.extend_task_claim(prepared.held, ttl=kit.long),
    )


@check("CANCEL-014", "A cancelled release_task_claim or revoke_task_claim is whole or absent.")
async def release_task_claim(kit: Kit) -> None:
    await _sweep(kit, _forked, lambda backend, prepared: backend.release_task_claim(prepared.held))
    await _sweep(
        kit,
        _forked,
        lambda backend, prepared: backend.revoke_task_claim(prepared.instance_id, "charge"),
    )


@check("CANCEL-015", "A cancelled commit_task has saved and released and claimed, or none of it.")
async def commit_task(kit: Kit) -> None:
    commits: tuple[Act, ...] = (
        lambda backend, prepared: backend.commit_task(
            prepared.held, _step(prepared.stored), claim_next=kit.long
        ),
        lambda backend, prepared: backend.commit_task(prepared.held, _step, claim_next=kit.long),
        lambda backend, prepared: backend.commit_task(
            prepared.held, _step, base=prepared.stored, claim_next=kit.long
        ),
        lambda backend, prepared: backend.commit_task(
            prepared.held, prepared.stored.complete_task("charge", b"paid", next=None)
        ),
        lambda backend, prepared: backend.commit_task(prepared.held, lambda found: found),
    )

    for commit in commits:
        await _sweep(kit, _held, commit)


@check(
    "CANCEL-016", "A cancelled commit under a pending signal leaves a signal that sweep applies."
)
async def commit_task_with_signal(kit: Kit) -> None:
    async def prepare(backend: PersistentBackend, instance_id: str) -> Prepared:
        return await _claimed(backend, await _signalled(backend, instance_id))

    async def commit(backend: PersistentBackend, prepared: Prepared) -> object:
        return await backend.commit_task(prepared.held, _step(prepared.stored))

    async def commit_and_sweep(backend: PersistentBackend, prepared: Prepared) -> object:
        with suppress(ClaimLostError, TerminalStateError):  # it had landed
            await commit(backend, prepared)

        return await backend.sweep()

    await _sweep(kit, prepare, commit, then=commit_and_sweep)


@check("CANCEL-017", "A cancelled sweep leaves what the next one finishes.")
async def sweep(kit: Kit) -> None:
    async def elapsed(backend: PersistentBackend, instance_id: str) -> Prepared:
        position = AtDelay("nap", wake_after=timedelta(0), next=fork("pack", "ship"))
        return await _running(backend, instance_id, position)

    for prepare in (_signalled, _to_be_paused, elapsed):
        await _sweep(
            kit,
            prepare,
            lambda backend, _: backend.sweep(),
            then=lambda backend, _: backend.sweep(),
        )


# --- Signals and events ---------------------------------------------------------------------------


@check("CANCEL-021", "A cancelled store_signal or clear_signal is whole or absent.")
async def store_signal(kit: Kit) -> None:
    await _sweep(
        kit,
        _held,
        lambda backend, prepared: backend.store_signal(
            prepared.instance_id, SignalKind.CANCEL, SignalRequest(reason="enough")
        ),
    )
    await _sweep(
        kit,
        _signalled,
        lambda backend, prepared: backend.clear_signal(prepared.instance_id, SignalKind.CANCEL),
    )


@check(
    "CANCEL-022", "A cancelled request_signal is absent, stored, or applied; a repeat applies it."
)
async def request_signal(kit: Kit) -> None:
    for kind in SignalKind:

        async def store(
            backend: PersistentBackend, prepared: Prepared, kind: SignalKind = kind
        ) -> None:
            await backend.store_signal(prepared.instance_id, kind)

        async def request(
            backend: PersistentBackend, prepared: Prepared, kind: SignalKind = kind
        ) -> object:
            return await backend.request_signal(prepared.instance_id, kind)

        async def request_again(
            backend: PersistentBackend, prepared: Prepared, kind: SignalKind = kind
        ) -> object:
            return await backend.request_signal(prepared.instance_id, kind)

        await _sweep(kit, _running, request, between=(store,))
        await _sweep(kit, _running, request, then=request_again)


@check("CANCEL-023", "A cancelled check of control signals has applied one whole, or not at all.")
async def check_control_signals(kit: Kit) -> None:
    cases: tuple[tuple[Prepare, Act], ...] = (
        (_signalled, lambda backend, found: backend.check_and_cancel(found.instance_id)),
        (_signalled, lambda backend, found: backend.check_control_signals(found.instance_id)),
        (_to_be_paused, lambda backend, found: backend.check_and_pause(found.instance_id)),
        (_to_be_paused, lambda backend, found: backend.check_control_signals(found.instance_id)),
    )

    for prepare, act in cases:
        await _sweep(kit, prepare, act)


@check("CANCEL-024", "A cancelled unpause is whole or absent.")
async def unpause(kit: Kit) -> None:
    await _sweep(kit, _paused, lambda backend, prepared: backend.unpause(prepared.instance_id))


@check("CANCEL-025", "A cancelled send_event that meets no wait has queued its event once, or not.")
async def send_event(kit: Kit) -> None:
    async def send(backend: PersistentBackend, prepared: Prepared) -> None:
        await backend.send_event(prepared.instance_id, "paid", b"3", event_id="e3")

    await _sweep(kit, _queued, send)
    await _sweep(kit, _queued, send, then=send)
    await _sweep(kit, _nothing, send, flush=_send_another)


async def _send_another(backend: PersistentBackend, prepared: Prepared) -> None:
    """A later write to the queue of an instance that is not there."""
    await backend.send_event(prepared.instance_id, "other", b"x")


@check("CANCEL-026", "A cancelled send_event to a wait has resumed it once, or can be sent again.")
async def send_event_to_wait(kit: Kit) -> None:
    async def send(backend: PersistentBackend, prepared: Prepared) -> None:
        await backend.send_event(prepared.instance_id, "paid", b"1", event_id="e1")

    async def send_and_sweep(backend: PersistentBackend, prepared: Prepared) -> object:
        await send(backend, prepared)
        return await backend.sweep()

    await _sweep(kit, _waiting, send, then=send_and_sweep)


@check("CANCEL-027", "A cancelled consume_event has taken the oldest event, or none.")
async def consume_event(kit: Kit) -> None:
    await _sweep(
        kit,
        _queued,
        lambda backend, prepared: backend.consume_event(prepared.instance_id, "paid"),
    )


@check("CANCEL-028", "A cancelled drain_signal has taken its event and moved on, or done neither.")
async def drain_signal(kit: Kit) -> None:
    await _sweep(
        kit,
        _met_while_paused,
        lambda backend, prepared: backend.drain_signal(prepared.instance_id),
    )


@check("CANCEL-029", "A cancelled save that parks where an event waits loses neither.")
async def park_where_an_event_waits(kit: Kit) -> None:
    async def park(backend: PersistentBackend, prepared: Prepared) -> object:
        parked = prepared.stored.move_to(AtSignal("wait", "paid", next=AtTask("ship")))
        return await backend.save_snapshot(parked)

    async def park_and_sweep(backend: PersistentBackend, prepared: Prepared) -> object:
        with suppress(StaleSnapshotError):  # it had landed
            await park(backend, prepared)

        return await backend.sweep()

    await _sweep(kit, _queued, park, then=park_and_sweep)


# --- Opening and closing --------------------------------------------------------------------------


@check("CANCEL-031", "A cancelled opening or closing leaves a store that others use at once.")
async def opening(kit: Kit) -> None:
    other = await kit.open()
    snapshot = await other.save_snapshot(WorkflowSnapshot.start("run", "v1", start_at="charge"))

    async def visit() -> None:
        async with kit.backend() as backend:
            await backend.now()

    for at in range(1, MOST_SUSPENSIONS):
        outcome = await interrupted(visit, at)

        if outcome.error is not None:
            raise ExpectationError(
                f"cancelled at suspension {at} `async with` ends in its cancellation,"
                f" not in {outcome.error!r}"
            ) from outcome.error

        with anyio.fail_after(PATIENCE):
            snapshot = await other.save_snapshot(snapshot.count_iteration("loop"))

            async with kit.backend() as later:
                expect_equal(
                    await later.load_snapshot("run"), snapshot, "a cancelled opening spoils nothing"
                )

        if not outcome.reached:
            return


@check("CANCEL-032", "A cancelled aclose can be repeated, and then the backend is closed.")
async def aclose(kit: Kit) -> None:
    for at in range(1, MOST_SUSPENSIONS):
        backend = await kit.open()
        outcome = await interrupted(backend.aclose, at)

        with anyio.fail_after(PATIENCE):
            await backend.aclose()

        expect(outcome.error is None, f"a cancelled aclose is cancelled, not {outcome.error!r}")

        if not outcome.reached:
            return


@check("CANCEL-033", "A cancelled aclose, repeated, and a cancelled block end whoever waits there.")
async def closing_is_finished(kit: Kit) -> None:
    async def closed_twice(backend: PersistentBackend, at: int) -> Interruption:
        outcome = await interrupted(backend.aclose, at)
        await backend.aclose()
        return outcome

    async def block_cancelled(backend: PersistentBackend, at: int) -> Interruption:
        async def block() -> None:
            try:
                await backend.now()
            finally:
                await backend.__aexit__(None, None, None)

        return await interrupted(block, at)

    for how in (closed_twice, block_cancelled):
        for at in range(1, MOST_SUSPENSIONS):
            backend = await kit.open()

            source = kit.wakeups(backend)
            outcomes: list[Interruption] = []

            async def wait(source: WakeupSource = source) -> object:
                with anyio.fail_after(PATIENCE):
                    return await source.wait_for_wakeup(timedelta(minutes=1))

            async def close(
                backend: PersistentBackend = backend,
                how: Callable[[PersistentBackend, int], Awaitable[Interruption]] = how,
                at: int = at,
                outcomes: list[Interruption] = outcomes,
            ) -> None:
                for _ in range(20):  # by then the other one waits
                    await checkpoint()

                outcomes.append(await how(backend, at))

            waited, _ = await kit.together(wait, close)
            expect(
                isinstance(waited, BackendClosedError),
                f"a backend whose closing was cancelled at suspension {at} is closed all the same:"
                f" a wait on it ends with BackendClosedError, not with {waited!r}",
            )

            if not outcomes[0].reached:
                break


@check("CANCEL-034", "A cancelled wait for a hint leaves the backend as it was.")
async def wait_for_wakeup(kit: Kit) -> None:
    backend = await kit.open()
    wait = kit.wakeups(backend).wait_for_wakeup

    for at in range(1, 5):
        outcome = await interrupted(lambda: wait(timedelta(milliseconds=20)), at)
        expect(outcome.error is None, f"a cancelled wait is cancelled, not {outcome.error!r}")

    await backend.save_snapshot(
        replace(
            WorkflowSnapshot.start("run", "v1", start_at="charge"),
            state=state_of(Status.IN_PROGRESS),
        )
    )
    expect(await wait(timedelta(seconds=10)) is not None, "later hints come as if nothing had been")
