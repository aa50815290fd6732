"""SNAPSHOT-7xx: limits of what a snapshot holds, exact to the byte."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from sayiir_persist import (
    AtDelay,
    AtFork,
    AtSignal,
    AtTask,
    Cancelled,
    Change,
    Completed,
    InProgress,
    InvalidArgumentError,
    Paused,
    PayloadTooLargeError,
    PersistentBackend,
    Position,
    WorkflowSnapshot,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import BAD_IDS, expect_refused, fresh, start

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PAYLOAD = 1024
"""What the checks of payloads set."""


async def _refuses(kit: Kit, spoils: Mapping[str, Change]) -> None:
    """Fail the check unless each spoilt snapshot is refused, saved or as an update."""
    backend = await kit.open()
    before = await start(kit, backend)

    for what, spoil in spoils.items():
        await expect_refused(
            backend,
            before,
            InvalidArgumentError,
            f"a save with {what} is refused",
            partial(_save, backend, spoil, before),
        )
        await expect_refused(
            backend,
            before,
            InvalidArgumentError,
            f"an update to {what} is refused",
            partial(backend.update_snapshot, before.instance_id, spoil),
        )


async def _save(
    backend: PersistentBackend, change: Change, snapshot: WorkflowSnapshot
) -> WorkflowSnapshot:
    return await backend.save_snapshot(change(snapshot))


async def _accepts(kit: Kit, snapshots: Mapping[str, Change]) -> None:
    """Fail the check unless each snapshot is stored, and loaded as it was."""
    backend = await kit.open()

    for what, change in snapshots.items():
        given = change(await start(kit, backend))

        saved = await backend.save_snapshot(given)

        expect_equal(
            await backend.load_snapshot(given.instance_id), saved, f"a save with {what} is accepted"
        )


def _at(position: Position) -> Change:
    return _with(state=InProgress(position))


def _with(**fields: Any) -> Change:
    return lambda found: replace(found, **fields)


def _recording(node_id: str) -> Change:
    return lambda found: found.record_result(node_id, b"x")


@check("SNAPSHOT-701", "Ids in a snapshot have 1 to 256 bytes of UTF-8, no U+0000, no surrogates.")
async def ids(kit: Kit) -> None:
    spoils: dict[str, Change] = {}

    for what, bad in BAD_IDS.items():
        positions: dict[str, Position] = {
            "task id": AtTask(bad),
            "delay id": AtDelay(bad, wake_after=kit.long),
            "signal id": AtSignal(bad, "paid"),
            "event name": AtSignal("wait", bad),
            "fork id": AtFork(bad, {"a": AtTask("a")}),
            "branch id": AtFork("fork", {bad: AtTask("a")}),
            "task id in a branch": AtFork("fork", {"a": AtTask(bad)}),
            "task id behind a delay": AtDelay("d", wake_after=kit.long, next=AtTask(bad)),
            "task id behind a fork": AtFork("fork", {"a": AtTask("a")}, next=AtTask(bad)),
            "tag of a task": AtTask("a", tags=("ok", bad)),
        }

        if bad:
            positions["input_from"] = AtTask("a", input_from=bad)

        spoils |= {f"{what} as {where}": _at(each) for where, each in positions.items()}
        spoils[f"{what} as definition hash"] = _with(definition_hash=bad)
        spoils[f"{what} as tag"] = _with(tags=("ok", bad))
        spoils[f"{what} as loop id"] = _with(loop_iterations={bad: 1})
        spoils[f"{what} as node of a result"] = _recording(bad)

    await _refuses(kit, spoils)


@check(
    "SNAPSHOT-702", "Ids of exactly 256 bytes are accepted everywhere; bytes count, not letters."
)
async def longest_ids(kit: Kit) -> None:
    accepted: dict[str, Change] = {}

    for longest in ("x" * 256, "é" * 128, "🚚" * 64):
        positions: dict[str, Position] = {
            "task id": AtTask(longest, input_from=longest),
            "delay id": AtDelay(longest, wake_after=kit.long, next=AtTask("a")),
            "signal id and event name": AtSignal(longest, longest),
            "fork, branch and join": AtFork(longest, {longest: AtTask("a")}, next=AtTask("b")),
            "tag of a task": AtTask("a", tags=(longest,)),
        }
        accepted |= {f"256 bytes as {where}": _at(each) for where, each in positions.items()}
        accepted["256 bytes as node of a result"] = _recording(longest)
        accepted["256 bytes as anything else"] = _with(
            definition_hash=longest,
            tags=(longest,),
            loop_iterations={longest: 1},
            timed_out=frozenset({longest}),
        )

    await _accepts(kit, accepted)


@check("SNAPSHOT-703", "Node ids are unique in the whole tree, `next`s included.")
async def unique_nodes(kit: Kit) -> None:
    twins: dict[str, Position] = {
        "two branches": AtFork("fork", {"a": AtTask("twin"), "b": AtTask("twin")}),
        "a fork and its branch": AtFork("twin", {"a": AtTask("twin")}),
        "a delay and its next": AtDelay("twin", wake_after=kit.long, next=AtTask("twin")),
        "a branch and the join": AtFork("fork", {"a": AtTask("twin")}, next=AtTask("twin")),
    }

    await _refuses(kit, {f"one id for {what}": _at(position) for what, position in twins.items()})


@check("SNAPSHOT-704", "An instance or a task has at most 64 tags.")
async def tags(kit: Kit) -> None:
    most, too_many = (tuple(f"tag-{n}" for n in range(count)) for count in (64, 65))

    await _accepts(
        kit,
        {
            "64 tags": _with(tags=most),
            "a task of 64 tags": _at(AtTask("a", tags=most)),
        },
    )
    await _refuses(
        kit,
        {
            "65 tags": _with(tags=too_many),
            "a task of 65 tags": _at(AtTask("a", tags=too_many)),
        },
    )


@check("SNAPSHOT-705", "A priority is 1 to 5.")
async def priorities(kit: Kit) -> None:
    accepted: dict[str, Change] = {}
    spoils: dict[str, Change] = {}

    for priority in (1, 5):
        accepted[f"priority {priority}"] = _with(priority=priority)
        accepted[f"a task of priority {priority}"] = _at(AtTask("a", priority=priority))

    for priority in (0, 6, -1):
        spoils[f"priority {priority}"] = _with(priority=priority)
        spoils[f"a task of priority {priority}"] = _at(AtTask("a", priority=priority))

    await _accepts(kit, accepted)
    await _refuses(kit, spoils)


@check("SNAPSHOT-706", "Trace parent, reasons and requesters have at most 4 KiB of UTF-8.")
async def texts(kit: Kit) -> None:
    exact, too_long = "é" * 2048, "é" * 2048 + "x"
    at = AtTask("charge")

    def with_text(text: str) -> dict[str, Change]:
        return {
            "trace parent": _with(trace_parent=text),
            "reason of a pause": _with(state=Paused(at, reason=text)),
            "requester of a pause": _with(state=Paused(at, requested_by=text)),
            "reason of a cancel": _with(state=Cancelled(reason=text)),
            "requester of a cancel": _with(state=Cancelled(requested_by=text)),
        }

    await _accepts(kit, {f"4,096 bytes as {k}": v for k, v in with_text(exact).items()})
    await _refuses(kit, {f"4,097 bytes as {k}": v for k, v in with_text(too_long).items()})


@check("SNAPSHOT-707", "Inputs, results and outputs hold at most `max_payload` bytes, exactly.")
async def payloads(kit: Kit) -> None:
    backend = await kit.open(max_payload=MAX_PAYLOAD)
    expect_equal(backend.info.limits.max_payload, MAX_PAYLOAD, "the option is shown in `info`")

    for size in (MAX_PAYLOAD - 1, MAX_PAYLOAD):
        payload = bytes(size)
        value = fresh(kit, input=payload).record_result("step", payload)
        saved = await backend.save_snapshot(value)
        await backend.save_task_result(value.instance_id, "other", payload)
        loaded = await backend.load_snapshot(value.instance_id)
        expect_equal(loaded.input, payload, f"an input of {size} bytes is stored")
        expect_equal(
            dict(loaded.results),
            {"step": payload, "other": payload},
            f"results of {size} bytes are stored",
        )
        ended = await backend.save_snapshot(loaded.complete(payload))
        expect_equal(ended.state, Completed(payload), f"an output of {size} bytes is stored")
        expect_equal(saved.version, 1, "none of that takes more than one version each")

    too_large = bytes(MAX_PAYLOAD + 1)
    before = await start(kit, backend)
    new = replace(fresh(kit), input=too_large)
    calls = {
        "an input": lambda: backend.save_snapshot(new),
        "a result": lambda: backend.save_snapshot(before.record_result("step", too_large)),
        "an output": lambda: backend.save_snapshot(before.complete(too_large)),
        "a single result": lambda: backend.save_task_result(
            before.instance_id, "charge", too_large
        ),
        "the result of an update": lambda: backend.update_snapshot(
            before.instance_id, lambda found: found.record_result("step", too_large)
        ),
        "an overwriting result": lambda: backend.save_snapshot(
            before.record_result("step", too_large), overwrite=True
        ),
    }

    for what, call in calls.items():
        error = await expect_refused(
            backend, before, PayloadTooLargeError, f"{what} above max_payload is refused", call
        )
        expect_equal(error.size, MAX_PAYLOAD + 1, "the error names the size")
        expect_equal(error.limit, MAX_PAYLOAD, "the error names the limit")
        expect(not error.retryable, "what is too large stays too large")


@check("SNAPSHOT-708", "A payload of another type than bytes is refused before it is stored.")
async def payload_types(kit: Kit) -> None:
    backend = await kit.open()
    before = await start(kit, backend)

    payloads: tuple[Any, ...] = ("text", bytearray(b"x"), memoryview(b"x"), 1, None)

    for payload in payloads:
        await expect_refused(
            backend,
            before,
            InvalidArgumentError,
            f"a result that is {type(payload).__name__} is refused",
            partial(backend.save_task_result, before.instance_id, "charge", payload),
        )


@check("SNAPSHOT-709", "Instants without a time zone are refused.")
async def naive_instants(kit: Kit) -> None:
    naive = datetime(2030, 1, 1)  # noqa: DTZ001  (what is refused)
    await _refuses(kit, {"a naive deadline": _with(deadline=naive)})


@check("SNAPSHOT-710", "The error of a broken limit says which one, and is a ValueError.")
async def errors_name_the_limit(kit: Kit) -> None:
    backend = await kit.open()
    before = await start(kit, backend)

    for needle, value in {
        "256": replace(before, definition_hash="x" * 257),
        "64": replace(before, tags=("a",) * 65),
        "4096": replace(before, trace_parent="x" * 4097),
        "priority": replace(before, priority=9),
    }.items():
        error = await expect_refused(
            backend,
            before,
            ValueError,
            "a broken limit is refused as a ValueError",
            partial(backend.save_snapshot, value),
        )
        expect(needle in str(error), f"the error says {needle}: {error}")
