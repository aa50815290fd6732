"""SNAPSHOT-2xx: results, one by one and with the snapshot; loads with and without them."""

from __future__ import annotations

from functools import partial

import anyio
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from sayiir_persist import (
    AtTask,
    InstanceNotFoundError,
    ResultsNotLoadedError,
    StaleSnapshotError,
    Status,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises, succeeded
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    claim,
    fork,
    fresh,
    held,
    start,
    state_of,
    stored,
)


async def _results(kit: Kit, instance_id: str) -> dict[str, bytes]:
    """The results as another backend object sees them."""
    backend = await kit.open()
    return dict((await backend.load_snapshot(instance_id)).results)


# --- With the snapshot ----------------------------------------------------------------------------


@check("SNAPSHOT-201", "A save adds the results gained, drops those forgotten, keeps the others.")
async def save_writes_the_difference(kit: Kit) -> None:
    backend = await kit.open()
    first = fresh(kit).record_result("kept", b"1").record_result("forgotten", b"2")
    first = await backend.save_snapshot(first.record_result("changed", b"3"))

    loaded = await backend.load_snapshot(first.instance_id)
    changed = loaded.forget("forgotten").record_result("changed", b"33").record_result("new", b"4")
    await backend.save_snapshot(changed)

    expect_equal(
        await _results(kit, first.instance_id),
        {"kept": b"1", "changed": b"33", "new": b"4"},
        "a save stores exactly what the snapshot holds",
    )


@check("SNAPSHOT-202", "A snapshot loaded without its results loses none when it is saved.")
async def partial_save_loses_nothing(kit: Kit) -> None:
    backend = await kit.open()
    first = fresh(kit).record_result("kept", b"1").record_result("forgotten", b"2")
    first = await backend.save_snapshot(first.record_result("changed", b"3"))

    partial = await backend.load_snapshot(first.instance_id, results=False)
    changed = partial.forget("forgotten").record_result("changed", b"33")
    saved = await backend.save_snapshot(changed.record_result("new", b"4"))

    expect_equal(
        await _results(kit, first.instance_id),
        {"kept": b"1", "changed": b"33", "new": b"4"},
        "results that were not loaded stay, those gained and forgotten are written",
    )
    await backend.save_snapshot(saved.record_result("newer", b"5"))
    expect_equal(
        (await _results(kit, first.instance_id)).get("newer"),
        b"5",
        "what such a save returns can be saved again",
    )


@check("SNAPSHOT-203", "results=False leaves out the results, and says so instead of lying.")
async def load_without_results(kit: Kit) -> None:
    backend = await kit.open()
    saved = await backend.save_snapshot(fresh(kit).record_result("step", b"1"))

    partial = await backend.load_snapshot(saved.instance_id, results=False)

    expect(not partial.results.loaded, "results that were left out are not `loaded`")

    with raises(ResultsNotLoadedError, "a look-up of a result that was left out is an error"):
        partial.results["step"]

    with raises(ResultsNotLoadedError, "so is a look-up of one that never was"):
        partial.results.get("never")

    expect_equal(
        replace(partial, results=saved.results), saved, "everything else is loaded all the same"
    )


@check(
    "SNAPSHOT-204", "Results gained and forgotten before a save go with it, also back and forth."
)
async def last_word_counts(kit: Kit) -> None:
    backend = await kit.open()
    saved = await backend.save_snapshot(fresh(kit).record_result("a", b"1"))

    twice = saved.record_result("b", b"2").forget("b").forget("a").record_result("a", b"11")
    saved = await backend.save_snapshot(twice)
    saved = await backend.save_snapshot(saved.record_result("c", b"3"))
    await backend.save_snapshot(saved.forget("c", "never"))

    expect_equal(
        await _results(kit, saved.instance_id), {"a": b"11"}, "the last word on a result counts"
    )


