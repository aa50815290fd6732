"""Bad paths, other people's files, other releases' schemas: each says what to do."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest
from integration.sqlite.support import raw

from sayiir_persist import ConfigurationError, SchemaVersionError, connect
from sayiir_persist.adapters.sqlite import SqliteBackend, connection, from_url, schema


def open_once(path: Path, **options: Any) -> tuple[str, ...]:
    """Enter and leave; the caveats that were told."""

    async def main() -> tuple[str, ...]:
        async with SqliteBackend.connect(str(path), **options) as backend:
            assert await backend.list_snapshots() == []
            return backend.info.caveats

    return anyio.run(main)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "sqlite:///runs.db"),
        (":memory:", "memory://"),
        ("file:runs.db?mode=memory", "memory://"),
        ("a\0b", "sqlite:///runs.db"),
    ],
)
def test_what_is_no_path_is_refused_before_anything_is_opened(path: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        SqliteBackend.connect(path)


@pytest.mark.parametrize("synchronous", ["OFF", "EXTRA", "full", "", 1])
def test_only_full_and_normal_are_offered(synchronous: Any, path: Path) -> None:
    with pytest.raises(ConfigurationError, match="FULL or NORMAL"):
        SqliteBackend.connect(str(path), synchronous=synchronous)


@pytest.mark.parametrize(
    "url", ["sqlite://runs.db", "sqlite:runs.db", "sqlite:///", "sqlite:///a?b=c"]
)
def test_a_url_that_names_no_file_says_what_to_write(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///|synchronous="):
        connect(url)


def test_three_slashes_are_relative_and_four_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        for url in ("sqlite:///a%20b.db", f"sqlite:///{tmp_path}/c.db"):
            async with from_url(url, namespace="n") as backend:
                assert backend.info.namespace == "n"

    anyio.run(main)

    assert {each.name for each in tmp_path.iterdir()} == {"a b.db", "c.db"}


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a directory: give the path of a file"):
        open_once(tmp_path)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="create it first"):
        open_once(tmp_path / "missing" / "runs.db")

    assert list(tmp_path.iterdir()) == []


def test_a_device_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a regular file"):
        open_once(Path("/dev/null"))


def test_a_file_that_cannot_be_written_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)

    with pytest.raises(ConfigurationError, match="needs write access"):
        open_once(path)


def test_what_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("some text that is long enough to be looked at as a header of a database file")
    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match="not a SQLite database"):
        open_once(path)

    assert path.read_bytes() == before


@pytest.mark.parametrize("statement", ["CREATE TABLE t (a)", "PRAGMA application_id = 7"])
def test_the_file_of_another_application_is_refused_and_left_alone(
    path: Path, statement: str
) -> None:
    with raw(path) as other:
        other.execute(statement)

    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match="another application"):
        open_once(path)

    assert path.read_bytes() == before


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.touch()

    open_once(path)

    with raw(path) as found:
        assert found.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
        assert found.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
        assert found.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_without_migrating_nothing_is_made(path: Path) -> None:
    with pytest.raises(SchemaVersionError, match="migrate=True"):
        open_once(path, migrate=False)

    assert not path.exists()

    path.touch()

    with pytest.raises(SchemaVersionError, match="lacks 0001_instances"):
        open_once(path, migrate=False)

    assert path.read_bytes() == b""


def test_without_migrating_a_schema_that_is_there_is_used(path: Path) -> None:
    open_once(path)
    before = path.read_bytes()

    open_once(path, migrate=False)

    assert path.read_bytes() == before


@pytest.mark.parametrize("migrate", [True, False])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("INSERT INTO migrations VALUES (99, '0099_later.sql', '')", "upgrade sayiir-persist"),
        ("UPDATE migrations SET checksum = 'edited'", "is not the one of this release"),
        ("UPDATE migrations SET version = 0", "is not the one of this release"),
    ],
)
def test_a_schema_that_is_not_ours_is_refused(
    path: Path, change: str, says: str, migrate: bool
) -> None:
    open_once(path)

    with raw(path) as other:
        other.execute(change)

    with pytest.raises(SchemaVersionError, match=says):
        open_once(path, migrate=migrate)


def test_migrations_are_numbered_without_a_gap() -> None:
    versions = [migration.version for migration in schema.MIGRATIONS]

    assert versions == list(range(1, len(versions) + 1))


@pytest.mark.parametrize(
    ("version", "affected"),
    [((3, 40, 1), True), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 53, 0), False)],
)
def test_libraries_with_the_wal_reset_bug_are_reported_once(
    path: Path,
    version: tuple[int, int, int],
    affected: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setattr(connection, "_warned", False)

    with caplog.at_level(logging.WARNING):
        seen = [any("WAL-reset" in caveat for caveat in open_once(path)) for _ in range(2)]

    warnings = [record for record in caplog.records if "WAL-reset" in record.message]
    assert seen == [affected, affected]
    assert len(warnings) == affected


def test_normal_is_a_caveat(path: Path) -> None:
    assert any("NORMAL" in caveat for caveat in open_once(path, synchronous="NORMAL"))
    assert not any("NORMAL" in caveat for caveat in open_once(path))
