"""SIGNAL: requests to cancel or pause, and what becomes of them."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtNode,
    AtSignal,
    AtTask,
    Cancelled,
    CannotCancelError,
    CannotPauseError,
    Change,
    ClaimLostError,
    ClaimNotFoundError,
    Completed,
    InstanceNotFoundError,
    InvalidArgumentError,
    Paused,
    PersistentBackend,
    PersistError,
    Position,
    SignalKind,
    SignalRequest,
    Status,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    OPEN,
    TERMINAL,
    claim,
    expect_refused,
    fork,
    held,
    start,
    state_of,
    stored,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CANCEL, PAUSE = SignalKind.CANCEL, SignalKind.PAUSE
TICK: Final = timedelta(milliseconds=5)
"""Apart enough for every store's resolution."""

REQUEST: Final = SignalRequest(reason="customer called", requested_by="support")
OTHER: Final = SignalRequest(reason="stocktaking", requested_by="ops")


async def _pending(backend: PersistentBackend, instance_id: str) -> set[SignalKind]:
    """Which kinds of signal are pending."""
    return {kind for kind in SignalKind if await backend.get_signal(instance_id, kind) is not None}


async def _signalled(
    kit: Kit, backend: PersistentBackend, status: Status, *kinds: SignalKind
) -> WorkflowSnapshot:
    """An instance in that status with requests pending.

    A pause is stored while it runs, for on a paused instance there is nothing to store.
    """
    run = await stored(kit, backend, Status.IN_PROGRESS)

    for kind in kinds:
        await backend.store_signal(
            run.instance_id, kind, REQUEST if kind is SignalKind.CANCEL else OTHER
        )

    if status is Status.PAUSED:
        await backend.save_snapshot(run.pause())

    return await backend.load_snapshot(run.instance_id)


def _who(request: SignalRequest | None) -> tuple[str | None, str | None] | None:
    """The part of a request that its sender chose."""
    return None if request is None else (request.reason, request.requested_by)


# --- store_signal -------------------------------------------------------------------------------


