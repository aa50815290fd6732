"""SNAPSHOT-3xx: update_snapshot."""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial

from anyio.from_thread import start_blocking_portal
from msgspec.structs import replace

from sayiir_persist import (
    AtTask,
    Change,
    ContentionError,
    InstanceNotFoundError,
    InvalidArgumentError,
    Status,
    TerminalStateError,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import (
    ExpectationError,
    Kit,
    expect,
    expect_equal,
    raises,
    succeeded,
)
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import TERMINAL, expect_refused, held, start, stored

ATTEMPTS = 50
"""After so many tries an update gives up."""


@check("SNAPSHOT-301", "update_snapshot loads, applies the change, and saves it as one version.")
async def updates(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.IN_PROGRESS)
    seen: list[WorkflowSnapshot] = []

    def change(found: WorkflowSnapshot) -> WorkflowSnapshot:
        seen.append(found)
        return found.record_result("step", found.results["prepare"] + b"!").forget("prepare")

    returned = await backend.update_snapshot(before.instance_id, change)

    after = await backend.load_snapshot(before.instance_id)
    expect_equal(seen[-1], before, "the change is given what is stored, with its results")
    expect_equal(after.version, before.version + 1, "an update takes one version")
    expect_equal(dict(after.results), {"step": b"ready!"}, "it stores what the change returned")
    expect_equal(returned, after, "and returns what is stored")


@check("SNAPSHOT-302", "A change that returns its argument writes nothing.")
async def update_of_nothing(kit: Kit) -> None:
    backend = await kit.open()
    before = await start(kit, backend)
    await kit.elapse(kit.short / 10)

    returned = await backend.update_snapshot(before.instance_id, lambda found: found)

    expect_equal(returned, before, "an update that changes nothing returns what is stored")
    after = await backend.load_snapshot(before.instance_id)
    expect_equal(after, before, "and writes nothing, not even updated_at")


@check("SNAPSHOT-303", "A change that alters id, version or incarnation is refused.")
async def illegal_changes(kit: Kit) -> None:
    backend = await kit.open()
    before = await start(kit, backend)
    changes: dict[str, Change] = {
        "id": lambda found: replace(found, instance_id="other"),
        "version": lambda found: replace(found, version=found.version + 1),
        "version, back to 0,": lambda found: replace(found, version=0),
        "incarnation": lambda found: replace(found, incarnation="other"),
    }

    for what, change in changes.items():
        await expect_refused(
            backend,
            before,
            InvalidArgumentError,
            f"a change that alters the {what} is refused",
            partial(backend.update_snapshot, before.instance_id, change),
        )


@check("SNAPSHOT-304", "On an instance that has ended the change is not even run.")
async def update_of_the_ended(kit: Kit) -> None:
    backend = await kit.open()
    calls: list[WorkflowSnapshot] = []

    def change(found: WorkflowSnapshot) -> WorkflowSnapshot:
        calls.append(found)
        return found

    for status in TERMINAL:
        before = await stored(kit, backend, status)

        error = await expect_refused(
            backend,
            before,
            TerminalStateError,
            f"an update of an instance that is {status} is refused",
            partial(backend.update_snapshot, before.instance_id, change),
        )

        expect_equal(error.status, status, "the error says how the instance ended")

    expect_equal(calls, [], "a change is not run on an instance that has ended")


@check("SNAPSHOT-305", "Updating an unknown instance is InstanceNotFoundError.")
async def update_of_the_unknown(kit: Kit) -> None:
    backend = await kit.open()

    with raises(InstanceNotFoundError, "an unknown instance is not updated") as caught:
        await backend.update_snapshot("nobody", lambda found: found.count_iteration("loop"))

    expect_equal(caught.error.instance_id, "nobody", "the error names the instance")


@check("SNAPSHOT-306", "Concurrent updates of one instance all take effect.")
async def concurrent_updates(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    instance_id = (await start(kit, first)).instance_id

    outcomes = await kit.together(
        *(
            partial(store.update_snapshot, instance_id, lambda found: found.count_iteration("loop"))
            for store in [first, second] * 8
        )
    )

    versions = sorted(snapshot.version for snapshot in succeeded(outcomes))
    expect_equal(versions, list(range(2, 18)), "each update takes exactly one version")
    after = await first.load_snapshot(instance_id)
    expect_equal(after.loop_iterations, {"loop": 16}, "no concurrent update is lost")


@check("SNAPSHOT-307", "An error of the change goes to the caller as it is; nothing is written.")
async def failing_change(kit: Kit) -> None:
    backend = await kit.open()
    before = await start(kit, backend)

    def change(found: WorkflowSnapshot) -> WorkflowSnapshot:
        raise ZeroDivisionError(found.instance_id)

    await expect_refused(
        backend,
        before,
        ZeroDivisionError,
        "an error of the change is raised as it is",
        lambda: backend.update_snapshot(before.instance_id, change),
    )


@check("SNAPSHOT-308", "An update overtaken every time gives up with ContentionError.")
async def contention(kit: Kit) -> None:
    # A rival in an event loop of its own writes while the change runs. It would wait for ever if
    # the change ran under a lock or within a transaction, which is as forbidden.
    backend = await kit.open()
    before = await start(kit, backend)
    calls: list[int] = []

    with start_blocking_portal() as portal:
        rival = kit.backend()

        with portal.wrap_async_context_manager(rival):

            def change(found: WorkflowSnapshot) -> WorkflowSnapshot:
                calls.append(found.version)
                write = portal.start_task_soon(
                    rival.save_task_result, before.instance_id, "rival", b"%d" % len(calls)
                )

                try:
                    write.result(timeout=10)
                except FutureTimeoutError as error:
                    write.cancel()
                    raise ExpectationError(
                        "a change runs while no lock and no transaction is held"
                    ) from error

                return found.record_result("mine", b"x")

            with raises(ContentionError, "an update that is always overtaken gives up") as caught:
                await backend.update_snapshot(before.instance_id, change)

    expect_equal(len(calls), ATTEMPTS, "an update gives up after 50 tries")
    expect_equal(calls, sorted(set(calls)), "each try sees what overtook the last one")
    expect_equal(caught.error.instance_id, before.instance_id, "the error names the instance")
    expect(caught.error.retryable, "contention may be over later")
    after = await backend.load_snapshot(before.instance_id)
    expect_equal(after.version, before.version + ATTEMPTS, "tries that were lost take no version")
    expect("mine" not in after.results, "an update that gave up has written nothing")


@check("SNAPSHOT-309", "An update with a claim keeps the claim.")
async def update_with_claim(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)

    saved = await backend.update_snapshot(
        snapshot.instance_id, lambda found: found.count_iteration("loop"), claim=mine
    )

    expect_equal(saved.version, 2, "an update with a live claim is accepted")
    extended = await backend.extend_task_claim(mine, ttl=kit.long)
    expect_equal(extended.fence, mine.fence, "and keeps the claim")


@check("SNAPSHOT-310", "An update of a paused instance leaves it paused.")
async def update_while_paused(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)

    await backend.update_snapshot(
        before.instance_id, lambda found: found.move_to(AtTask("other")).count_iteration("loop")
    )

    after = await backend.load_snapshot(before.instance_id)
    expect_equal(after.status, Status.PAUSED, "transitions leave a paused instance paused")
    expect_equal([task.task_id for task in after.ready_tasks()], ["other"], "and move it")
