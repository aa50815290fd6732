"""SNAPSHOT-1xx: the status machine, every row and column of it."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from sayiir_persist import (
    AtTask,
    Cancelled,
    Change,
    ClaimLostError,
    ClaimNotFoundError,
    Completed,
    Failed,
    InstancePausedError,
    Paused,
    SignalKind,
    SignalRequest,
    StaleSnapshotError,
    Status,
    TerminalStateError,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    RETRY,
    TERMINAL,
    claim,
    expect_refused,
    start,
    state_of,
    stored,
    turned,
)


@check("SNAPSHOT-101", "An instance can be created in every status.")
async def created_in_any_status(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        loaded = await stored(kit, backend, status)

        expect_equal(loaded.status, status, f"an instance can be created {status}")
        expect_equal(loaded.version, 1, f"an instance created {status} has version 1")
        expect_equal(dict(loaded.results), {"prepare": b"ready"}, "and keeps its results")

        if status.is_terminal:
            expect_equal(loaded.state, state_of(status), "and its final state")


@check("SNAPSHOT-102", "A running instance goes to every status by a save of its version.")
async def from_in_progress(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        before = await stored(kit, backend, Status.IN_PROGRESS)

        await backend.save_snapshot(replace(before, state=state_of(status)))

        after = await backend.load_snapshot(before.instance_id)
        expect_equal(after.status, status, f"a running instance can be saved as {status}")
        expect_equal(after.version, 2, "that takes one version")
        expect_equal(dict(after.results), dict(before.results), "and keeps the results")


@check("SNAPSHOT-103", "A running instance may move to any position.")
async def moves_freely(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await stored(kit, backend, Status.IN_PROGRESS)

    for task_id in ("elsewhere", "charge", "anywhere"):
        snapshot = await backend.save_snapshot(snapshot.move_to(AtTask(task_id)))
        [task] = (await backend.load_snapshot(snapshot.instance_id)).ready_tasks()
        expect_equal(task.task_id, task_id, "a position may change to any other")


@check("SNAPSHOT-104", "A paused instance is set going by a save of exactly its version.")
async def paused_to_in_progress(kit: Kit) -> None:
    backend = await kit.open()
    paused = await stored(kit, backend, Status.PAUSED)

    await backend.save_snapshot(paused.unpause())

    after = await backend.load_snapshot(paused.instance_id)
    expect_equal(after.status, Status.IN_PROGRESS, "who has read the pause may end it by a save")
    expect_equal(after.version, paused.version + 1, "that takes one version")


@check("SNAPSHOT-105", "A worker's older save never sets a paused instance going.")
async def stale_save_keeps_the_pause(kit: Kit) -> None:
    backend = await kit.open()
    running = await stored(kit, backend, Status.IN_PROGRESS)
    await backend.save_snapshot(running.pause())
    paused = await backend.load_snapshot(running.instance_id)

    error = await expect_refused(
        backend,
        paused,
        InstancePausedError,
        "an older save of a running snapshot is refused once the instance is paused",
        lambda: backend.save_snapshot(running.record_result("step", b"late")),
    )

    expect_equal(error.instance_id, running.instance_id, "the error names the instance")


@check("SNAPSHOT-106", "A paused instance may be replaced by another paused snapshot.")
async def paused_to_paused(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)
    other = Paused(AtTask("other"), reason="fire drill", requested_by="warden")

    await backend.save_snapshot(replace(before, state=other).record_result("step", b"x"))

    after = await backend.load_snapshot(before.instance_id)
    expect_equal(after.status, Status.PAUSED, "it stays paused")
    expect_equal(after.version, before.version + 1, "that takes one version")
    expect_equal(after.results["step"], b"x", "its results are stored")
    expect(
        isinstance(after.state, Paused) and after.state.reason == "fire drill",
        "its new reason is stored",
    )

    await expect_refused(
        backend,
        after,
        StaleSnapshotError,
        "a paused snapshot of an older version is stale",
        lambda: backend.save_snapshot(before),
    )


@check("SNAPSHOT-107", "A paused instance is not completed or failed without a claim.")
async def paused_does_not_end(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)

    for status in (Status.COMPLETED, Status.FAILED):
        ended = replace(before, state=state_of(status))

        for value in (ended, replace(ended, version=7)):
            await expect_refused(
                backend,
                before,
                InstancePausedError,
                f"a save as {status} without a claim is refused while paused",
                partial(backend.save_snapshot, value),
            )

        await expect_refused(
            backend,
            before,
            InstancePausedError,
            f"an update to {status} without a claim is refused while paused",
            partial(
                backend.update_snapshot,
                before.instance_id,
                turned(status),
            ),
        )


@check("SNAPSHOT-108", "A live claim completes or fails a paused instance from its stored version.")
async def paused_ends_by_its_worker(kit: Kit) -> None:
    backend = await kit.open()

    for status in (Status.COMPLETED, Status.FAILED):
        for how in ("commit_task", "update_snapshot"):
            running = await stored(kit, backend, Status.IN_PROGRESS)
            held = await claim(backend, running.instance_id)
            paused = await backend.save_snapshot(running.pause())
            ended = replace(paused, state=state_of(status))

            if how == "commit_task":
                await backend.commit_task(held, ended)
            else:
                await backend.update_snapshot(
                    running.instance_id,
                    turned(status),
                    claim=held,
                )

            after = await backend.load_snapshot(running.instance_id)
            expect_equal(
                after.status, status, f"{how} with a live claim makes a paused instance {status}"
            )


@check("SNAPSHOT-109", "A live claim does not end a paused instance from an older version.")
async def paused_does_not_end_unseen(kit: Kit) -> None:
    backend = await kit.open()
    running = await stored(kit, backend, Status.IN_PROGRESS)
    held = await claim(backend, running.instance_id)
    await backend.save_snapshot(running.pause())
    paused = await backend.load_snapshot(running.instance_id)

    for value in (running.complete(b"done"), running.fail("broken"), running.count_iteration("x")):
        await expect_refused(
            backend,
            paused,
            InstancePausedError,
            f"a commit as {value.status} that has not seen the pause is refused",
            partial(backend.commit_task, held, value),
        )

    again = await backend.extend_task_claim(held, ttl=kit.long)
    expect_equal(again.fence, held.fence, "the refused commits leave the claim where it was")


@check("SNAPSHOT-110", "A paused instance is cancelled by a save of exactly its version.")
async def paused_to_cancelled(kit: Kit) -> None:
    backend = await kit.open()
    running = await stored(kit, backend, Status.IN_PROGRESS)
    await backend.save_snapshot(running.pause())
    paused = await backend.load_snapshot(running.instance_id)

    await expect_refused(
        backend,
        paused,
        InstancePausedError,
        "an older save as cancelled is refused while paused",
        lambda: backend.save_snapshot(running.cancel()),
    )
    await backend.save_snapshot(paused.cancel(SignalRequest(reason="customer called")))

    after = await backend.load_snapshot(running.instance_id)
    expect_equal(
        after.state, Cancelled(reason="customer called"), "who has read the pause may cancel it"
    )
    expect_equal(dict(after.results), dict(paused.results), "cancelling keeps the results")


@check("SNAPSHOT-111", "Nothing changes an instance that has ended, not even the same save again.")
async def terminal_is_final(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        before = await stored(kit, backend, status)

        for incoming in Status:
            value = replace(before, state=state_of(incoming))

            for given in (value, replace(value, version=7)):
                error = await expect_refused(
                    backend,
                    before,
                    TerminalStateError,
                    f"saving {incoming} over an instance that is {status} is refused",
                    partial(backend.save_snapshot, given),
                )
                expect_equal(error.status, status, "the error says how the instance ended")
                expect_equal(error.instance_id, before.instance_id, "and names the instance")

        await expect_refused(
            backend,
            before,
            TerminalStateError,
            f"saving an instance that is {status} as it was loaded is refused",
            partial(backend.save_snapshot, before),
        )


@check("SNAPSHOT-112", "No single result is recorded for an instance that has ended.")
async def terminal_takes_no_result(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        before = await stored(kit, backend, status)

        for task_id, output in (("charge", b"late"), ("prepare", b"ready")):
            await expect_refused(
                backend,
                before,
                TerminalStateError,
                f"a result is refused when the instance is {status}, even an identical one",
                partial(backend.save_task_result, before.instance_id, task_id, output),
            )


@check("SNAPSHOT-113", "Ending drops pending signals and every claim, but not buffered events.")
async def ending_cleans_up(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        running = await stored(kit, backend, Status.IN_PROGRESS)
        instance_id = running.instance_id
        held = await claim(backend, instance_id)
        await backend.send_event(instance_id, "paid", b"1")
        await backend.store_signal(instance_id, SignalKind.CANCEL)
        await backend.store_signal(instance_id, SignalKind.PAUSE)

        await backend.save_snapshot(replace(running, state=state_of(status)))

        for kind in SignalKind:
            expect_equal(
                await backend.get_signal(instance_id, kind),
                None,
                f"no {kind} is pending once the instance is {status}",
            )

        with raises(ClaimNotFoundError, f"no claim is on record once the instance is {status}"):
            await backend.release_task_claim(held)

        expect_equal(
            await backend.consume_event(instance_id, "paid"),
            b"1",
            "buffered events outlive the end of the instance",
        )


@check("SNAPSHOT-114", "Completing or failing clears deadline, retries and loops.")
async def ending_clears_the_state_of_the_runtime(kit: Kit) -> None:
    backend = await kit.open()
    now = await backend.now()

    def busy(snapshot: WorkflowSnapshot) -> WorkflowSnapshot:
        failed = snapshot.record_failure("charge", RETRY, error="declined")
        return failed.count_iteration("loop").with_deadline(now + kit.long)

    ends: tuple[Change, ...] = (
        lambda found: found.complete(b"done"),
        lambda found: found.fail("broken"),
    )

    for end in ends:
        snapshot = await backend.save_snapshot(busy(await start(kit, backend)))

        await backend.update_snapshot(snapshot.instance_id, end)

        after = await backend.load_snapshot(snapshot.instance_id)
        expect_equal(after.deadline, None, f"{after.status} clears the deadline")
        expect_equal(dict(after.retries), {}, f"{after.status} clears the retries")
        expect_equal(dict(after.loop_iterations), {}, f"{after.status} clears the loops")
        expect_equal(
            after.state,
            Completed(b"done") if after.status is Status.COMPLETED else Failed("broken"),
            "and the final state is stored",
        )


@check("SNAPSHOT-115", "Pausing clears the deadline, and keeps position, results, last completed.")
async def pausing_keeps_the_rest(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = (await start(kit, backend)).record_result("prepare", b"ready")
    running = await backend.save_snapshot(snapshot.with_deadline(await backend.now() + kit.long))
    await kit.elapse(kit.short / 10)

    await backend.save_snapshot(running.pause(SignalRequest(reason="lunch", requested_by="ops")))

    paused = await backend.load_snapshot(running.instance_id)
    expect_equal(paused.deadline, None, "pausing clears the deadline")
    expect_equal(paused.position, running.position, "pausing keeps the position, stamps included")
    expect_equal(dict(paused.results), dict(running.results), "pausing keeps the results")
    expect_equal(paused.last_completed_task_id, "prepare", "pausing keeps the last completed")
    expect(
        isinstance(paused.state, Paused)
        and (paused.state.reason, paused.state.requested_by) == ("lunch", "ops"),
        "the reason and the requester of a pause are stored",
    )
    expect_equal(paused.status_since, paused.updated_at, "it is paused since that save")


@check("SNAPSHOT-116", "Unpausing restores exactly what was paused; the pause does not age a task.")
async def unpausing_restores(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = (await start(kit, backend)).record_result("prepare", b"ready")
    running = await backend.save_snapshot(snapshot)
    await backend.save_snapshot(running.pause())
    await kit.elapse(kit.short)

    returned = await backend.unpause(running.instance_id)

    after = await backend.load_snapshot(running.instance_id)
    expect_equal(returned, after, "unpause returns what is stored")
    expect_equal(after.status, Status.IN_PROGRESS, "it runs again")
    expect_equal(after.version, running.version + 2, "a pause and its end are two versions")
    expect_equal(dict(after.results), dict(running.results), "with the same results")
    expect_equal(after.last_completed_task_id, "prepare", "and the same last completed task")
    [task], [earlier] = after.ready_tasks(), running.ready_tasks()
    expect_equal(replace(task, ready_at=earlier.ready_at), earlier, "at the same position")
    expect_equal(task.ready_at, after.status_since, "a task is ready since the unpause")
    expect_equal(after.status_since, after.updated_at, "it is in progress since the unpause")


@check("SNAPSHOT-117", "Cancelling keeps results, whether the instance ran or was paused.")
async def cancelling_keeps_results(kit: Kit) -> None:
    backend = await kit.open()

    for status in (Status.IN_PROGRESS, Status.PAUSED):
        before = await stored(kit, backend, status)
        deadline = await backend.now() + kit.long
        before = await backend.save_snapshot(before.with_deadline(deadline))
        request = SignalRequest(reason="customer called", requested_by="support")

        await backend.save_snapshot(before.cancel(request, interrupted_at_task="charge"))

        after = await backend.load_snapshot(before.instance_id)
        expect_equal(dict(after.results), {"prepare": b"ready"}, f"from {status} results are kept")
        expect_equal(after.deadline, None, "cancelling clears the deadline")
        expect_equal(after.state, state_of(Status.CANCELLED), "who cancelled, why and where stays")


@check("SNAPSHOT-118", "status_since changes with the status only.")
async def status_since_is_stable(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await start(kit, backend)
    created = snapshot.status_since

    await kit.elapse(kit.short / 10)
    snapshot = await backend.save_snapshot(snapshot.count_iteration("loop"))
    expect_equal(snapshot.status_since, created, "a save in the same status keeps status_since")

    await kit.elapse(kit.short / 10)
    snapshot = await backend.save_snapshot(snapshot.complete(b"done"))
    expect_equal(snapshot.status_since, snapshot.updated_at, "a new status begins with its save")
    expect(snapshot.status_since != created, "and not earlier")


@check("SNAPSHOT-119", "A paused instance goes on by the claim that it had, and stays paused.")
async def paused_moves_on(kit: Kit) -> None:
    backend = await kit.open()
    running = await stored(kit, backend, Status.IN_PROGRESS)
    held = await claim(backend, running.instance_id)
    await backend.save_snapshot(running.pause())

    commit = await backend.commit_task(
        held,
        lambda found: found.complete_task("charge", b"paid", next=AtTask("ship")),
        base=running,
        claim_next=kit.long,
    )

    after = await backend.load_snapshot(running.instance_id)
    expect_equal(after.status, Status.PAUSED, "a commit leaves a paused instance paused")
    expect_equal(after.results["charge"], b"paid", "its result is stored")
    expect_equal([task.task_id for task in after.ready_tasks()], ["ship"], "its position moves on")
    expect_equal(commit.next, None, "nothing new is claimed while paused")
    expect_equal(commit.snapshot.version, after.version, "the commit returns what is stored")

    with raises(ClaimLostError, "the commit has released its claim"):
        await backend.save_task_result(running.instance_id, "charge", b"x", claim=held)
