"""SQLite, and what the same work costs in raw `sqlite3` statements, on one connection."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from benchmarks.harness import FLOOR, Floor, Target
from benchmarks.stores.common import FLAT
from benchmarks.workloads import ACQUIRED_AT_ONCE, COMMIT, ONE_AT_A_TIME, OUTPUT
from sayiir_persist import connect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping

    from benchmarks.harness import Scale, Stopwatch
    from sayiir_persist import PersistentBackend

# The floor has the shape of the adapter's schema: a row for each instance, found by its id; results
# beside it; an index of what is ready, in the order of dispatch. Nothing else is indexed.
SCHEMA: Final = """
CREATE TABLE instances (
    key INTEGER PRIMARY KEY,
    instance_id TEXT NOT NULL,
    status TEXT NOT NULL,
    version INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX instances_by_id ON instances (instance_id);
CREATE TABLE results (
    instance INTEGER NOT NULL,
    node_id TEXT NOT NULL,
    output BLOB NOT NULL,
    PRIMARY KEY (instance, node_id)
) WITHOUT ROWID;
CREATE TABLE ready (
    lane INTEGER NOT NULL,
    available_at INTEGER NOT NULL,
    instance_id TEXT NOT NULL,
    node_id TEXT NOT NULL,
    PRIMARY KEY (lane, available_at, instance_id, node_id)
) WITHOUT ROWID;
"""
INSERT_INSTANCE: Final = "INSERT INTO instances VALUES (?, ?, 'in_progress', 1, 1, ?)"
UPDATE_INSTANCE: Final = """
UPDATE instances SET version = version + 1, status = ?, updated_at = ?, body = ?
WHERE instance_id = ? AND version = ?
"""
INSERT_RESULT: Final = "INSERT INTO results VALUES (?, ?, ?)"
INSERT_READY: Final = "INSERT INTO ready VALUES (3, ?, ?, ?)"
MOVE_READY: Final = """
UPDATE ready SET available_at = ?, node_id = ?
WHERE lane = 3 AND available_at = ? AND instance_id = ? AND node_id = ?
"""
DELETE_READY: Final = """
DELETE FROM ready WHERE lane = 3 AND available_at = ? AND instance_id = ? AND node_id = ?
"""
DUE: Final = """
SELECT available_at, instance_id, node_id FROM ready
WHERE lane = 3 AND available_at <= ? ORDER BY available_at, instance_id, node_id LIMIT ?
"""
SELECT_INSTANCE: Final = "SELECT key, status, version, body FROM instances WHERE instance_id = ?"
SELECT_RESULTS: Final = "SELECT node_id, output FROM results WHERE instance = ?"

FLUSH: Final = "one page flushed"
PAGE: Final = b"p" * 4096
BODY_BEFORE: Final = b"b" * 300
BODY_AFTER: Final = b"a" * 300


@contextmanager
def _raw(instances: int, *, available_at: int) -> Generator[sqlite3.Connection]:
    """A new file with instances at one task each."""
    with (
        TemporaryDirectory() as directory,
        closing(sqlite3.connect(Path(directory, "floor.db"), isolation_level=None)) as connection,
    ):
        assert connection.execute("PRAGMA journal_mode = WAL").fetchall() == [("wal",)]
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(SCHEMA)
        connection.execute("BEGIN IMMEDIATE")

        for key in range(instances):
            connection.execute(INSERT_INSTANCE, (key, f"run-{key}", BODY_BEFORE))
            connection.execute(INSERT_READY, (available_at, f"run-{key}", "t9"))

        connection.execute("COMMIT")
        yield connection


def _commit_each(count: int, watch: Stopwatch) -> int:
    """What any durable checkpoint needs: one transaction for each."""
    with _raw(count, available_at=1) as connection:
        execute = connection.execute

        with watch:
            for key in range(count):
                instance_id = f"run-{key}"
                execute("BEGIN IMMEDIATE")
                updated = execute(
                    UPDATE_INSTANCE, ("in_progress", key, BODY_AFTER, instance_id, 1)
                ).rowcount
                assert updated == 1
                execute(INSERT_RESULT, (key, "t9", OUTPUT))
                execute(MOVE_READY, (2, "t10", 1, instance_id, "t9"))
                execute("COMMIT")

    return count


async def _flushes(scale: Scale, watch: Stopwatch) -> int:
    """What the disk takes for one page, without any database: it decides nearly everything."""
    with TemporaryFile(buffering=0) as file, watch:
        for _ in range(scale.flushes):
            file.write(PAGE)
            os.fsync(file.fileno())

    return scale.flushes


async def _commits(scale: Scale, watch: Stopwatch) -> int:
    return _commit_each(scale.commits, watch)


async def _group(scale: Scale, watch: Stopwatch) -> int:
    return _commit_each(scale.committers * scale.steps_per_committer, watch)


async def _workflows(scale: Scale, watch: Stopwatch) -> int:
    return _commit_each(scale.workflows * scale.steps_per_workflow, watch)


async def _loads(scale: Scale, watch: Stopwatch) -> int:
    """Read the row and its results."""
    with _raw(1, available_at=1) as connection:
        rows = [(0, f"n{number}", OUTPUT) for number in range(scale.results)]
        connection.execute("BEGIN")
        connection.executemany(INSERT_RESULT, rows)
        connection.execute("COMMIT")

        with watch:
            for _ in range(scale.loads):
                connection.execute("BEGIN")
                [row] = connection.execute(SELECT_INSTANCE, ("run-0",)).fetchall()
                results = dict(connection.execute(SELECT_RESULTS, (row[0],)).fetchall())
                connection.execute("COMMIT")
                assert len(results) == scale.results

    return scale.loads


async def _drain(scale: Scale, watch: Stopwatch) -> int:
    """Claim 50 in one transaction, end these 50 in another, until none is left."""
    with _raw(scale.instances, available_at=1) as connection:
        execute, finished = connection.execute, 0

        with watch:
            while due := _claim(connection):
                execute("BEGIN IMMEDIATE")

                for _, instance_id, node_id in due:
                    execute(UPDATE_INSTANCE, ("completed", 3, BODY_AFTER, instance_id, 2))
                    execute(INSERT_RESULT, (int(instance_id[4:]), node_id, OUTPUT))
                    execute(DELETE_READY, (1_000, instance_id, node_id))

                execute("COMMIT")
                finished += len(due)

        assert finished == scale.instances
        assert not execute("SELECT 1 FROM ready LIMIT 1").fetchall()

    return finished


def _claim(connection: sqlite3.Connection) -> list[tuple[int, str, str]]:
    connection.execute("BEGIN IMMEDIATE")
    due = connection.execute(DUE, (10, ACQUIRED_AT_ONCE)).fetchall()

    for at, instance_id, node_id in due:
        connection.execute(MOVE_READY, (1_000, node_id, at, instance_id, node_id))
        connection.execute(UPDATE_INSTANCE, ("in_progress", 2, BODY_AFTER, instance_id, 1))

    connection.execute("COMMIT")
    return due


class Sqlite:
    """`SqliteBackend` with its defaults (WAL, synchronous=FULL) on a new file each time.

    Files lie in the directory for temporary files; `TMPDIR` chooses the disk.
    """

    name = "sqlite"
    floors: Mapping[str, Mapping[str, Floor]] = MappingProxyType(
        {
            "commit": {FLUSH: _flushes, FLOOR: _commits},
            "group": {FLUSH: _flushes, FLOOR: _group},
            "W2": {FLOOR: _workflows},
            "W3": {FLOOR: _loads},
            "W4": {FLOOR: _drain},
        }
    )
    targets = (
        Target("commit", COMMIT, FLOOR, 1.5),
        Target("group", ONE_AT_A_TIME, "64 committers", 8, at_least=True),
        *FLAT,
    )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[PersistentBackend]:
        """A backend on a new file."""
        with TemporaryDirectory() as directory:
            async with connect(f"sqlite:///{Path(directory, 'bench.db')}") as backend:
                yield backend

    def describe(self) -> str:
        """The library and its settings."""
        return f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL"
