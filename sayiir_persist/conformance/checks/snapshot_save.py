"""SNAPSHOT-0xx: creating, versioned saves, blind overwrites, and what versions count."""

from __future__ import annotations

from functools import partial

from msgspec.structs import force_setattr, replace

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtTask,
    InProgress,
    InstanceExistsError,
    InstancePausedError,
    InvalidArgumentError,
    Paused,
    ReadyReason,
    SignalKind,
    StaleSnapshotError,
    Status,
    TerminalStateError,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises, refused, succeeded
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    TERMINAL,
    claim,
    expect_missing,
    expect_refused,
    fresh,
    rich,
    shape,
    start,
    state_of,
    stored,
)


@check(
    "SNAPSHOT-001", "Saving a snapshot of version 0 creates it as version 1, every stamp filled."
)
async def creates(kit: Kit) -> None:
    backend = await kit.open()
    before = await backend.now()

    saved = await backend.save_snapshot(fresh(kit))

    after = await backend.now()
    expect_equal(saved.version, 1, "the first accepted write has version 1")
    expect(saved.incarnation, "a created instance has an incarnation")
    expect(
        saved.created_at is not None and before <= saved.created_at <= after,
        "created_at is the store's time of the save",
    )
    expect_equal(saved.updated_at, saved.created_at, "a new instance was updated when created")
    expect_equal(saved.status_since, saved.created_at, "it has its status since it was created")
    [task] = saved.ready_tasks()
    expect_equal(task.ready_at, saved.created_at, "its task is ready since it was created")
    expect_equal(task.reason, ReadyReason.TASK, "its task is ready because its turn came")
    expect_equal(
        await backend.load_snapshot(saved.instance_id), saved, "a save returns what is stored"
    )


@check("SNAPSHOT-002", "Version 0 never replaces an instance, whatever its status.")
async def never_created_twice(kit: Kit) -> None:
    backend = await kit.open()

    for status in Status:
        before = await stored(kit, backend, status)
        again = WorkflowSnapshot.start(before.instance_id, "v1", start_at="other")

        error = await expect_refused(
            backend,
            before,
            InstanceExistsError,
            f"saving version 0 over an instance that is {status} is refused",
            partial(backend.save_snapshot, again),
        )

        expect_equal(error.instance_id, before.instance_id, "the error names the instance")
        expect_equal(error.status, status, "the error says which status the instance has")


