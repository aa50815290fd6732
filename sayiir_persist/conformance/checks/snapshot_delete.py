"""SNAPSHOT-4xx: deleting an instance, with everything that belongs to it."""

from __future__ import annotations

from functools import partial

from sayiir_persist import (
    AtTask,
    ClaimLostError,
    ClaimNotFoundError,
    InstanceNotFoundError,
    PersistentBackend,
    SignalKind,
    SignalRequest,
    Status,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect_equal, raises, refused, succeeded
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import (
    Held,
    claim,
    expect_missing,
    held,
    start,
    stored,
)


async def _laden(kit: Kit, backend: PersistentBackend) -> Held:
    """An instance to which everything belongs that can: results, a claim, signals, events."""
    laden = await held(kit, backend)
    await backend.save_task_result(laden.instance_id, "charge", b"paid")
    await backend.store_signal(laden.instance_id, SignalKind.CANCEL, SignalRequest(reason="old"))
    await backend.store_signal(laden.instance_id, SignalKind.PAUSE, SignalRequest(reason="old"))
    await backend.send_event(laden.instance_id, "shipped", b"old", event_id="e1")
    return laden


@check("SNAPSHOT-401", "Deleting an unknown instance, or twice, is InstanceNotFoundError.")
async def deletes_once(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await start(kit, backend)).instance_id

    with raises(InstanceNotFoundError, "an unknown instance cannot be deleted") as caught:
        await backend.delete_snapshot("nobody")

    expect_equal(caught.error.instance_id, "nobody", "the error names the instance")
    await backend.delete_snapshot(instance_id)

    with raises(InstanceNotFoundError, "a deleted instance cannot be deleted again"):
        await backend.delete_snapshot(instance_id)


@check("SNAPSHOT-402", "An instance can be deleted in every status.")
async def deletes_in_any_status(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()

    for status in Status:
        snapshot = await stored(kit, backend, status)

        await backend.delete_snapshot(snapshot.instance_id)

        await expect_missing(other, snapshot.instance_id, f"what was {status} can be deleted")
        expect_equal(await other.list_snapshots(), [], "a deleted instance is not listed")


@check("SNAPSHOT-403", "Nothing of a deleted instance can be read any more.")
async def nothing_is_left(kit: Kit) -> None:
    backend = await kit.open()
    instance_id = (await _laden(kit, backend)).instance_id

    await backend.delete_snapshot(instance_id)

    with raises(InstanceNotFoundError, "results go with the instance"):
        await backend.load_task_result(instance_id, "charge")

    for kind in SignalKind:
        expect_equal(
            await backend.get_signal(instance_id, kind), None, "signals go with the instance"
        )

    expect_equal(
        await backend.consume_event(instance_id, "shipped"), None, "events go with the instance"
    )
    expect_equal(
        await backend.find_available_tasks(worker_id="worker"), [], "its tasks are not offered"
    )


@check("SNAPSHOT-404", "A claim on a deleted instance is not found, and no write passes with it.")
async def claims_go_with_the_instance(kit: Kit) -> None:
    backend = await kit.open()
    snapshot, mine = await _laden(kit, backend)
    instance_id = snapshot.instance_id
    await backend.delete_snapshot(instance_id)

    with raises(ClaimNotFoundError, "a claim on a deleted instance cannot be released"):
        await backend.release_task_claim(mine)

    with raises(ClaimNotFoundError, "a claim on a deleted instance cannot be extended"):
        await backend.extend_task_claim(mine, ttl=kit.long)

    with raises(ClaimLostError, "a result with a claim on a deleted instance is refused"):
        await backend.save_task_result(instance_id, "charge", b"x", claim=mine)

    with raises(ClaimLostError, "an update with a claim on a deleted instance is refused"):
        await backend.update_snapshot(
            instance_id, lambda found: found.count_iteration("loop"), claim=mine
        )

    with raises(ClaimLostError, "a commit to a deleted instance is refused"):
        await backend.commit_task(mine, snapshot.complete_task("charge", b"x", next=None))

    with raises(ClaimLostError, "a commit of a change to a deleted instance is refused"):
        await backend.commit_task(
            mine, lambda found: found.complete_task("charge", b"x", next=None), base=snapshot
        )

    await expect_missing(backend, instance_id, "no write with a claim brings an instance back")


@check("SNAPSHOT-405", "A new instance of a deleted id inherits nothing.")
async def nothing_is_inherited(kit: Kit) -> None:
    backend = await kit.open()
    laden = await _laden(kit, backend)
    instance_id = laden.instance_id
    await backend.delete_snapshot(instance_id)

    created = await backend.save_snapshot(
        WorkflowSnapshot.start(instance_id, "v2", start_at="charge")
    )

    expect_equal(created.version, 1, "a new instance begins with version 1")
    loaded = await backend.load_snapshot(instance_id)
    expect_equal(loaded, created, "a new instance is what was saved")
    expect_equal(dict(loaded.results), {}, "it has no results of the deleted one")
    expect_equal(
        await backend.load_task_result(instance_id, "charge"), None, "not even a single one"
    )
    expect_equal([task.done for task in loaded.ready_tasks()], [False], "and no done marks")

    for kind in SignalKind:
        expect_equal(
            await backend.get_signal(instance_id, kind), None, "no signal reaches the next run"
        )

    expect_equal(
        await backend.consume_event(instance_id, "shipped"), None, "no event reaches the next run"
    )
    again = await claim(backend, instance_id)
    expect_equal(again.pending_signal, None, "a new claim sees no signal of the deleted run")


@check("SNAPSHOT-406", "Of concurrent deletions exactly one takes effect.")
async def one_deletion_wins(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    instance_id = (await start(kit, first)).instance_id

    outcomes = await kit.together(
        *(partial(store.delete_snapshot, instance_id) for store in [first, second] * 3)
    )

    expect_equal(len(succeeded(outcomes)), 1, "exactly one concurrent deletion takes effect")
    refused(outcomes, InstanceNotFoundError)


@check("SNAPSHOT-407", "A deletion and a concurrent write leave the instance deleted.")
async def deletion_beats_writers(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()

    for _ in range(10):
        snapshot, mine = await held(kit, first)
        instance_id = snapshot.instance_id

        outcomes = await kit.together(
            partial(first.delete_snapshot, instance_id),
            partial(second.save_snapshot, snapshot.move_to(AtTask("ship"))),
            partial(second.save_task_result, mine.instance_id, "charge", b"x", claim=mine),
            partial(
                second.update_snapshot,
                mine.instance_id,
                lambda found: found.count_iteration("loop"),
            ),
        )

        expect_equal(outcomes[0], None, "a deletion is not refused because of other writers")
        await expect_missing(first, instance_id, "no concurrent write brings an instance back")


@check("SNAPSHOT-408", "Deleting one instance touches no other.")
async def others_stay(kit: Kit) -> None:
    backend = await kit.open()
    doomed, kept = await _laden(kit, backend), await _laden(kit, backend)
    before = await backend.load_snapshot(kept.instance_id)

    await backend.delete_snapshot(doomed.instance_id)

    expect_equal(
        await backend.load_snapshot(kept.instance_id), before, "another instance keeps its snapshot"
    )

    for kind in SignalKind:
        request = await backend.get_signal(kept.instance_id, kind)
        expect_equal(request and request.reason, "old", "and its signals")

    await backend.extend_task_claim(kept.claim, ttl=kit.long)
    expect_equal(await backend.consume_event(kept.instance_id, "shipped"), b"old", "and its events")
