"""Several processes on one file, some of which die."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest
from integration.sqlite.children import SHARED
from integration.sqlite.support import assert_sound, child, finish, raw, start_child

from sayiir_persist import AtDelay, AtTask, Status, WakeHint
from sayiir_persist.adapters.sqlite import SqliteBackend

if TYPE_CHECKING:
    from pathlib import Path


def test_eight_processes_lose_no_update_and_see_no_busy_database(path: Path) -> None:
    async def prepare() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            for shared in SHARED:
                await backend.start_instance(
                    shared, "v1", start_at=AtDelay("nap", wake_after=timedelta(9))
                )

    async def look() -> tuple[int, int, int, set[Status]]:
        async with SqliteBackend.connect(str(path)) as backend:
            snapshots = [await backend.load_snapshot(shared) for shared in SHARED]
            counted = sum(each.loop_iterations["n"] for each in snapshots if each.loop_iterations)
            versions = sum(each.version - 1 for each in snapshots)
            infos = await backend.list_snapshots(limit=10_000)
            return counted, versions, len(infos) - len(SHARED), {info.status for info in infos}

    anyio.run(prepare)
    processes, writes = 8, 500

    with ExitStack() as stack:
        children = [
            stack.enter_context(child("mix", path, f"p{number}", writes))
            for number in range(processes)
        ]

        for each in children:
            finish(each)

    counted, versions, started, statuses = anyio.run(look)

    assert counted == versions == started == processes * writes // 4
    assert statuses == {Status.IN_PROGRESS, Status.COMPLETED}
    assert_sound(path)

    with raw(path) as connection:
        events = connection.execute("SELECT COUNT(*), COUNT(DISTINCT instance_id) FROM events")
        assert events.fetchall() == [(processes * writes // 4, 1)]


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_what_was_acknowledged_survives_a_kill(path: Path, synchronous: str) -> None:
    acknowledged: dict[str, int] = {}

    with child("write_until_killed", path, synchronous) as writer:
        assert writer.stdout is not None

        for number, line in enumerate(writer.stdout):
            if number == 300:
                writer.kill()

            if line.endswith("\n"):  # or the kill came in the middle of it
                instance_id, version = line.split()
                acknowledged[instance_id] = int(version)

        assert writer.wait() < 0

    async def look() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            for instance_id, version in acknowledged.items():
                snapshot = await backend.load_snapshot(instance_id)
                assert snapshot.version >= version
                assert len(snapshot.results) == snapshot.version - 1

    assert sum(acknowledged.values()) >= 300
    anyio.run(look)
    assert_sound(path)


def test_readers_do_not_wait_for_another_process_that_writes(path: Path, loop: str) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            await backend.start_instance("run", "v1", start_at="a")

            with child("hold_write_lock", path) as writer:
                assert writer.stdout is not None
                assert await anyio.to_thread.run_sync(writer.stdout.readline) == "held\n"

                snapshot = await backend.load_snapshot("run")
                [task] = await backend.find_available_tasks(worker_id="w")
                [info] = await backend.list_snapshots()

                await anyio.to_thread.run_sync(finish, writer, "\n")

            assert snapshot.version == task.snapshot.version == info.version == 1

    anyio.run(main, backend=loop)


def test_a_start_in_another_process_wakes_who_waits(path: Path, loop: str) -> None:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)) as backend:
            with child("start_on_request", path) as other:
                assert other.stdin is not None
                assert other.stdout is not None
                assert await anyio.to_thread.run_sync(other.stdout.readline) == "open\n"
                assert await backend.wait_for_wakeup(timedelta(milliseconds=120)) is None

                other.stdin.write("run\n")
                other.stdin.flush()

                assert await backend.wait_for_wakeup(timedelta(seconds=30)) == WakeHint()
                assert (await backend.load_snapshot("run")).tags == ("other",)
                assert await backend.wait_for_wakeup(timedelta(milliseconds=120)) is None

    anyio.run(main, backend=loop)


def test_writes_of_this_process_are_no_news_from_another(path: Path) -> None:
    async def main() -> None:
        async with (
            SqliteBackend.connect(str(path)) as backend,
            SqliteBackend.connect(str(path)) as other,
        ):
            await other.start_instance("run", "v1", start_at="a")
            assert await backend.wait_for_wakeup(timedelta(seconds=5)) == WakeHint(
                instance_id="run", task_id="a", definition_hash="v1", tags=()
            )

            nap = AtDelay("nap", wake_after=timedelta(days=1), next=AtTask("a"))
            await other.start_instance("parked", "v1", start_at=nap)
            await backend.start_instance("parked too", "v1", start_at=nap)

            assert await backend.wait_for_wakeup(timedelta(milliseconds=200)) is None

    anyio.run(main)


def test_24_processes_may_be_the_first_at_once(path: Path) -> None:
    children = [start_child("open_once", path) for _ in range(24)]
    said = {finish(each) for each in children}

    assert len(said) == 1
    assert_sound(path)

    with raw(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM migrations").fetchone() == (1,)


def test_a_start_repairs_what_a_killed_migration_left(tmp_path: Path) -> None:
    reference = tmp_path / "reference.db"
    finish(start_child("open_once", reference))
    expected = dump(reference)
    killed = 0

    for statements in range(0, 40, 3):
        path = tmp_path / f"{statements}.db"

        with start_child("die_while_migrating", path, statements) as victim:
            killed += victim.wait() < 0
            victim.communicate()

        finish(start_child("open_once", path))
        assert dump(path) == expected
        assert_sound(path)

    assert killed > 5


def dump(path: Path) -> list[tuple[str, ...]]:
    with raw(path) as connection:
        return connection.execute(
            "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"
        ).fetchall()