@check("SNAPSHOT-205", "A result that was forgotten reads as none from then on.")
async def forgotten_is_gone(kit: Kit) -> None:
    backend = await kit.open()
    saved = await backend.save_snapshot(fresh(kit).record_result("body", b"1"))

    saved = await backend.save_snapshot(saved.forget("body"))
    expect_equal(
        await backend.load_task_result(saved.instance_id, "body"),
        None,
        "a forgotten result is gone",
    )

    await backend.save_snapshot(saved.record_result("body", b"2"))
    expect_equal(
        await backend.load_task_result(saved.instance_id, "body"),
        b"2",
        "and may be recorded again",
    )


# --- One by one -----------------------------------------------------------------------------------


@check("SNAPSHOT-211", "save_task_result records an output, and moves nothing.")
async def records_one_result(kit: Kit) -> None:
    backend = await kit.open()
    before = await backend.save_snapshot(
        fresh(kit).record_result("prepare", b"ready").count_iteration("loop")
    )
    await kit.elapse(kit.short / 10)

    version = await backend.save_task_result(before.instance_id, "other", b"x")

    after = await backend.load_snapshot(before.instance_id)
    expect_equal(version, before.version + 1, "a recorded result takes one version")
    expect_equal(after.version, version, "the version that is returned is the stored one")
    expect_equal(dict(after.results), {"prepare": b"ready", "other": b"x"}, "no other is touched")
    expect_equal(after.last_completed_task_id, "other", "it is the last completed task")
    expect_equal(after.position, before.position, "the position does not move")
    expect_equal(after.loop_iterations, before.loop_iterations, "nothing else changes")
    expect(after.updated_at != before.updated_at, "updated_at moves")


@check("SNAPSHOT-212", "save_task_result of an unknown instance is InstanceNotFoundError.")
async def result_of_nothing(kit: Kit) -> None:
    backend = await kit.open()

    with raises(InstanceNotFoundError, "no result is recorded for an unknown instance") as caught:
        await backend.save_task_result("nobody", "charge", b"x")

    expect_equal(caught.error.instance_id, "nobody", "the error names the instance")


@check("SNAPSHOT-213", "Concurrent calls for different tasks all survive, each with its version.")
async def concurrent_results(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    instance_id = (await start(kit, first)).instance_id

    outcomes = await kit.together(
        *(
            partial(store.save_task_result, instance_id, f"task-{number}", b"%d" % number)
            for number, store in enumerate([first, second] * 8)
        )
    )

    expect_equal(sorted(succeeded(outcomes)), list(range(2, 18)), "each call takes one version")
    expect_equal(
        await _results(kit, instance_id),
        {f"task-{number}": b"%d" % number for number in range(16)},
        "no concurrently recorded result is lost",
    )


@check("SNAPSHOT-214", "A ready task whose result is recorded is marked done, and not offered.")
async def recorded_is_done(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend, fork("pack", "ship"))).instance_id

    await backend.save_task_result(instance_id, "pack", b"x")

    after = await backend.load_snapshot(instance_id)
    expect_equal(
        {task.task_id: task.done for task in after.ready_tasks()},
        {"pack": True, "ship": False},
        "exactly the task whose result is recorded is marked done",
    )
    offered = await backend.find_available_tasks(worker_id="worker")
    expect_equal([task.task_id for task in offered], ["ship"], "a done task is not offered")
    await claim(backend, instance_id, "pack")


