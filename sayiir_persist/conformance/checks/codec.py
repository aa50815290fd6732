"""CODEC: what is stored can be read by every reader, or is refused loudly and alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sayiir_persist import (
    AtTask,
    Codec,
    CodecError,
    InstanceExistsError,
    JsonCodec,
    MsgpackCodec,
    PersistentBackend,
    SignalKind,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import claim, expect_missing, fresh, rich, start

if TYPE_CHECKING:
    from collections.abc import Mapping

CODECS: Final[Mapping[str, type[Codec]]] = {"JSON": JsonCodec, "MessagePack": MsgpackCodec}


async def _corrupted(kit: Kit, backend: PersistentBackend) -> tuple[WorkflowSnapshot, str]:
    """A sound instance, and the id of one whose stored body is damaged."""
    sound, damaged = await start(kit, backend), await start(kit, backend)
    await kit.corrupt(damaged.instance_id)
    return sound, damaged.instance_id


@check("CODEC-001", "Either codec preserves a snapshot whole.")
async def both_codecs(kit: Kit) -> None:
    for name, codec in CODECS.items():
        backend = await kit.open(codec=codec())
        saved = await backend.save_snapshot(rich(name))

        loaded = await backend.load_snapshot(name)

        expect_equal(loaded, saved, f"{name} preserves a snapshot whole")
        expect_equal(
            backend.info.codec.lower(), codec().name.lower(), "`info` names the codec that writes"
        )


@check("CODEC-002", "What one codec wrote is read by a backend that writes the other.")
async def cross_reading(kit: Kit) -> None:
    writers = {name: await kit.open(codec=codec()) for name, codec in CODECS.items()}

    for name, writer in writers.items():
        for other, reader in writers.items():
            instance_id = f"{name}-{other}"
            saved = await writer.save_snapshot(rich(instance_id))

            expect_equal(
                await reader.load_snapshot(instance_id),
                saved,
                f"what is written as {name} is read by a backend that writes {other}",
            )
            expect_equal(
                await reader.load_task_result(instance_id, "prepare"),
                saved.results["prepare"],
                "and so is a single result",
            )


@check("CODEC-003", "The codec may change while an instance runs.")
async def changing_codecs(kit: Kit) -> None:
    json, msgpack = await kit.open(codec=JsonCodec()), await kit.open(codec=MsgpackCodec())
    await json.start_instance("run", "v1", start_at="step-0", input=b"order")

    for number, backend in enumerate([msgpack, json] * 3):
        [task] = await backend.acquire_tasks(worker_id="worker", ttl=kit.long)
        expect_equal(task.task_id, f"step-{number}", "a worker of either codec goes on")
        step = task.snapshot.complete_task(
            task.task_id, b"%d" % number, next=AtTask(f"step-{number + 1}")
        )
        await backend.commit_task(task.claim, step)

    loaded = await json.load_snapshot("run")
    expect_equal(loaded.version, 7, "each step takes one version")
    expect_equal(
        dict(loaded.results),
        {f"step-{number}": b"%d" % number for number in range(6)},
        "and no result is lost",
    )


@check(
    "CODEC-004", "Listings, signals and events of one codec's writer are shared with the other's."
)
async def shared_beside_the_body(kit: Kit) -> None:
    json, msgpack = await kit.open(codec=JsonCodec()), await kit.open(codec=MsgpackCodec())
    created = await start(kit, json)
    await json.send_event(created.instance_id, "paid", b"\x00\xff")
    await json.store_signal(created.instance_id, SignalKind.PAUSE)

    expect_equal(
        await msgpack.list_snapshots(), await json.list_snapshots(), "listings know no codec"
    )
    expect_equal(
        await msgpack.consume_event(created.instance_id, "paid"), b"\x00\xff", "nor do events"
    )
    expect(
        await msgpack.get_signal(created.instance_id, SignalKind.PAUSE) is not None,
        "nor do signals",
    )


@check("CODEC-005", "Payloads are opaque bytes: nothing about them is interpreted.")
async def opaque_payloads(kit: Kit) -> None:
    for name, codec in CODECS.items():
        backend = await kit.open(codec=codec(), namespace=f"{kit.namespace}-{name}")
        payloads = [b"", b"\0", b"null", b'"x"', b"{", b"\xff\xfe", b"\xc1", bytes(range(256)) * 40]

        for payload in payloads:
            snapshot = fresh(kit, input=payload).record_result("step", payload)
            await backend.save_snapshot(snapshot)
            loaded = await backend.load_snapshot(snapshot.instance_id)
            expect_equal(loaded.input, payload, "an input comes back as it was given")
            expect_equal(loaded.results["step"], payload, "a result comes back as it was given")
            await backend.send_event(snapshot.instance_id, "paid", payload)
            expect_equal(
                await backend.consume_event(snapshot.instance_id, "paid"),
                payload,
                "so does an event",
            )
            ended = await backend.save_snapshot(loaded.complete(payload))
            expect_equal(getattr(ended.state, "output", None), payload, "so does an output")


# --- Damage ---------------------------------------------------------------------------------------


@check(
    "CODEC-011", "A body that cannot be decoded is CodecError when it is loaded, never a default."
)
async def damaged_load(kit: Kit) -> None:
    backend = await kit.open()
    sound, damaged = await _corrupted(kit, backend)

    for results in (True, False):
        with raises(CodecError, "a damaged body is a CodecError, not a default and not missing"):
            await backend.load_snapshot(damaged, results=results)

    expect_equal(
        await backend.load_snapshot(sound.instance_id), sound, "other instances load as before"
    )


@check("CODEC-012", "Whatever needs a damaged body raises CodecError, and writes nothing.")
async def damaged_writes(kit: Kit) -> None:
    backend = await kit.open()
    _, damaged = await _corrupted(kit, backend)
    [before] = [info for info in await backend.list_snapshots() if info.instance_id == damaged]

    with raises(CodecError, "an update of a damaged body is a CodecError"):
        await backend.update_snapshot(damaged, lambda found: found.count_iteration("loop"))

    with raises(InstanceExistsError, "a damaged instance is there: its id is taken"):
        await backend.start_instance(damaged, "v1", start_at="charge")

    with raises(InstanceExistsError, "also for a save of version 0"):
        await backend.save_snapshot(WorkflowSnapshot.start(damaged, "v1", start_at="charge"))

    [after] = [info for info in await backend.list_snapshots() if info.instance_id == damaged]
    expect_equal(after, before, "what could not be read is not written")


@check("CODEC-013", "Listings show damaged instances like any other.")
async def damaged_listing(kit: Kit) -> None:
    backend = await kit.open()
    sound, damaged = await _corrupted(kit, backend)

    listed = await backend.list_snapshots()

    expect_equal(
        [info.instance_id for info in listed],
        sorted([sound.instance_id, damaged]),
        "a listing needs no body to be decoded",
    )
    expect_equal({info.version for info in listed}, {1}, "and says the same of all of them")


@check("CODEC-014", "Dispatch passes damaged instances over, and goes on with the others.")
async def damaged_dispatch(kit: Kit) -> None:
    backend = await kit.open()
    first = await start(kit, backend)
    await kit.corrupt(first.instance_id)

    for _ in range(3):
        damaged = await start(kit, backend)
        await kit.corrupt(damaged.instance_id)

    await kit.elapse(kit.short / 10)
    sound = await start(kit, backend)

    found = await backend.find_available_tasks(worker_id="worker", limit=1)
    expect_equal(
        [task.instance_id for task in found],
        [sound.instance_id],
        "damaged instances take no place in what is found",
    )
    acquired = await backend.acquire_tasks(worker_id="worker", ttl=kit.long, limit=1)
    expect_equal(
        [task.instance_id for task in acquired],
        [sound.instance_id],
        "nor in what is acquired",
    )
    report = await backend.sweep()
    expect(not report.more, "a damaged instance keeps no sweep from coming to its end")


@check("CODEC-015", "A damaged instance can be deleted, and its id used again.")
async def damaged_deletion(kit: Kit) -> None:
    backend = await kit.open()
    _, damaged = await _corrupted(kit, backend)

    await backend.delete_snapshot(damaged)

    await expect_missing(backend, damaged, "a damaged instance can be deleted")
    await backend.start_instance(damaged, "v1", start_at="charge")
    await claim(backend, damaged)


@check("CODEC-016", "What stands beside a damaged body can still be read.")
async def damaged_neighbours(kit: Kit) -> None:
    backend = await kit.open()
    created = await start(kit, backend)
    await backend.save_task_result(created.instance_id, "step", b"x")
    await backend.send_event(created.instance_id, "paid", b"1")
    await kit.corrupt(created.instance_id)

    expect_equal(
        await backend.load_task_result(created.instance_id, "step"),
        b"x",
        "a single result is whole",
    )
    expect_equal(
        await backend.consume_event(created.instance_id, "paid"), b"1", "a queued event is whole"
    )
    expect_equal(
        await backend.get_signal(created.instance_id, SignalKind.PAUSE),
        None,
        "signals are looked up without the body",
    )
