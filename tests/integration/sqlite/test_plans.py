"""What a statement costs follows what it answers, not what is stored."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from integration.sqlite.support import connect_raw, raw

from sayiir_persist import AtDelay, AtTask, WorkflowSnapshot
from sayiir_persist.adapters.sqlite import SqliteBackend
from sayiir_persist.adapters.sqlite.queries import QUERIES
from sayiir_persist.conformance import ManualClock

if TYPE_CHECKING:
    from pathlib import Path

NAMES = QUERIES.__struct_fields__
TTL = timedelta(minutes=1)


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    count = connection.execute("SELECT 1").fetchone() and statement.count("?")
    numbered = "?1" in statement
    parameters = ("x",) * (2 if numbered else count)
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
    return [row[3] for row in rows]


@pytest.fixture
def schema(path: Path) -> Path:
    async def main() -> None:
        async with SqliteBackend.connect(str(path)):
            pass

    anyio.run(main)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_no_statement_scans_or_sorts(name: str, schema: Path) -> None:
    with raw(schema) as connection:
        steps = plan(connection, getattr(QUERIES, name))

    allowed = {"SCAN names", "SCAN CONSTANT ROW", "SETUP"}  # the names that were stepped to
    scans = [step for step in steps if step.startswith("SCAN") and step not in allowed]
    assert not scans
    assert not [step for step in steps if "TEMP B-TREE" in step]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("find_instance", "instances_by_id"),
        ("list_all", "instances_by_id"),
        ("list_by_status", "instances_by_status"),
        ("list_by_definition", "instances_by_definition"),
        ("list_by_status_and_definition", "instances_by_status_and_definition"),
        ("list_idle", "instances_idle"),
        ("list_signalled", "instances_signalled"),
        ("list_to_purge", "instances_to_purge"),
        ("forget_event_ids", "event_ids_by_age"),
    ],
)
def test_each_listing_has_its_index(name: str, index: str, schema: Path) -> None:
    with raw(schema) as connection:
        [step] = plan(connection, getattr(QUERIES, name))

    assert f" {index} (" in step


def test_the_index_of_dispatch_is_entered_at_the_place_where_a_slice_begins(schema: Path) -> None:
    with raw(schema) as connection:
        [step] = plan(connection, QUERIES.due)

    assert step.startswith("SEARCH ready USING PRIMARY KEY")
    assert "(available_at,instance_id,node_id)>(?,?,?)" in step


async def fill(path: Path, ballast: int) -> None:
    """Ten ready instances beside many that a poll has no business with."""
    async with SqliteBackend.connect(str(path)) as backend:
        ended = WorkflowSnapshot.start("ended", "v1", start_at="a").complete(b"")
        await backend.save_snapshot(ended)
        far = AtDelay("nap", wake_after=timedelta(days=9), next=AtTask("a"))
        await backend.start_instance("parked", "v1", start_at=far)

        for number in range(10):
            await backend.start_instance(f"ready-{number}", "v1", start_at="a")

    with raw(path) as connection:
        connection.execute("BEGIN")

        for table in ("instances", "ready"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            changed = {"key": "key + 1000 * number", "instance_id": "instance_id || number"}
            values = ", ".join(changed.get(name, name) for name in names)
            connection.execute(
                f"""
                WITH RECURSIVE numbers (number) AS (
                    SELECT 1 WHERE ?1 > 0
                    UNION ALL SELECT number + 1 FROM numbers WHERE number < ?1
                )
                INSERT INTO {table} ({", ".join(names)})
                SELECT {values} FROM {table}, numbers WHERE instance_id IN ('ended', 'parked')
                """,  # noqa: S608
                (ballast,),
            )

        connection.execute("COMMIT")


async def steps_of_a_poll(path: Path) -> int:
    """How many steps SQLite's machine takes for a poll of each kind and a commit."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect_raw(*args, **options)
        connection.set_progress_handler(count, 1)
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)

        async with SqliteBackend.connect(str(path)) as backend:
            steps = 0
            assert len(await backend.find_available_tasks(worker_id="w", limit=5)) == 5
            [task] = await backend.acquire_tasks(worker_id="w", ttl=TTL)
            await backend.commit_task(task.claim, task.snapshot.complete_task("a", b"", next=None))
            await backend.sweep()
            assert await backend.find_stalled(idle_for=timedelta(0)) == []
            return steps


def test_a_poll_never_touches_what_has_ended_or_is_not_due(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty.db", tmp_path / "full.db"

    async def main() -> tuple[int, int]:
        await fill(empty, 0)
        await fill(full, 20_000)
        return await steps_of_a_poll(empty), await steps_of_a_poll(full)

    alone, beside_many = anyio.run(main)

    with closing(connect_raw(full)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM instances").fetchone() == (40_012,)

    assert beside_many <= alone * 1.01


def test_the_index_of_ended_claims_rests_until_a_sweep_looks(path: Path) -> None:
    clock = ManualClock()

    def purge_at() -> list[int]:
        with raw(path) as connection:
            found = connection.execute("SELECT purge_at FROM instances WHERE purge_at IS NOT NULL")
            return [micros for (micros,) in found]

    async def main() -> None:
        async with SqliteBackend.connect(str(path), clock=clock) as backend:
            await backend.start_instance("run", "v1", start_at="a")
            first = await backend.claim_task("run", "a", worker_id="w", ttl=TTL)
            assert first is not None
            bound = purge_at()
            await backend.release_task_claim(first)
            clock.advance(timedelta(minutes=30))
            assert await backend.claim_task("run", "a", worker_id="w", ttl=TTL)

            assert purge_at() == bound

            clock.advance(timedelta(minutes=32))
            assert (await backend.sweep()).purged_claims == 0
            assert purge_at() > bound

            clock.advance(timedelta(minutes=30))
            assert (await backend.sweep()).purged_claims == 1
            assert purge_at() == []

    anyio.run(main)


def test_a_checkpoint_writes_no_more_pages_at_step_1000_than_at_step_10(path: Path) -> None:
    async def main() -> list[int]:
        sizes: list[int] = []

        async with SqliteBackend.connect(str(path), synchronous="NORMAL") as backend:
            await backend.start_instance("run", "v1", start_at="t0", input=b"i" * 100_000)
            [task] = await backend.acquire_tasks(worker_id="w", ttl=TTL)
            claim, snapshot = task.claim, task.snapshot

            for number in range(1000):
                step = snapshot.complete_task(
                    f"t{number}", b"o" * 50, next=AtTask(f"t{number + 1}")
                )
                before = wal_frames(path)
                commit = await backend.commit_task(claim, step, claim_next=TTL)
                sizes.append(wal_frames(path) - before)
                assert commit.next is not None
                claim, snapshot = commit.next.claim, commit.snapshot

        return sizes

    def wal_frames(file: Path) -> int:
        # The log's index counts the valid frames; its file is reused from the start.
        header = file.with_name(file.name + "-shm").read_bytes()[:48]
        return int.from_bytes(header[16:20], "little")

    sizes = [size for size in anyio.run(main) if size > 0]

    assert sum(sizes[-100:]) / 100 <= 1.2 * sum(sizes[:20]) / 20 + 1
