"""SNAPSHOT-5xx: listings."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from sayiir_persist import SnapshotInfo, Status, WorkflowSnapshot
from sayiir_persist.conformance.kit import Kit, expect, expect_equal
from sayiir_persist.conformance.registry import check
from sayiir_persist.conformance.scenes import fresh, rich, stored

MIXED_IDS = ("Z", "a", "A", "a-1", "a1", "aa", "é", "z", "\uffee", "🚚", "_", "%", "10", "9", "~")
"""Ids that locales, UTF-16 and numeric collations order in other ways than their bytes."""


@check("SNAPSHOT-501", "A listing is ascending by the UTF-8 bytes of the ids.")
async def order_of_bytes(kit: Kit) -> None:
    backend = await kit.open()

    for instance_id in MIXED_IDS:
        await backend.start_instance(instance_id, "v1", start_at="charge")

    listed = [info.instance_id for info in await backend.list_snapshots()]

    expect_equal(listed, sorted(MIXED_IDS, key=str.encode), "ids are listed in the order of bytes")


@check("SNAPSHOT-502", "A line of a listing says what the snapshot says.")
async def lines_are_true(kit: Kit) -> None:
    backend = await kit.open()
    saved = {(snapshot := await stored(kit, backend, s)).instance_id: snapshot for s in Status}
    await kit.elapse(kit.short / 10)
    saved["zz"] = await backend.save_snapshot(rich("zz"))
    first = saved["zz"]
    await kit.elapse(kit.short / 10)
    saved["zz"] = await backend.save_snapshot(first.count_iteration("loop"))

    for info in await backend.list_snapshots():
        snapshot = saved[info.instance_id]
        expected = SnapshotInfo(
            instance_id=snapshot.instance_id,
            definition_hash=snapshot.definition_hash,
            status=snapshot.status,
            version=snapshot.version,
            created_at=snapshot.created_at or info.created_at,
            updated_at=snapshot.updated_at or info.updated_at,
            status_since=snapshot.status_since or info.status_since,
            priority=snapshot.priority,
            tags=snapshot.tags,
        )
        expect_equal(info, expected, "a listing agrees with the snapshot")

    expect_equal(len(await backend.list_snapshots()), len(saved), "every instance is listed once")


@check("SNAPSHOT-503", "`after` is exclusive, literal, and need not exist.")
async def after_is_a_bound(kit: Kit) -> None:
    backend = await kit.open()

    for instance_id in ("a", "a%", "a_", "ab", "b", "b*"):
        await backend.start_instance(instance_id, "v1", start_at="charge")

    for after, expected in {
        "a": ["a%", "a_", "ab", "b", "b*"],
        "a%": ["a_", "ab", "b", "b*"],
        "a_": ["ab", "b", "b*"],
        "aa": ["ab", "b", "b*"],
        "b*": [],
        "z": [],
        "A": ["a", "a%", "a_", "ab", "b", "b*"],
    }.items():
        listed = await backend.list_snapshots(after=after)
        expect_equal(
            [info.instance_id for info in listed],
            expected,
            f"after={after!r} lists the ids that are strictly greater",
        )


@check("SNAPSHOT-504", "A listing holds at most `limit` lines, 100 by default, none for 0 or less.")
async def limits_are_kept(kit: Kit) -> None:
    backend = await kit.open()
    await kit.together(
        *(
            partial(backend.start_instance, f"run-{n:03}", "v1", start_at="charge")
            for n in range(101)
        )
    )

    expect_equal(len(await backend.list_snapshots()), 100, "a listing has 100 lines by default")

    for limit, expected in ((1, 1), (7, 7), (101, 101), (1000, 101), (0, 0), (-1, 0)):
        listed = await backend.list_snapshots(limit=limit)
        expect_equal(len(listed), expected, f"limit={limit} lists {expected} of 101 instances")


@check("SNAPSHOT-505", "The status filter keeps exactly the instances in that status.")
async def filter_by_status(kit: Kit) -> None:
    backend = await kit.open()
    ids = {status: (await stored(kit, backend, status)).instance_id for status in Status}

    for status, instance_id in ids.items():
        listed = await backend.list_snapshots(status=status)
        expect_equal(
            [info.instance_id for info in listed], [instance_id], f"status={status} lists those"
        )

    running = await backend.load_snapshot(ids[Status.IN_PROGRESS])
    await backend.save_snapshot(running.complete(b"done"))
    expect_equal(
        await backend.list_snapshots(status=Status.IN_PROGRESS), [], "a filter follows the status"
    )
    expect_equal(
        len(await backend.list_snapshots(status=Status.COMPLETED)), 2, "a filter finds the new one"
    )


@check("SNAPSHOT-506", "The definition filter is exact, and goes with the others.")
async def filter_by_definition(kit: Kit) -> None:
    backend = await kit.open()

    for definition_hash in ("v1", "v1%", "v10", "V1", "v_"):
        for status in (Status.IN_PROGRESS, Status.COMPLETED):
            snapshot = replace(
                fresh(kit),
                instance_id=f"{definition_hash}/{status}",
                definition_hash=definition_hash,
            )
            snapshot = await backend.save_snapshot(snapshot)

            if status.is_terminal:
                await backend.save_snapshot(snapshot.complete(b"done"))

    for definition_hash in ("v1", "v1%", "v10", "V1", "v_"):
        listed = await backend.list_snapshots(definition_hash=definition_hash)
        expect_equal(
            {info.definition_hash for info in listed}, {definition_hash}, "the filter is literal"
        )
        expect_equal(len(listed), 2, "the filter finds all of them")
        listed = await backend.list_snapshots(
            definition_hash=definition_hash, status=Status.COMPLETED, after="A", limit=5
        )
        expect_equal(
            [info.instance_id for info in listed],
            [f"{definition_hash}/completed"],
            "filters, `after` and `limit` go together",
        )

    expect_equal(await backend.list_snapshots(definition_hash="v"), [], "no prefix matches")


@check("SNAPSHOT-507", "Paging shows what is there throughout exactly once, whatever else changes.")
async def paging(kit: Kit) -> None:
    backend, other = await kit.open(), await kit.open()
    lasting = [f"run-{number:03}" for number in range(0, 90, 3)]
    doomed = [f"run-{number:03}" for number in range(1, 90, 3)]
    await kit.together(
        *(
            partial(backend.start_instance, instance_id, "v1", start_at="charge")
            for instance_id in lasting + doomed
        )
    )

    seen: list[str] = []
    after: str | None = None
    number = 0

    while page := await backend.list_snapshots(after=after, limit=7):
        expect(len(page) <= 7, "a page holds at most `limit` lines")
        seen.extend(info.instance_id for info in page)
        after = page[-1].instance_id

        for _ in range(3):
            if doomed:
                await other.delete_snapshot(doomed.pop(number % len(doomed)))

            await other.save_snapshot(
                WorkflowSnapshot.start(f"run-{89 - number:03}+", "v1", start_at="charge")
            )
            number += 1

        expect(number < 300, "a traversal comes to its end")

    expect_equal(len(seen), len(set(seen)), "no id is listed twice")
    expect_equal(seen, sorted(seen), "the pages are in order")
    expect_equal(sorted(set(seen) & set(lasting)), lasting, "what was there throughout is listed")
