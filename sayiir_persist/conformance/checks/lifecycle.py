"""LIFECYCLE: opening, closing, and what a backend says about itself."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from sayiir_persist import (
    BackendClosedError,
    BackendError,
    InvalidArgumentError,
    PersistentBackend,
    WakeHint,
)
from sayiir_persist.conformance.kit import Kit, expect, expect_equal, raises, succeeded
from sayiir_persist.conformance.operations import INSTANCE_OPERATIONS, STORE_OPERATIONS
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import start


class _OwnError(Exception):
    pass


async def _expect_closed(backend: PersistentBackend, when: str) -> None:
    for name, operation in {**INSTANCE_OPERATIONS, **STORE_OPERATIONS}.items():
        with raises(BackendClosedError, f"{name} {when} is refused"):
            await operation(backend, "run")


@check("LIFECYCLE-001", "Before it is entered a backend refuses every operation.")
async def before_entering(kit: Kit) -> None:
    await _expect_closed(kit.backend(), "before `async with`")


@check("LIFECYCLE-002", "Once it is closed a backend refuses every operation.")
async def after_closing(kit: Kit) -> None:
    async with kit.backend() as left:
        await left.now()

    await _expect_closed(left, "after the end of `async with`")

    closed = await kit.open()
    await closed.aclose()
    await _expect_closed(closed, "after aclose")


@check("LIFECYCLE-003", "aclose is idempotent: twice, at the same time, or on what was never open.")
async def closes_twice(kit: Kit) -> None:
    backend = await kit.open()
    await backend.aclose()
    await backend.aclose()

    never_open = kit.backend()
    await never_open.aclose()
    await never_open.aclose()

    backend = await kit.open()

    for outcome in await kit.together(backend.aclose, backend.aclose, backend.aclose):
        expect_equal(outcome, None, "backends may be closed by several tasks at the same time")


@check("LIFECYCLE-004", "What was stored is there for a backend that is opened later.")
async def outlives_backends(kit: Kit) -> None:
    async with kit.backend() as earlier:
        snapshot = await start(kit, earlier)
        await earlier.send_event(snapshot.instance_id, "paid", b"1")

    later = await kit.open()

    expect_equal(
        await later.load_snapshot(snapshot.instance_id), snapshot, "a snapshot outlives its backend"
    )
    expect_equal(
        await later.consume_event(snapshot.instance_id, "paid"), b"1", "and so does an event"
    )


@check("LIFECYCLE-005", "Closing one backend object leaves the others open, in any order.")
async def closes_alone(kit: Kit) -> None:
    first, second, third = await kit.open(), await kit.open(), await kit.open()
    snapshot = await start(kit, first)

    await first.aclose()
    expect_equal(
        await second.load_snapshot(snapshot.instance_id), snapshot, "another object stays open"
    )
    await second.aclose()
    expect_equal(
        await third.load_snapshot(snapshot.instance_id), snapshot, "whatever the order of closing"
    )


@check("LIFECYCLE-006", "What one backend object wrote, another reads at once.")
async def reads_what_others_wrote(kit: Kit) -> None:
    backends = [await kit.open() for _ in range(3)]
    snapshot = await start(kit, backends[0])

    for number in range(9):
        writer, reader = backends[number % 3], backends[(number + 1) % 3]
        await writer.update_snapshot(
            snapshot.instance_id, lambda found: found.count_iteration("loop")
        )
        loaded = await reader.load_snapshot(snapshot.instance_id)
        expect_equal(
            loaded.loop_iterations, {"loop": number + 1}, "a finished write is seen by every reader"
        )


@check("LIFECYCLE-007", "`info` says what the backend is: name, namespace, codec, limits.")
async def info(kit: Kit) -> None:
    backend = await kit.open()
    told = backend.info
    expect(told.name, "a backend has a name")
    expect_equal(told.namespace, kit.namespace, "info tells the namespace")
    expect_equal(told.codec.lower(), "json", "by default bodies are written as JSON")
    expect(told.limits.max_payload > 0, "info tells how large a payload may be")
    expect(told.limits.max_queued_events > 0, "info tells how many events may be queued")

    told = (await kit.open(max_payload=4096, max_queued_events=7)).info
    expect_equal(
        (told.limits.max_payload, told.limits.max_queued_events),
        (4096, 7),
        "info tells the limits that were set",
    )


@check("LIFECYCLE-008", "now is the store's time: aware, in UTC, going on, the same for everybody.")
async def clock(kit: Kit) -> None:
    first, second = await kit.open(), await kit.open()
    earlier = await first.now()
    expect_equal(earlier.utcoffset(), timedelta(0), "now is an aware instant in UTC")
    between = await second.now()
    later = await first.now()
    expect(earlier <= between <= later, "all backend objects have one clock, which never goes back")

    await kit.elapse(kit.short)
    now = await second.now()
    expect(now - later >= kit.short, "time passes on that clock")
    snapshot = await start(kit, first)
    expect(
        snapshot.created_at is not None and now <= snapshot.created_at <= await second.now(),
        "every stamp is taken from it",
    )


@check(
    "LIFECYCLE-009", "An error in the block leaves `async with` as it is, and closes the backend."
)
async def error_in_the_block(kit: Kit) -> None:
    backend = kit.backend()

    with raises(_OwnError, "an error in the block is raised as it is, not wrapped"):
        async with backend:
            await start(kit, backend)
            raise _OwnError

    await _expect_closed(backend, "after an error in the block")


@check("LIFECYCLE-010", "aclose during operations comes to its end, and so do they.")
async def closes_while_in_use(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    snapshots = [await start(kit, other) for _ in range(20)]

    async def close() -> None:
        with anyio.fail_after(10):
            await backend.aclose()

    outcomes = await kit.together(
        *(
            partial(
                backend.update_snapshot,
                snapshot.instance_id,
                lambda found: found.count_iteration("loop"),
            )
            for snapshot in snapshots[:10]
        ),
        close,
        *(
            partial(
                backend.update_snapshot,
                snapshot.instance_id,
                lambda found: found.count_iteration("loop"),
            )
            for snapshot in snapshots[10:]
        ),
    )

    expect_equal(outcomes[10], None, "aclose comes to its end while operations run")

    for outcome, snapshot in zip(outcomes[:10] + outcomes[11:], snapshots, strict=True):
        loaded = await other.load_snapshot(snapshot.instance_id)

        if isinstance(outcome, Exception):
            expect(
                isinstance(outcome, BackendError),
                f"an operation that is cut off ends in a BackendError, not {outcome!r}",
            )
            expect(loaded.version in (1, 2), "and its write is whole or absent")
        else:
            expect_equal(loaded.version, 2, "an operation that returned has written")

    await _expect_closed(backend, "after aclose")


@check("LIFECYCLE-011", "Operations on many instances at the same time all come to their end.")
async def many_at_once(kit: Kit) -> None:
    backend = await kit.open()

    outcomes = await kit.together(
        *(
            partial(
                backend.start_instance,
                f"run-{number}",
                "v1",
                start_at="charge",
                input=b"%d" % number,
            )
            for number in range(64)
        )
    )

    expect_equal(
        [outcome.snapshot.input for outcome in succeeded(outcomes)],
        [b"%d" % number for number in range(64)],
        "every caller gets its own answer",
    )


@check("LIFECYCLE-012", "One bad call among many concurrent ones fails alone.")
async def fails_alone(kit: Kit) -> None:
    backend = await kit.open()
    snapshots = [await start(kit, backend) for _ in range(16)]

    async def write(number: int) -> int:
        instance_id = "nobody" if number % 4 == 0 else snapshots[number].instance_id
        return await backend.save_task_result(instance_id, "step", b"%d" % number)

    outcomes = await kit.together(*(partial(write, number) for number in range(16)))

    for number, outcome in enumerate(outcomes):
        if number % 4 == 0:
            expect(isinstance(outcome, LookupError), f"a bad call gets its error: {outcome!r}")
        else:
            expect_equal(outcome, 2, "a good call is not touched by a bad neighbour")
            found = await backend.load_task_result(snapshots[number].instance_id, "step")
            expect_equal(found, b"%d" % number, "and is carried out")


@check(
    "LIFECYCLE-013", "Options outside their limits are refused when the backend is made or opened."
)
async def invalid_options(kit: Kit) -> None:
    options: tuple[dict[str, Any], ...] = (
        {"aging_interval": timedelta(milliseconds=999)},
        {"aging_interval": timedelta(0)},
        {"max_payload": 0},
        {"max_payload": -1},
        {"max_queued_events": -1},
        {"operation_timeout": timedelta(seconds=-1)},
    )

    for option in options:
        with raises(InvalidArgumentError, f"the option {option} is refused"):
            await kit.open(**option)


@check("LIFECYCLE-014", "Closing ends a wait for a hint with BackendClosedError.")
async def closing_ends_waits(kit: Kit) -> None:
    backend = await kit.open()
    source = kit.wakeups(backend)

    async def wait() -> WakeHint | None:
        return await source.wait_for_wakeup(timedelta(seconds=30))

    async def close() -> None:
        for _ in range(20):  # by then the other one waits
            await checkpoint()

        await backend.aclose()

    waited, closed = await kit.together(wait, close)

    expect_equal(closed, None, "a backend can be closed while somebody waits")
    expect(isinstance(waited, BackendClosedError), f"which ends the wait, not with {waited!r}")

    with raises(BackendClosedError, "a closed backend waits for nothing"):
        await source.wait_for_wakeup(timedelta(seconds=30))


@check("LIFECYCLE-015", "A wait for a hint that does not come ends with None after its time.")
async def waits_end(kit: Kit) -> None:
    backend = await kit.open()
    source = kit.wakeups(backend)

    with anyio.fail_after(10):
        expect_equal(
            await source.wait_for_wakeup(timedelta(milliseconds=20)),
            None,
            "a wait without a hint returns None",
        )
        expect_equal(
            await source.wait_for_wakeup(timedelta(0)), None, "so does one that takes no time"
        )


@check("LIFECYCLE-016", "A backend may be entered by one task, used by others, closed by another.")
async def belongs_to_no_task(kit: Kit) -> None:
    backend = kit.backend()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.__aenter__)

    snapshot = await start(kit, backend)
    loaded = await kit.together(*[partial(backend.load_snapshot, snapshot.instance_id)] * 8)
    expect_equal(loaded, [snapshot] * 8, "a backend serves every task")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.aclose)

    await _expect_closed(backend, "after another task has closed it")