@check("SNAPSHOT-003", "Of concurrent creators of one id exactly one wins.")
async def one_creator_wins(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    base = fresh(kit)
    candidates = [replace(base, input=b"%d" % number) for number in range(8)]

    outcomes = await kit.together(
        *(
            partial(store.save_snapshot, value)
            for value, store in zip(candidates, [first, second] * 4, strict=True)
        )
    )

    winners = succeeded(outcomes)
    expect_equal(len(winners), 1, "exactly one concurrent creator wins")
    expect_equal(len(refused(outcomes, InstanceExistsError)), 7, "every other is told so")
    expect_equal(
        await first.load_snapshot(base.instance_id), winners[0], "what is stored is the winner's"
    )


@check("SNAPSHOT-004", "Each accepted save takes exactly the next version; its answer is savable.")
async def saves_in_a_row(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await backend.save_snapshot(fresh(kit))
    created = snapshot

    for version in range(2, 6):
        await kit.elapse(kit.short / 10)
        snapshot = await backend.save_snapshot(snapshot.record_result(f"step-{version}", b"x"))
        expect_equal(snapshot.version, version, "a save takes the next version, no gap")

    loaded = await backend.load_snapshot(created.instance_id)
    expect_equal(loaded, snapshot, "a save returns what is stored")
    expect_equal(loaded.incarnation, created.incarnation, "saves keep the incarnation")
    expect_equal(loaded.created_at, created.created_at, "saves keep created_at")
    expect_equal(loaded.status_since, created.status_since, "the status began with the creation")
    expect(
        loaded.updated_at is not None
        and created.updated_at is not None
        and loaded.updated_at > created.updated_at,
        "a save moves updated_at",
    )


@check("SNAPSHOT-005", "A save from an older version is refused and names both versions.")
async def stale_save(kit: Kit) -> None:
    backend = await kit.open()
    old = await backend.save_snapshot(fresh(kit))
    new = await backend.save_snapshot(old.record_result("step", b"new"))

    error = await expect_refused(
        backend,
        new,
        StaleSnapshotError,
        "a save from an older version is refused",
        lambda: backend.save_snapshot(old.record_result("step", b"old")),
    )

    expect_equal(error.instance_id, old.instance_id, "the error names the instance")
    expect_equal(error.given_version, 1, "the error says which version was given")
    expect_equal(error.stored_version, 2, "the error says which version is stored")
    expect(not error.retryable, "the same stale save never succeeds later")


@check("SNAPSHOT-006", "A save from a version that was never reached is refused.")
async def future_save(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await backend.save_snapshot(fresh(kit))

    await expect_refused(
        backend,
        snapshot,
        StaleSnapshotError,
        "a save from a version above the stored one is refused",
        lambda: backend.save_snapshot(replace(snapshot, version=7)),
    )


@check("SNAPSHOT-007", "A versioned save never brings a deleted instance back.")
async def no_return_of_the_deleted(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await backend.save_snapshot(fresh(kit))
    await backend.delete_snapshot(snapshot.instance_id)

    with raises(StaleSnapshotError, "a versioned save of a deleted instance is refused") as caught:
        await backend.save_snapshot(snapshot.record_result("step", b"late"))

    expect_equal(caught.error.stored_version, None, "the error says that the row is gone")
    expect_equal(caught.error.given_version, 1, "the error says which version was given")
    await expect_missing(backend, snapshot.instance_id, "the refused save creates nothing")


@check("SNAPSHOT-008", "A save from an earlier incarnation is refused, though the version matches.")
async def foreign_incarnation(kit: Kit) -> None:
    backend = await kit.open()
    earlier = await backend.save_snapshot(fresh(kit))
    await backend.delete_snapshot(earlier.instance_id)
    later = await backend.save_snapshot(
        WorkflowSnapshot.start(earlier.instance_id, "v1", start_at="other")
    )

    await expect_refused(
        backend,
        later,
        StaleSnapshotError,
        "a save from an earlier incarnation is refused",
        lambda: backend.save_snapshot(earlier.record_result("step", b"late")),
    )


@check("SNAPSHOT-009", "Every creation of an id has an incarnation of its own.")
async def incarnations_differ(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = fresh(kit)
    seen: set[str] = set()

    for _ in range(5):
        seen.add((await backend.save_snapshot(snapshot)).incarnation)
        await backend.delete_snapshot(snapshot.instance_id)

    expect_equal(len(seen), 5, "an incarnation is never used again")


@check(
    "SNAPSHOT-010", "Of concurrent saves from one version exactly one wins, and no number is lost."
)
async def one_saver_wins(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    snapshot = await first.save_snapshot(fresh(kit))

    for version in range(2, 6):
        values = [snapshot.record_result("step", b"%d" % number) for number in range(8)]

        outcomes = await kit.together(
            *(
                partial(store.save_snapshot, value)
                for value, store in zip(values, [first, second] * 4, strict=True)
            )
        )

        winners = succeeded(outcomes)
        expect_equal(len(winners), 1, "exactly one concurrent save from a version wins")
        refused(outcomes, StaleSnapshotError)
        snapshot = await first.load_snapshot(snapshot.instance_id)
        expect_equal(snapshot, winners[0], "what is stored is the winner's")
        expect_equal(snapshot.version, version, "saves that lost take no version")


@check("SNAPSHOT-011", "overwrite=True creates where nothing is stored.")
async def overwrite_creates(kit: Kit) -> None:
    backend = await kit.open()

    saved = await backend.save_snapshot(fresh(kit), overwrite=True)

    expect_equal(saved.version, 1, "what overwrite created has version 1")
    expect_equal(await backend.load_snapshot(saved.instance_id), saved, "it is stored")


@check("SNAPSHOT-012", "overwrite=True replaces everything blindly, within the incarnation.")
async def overwrite_replaces(kit: Kit) -> None:
    backend = await kit.open()
    old = await backend.save_snapshot(fresh(kit).record_result("step", b"old"))
    stale = old
    old = await backend.save_snapshot(old.count_iteration("loop"))
    await kit.elapse(kit.short / 10)
    other = WorkflowSnapshot.start(
        old.instance_id, "v2", start_at="other", input=b"new", priority=1, tags=("gpu",)
    )

    new = await backend.save_snapshot(other.record_result("fresh", b"new"), overwrite=True)

    expect_equal(new.version, 3, "an overwrite takes the next version")
    expect_equal(new.incarnation, old.incarnation, "an overwrite keeps the incarnation")
    expect_equal(new.created_at, old.created_at, "an overwrite keeps created_at")
    expect_equal(new.definition_hash, "v2", "an overwrite may change the definition")
    expect_equal(new.input, b"new", "an overwrite replaces the input")
    expect_equal(new.priority, 1, "an overwrite replaces the priority")
    expect_equal(new.tags, ("gpu",), "an overwrite replaces the tags")
    expect_equal(dict(new.results), {"fresh": b"new"}, "an overwrite replaces all results")
    expect_equal(new.loop_iterations, {}, "an overwrite replaces the loops")
    expect_equal([task.task_id for task in new.ready_tasks()], ["other"], "and the position")
    loaded = await backend.load_snapshot(old.instance_id)
    expect_equal(loaded, new, "an overwrite returns what is stored")

    again = await backend.save_snapshot(stale, overwrite=True)
    expect_equal(again.version, 4, "an overwrite does not ask for the version of its value")
    expect_equal(again.input, b"order", "an overwrite stores the input of its value")
    expect_equal(
        await backend.load_task_result(old.instance_id, "fresh"),
        None,
        "a result that the overwriting value lacks is gone",
    )


@check("SNAPSHOT-013", "A repeated overwrite stores the same content as a new version.")
async def overwrite_again(kit: Kit) -> None:
    backend = await kit.open()
    value = fresh(kit).record_result("step", b"x")
    await backend.save_snapshot(value, overwrite=True)

    again = await backend.save_snapshot(value, overwrite=True)

    expect_equal(again.version, 2, "an identical overwrite takes a version of its own")
    expect_equal(dict(again.results), {"step": b"x"}, "and stores the same content")


@check("SNAPSHOT-014", "overwrite=True never touches an instance that has ended.")
async def overwrite_spares_the_ended(kit: Kit) -> None:
    backend = await kit.open()

    for status in TERMINAL:
        before = await stored(kit, backend, status)

        for incoming in Status:
            value = replace(fresh(kit), instance_id=before.instance_id, state=state_of(incoming))
            error = await expect_refused(
                backend,
                before,
                TerminalStateError,
                f"overwriting an instance that is {status} with {incoming} is refused",
                partial(backend.save_snapshot, value, overwrite=True),
            )
            expect_equal(error.status, status, "the error says how the instance ended")


@check("SNAPSHOT-015", "overwrite=True touches a paused instance only to leave it paused.")
async def overwrite_keeps_paused(kit: Kit) -> None:
    backend = await kit.open()
    before = await stored(kit, backend, Status.PAUSED)

    for incoming in Status:
        if incoming is Status.PAUSED:
            continue

        for version in (0, before.version):
            value = replace(before, version=version, state=state_of(incoming))
            await expect_refused(
                backend,
                before,
                InstancePausedError,
                f"overwriting a paused instance with {incoming} is refused",
                partial(backend.save_snapshot, value, overwrite=True),
            )

    paused = replace(before, version=0, state=Paused(AtTask("other"), reason="inventory"))
    after = await backend.save_snapshot(paused, overwrite=True)
    expect_equal(after.status, Status.PAUSED, "a paused snapshot may overwrite a paused instance")
    expect_equal(after.version, before.version + 1, "and takes the next version")
    [task] = after.ready_tasks()
    expect_equal(task.task_id, "other", "and moves its position")


@check("SNAPSHOT-016", "overwrite=True refuses a snapshot whose results were not loaded.")
async def overwrite_needs_results(kit: Kit) -> None:
    backend = await kit.open()
    before = await backend.save_snapshot(fresh(kit).record_result("step", b"x"))
    partial = await backend.load_snapshot(before.instance_id, results=False)

    await expect_refused(
        backend,
        before,
        InvalidArgumentError,
        "an overwrite without results would drop them unseen and is refused",
        lambda: backend.save_snapshot(partial, overwrite=True),
    )


@check("SNAPSHOT-017", "Only writes of the snapshot take versions: claims, signals, events do not.")
async def what_takes_no_version(kit: Kit) -> None:
    backend = await kit.open()
    before = await start(kit, backend)
    instance_id = before.instance_id

    held = await claim(backend, instance_id)
    held = await backend.extend_task_claim(held, ttl=kit.long)
    await backend.release_task_claim(held)
    await claim(backend, instance_id)
    await backend.revoke_task_claim(instance_id, "charge")
    await backend.store_signal(instance_id, SignalKind.PAUSE)
    await backend.clear_signal(instance_id, SignalKind.PAUSE)
    await backend.send_event(instance_id, "paid", b"1")
    await backend.consume_event(instance_id, "paid")
    await backend.find_available_tasks(worker_id="worker")
    await backend.sweep()

    after = await backend.load_snapshot(instance_id)
    expect_equal(after, before, "claims, pending signals and buffered events take no version")


@check("SNAPSHOT-018", "Writes that were refused or changed nothing take no version.")
async def refusals_take_no_version(kit: Kit) -> None:
    backend = await kit.open()
    first = await start(kit, backend)
    instance_id = first.instance_id
    second = await backend.save_snapshot(first.count_iteration("loop"))

    with raises(StaleSnapshotError, "a stale save is refused"):
        await backend.save_snapshot(first)

    with raises(InstanceExistsError, "a second creation is refused"):
        await backend.start_instance(instance_id, "v1", start_at="charge")

    with raises(InvalidArgumentError, "an invalid save is refused"):
        await backend.save_snapshot(replace(second, priority=9))

    await backend.update_snapshot(instance_id, lambda snapshot: snapshot)
    third = await backend.save_snapshot(second.count_iteration("loop"))
    expect_equal(third.version, 3, "no version is lost to a write that was not accepted")


@check("SNAPSHOT-019", "Saving leaves the caller's value as it was, accepted or refused.")
async def caller_keeps_its_value(kit: Kit) -> None:
    backend = await kit.open()
    value, twin = rich("run"), rich("run")

    saved = await backend.save_snapshot(value)
    expect_equal(value, twin, "an accepted save leaves the caller's value as it was")
    expect_equal(value.version, 0, "an accepted save leaves the caller's version as it was")

    with raises(InstanceExistsError, "a second creation is refused"):
        await backend.save_snapshot(value)

    expect_equal(value, twin, "a refused save leaves the caller's value as it was")
    newer = saved.record_result("more", b"1")
    await backend.save_snapshot(newer)

    with raises(StaleSnapshotError, "the same save again is stale") as caught:
        await backend.save_snapshot(newer)

    expect_equal(newer.version, 1, "the value that was saved keeps its version")
    expect_equal(
        caught.error.stored_version, newer.version + 1, "one more than given tells: it was me"
    )


@check("SNAPSHOT-020", "Changing a value after it was saved does not change what is stored.")
async def saved_value_is_copied(kit: Kit) -> None:
    backend = await kit.open()
    branches = {"left": AtTask("pack"), "right": AtTask("ship")}
    loops = {"outer": 1}
    value = replace(
        fresh(kit), state=InProgress(AtFork("fan-out", branches)), loop_iterations=loops
    )
    returned = await backend.save_snapshot(value)

    branches["left"] = AtTask("burn")
    loops["outer"] = 99
    force_setattr(returned, "priority", 5)

    loaded = await backend.load_snapshot(value.instance_id)
    expect_equal(
        [task.task_id for task in loaded.ready_tasks()],
        ["pack", "ship"],
        "a position is copied when it is saved",
    )
    expect_equal(loaded.loop_iterations, {"outer": 1}, "a map is copied when it is saved")
    expect_equal(loaded.priority, 3, "the value that a save returns is private to its caller")


@check("SNAPSHOT-021", "What a load returns is private to the caller.")
async def loaded_value_is_private(kit: Kit) -> None:
    backend = await kit.open()
    expected = await backend.save_snapshot(rich("run"))
    expected = await backend.load_snapshot("run")
    spoilt = await backend.load_snapshot("run")

    for mapping in (spoilt.loop_iterations, spoilt.retries):
        if isinstance(mapping, dict):
            mapping.clear()

    if isinstance(spoilt.position, AtFork) and isinstance(spoilt.position.branches, dict):
        spoilt.position.branches.clear()

    force_setattr(spoilt, "tags", ("spoilt",))
    force_setattr(spoilt, "version", 99)

    expect_equal(
        await backend.load_snapshot("run"), expected, "what one caller does to a load stays there"
    )

    before = dict(expected.results)
    await backend.save_task_result("run", "later", b"later")
    expect_equal(dict(expected.results), before, "and a load does not change as the store does")


@check("SNAPSHOT-022", "Saving and loading preserve every field, byte, order and microsecond.")
async def round_trip(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    given = rich("run")

    saved = await backend.save_snapshot(given)

    loaded = await other.load_snapshot("run")
    expect_equal(loaded, saved, "every backend object loads what one saved")

    for field in (
        "definition_hash",
        "input",
        "last_completed_task_id",
        "timed_out",
        "loop_iterations",
        "deadline",
        "priority",
        "tags",
        "trace_parent",
    ):
        expect_equal(getattr(loaded, field), getattr(given, field), f"{field} is preserved")

    expect_equal(dict(loaded.results), dict(given.results), "so are the results")
    retry, wanted = loaded.retries["pack"], given.retries["pack"]
    expect_equal(
        (retry.attempts, retry.last_error, retry.last_worker, retry.retry_after),
        (wanted.attempts, wanted.last_error, wanted.last_worker, wanted.retry_after),
        "so is the state of retries",
    )


@check("SNAPSHOT-023", "A position tree comes back as it was saved, stamps apart.")
async def tree_round_trip(kit: Kit) -> None:
    backend = await kit.open()
    given = rich("run")
    saved = await backend.save_snapshot(given)

    loaded = await backend.load_snapshot("run")

    rewritten = await backend.save_snapshot(loaded)
    expect_equal(
        replace(rewritten, version=1, updated_at=saved.updated_at),
        saved,
        "a snapshot that is saved as it was loaded stays what it was, stamps included",
    )
    await kit.elapse(kit.short / 10)
    twin = await backend.save_snapshot(replace(loaded, instance_id="twin", version=0))
    expect_equal(shape(twin), shape(given), "version 0 creates the same tree")
    fork = twin.position
    delay = fork.branches["middle"] if isinstance(fork, AtFork) else None
    expect(
        isinstance(delay, AtDelay) and delay.entered_at == twin.created_at,
        "but every stamp starts anew",
    )


@check("SNAPSHOT-024", "An empty payload is a value, and distinct from none.")
async def empty_is_not_absent(kit: Kit) -> None:
    backend = await kit.open()
    empty = await backend.save_snapshot(fresh(kit, input=b"").record_result("step", b""))
    absent = await backend.save_snapshot(fresh(kit, input=None))

    loaded = await backend.load_snapshot(empty.instance_id)
    expect_equal(loaded.input, b"", "an empty input stays empty")
    expect_equal(dict(loaded.results), {"step": b""}, "an empty result stays a result")
    expect_equal(
        await backend.load_task_result(empty.instance_id, "step"), b"", "and is found as one"
    )
    loaded = await backend.load_snapshot(absent.instance_id)
    expect_equal(loaded.input, None, "an absent input stays absent")
    expect_equal(
        await backend.load_task_result(absent.instance_id, "step"), None, "so does a result"
    )


@check(
    "SNAPSHOT-025", "Every instant that a store returns is aware, in UTC, and keeps microseconds."
)
async def instants_are_exact(kit: Kit) -> None:
    backend = await kit.open()
    snapshot = await start(kit, backend)

    for microsecond in (1, 500, 999_999):
        deadline = (await backend.now()).replace(microsecond=microsecond)
        snapshot = await backend.save_snapshot(snapshot.with_deadline(deadline))
        loaded = await backend.load_snapshot(snapshot.instance_id)
        expect_equal(loaded.deadline, deadline, "an instant keeps its microseconds")

    loaded = await backend.load_snapshot(snapshot.instance_id)

    for field in ("created_at", "updated_at", "status_since", "deadline"):
        instant = getattr(loaded, field)
        expect_equal(instant.utcoffset().total_seconds(), 0, f"{field} is an aware instant in UTC")