@check("SIGNAL-001", "A signal for an unknown instance is InstanceNotFoundError.")
async def signal_to_nobody(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = kit.instance()

    for kind in SignalKind:
        with raises(InstanceNotFoundError, f"a {kind} needs an instance") as caught:
            await backend.store_signal(instance_id, kind)

        expect_equal(caught.error.instance_id, instance_id, "the error names the instance")

        with raises(InstanceNotFoundError, f"a requested {kind} needs an instance"):
            await backend.request_signal(instance_id, kind)

    await backend.start_instance(instance_id, "v1", start_at="charge")
    expect_equal(await _pending(backend, instance_id), set[SignalKind](), "and nothing was kept")


@check("SIGNAL-002", "On a running instance a signal is stored with reason, requester and time.")
async def signal_is_stored(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    run = await start(kit, backend)

    for kind in SignalKind:
        before = await backend.now()
        await backend.store_signal(run.instance_id, kind, REQUEST)
        after = await other.now()

        request = await other.get_signal(run.instance_id, kind)
        expect_equal(_who(request), ("customer called", "support"), f"a {kind} keeps its request")
        expect(
            request is not None
            and request.requested_at is not None
            and before <= request.requested_at <= after,
            f"a {kind} is stamped by the store's clock",
        )

    expect_equal(
        await other.load_snapshot(run.instance_id), run, "a pending signal changes no snapshot"
    )


@check("SIGNAL-003", "A cancel of a paused instance is stored.")
async def cancel_of_the_paused(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)

    await backend.store_signal(before.instance_id, CANCEL, REQUEST)

    expect_equal(
        _who(await backend.get_signal(before.instance_id, CANCEL)),
        ("customer called", "support"),
        "a paused instance can be cancelled",
    )
    expect_equal(await backend.load_snapshot(before.instance_id), before, "it is paused as before")


@check("SIGNAL-004", "A signal for what has happened already is a success that stores nothing.")
async def signal_of_what_is(kit: Kit) -> None:
    backend = await kit.open()

    for status, kind in ((Status.PAUSED, PAUSE), (Status.CANCELLED, CANCEL)):
        before = await stored(kit, backend, status)

        await backend.store_signal(before.instance_id, kind, REQUEST)

        expect_equal(
            await _pending(backend, before.instance_id),
            set[SignalKind](),
            f"a {kind} of what is {status} stores nothing",
        )
        expect_equal(await backend.load_snapshot(before.instance_id), before, "and changes nothing")


@check("SIGNAL-005", "What has completed or failed cannot be cancelled: CannotCancelError.")
async def cancel_of_the_ended(kit: Kit) -> None:
    backend = await kit.open()

    for status in (Status.COMPLETED, Status.FAILED):
        before = await stored(kit, backend, status)

        for call in (backend.store_signal, backend.request_signal):
            error = await expect_refused(
                backend,
                before,
                CannotCancelError,
                f"what is {status} cannot be cancelled",
                partial(call, before.instance_id, CANCEL),
            )
            expect_equal(
                (error.instance_id, error.status),
                (before.instance_id, status),
                "the error says what and why",
            )

        expect_equal(
            await _pending(backend, before.instance_id), set[SignalKind](), "nothing is stored"
        )


@check(
    "SIGNAL-006", "What has ended, a cancelled instance too, cannot be paused: CannotPauseError."
)
async def pause_of_the_ended(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        before = await stored(kit, backend, status)

        for call in (backend.store_signal, backend.request_signal):
            error = await expect_refused(
                backend,
                before,
                CannotPauseError,
                f"what is {status} cannot be paused",
                partial(call, before.instance_id, PAUSE),
            )
            expect_equal(
                (error.instance_id, error.status),
                (before.instance_id, status),
                "the error says what and why",
            )

        expect_equal(
            await _pending(backend, before.instance_id), set[SignalKind](), "nothing is stored"
        )


@check("SIGNAL-007", "Storing a signal again replaces reason, requester and time.")
async def signal_is_replaced(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)

    for kind in SignalKind:
        await backend.store_signal(run.instance_id, kind, REQUEST)
        first = await backend.get_signal(run.instance_id, kind)
        await kit.elapse(TICK)

        await backend.store_signal(run.instance_id, kind, OTHER)

        second = await backend.get_signal(run.instance_id, kind)
        expect_equal(_who(second), ("stocktaking", "ops"), f"the later {kind} counts")
        expect(
            first is not None
            and second is not None
            and first.requested_at is not None
            and second.requested_at is not None
            and second.requested_at > first.requested_at,
            f"the later {kind} has its own time",
        )

        await backend.store_signal(run.instance_id, kind)
        request = await backend.get_signal(run.instance_id, kind)
        expect_equal(_who(request), (None, None), "a request without words replaces words")


@check("SIGNAL-008", "The time of a request is the store's, whatever its sender says.")
async def signal_time_is_the_stores(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    now = await backend.now()
    early = replace(REQUEST, requested_at=now - timedelta(days=1))

    await backend.store_signal(run.instance_id, CANCEL, early)

    request = await backend.get_signal(run.instance_id, CANCEL)
    expect(
        request is not None and request.requested_at is not None and request.requested_at >= now,
        "the store's clock decides when it was",
    )


@check("SIGNAL-009", "Both kinds may be pending at once, each with its own request.")
async def kinds_are_independent(kit: Kit) -> None:
    backend = await kit.open()
    run = await _signalled(kit, backend, Status.IN_PROGRESS, PAUSE, CANCEL)

    expect_equal(
        {kind: _who(await backend.get_signal(run.instance_id, kind)) for kind in SignalKind},
        {CANCEL: ("customer called", "support"), PAUSE: ("stocktaking", "ops")},
        "there is one request for each kind",
    )


@check("SIGNAL-010", "Reason and requester of a request have at most 4 KiB of UTF-8.")
async def request_is_bounded(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)
    exact, too_long = "é" * 2048, "é" * 2048 + "x"

    for call in (backend.store_signal, backend.request_signal):
        for bad in (SignalRequest(reason=too_long), SignalRequest(requested_by=too_long)):
            with raises(InvalidArgumentError, "a longer text is refused"):
                await call(run.instance_id, PAUSE, bad)

    expect_equal(await _pending(backend, run.instance_id), set[SignalKind](), "and not stored")

    await backend.store_signal(
        run.instance_id, PAUSE, SignalRequest(reason=exact, requested_by=exact)
    )
    request = await backend.get_signal(run.instance_id, PAUSE)
    expect_equal(_who(request), (exact, exact), "4 KiB are kept, in bytes")


# --- get_signal and clear_signal ----------------------------------------------------------------


@check("SIGNAL-011", "get_signal is None where nothing is pending, of an unknown instance too.")
async def nothing_is_pending(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)

    for kind in SignalKind:
        expect_equal(
            await backend.get_signal(run.instance_id, kind), None, f"no {kind} is pending at first"
        )
        expect_equal(
            await backend.get_signal(kit.instance(), kind), None, "nothing is pending on nobody"
        )


@check("SIGNAL-012", "clear_signal withdraws a request, and leaves the other kind.")
async def clears_one_kind(kit: Kit) -> None:
    backend = await kit.open()

    for kind, other in ((CANCEL, PAUSE), (PAUSE, CANCEL)):
        run = await _signalled(kit, backend, Status.IN_PROGRESS, CANCEL, PAUSE)
        left = await backend.get_signal(run.instance_id, other)

        await backend.clear_signal(run.instance_id, kind)

        expect_equal(await backend.get_signal(run.instance_id, kind), None, f"a {kind} is gone")
        expect_equal(
            await backend.get_signal(run.instance_id, other), left, f"the {other} is untouched"
        )
        expect_equal(
            await backend.load_snapshot(run.instance_id), run, "clearing changes no snapshot"
        )


@check("SIGNAL-013", "clear_signal is idempotent, and fine with an unknown or ended instance.")
async def clears_nothing(kit: Kit) -> None:
    backend = await kit.open()
    runs = [await stored(kit, backend, status) for status in Status]

    for instance_id in (*(run.instance_id for run in runs), kit.instance()):
        for kind in (*SignalKind, *SignalKind):
            await backend.clear_signal(instance_id, kind)

    for run in runs:
        expect_equal(
            await backend.load_snapshot(run.instance_id), run, "clearing nothing changes nothing"
        )


@check("SIGNAL-014", "A pending signal hides all of its instance from dispatch, and nothing else.")
async def pending_hides(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, fork("left", "right"))
    shown = await start(kit, backend)

    async def offered() -> set[str]:
        found = await backend.find_available_tasks(worker_id="worker")
        return {task.instance_id for task in found}

    for kind in SignalKind:
        await backend.store_signal(run.instance_id, kind)
        expect_equal(await offered(), {shown.instance_id}, f"a pending {kind} hides its instance")

    acquired = await backend.acquire_tasks(worker_id="worker", ttl=timedelta(0), limit=9)
    expect_equal([task.task_id for task in acquired], ["charge"], "it is not acquired either")

    await backend.clear_signal(run.instance_id, CANCEL)
    expect_equal(await offered(), {shown.instance_id}, "one pending signal of two still hides")
    await backend.clear_signal(run.instance_id, PAUSE)
    expect_equal(await offered(), {shown.instance_id, run.instance_id}, "without any it is back")


@check("SIGNAL-015", "Signals of one instance are no other's.")
async def signals_are_isolated(kit: Kit) -> None:
    backend = await kit.open()
    one, two = await start(kit, backend), await start(kit, backend)

    await backend.store_signal(one.instance_id, CANCEL)
    await backend.store_signal(two.instance_id, PAUSE)

    expect_equal(await _pending(backend, one.instance_id), {CANCEL}, "each has its own")
    expect_equal(await _pending(backend, two.instance_id), {PAUSE}, "and no other's")
    expect_equal(await backend.check_and_cancel(two.instance_id), False, "which cannot be applied")


# --- Applying -----------------------------------------------------------------------------------


@check("SIGNAL-016", "check_and_cancel makes a pending cancel so, from running and from paused.")
async def applies_a_cancel(kit: Kit) -> None:
    backend = await kit.open()

    for status in OPEN:
        before = await _signalled(kit, backend, status, CANCEL)

        applied = await backend.check_and_cancel(before.instance_id, interrupted_at_task="charge")

        expect_equal(applied, True, f"what is {status} is cancelled")
        after = await backend.load_snapshot(before.instance_id)
        expect_equal(
            after.state,
            Cancelled(
                reason="customer called", requested_by="support", interrupted_at_task="charge"
            ),
            "the state says why, by whom and where",
        )
        expect_equal(after.version, before.version + 1, "that takes one version")
        expect_equal(after.status_since, after.updated_at, "it is cancelled since that write")


@check(
    "SIGNAL-017", "A cancel keeps the results, from running and from paused, clears the deadline."
)
async def cancel_keeps_results(kit: Kit) -> None:
    backend = await kit.open()

    for status in OPEN:
        before = await _signalled(kit, backend, status, CANCEL)
        deadline = await backend.now() + kit.long
        await backend.save_snapshot(before.with_deadline(deadline))

        await backend.check_and_cancel(before.instance_id)

        after = await backend.load_snapshot(before.instance_id)
        expect_equal(dict(after.results), {"prepare": b"ready"}, f"from {status} results are kept")
        expect_equal(
            await backend.load_task_result(before.instance_id, "prepare"), b"ready", "each of them"
        )
        expect_equal(after.deadline, None, "the deadline is cleared")
        expect_equal(
            after.state,
            Cancelled(reason="customer called", requested_by="support"),
            "interrupted_at_task is only set where it was given",
        )


@check("SIGNAL-018", "check_and_cancel drops all pending signals and all claims.")
async def cancel_drops_the_rest(kit: Kit) -> None:
    backend = await kit.open()
    _, mine = await held(kit, backend)

    for kind in SignalKind:
        await backend.store_signal(mine.instance_id, kind)

    await backend.check_and_cancel(mine.instance_id)

    expect_equal(
        await _pending(backend, mine.instance_id), set[SignalKind](), "a pause does not outlive it"
    )
    with raises(ClaimNotFoundError, "its claims are gone"):
        await backend.release_task_claim(mine)


@check("SIGNAL-019", "check_and_cancel without a pending cancel is False, and changes nothing.")
async def nothing_to_cancel(kit: Kit) -> None:
    backend = await kit.open()
    runs = [await stored(kit, backend, status) for status in Status]
    runs.append(await _signalled(kit, backend, Status.IN_PROGRESS, PAUSE))

    for before in runs:
        for _ in range(2):
            expect_equal(
                await backend.check_and_cancel(before.instance_id, interrupted_at_task="charge"),
                False,
                f"nothing cancels what is {before.status}",
            )

        expect_equal(
            await backend.load_snapshot(before.instance_id), before, "and nothing is written"
        )

    expect_equal(await _pending(backend, runs[-1].instance_id), {PAUSE}, "a pending pause stays")
    expect_equal(await backend.check_and_cancel(kit.instance()), False, "nobody is not cancelled")


@check("SIGNAL-020", "A blind repeat of check_and_cancel or check_and_pause is False.")
async def applies_once(kit: Kit) -> None:
    backend = await kit.open()
    cancelled = await _signalled(kit, backend, Status.IN_PROGRESS, CANCEL)
    paused = await _signalled(kit, backend, Status.IN_PROGRESS, PAUSE)

    for expected in (True, False, False):
        expect_equal(
            await backend.check_and_cancel(cancelled.instance_id), expected, "a cancel takes once"
        )
        expect_equal(
            await backend.check_and_pause(paused.instance_id), expected, "a pause takes once"
        )

    for run in (cancelled, paused):
        after = await backend.load_snapshot(run.instance_id)
        expect_equal(after.version, run.version + 1, "and is one version")


@check("SIGNAL-021", "check_and_pause makes a pending pause so, and keeps everything.")
async def applies_a_pause(kit: Kit) -> None:
    backend = await kit.open()
    before = await _signalled(kit, backend, Status.IN_PROGRESS, PAUSE)
    before = await backend.save_snapshot(before.with_deadline(await backend.now() + kit.long))
    await kit.elapse(TICK)

    expect_equal(await backend.check_and_pause(before.instance_id), True, "a pause is applied")

    after = await backend.load_snapshot(before.instance_id)
    expect_equal(
        after.state,
        Paused(before.position or AtTask("charge"), reason="stocktaking", requested_by="ops"),
        "it is paused where it stood, and says why and by whom",
    )
    expect_equal(dict(after.results), {"prepare": b"ready"}, "its results are kept")
    expect_equal(
        after.last_completed_task_id, before.last_completed_task_id, "the last completed too"
    )
    expect_equal(after.deadline, None, "its deadline is cleared")
    expect_equal(after.version, before.version + 1, "that takes one version")
    expect_equal(after.status_since, after.updated_at, "it is paused since that write")
    expect_equal(await _pending(backend, before.instance_id), set[SignalKind](), "nothing pends")


@check("SIGNAL-022", "check_and_pause without a pending pause is False, and changes nothing.")
async def nothing_to_pause(kit: Kit) -> None:
    backend = await kit.open()
    runs = [await stored(kit, backend, status) for status in Status]
    runs.append(await _signalled(kit, backend, Status.IN_PROGRESS, CANCEL))
    runs.append(await _signalled(kit, backend, Status.PAUSED, CANCEL))

    for before in runs:
        expect_equal(
            await backend.check_and_pause(before.instance_id),
            False,
            f"nothing pauses what is {before.status}",
        )
        expect_equal(
            await backend.load_snapshot(before.instance_id), before, "and nothing is written"
        )

    expect_equal(await _pending(backend, runs[-1].instance_id), {CANCEL}, "a pending cancel stays")
    expect_equal(await backend.check_and_pause(kit.instance()), False, "nobody is not paused")


@check("SIGNAL-023", "With a cancel pending too check_and_pause is False, and both stay.")
async def pause_yields_to_cancel(kit: Kit) -> None:
    backend = await kit.open()
    before = await _signalled(kit, backend, Status.IN_PROGRESS, PAUSE, CANCEL)

    expect_equal(await backend.check_and_pause(before.instance_id), False, "a cancel comes first")

    expect_equal(await backend.load_snapshot(before.instance_id), before, "nothing is written")
    expect_equal(await _pending(backend, before.instance_id), {PAUSE, CANCEL}, "both stay pending")


@check("SIGNAL-024", "check_and_pause leaves claims; their workers may extend and commit.")
async def pause_leaves_claims(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.store_signal(snapshot.instance_id, PAUSE)

    await backend.check_and_pause(snapshot.instance_id)

    await backend.extend_task_claim(mine, ttl=kit.long)
    commit = await backend.commit_task(
        mine, lambda found: found.complete_task("charge", b"paid", next=AtTask("ship"))
    )
    expect_equal(commit.snapshot.status, Status.PAUSED, "the commit leaves it paused")
    expect_equal(commit.snapshot.results["charge"], b"paid", "and is stored")
    expect_equal(
        await backend.find_available_tasks(worker_id="worker"), [], "nothing new is started"
    )


@check("SIGNAL-025", "check_control_signals applies what is pending and says what it was.")
async def applies_either(kit: Kit) -> None:
    backend = await kit.open()

    for status, kinds, applied, becomes in (
        (Status.IN_PROGRESS, (CANCEL,), CANCEL, Status.CANCELLED),
        (Status.IN_PROGRESS, (PAUSE,), PAUSE, Status.PAUSED),
        (Status.IN_PROGRESS, (PAUSE, CANCEL), CANCEL, Status.CANCELLED),
        (Status.PAUSED, (CANCEL,), CANCEL, Status.CANCELLED),
    ):
        before = await _signalled(kit, backend, status, *kinds)

        found = await backend.check_control_signals(
            before.instance_id, interrupted_at_task="charge"
        )

        expect_equal(found, applied, f"of {kinds} on what is {status} the cancel wins")
        after = await backend.load_snapshot(before.instance_id)
        expect_equal(after.status, becomes, f"a {applied} is applied")
        expect_equal(after.version, before.version + 1, "by one version")
        expect_equal(
            await _pending(backend, before.instance_id), set[SignalKind](), "nothing is left over"
        )
        expect_equal(dict(after.results), dict(before.results), "results are kept")

        if isinstance(after.state, Cancelled):
            expect_equal(
                after.state,
                Cancelled(
                    reason="customer called", requested_by="support", interrupted_at_task="charge"
                ),
                "the cancel's request is kept with the state",
            )

        expect_equal(
            await backend.check_control_signals(before.instance_id), None, "a repeat does nothing"
        )


@check("SIGNAL-026", "check_control_signals with nothing pending is None, of the unknown too.")
async def applies_nothing(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        before = await stored(kit, backend, status)
        expect_equal(
            await backend.check_control_signals(before.instance_id, interrupted_at_task="charge"),
            None,
            f"nothing is pending on what is {status}",
        )
        expect_equal(
            await backend.load_snapshot(before.instance_id), before, "and nothing is written"
        )

    expect_equal(await backend.check_control_signals(kit.instance()), None, "nor on nobody")


@check("SIGNAL-027", "The worker at work applies a signal itself, whatever claims are live.")
async def applied_by_the_worker(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()

    for kind, becomes in ((CANCEL, Status.CANCELLED), (PAUSE, Status.PAUSED)):
        run = await start(kit, backend, fork("left", "right"))
        left = await claim(backend, run.instance_id, "left")
        right = await claim(other, run.instance_id, "right", worker_id="other")
        await backend.store_signal(run.instance_id, kind)

        applied = await backend.check_control_signals(run.instance_id, interrupted_at_task="left")

        expect_equal(applied, kind, f"a {kind} is applied under live claims")
        after = await backend.load_snapshot(run.instance_id)
        expect_equal(after.status, becomes, "and is stored")

        for mine in (left, right):
            if becomes is Status.PAUSED:
                await backend.release_task_claim(mine)
            else:
                with raises(ClaimNotFoundError, "a cancel drops every claim"):
                    await backend.release_task_claim(mine)


@check("SIGNAL-028", "A cancel or pause is applied wherever the instance stands.")
async def applied_anywhere(kit: Kit) -> None:
    backend = await kit.open()
    positions: tuple[Position, ...] = (
        AtDelay("nap", wake_after=Kit.long, next=AtTask("ship")),
        AtSignal("wait", "paid", next=AtTask("ship")),
        AtFork("split", {"left": AtTask("left"), "nap": AtDelay("doze", wake_after=Kit.long)}),
        AtNode("router"),
    )

    for position in positions:
        for kind, becomes in ((CANCEL, Status.CANCELLED), (PAUSE, Status.PAUSED)):
            run = await start(kit, backend, position)
            await backend.store_signal(run.instance_id, kind)
            expect_equal(
                await backend.check_control_signals(run.instance_id), kind, f"a {kind} is applied"
            )
            after = await backend.load_snapshot(run.instance_id)
            expect_equal(after.status, becomes, f"to an instance at {position!r}")

            if becomes is Status.PAUSED:
                expect_equal(after.position, run.position, "which stays where it was")


# --- unpause ------------------------------------------------------------------------------------


@check("SIGNAL-029", "unpause of an unknown instance is InstanceNotFoundError.")
async def unpauses_nobody(kit: Kit) -> None:
    backend = await kit.open()

    with raises(InstanceNotFoundError, "there is nobody to unpause"):
        await backend.unpause(kit.instance())


@check("SIGNAL-030", "unpause of what is not paused is CannotPauseError, which names the status.")
async def unpauses_only_the_paused(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        if status is Status.PAUSED:
            continue

        before = await stored(kit, backend, status)
        error = await expect_refused(
            backend,
            before,
            CannotPauseError,
            f"what is {status} cannot be unpaused",
            partial(backend.unpause, before.instance_id),
        )
        expect_equal(
            (error.instance_id, error.status),
            (before.instance_id, status),
            "the error names instance and status",
        )


@check("SIGNAL-031", "A blind repeat of unpause is CannotPauseError, and takes no version.")
async def unpauses_once(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)
    resumed = await backend.unpause(before.instance_id)

    await expect_refused(
        backend,
        resumed,
        CannotPauseError,
        "a repeat is refused",
        partial(backend.unpause, before.instance_id),
    )
    expect_equal(resumed.version, before.version + 1, "an unpause takes one version")


@check("SIGNAL-032", "unpause restores exactly what was paused, parks and claims included.")
async def unpause_restores(kit: Kit) -> None:
    backend = await kit.open()
    branches: dict[str, Position | None] = {
        "task": AtTask("pack", priority=2, tags=("gpu",)),
        "nap": AtDelay("nap", wake_after=Kit.long, next=AtTask("rest")),
        "wait": AtSignal("wait", "paid", wake_after=Kit.long),
        "node": AtNode("child"),
        "over": None,
    }
    run = await start(kit, backend, AtFork("split", branches, next=AtTask("join")))
    run = await backend.save_snapshot(run.record_result("prepare", b"ready"))
    mine = await claim(backend, run.instance_id, "pack")
    await kit.elapse(TICK)

    await backend.store_signal(run.instance_id, PAUSE)
    await backend.check_and_pause(run.instance_id)
    paused = await backend.load_snapshot(run.instance_id)
    expect_equal(paused.position, run.position, "a pause keeps the position, stamps included")
    await kit.elapse(TICK)
    returned = await backend.unpause(run.instance_id)

    resumed = await backend.load_snapshot(run.instance_id)
    expect_equal(returned, resumed, "unpause returns what is stored")
    expect_equal(resumed.status, Status.IN_PROGRESS, "it runs again")
    expect_equal(dict(resumed.results), {"prepare": b"ready"}, "with its results")
    expect_equal(resumed.last_completed_task_id, "prepare", "and its last completed task")
    [task], [earlier] = resumed.ready_tasks(), run.ready_tasks()
    expect_equal(
        (replace(task, ready_at=earlier.ready_at), task.ready_at),
        (earlier, resumed.status_since),
        "the task is the same, ready since the unpause",
    )
    expect_equal(
        _parks(resumed.position), _parks(run.position), "parks keep their instants as they were"
    )
    extended = await backend.extend_task_claim(mine, ttl=kit.long)
    expect_equal(extended.fence, mine.fence, "its worker still holds its claim")


def _parks(position: Position | None) -> list[Position]:
    match position:
        case AtDelay() | AtSignal() | AtNode():
            return [position]
        case AtFork():
            return [park for branch in position.branches.values() for park in _parks(branch)]
        case _:
            return []


@check("SIGNAL-033", "unpause removes a pending pause, so that it does not pause again at once.")
async def unpause_removes_the_pause(kit: Kit) -> None:
    backend = await kit.open()
    before = await _signalled(kit, backend, Status.PAUSED, PAUSE)

    await backend.unpause(before.instance_id)

    expect_equal(
        await _pending(backend, before.instance_id), set[SignalKind](), "no pause is left over"
    )
    expect_equal(await backend.check_and_pause(before.instance_id), False, "nothing pauses again")
    found = await backend.find_available_tasks(worker_id="worker")
    expect_equal([task.task_id for task in found], ["charge"], "its task is offered")


@check("SIGNAL-034", "unpause keeps a pending cancel.")
async def unpause_keeps_the_cancel(kit: Kit) -> None:
    backend = await kit.open()
    before = await _signalled(kit, backend, Status.PAUSED, PAUSE, CANCEL)

    await backend.unpause(before.instance_id)

    expect_equal(await _pending(backend, before.instance_id), {CANCEL}, "a pending cancel stays")
    expect_equal(
        await backend.find_available_tasks(worker_id="worker"), [], "and hides the instance"
    )
    expect_equal(
        await backend.check_control_signals(before.instance_id), CANCEL, "and is still applied"
    )


@check("SIGNAL-035", "A paused instance can be paused and unpaused again and again.")
async def pauses_again(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)

    for number in range(1, 4):
        request = SignalRequest(reason=f"number {number}")
        expect_equal(
            await backend.request_signal(run.instance_id, PAUSE, request), Status.PAUSED, "paused"
        )
        paused = await backend.load_snapshot(run.instance_id)
        expect(
            isinstance(paused.state, Paused) and paused.state.reason == request.reason,
            "each pause has its own reason",
        )
        resumed = await backend.unpause(run.instance_id)
        expect_equal(resumed.version, run.version + 2 * number, "each is one version")
        found = await backend.find_available_tasks(worker_id="worker")
        expect_equal([task.task_id for task in found], ["charge"], "and it goes on")


# --- request_signal -----------------------------------------------------------------------------


@check("SIGNAL-036", "request_signal applies its signal at once where nobody is at work.")
async def request_applies(kit: Kit) -> None:
    backend = await kit.open()
    parked = AtSignal("wait", "paid", next=AtTask("ship"))

    for status, kind, becomes in (
        (Status.IN_PROGRESS, CANCEL, Status.CANCELLED),
        (Status.IN_PROGRESS, PAUSE, Status.PAUSED),
        (Status.PAUSED, CANCEL, Status.CANCELLED),
    ):
        for position in (AtTask("charge"), parked):
            before = await stored(kit, backend, status, position)

            found = await backend.request_signal(before.instance_id, kind, REQUEST)

            expect_equal(found, becomes, f"a {kind} of what is {status} returns what it became")
            after = await backend.load_snapshot(before.instance_id)
            expect_equal(after.status, becomes, "and is stored so")
            expect(
                isinstance(after.state, Paused | Cancelled)
                and (after.state.reason, after.state.requested_by)
                == ("customer called", "support"),
                "with its reason and requester",
            )
            expect_equal(dict(after.results), dict(before.results), "and its results")
            expect_equal(
                await _pending(backend, before.instance_id), set[SignalKind](), "nothing pends"
            )


@check("SIGNAL-037", "With a live claim request_signal leaves its signal to the worker.")
async def request_leaves_it_to_the_worker(kit: Kit) -> None:
    backend = await kit.open()

    for kind in SignalKind:
        snapshot, mine = await held(kit, backend)

        found = await backend.request_signal(snapshot.instance_id, kind, REQUEST)

        expect_equal(found, Status.IN_PROGRESS, "its status is unchanged so far")
        expect_equal(
            await backend.load_snapshot(snapshot.instance_id), snapshot, "nothing is written"
        )
        expect_equal(await _pending(backend, snapshot.instance_id), {kind}, "the signal pends")
        extended = await backend.extend_task_claim(mine, ttl=kit.long)
        expect_equal(extended.pending_signal, kind, "and its worker is told")


@check("SIGNAL-038", "A claim of any branch is somebody at work; an expired or ended one is not.")
async def request_looks_for_live_claims(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, fork("left", "right", "gone"))
    left = await claim(backend, run.instance_id, "left")
    await claim(backend, run.instance_id, "right", ttl=kit.short)
    gone = await claim(backend, run.instance_id, "gone")
    await backend.release_task_claim(gone)

    expect_equal(
        await backend.request_signal(run.instance_id, PAUSE), Status.IN_PROGRESS, "two are at work"
    )
    await backend.revoke_task_claim(run.instance_id, "left")
    await kit.elapse(kit.short)
    expect_equal(
        await backend.request_signal(run.instance_id, PAUSE), Status.PAUSED, "now nobody is"
    )
    with raises(ClaimNotFoundError, "a revoked claim is gone"):
        await backend.release_task_claim(left)


@check("SIGNAL-039", "request_signal with the other kind pending applies the cancel.")
async def request_lets_the_cancel_win(kit: Kit) -> None:
    backend = await kit.open()

    for pending, requested in ((PAUSE, CANCEL), (CANCEL, PAUSE)):
        before = await _signalled(kit, backend, Status.IN_PROGRESS, pending)
        request = REQUEST if requested is CANCEL else OTHER

        found = await backend.request_signal(before.instance_id, requested, request)

        expect_equal(found, Status.CANCELLED, f"a {requested} after a {pending}: the cancel wins")
        after = await backend.load_snapshot(before.instance_id)
        expect_equal(
            after.state,
            Cancelled(reason="customer called", requested_by="support"),
            "with the words of the cancel",
        )


@check("SIGNAL-040", "request_signal for what has happened already returns the status it has.")
async def request_of_what_is(kit: Kit) -> None:
    backend = await kit.open()

    for status, kind in ((Status.PAUSED, PAUSE), (Status.CANCELLED, CANCEL)):
        before = await stored(kit, backend, status)

        found = await backend.request_signal(before.instance_id, kind, OTHER)

        expect_equal(found, status, f"a {kind} of what is {status} is a success")
        expect_equal(
            await backend.load_snapshot(before.instance_id), before, "that changes nothing"
        )


@check(
    "SIGNAL-041", "A signal that pends because of a claim is applied by sweep once that is over."
)
async def pending_is_swept(kit: Kit) -> None:
    backend = await kit.open()
    names = {CANCEL: Status.CANCELLED, PAUSE: Status.PAUSED}
    runs = {kind: (await held(kit, backend, ttl=4 * kit.short)).snapshot for kind in SignalKind}

    for kind, run in runs.items():
        await backend.request_signal(run.instance_id, kind)

    await kit.elapse(4 * kit.short)
    report = await backend.sweep()

    expect_equal(
        (report.cancelled, report.paused),
        ((runs[CANCEL].instance_id,), (runs[PAUSE].instance_id,)),
        "sweep says what it applied",
    )

    for kind, run in runs.items():
        after = await backend.load_snapshot(run.instance_id)
        expect_equal(after.status, names[kind], f"a pending {kind} is applied")


# --- Workers ------------------------------------------------------------------------------------


@check(
    "SIGNAL-042", "claim_task and extend_task_claim tell of a pending signal: cancel over pause."
)
async def claims_tell(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, fork("left", "right"))
    left = await claim(backend, run.instance_id, "left")
    expect_equal(left.pending_signal, None, "nothing is pending at first")

    for stored_kind, told in ((PAUSE, PAUSE), (CANCEL, CANCEL)):
        await backend.store_signal(run.instance_id, stored_kind)
        left = await backend.extend_task_claim(left, ttl=kit.long)
        expect_equal(left.pending_signal, told, f"an extension tells of a pending {told}")

    right = await claim(backend, run.instance_id, "right")
    expect_equal(right.pending_signal, CANCEL, "a new claim tells of it too")

    await backend.clear_signal(run.instance_id, CANCEL)
    left = await backend.extend_task_claim(left, ttl=kit.long)
    expect_equal(left.pending_signal, PAUSE, "of what is pending now")


@check("SIGNAL-043", "The commit of the last worker applies what is pending, and claims nothing.")
async def commit_applies(kit: Kit) -> None:
    backend = await kit.open()

    for kinds, becomes in (
        ((CANCEL,), Status.CANCELLED),
        ((PAUSE,), Status.PAUSED),
        ((PAUSE, CANCEL), Status.CANCELLED),
    ):
        run = await start(kit, backend, fork("left", "right"))
        left = await claim(backend, run.instance_id, "left")
        right = await claim(backend, run.instance_id, "right")

        for kind in kinds:
            await backend.store_signal(run.instance_id, kind, REQUEST)

        commit = await backend.commit_task(
            left, _moves("left", AtTask("left-2")), claim_next=kit.long
        )
        expect_equal(
            (commit.snapshot.status, commit.next),
            (Status.IN_PROGRESS, None),
            "while another worker is there, it is left to that, yet nothing is claimed",
        )

        commit = await backend.commit_task(
            right, _moves("right", AtTask("right-2")), claim_next=kit.long
        )

        loaded = await backend.load_snapshot(run.instance_id)
        expect_equal(loaded.status, becomes, f"the last commit applies {kinds}")
        expect_equal(
            (commit.snapshot.status, commit.snapshot.version),
            (loaded.status, loaded.version),
            "and returns what is stored",
        )
        expect_equal(commit.next, None, "it claims nothing")
        expect_equal(
            dict(loaded.results), {"left": b"left", "right": b"right"}, "no result is lost"
        )
        expect_equal(
            await _pending(backend, run.instance_id), set[SignalKind](), "nothing is left over"
        )


def _moves(task_id: str, next: Position | None) -> Change:
    """The change that completes a task with its own id."""
    return lambda found: found.complete_task(task_id, task_id.encode(), next=next)


@check("SIGNAL-044", "A commit that changes nothing, too, applies what is pending.")
async def empty_commit_applies(kit: Kit) -> None:
    backend = await kit.open()

    for kind, becomes in ((CANCEL, Status.CANCELLED), (PAUSE, Status.PAUSED)):
        snapshot, mine = await held(kit, backend)
        await backend.store_signal(snapshot.instance_id, kind)

        commit = await backend.commit_task(mine, lambda found: found)

        expect_equal(commit.snapshot.status, becomes, f"a {kind} is applied right after it")
        loaded = await backend.load_snapshot(snapshot.instance_id)
        expect_equal(
            (loaded.status, loaded.version),
            (becomes, snapshot.version + 1),
            "which is the only version",
        )


@check("SIGNAL-045", "A commit that ends the workflow wins over a pending signal, and drops it.")
async def ending_wins(kit: Kit) -> None:
    backend = await kit.open()
    ends: dict[Status, Change] = {
        Status.COMPLETED: _moves("charge", None),
        Status.FAILED: lambda found: found.fail("declined"),
    }

    for status, change in ends.items():
        snapshot, mine = await held(kit, backend)

        for kind in SignalKind:
            await backend.store_signal(snapshot.instance_id, kind)

        commit = await backend.commit_task(mine, change)

        expect_equal(commit.snapshot.status, status, f"it is {status}")
        expect_equal(
            await _pending(backend, snapshot.instance_id),
            set[SignalKind](),
            "its pending signals are gone",
        )
        expect_equal(
            await backend.check_control_signals(snapshot.instance_id), None, "and never applied"
        )


@check("SIGNAL-046", "However it ends, an instance's pending signals and claims go with it.")
async def ending_drops_signals(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        for how in ("save_snapshot", "overwrite", "update_snapshot"):
            snapshot, mine = await held(kit, backend)

            for kind in SignalKind:
                await backend.store_signal(snapshot.instance_id, kind)

            await _end_by(backend, snapshot, status, how)

            expect_equal(
                await _pending(backend, snapshot.instance_id),
                set[SignalKind](),
                f"{how} to {status} drops what is pending",
            )
            with raises(ClaimNotFoundError, f"{how} to {status} drops every claim"):
                await backend.release_task_claim(mine)


async def _end_by(
    backend: PersistentBackend, snapshot: WorkflowSnapshot, status: Status, how: str
) -> None:
    ended = replace(snapshot, state=state_of(status))

    if how == "update_snapshot":
        await backend.update_snapshot(
            snapshot.instance_id, lambda found: replace(found, state=state_of(status))
        )
    else:
        await backend.save_snapshot(ended, overwrite=how == "overwrite")


@check(
    "SIGNAL-047", "An event that ends the workflow meets no pending signal: the signal is first."
)
async def signal_comes_before_the_event(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend, AtSignal("wait", "paid"))
    await backend.store_signal(run.instance_id, CANCEL, REQUEST)

    await backend.send_event(run.instance_id, "paid", b"yes")
    await backend.check_control_signals(run.instance_id)

    loaded = await backend.load_snapshot(run.instance_id)
    expect_equal(loaded.status, Status.CANCELLED, "a pending signal stops the answer")
    expect_equal(
        await backend.consume_event(run.instance_id, "paid"), b"yes", "the event stays queued"
    )


@check("SIGNAL-048", "A worker whose instance was cancelled can neither extend, save nor commit.")
async def cancel_ends_the_worker(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.store_signal(snapshot.instance_id, CANCEL)
    await backend.check_and_cancel(snapshot.instance_id)
    before = await backend.load_snapshot(snapshot.instance_id)

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "extend_task_claim": partial(backend.extend_task_claim, mine, ttl=kit.long),
        "save_task_result": partial(
            backend.save_task_result, snapshot.instance_id, "charge", b"paid", claim=mine
        ),
        "update_snapshot": partial(
            backend.update_snapshot, snapshot.instance_id, _moves("charge", None), claim=mine
        ),
        "commit_task": partial(backend.commit_task, mine, _moves("charge", None)),
        "commit_task of a snapshot": partial(backend.commit_task, mine, snapshot.complete(b"done")),
    }

    for name, call in calls.items():
        error = await expect_refused(
            backend, before, PersistError, f"{name} is refused after a cancel", call
        )
        expect(not error.retryable, f"{name} is not worth another try after a cancel")


@check("SIGNAL-049", "A worker with a live claim may end what was paused meanwhile.")
async def worker_ends_the_paused(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.store_signal(snapshot.instance_id, PAUSE)
    await backend.check_and_pause(snapshot.instance_id)

    commit = await backend.commit_task(mine, _moves("charge", None), base=snapshot)

    expect_equal(commit.snapshot.state, Completed(b"charge"), "the last commit completes it")
    loaded = await backend.load_snapshot(snapshot.instance_id)
    expect_equal(loaded.state, Completed(b"charge"), "and is stored so")


@check("SIGNAL-050", "Branches of a paused fork are committed by those who hold them, then join.")
async def paused_fork_joins(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    run = await start(kit, backend, fork("left", "right", next=AtTask("join")))
    left = await claim(backend, run.instance_id, "left")
    right = await claim(other, run.instance_id, "right")
    await backend.store_signal(run.instance_id, PAUSE)
    await backend.check_and_pause(run.instance_id)

    await backend.commit_task(left, _moves("left", None), base=run)
    commit = await other.commit_task(right, _moves("right", None), base=run, claim_next=kit.long)

    expect_equal(commit.snapshot.status, Status.PAUSED, "it is still paused")
    expect_equal([task.task_id for task in commit.snapshot.ready_tasks()], ["join"], "at the join")
    expect_equal(commit.next, None, "which nobody starts")
    expect_equal(await backend.find_available_tasks(worker_id="worker"), [], "nor is it offered")
    granted = await backend.claim_task(run.instance_id, "join", worker_id="w", ttl=kit.long)
    expect_equal(granted, None, "nor claimed")
    await backend.unpause(run.instance_id)
    found = await backend.find_available_tasks(worker_id="worker")
    expect_equal([task.task_id for task in found], ["join"], "until it is unpaused")


@check("SIGNAL-051", "A result is recorded while paused, and is there when the instance goes on.")
async def result_while_paused(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)
    await backend.store_signal(snapshot.instance_id, PAUSE)
    await backend.check_and_pause(snapshot.instance_id)

    await backend.save_task_result(snapshot.instance_id, "charge", b"paid", claim=mine)

    paused = await backend.load_snapshot(snapshot.instance_id)
    expect_equal(paused.status, Status.PAUSED, "a result does not unpause")
    expect_equal(paused.results["charge"], b"paid", "but it is recorded")
    resumed = await backend.unpause(snapshot.instance_id)
    expect_equal(resumed.results["charge"], b"paid", "and not lost by the unpause")
    expect(resumed.ready_tasks()[0].done, "its task is still marked done")


@check("SIGNAL-052", "A lost claim is no way onto a paused instance.")
async def lost_claim_while_paused(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend, ttl=kit.short)
    await backend.store_signal(snapshot.instance_id, PAUSE)
    await backend.check_and_pause(snapshot.instance_id)
    await kit.until(backend, mine.expires_at)
    paused = await backend.load_snapshot(snapshot.instance_id)

    await expect_refused(
        backend,
        paused,
        ClaimLostError,
        "an expired claim commits nothing onto a paused instance",
        partial(backend.commit_task, mine, _moves("charge", None), base=snapshot),
    )


@check("SIGNAL-053", "A cancel that pends on a paused instance is applied by sweep.")
async def sweeps_the_paused(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)
    await backend.store_signal(before.instance_id, CANCEL, REQUEST)

    report = await backend.sweep()

    expect_equal(report.cancelled, (before.instance_id,), "sweep cancels what is paused, too")
    after = await backend.load_snapshot(before.instance_id)
    expect_equal(
        after.state,
        Cancelled(reason="customer called", requested_by="support"),
        "with the words of its request",
    )


@check("SIGNAL-054", "No signal reaches a later instance of the same id.")
async def signals_die_with_their_instance(kit: Kit) -> None:
    backend = await kit.open()
    run = await start(kit, backend)

    for kind in SignalKind:
        await backend.store_signal(run.instance_id, kind)

    await backend.delete_snapshot(run.instance_id)
    expect_equal(await _pending(backend, run.instance_id), set[SignalKind](), "they are deleted")
    await backend.start_instance(run.instance_id, "v1", start_at="charge")

    expect_equal(await _pending(backend, run.instance_id), set[SignalKind](), "and stay so")
    expect_equal(await backend.check_control_signals(run.instance_id), None, "nothing is applied")
    found = await backend.find_available_tasks(worker_id="worker")
    expect_equal([task.instance_id for task in found], [run.instance_id], "the new one is offered")


@check("SIGNAL-055", "interrupted_at_task obeys the limits of ids.")
async def interrupted_at_is_an_id(kit: Kit) -> None:
    backend = await kit.open()
    before = await _signalled(kit, backend, Status.IN_PROGRESS, CANCEL)

    for call in (backend.check_and_cancel, backend.check_control_signals):
        for bad in ("", "x" * 257, "a\0b"):
            await expect_refused(
                backend,
                before,
                InvalidArgumentError,
                f"a task id of {len(bad)} bytes is refused",
                partial(call, before.instance_id, interrupted_at_task=bad),
            )

    longest = "x" * 256
    await backend.check_and_cancel(before.instance_id, interrupted_at_task=longest)
    after = await backend.load_snapshot(before.instance_id)
    expect(
        isinstance(after.state, Cancelled) and after.state.interrupted_at_task == longest,
        "256 bytes are kept",
    )


@check("SIGNAL-056", "A pause requested of a paused instance lets a pending cancel win.")
async def request_finds_a_cancel(kit: Kit) -> None:
    backend = await kit.open()
    before = await _signalled(kit, backend, Status.PAUSED, CANCEL)

    found = await backend.request_signal(before.instance_id, PAUSE, OTHER)

    expect_equal(found, Status.CANCELLED, "what pends is applied, and a cancel comes first")
    after = await backend.load_snapshot(before.instance_id)
    expect_equal(
        after.state,
        Cancelled(reason="customer called", requested_by="support"),
        "with the words of the cancel",
    )