@check("SNAPSHOT-215", "A recorded result marks no task that is not ready.")
async def others_are_not_done(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await start(kit, backend)

    await backend.save_task_result(snapshot.instance_id, "later", b"x")
    loaded = await backend.load_snapshot(snapshot.instance_id)
    moved = await backend.save_snapshot(loaded.move_to(AtTask("later")))

    [task] = moved.ready_tasks()
    expect(not task.done, "a task is not done because it has a result from before it was entered")
    offered = await backend.find_available_tasks(worker_id="worker")
    expect_equal([task.task_id for task in offered], ["later"], "it is offered")


@check("SNAPSHOT-216", "The same result again is a success that takes no version.")
async def identical_result(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    for task_id in ("charge", "other"):
        version = await backend.save_task_result(instance_id, task_id, b"x")
        before = await backend.load_snapshot(instance_id)

        again = await backend.save_task_result(instance_id, task_id, b"x")

        expect_equal(again, version, "an identical result returns the stored version")
        expect_equal(
            await backend.load_snapshot(instance_id), before, "an identical result writes nothing"
        )


@check("SNAPSHOT-217", "Of two results of one task the last one counts.")
async def last_result_wins(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    await backend.save_task_result(instance_id, "charge", b"first")

    version = await backend.save_task_result(instance_id, "charge", b"second")

    expect_equal(version, 3, "another result takes a version")
    expect_equal(await _results(kit, instance_id), {"charge": b"second"}, "and replaces the first")


@check("SNAPSHOT-218", "An identical result marks a ready task that is not done yet.")
async def identical_result_marks(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = fresh(kit, "body").record_result("body", b"x")
    await backend.save_snapshot(snapshot)

    version = await backend.save_task_result(snapshot.instance_id, "body", b"x")

    [task] = (await backend.load_snapshot(snapshot.instance_id)).ready_tasks()
    expect(task.done, "an identical result of a ready task that is not done marks it")
    expect_equal(version, 2, "which takes a version")


@check("SNAPSHOT-219", "What was read before a result was recorded is stale.")
async def recorded_result_makes_stale(kit: Kit) -> None:
    backend = await kit.open()
    before = await start(kit, backend)
    await backend.save_task_result(before.instance_id, "other", b"x")

    with raises(StaleSnapshotError, "a snapshot from before a recorded result is stale"):
        await backend.save_snapshot(before.count_iteration("loop"))


@check("SNAPSHOT-220", "While paused a result is recorded, and the position stays.")
async def result_while_paused(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)

    version = await backend.save_task_result(before.instance_id, "charge", b"paid")

    after = await backend.load_snapshot(before.instance_id)
    expect_equal(after.status, Status.PAUSED, "a result leaves a paused instance paused")
    expect_equal(after.version, version, "it takes a version")
    expect_equal(after.results["charge"], b"paid", "it is recorded")
    expect_equal(
        [task.task_id for task in after.ready_tasks()], ["charge"], "the position does not move"
    )
    await backend.unpause(before.instance_id)
    expect_equal(
        await backend.find_available_tasks(worker_id="worker"),
        [],
        "a task whose result was recorded while paused is not offered afterwards",
    )


@check(
    "SNAPSHOT-221", "A done mark stays with the task while it stays, and goes when it is entered."
)
async def done_marks_live_with_the_leaf(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id
    await backend.save_task_result(instance_id, "charge", b"x")

    loaded = await backend.load_snapshot(instance_id)
    saved = await backend.save_snapshot(loaded.count_iteration("loop"))
    expect(saved.ready_tasks()[0].done, "a save that leaves a done task where it is keeps its mark")

    saved = await backend.save_snapshot(saved.move_to(AtTask("charge")))
    expect(not saved.ready_tasks()[0].done, "a task that is entered again is not done")
    offered = await backend.find_available_tasks(worker_id="worker")
    expect_equal([task.task_id for task in offered], ["charge"], "and is offered again")


@check("SNAPSHOT-222", "A result with a claim is recorded, and the claim is kept.")
async def result_with_claim(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await held(kit, backend)

    version = await backend.save_task_result(snapshot.instance_id, "charge", b"paid", claim=mine)

    expect_equal(version, 2, "a result with a claim takes one version")
    extended = await backend.extend_task_claim(mine, ttl=kit.long)
    expect_equal(extended.fence, mine.fence, "recording a result keeps the claim")
    commit = await backend.commit_task(
        mine, lambda found: found.complete_task("charge", b"paid", next=None)
    )
    expect_equal(commit.snapshot.status, Status.COMPLETED, "which may still commit")


# --- Loading --------------------------------------------------------------------------------------


@check("SNAPSHOT-231", "Loading an unknown instance is InstanceNotFoundError.")
async def load_of_nothing(kit: Kit) -> None:
    backend = await kit.open()

    for results in (True, False):
        with raises(InstanceNotFoundError, "nothing can be loaded of an unknown one") as caught:
            await backend.load_snapshot("nobody", results=results)

        expect_equal(caught.error.instance_id, "nobody", "the error names the instance")


@check(
    "SNAPSHOT-232", "A single result is found in every status, and none where none was recorded."
)
async def single_result_in_every_status(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        snapshot = await stored(kit, backend, status)

        expect_equal(
            await backend.load_task_result(snapshot.instance_id, "prepare"),
            b"ready",
            f"a single result is found while the instance is {status}",
        )
        expect_equal(
            await backend.load_task_result(snapshot.instance_id, "never"),
            None,
            "a task without a result has none",
        )


@check("SNAPSHOT-233", "A single result of an unknown instance is InstanceNotFoundError.")
async def single_result_of_nothing(kit: Kit) -> None:
    backend = await kit.open()

    with raises(InstanceNotFoundError, "an unknown instance has no results") as caught:
        await backend.load_task_result("nobody", "charge")

    expect_equal(caught.error.instance_id, "nobody", "the error names the instance")


@check("SNAPSHOT-234", "A result that arrives with the very save that ends the instance is found.")
async def result_of_the_last_save(kit: Kit) -> None:
    backend = await kit.open()

    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        running = await stored(kit, backend, Status.IN_PROGRESS)
        ended = replace(running.record_result("last", b"words"), state=state_of(status))

        await backend.save_snapshot(ended)

        expect_equal(
            await backend.load_task_result(running.instance_id, "last"),
            b"words",
            f"a result that came with the save as {status} is found",
        )
        expect_equal(
            await _results(kit, running.instance_id),
            {"prepare": b"ready", "last": b"words"},
            "and is loaded with the snapshot",
        )


@check("SNAPSHOT-235", "A load shows one version whole, and successive loads never go back.")
async def loads_are_consistent(kit: Kit) -> None:
    writer, reader = await kit.open(), await kit.open()
    instance_id = (await start(kit, writer)).instance_id
    await writer.update_snapshot(instance_id, lambda found: _tick(found, 0))
    finished = anyio.Event()

    async def write() -> None:
        for number in range(1, 40):
            await writer.update_snapshot(instance_id, partial(_tick, number=number))

        finished.set()

    async def read() -> None:
        version = 0

        while not finished.is_set():
            loaded = await reader.load_snapshot(instance_id)
            count = loaded.loop_iterations["tick"]
            expect_equal(
                (loaded.results["left"], loaded.results["right"]),
                (b"%d" % (count - 1), b"%d" % (count - 1)),
                "a load never mixes the results of two versions",
            )
            expect(loaded.version >= version, "a later load never shows an earlier version")
            version = loaded.version
            await checkpoint()

    for outcome in await kit.together(write, read):
        if isinstance(outcome, Exception):
            raise outcome


@check("SNAPSHOT-236", "What dispatch offers agrees with the snapshot that it comes with.")
async def offers_are_consistent(kit: Kit) -> None:
    writer, reader = await kit.open(), await kit.open()
    instance_id = (await start(kit, writer, "step-0")).instance_id
    finished = anyio.Event()

    async def write() -> None:
        for number in range(40):
            await writer.update_snapshot(instance_id, partial(_advance, number=number))

        finished.set()

    async def read() -> None:
        while not finished.is_set():
            for task in await reader.find_available_tasks(worker_id="worker", results=True):
                number = int(task.task_id.removeprefix("step-"))
                ready = [ready.task_id for ready in task.snapshot.ready_tasks()]
                expect_equal(ready, [task.task_id], "a task is offered with its own snapshot")
                expect_equal(len(task.snapshot.results), number, "its results are of that version")
                expected = b"%d" % (number - 1) if number else b"order"
                expect_equal(task.input, expected, "and so is its input")

            await checkpoint()

    for outcome in await kit.together(write, read):
        if isinstance(outcome, Exception):
            raise outcome


def _tick(snapshot: WorkflowSnapshot, number: int) -> WorkflowSnapshot:
    output = b"%d" % number
    ticked = snapshot.record_result("left", output).record_result("right", output)
    return ticked.count_iteration("tick")


def _advance(snapshot: WorkflowSnapshot, number: int) -> WorkflowSnapshot:
    following = AtTask(f"step-{number + 1}")
    return snapshot.complete_task(f"step-{number}", b"%d" % number, next=following)
